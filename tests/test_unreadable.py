"""Folders that may not be read are told of in one line each."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.test_status import START, STEP, write

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def ordinary(tmp_path: Path) -> Iterator[Run]:
    """`legw-hpc` beside a run that it may not look into, as one whom permissions bind."""
    write(tmp_path / "a", START, STEP)
    locked = write(tmp_path / "locked", START, STEP)
    locked.chmod(0)
    without = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    try:
        if without and not shutil.which("setpriv"):
            pytest.skip("root without setpriv: permissions bind nobody here")
        if subprocess.run([*without, "ls", str(locked)], capture_output=True).returncode == 0:
            pytest.skip("permissions have no effect here")

        def call(*words: str) -> subprocess.CompletedProcess[str]:
            command = [*without, sys.executable, "-m", "legw_hpc", *words]
            return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=100)

        yield call
    finally:
        locked.chmod(0o755)


def test_the_other_runs_are_listed(ordinary: Run) -> None:
    for words in (["a", "locked", "locked/inside"], ["."]):
        done = ordinary("status", *words)
        assert done.returncode == 2
        assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["a"]
        lines = done.stderr.splitlines()
        assert lines[0] == "legw-hpc: locked/log.jsonl: cannot be read: Permission denied"
        assert len(lines) == len(words) + (words == ["."])


@pytest.mark.parametrize(
    "words",
    [
        ["keep", "locked", "--to", "kept"],
        ["submit", "mnist-lstm", "out=locked", "--machine", "skylake", "--nodes", "1", "--dry-run"],
        ["plan", "mnist-lstm", "--noise", "locked"],
        ["curvature", "mnist-lstm", "out=locked", "--draw"],
    ],
    ids=lambda words: words[0],
)
def test_it_is_named_in_one_line(words: list[str], ordinary: Run) -> None:
    done = ordinary(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("legw-hpc: locked/")
    assert done.stderr.endswith(": cannot be read: Permission denied\n")
    assert done.stderr.count("\n") == 1
