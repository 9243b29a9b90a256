"""A data folder and those who want to write into it: two at once, a dead one's, a run's."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from legw_hpc.data import mark
from legw_hpc.data.mark import Owner
from legw_hpc.data.shards import verify
from legw_hpc.data.sources import synthetic
from legw_hpc.data.writer import WRITING, writing
from legw_hpc.errors import InputError
from legw_hpc.runlog import LOG
from tests.conftest import Cli
from tests.faults.test_owner import ELSEWHERE, gone

SYNTHETIC = ("data", "synthetic", "--train", "3000", "--test", "100", "--samples-per-shard", "100", "--out", "d")


def put(folder: Path, owner: Owner) -> None:
    folder.mkdir()
    (folder / WRITING).write_text(json.dumps(dataclasses.asdict(owner)))


def test_two_that_write_at_once_do_not_meet(tmp_path: Path) -> None:
    """Other samples of the same names; one of them writes, and what it has written is whole."""
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "legw_hpc", *SYNTHETIC, "--seed", str(seed)], cwd=tmp_path, stderr=subprocess.PIPE, text=True
        )
        for seed in (0, 1)
    ]
    said = [process.communicate(timeout=60)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], said
    assert "writes into it; wait" in "".join(said) or "already holds finished shards" in "".join(said)
    assert verify(tmp_path / "d") == {"train": 3000, "test": 100}
    assert not (tmp_path / "d" / WRITING).exists()


@pytest.mark.parametrize(("number", "stays"), [(signal.SIGKILL, True), (signal.SIGTERM, False)], ids=["killed", "ended"])
def test_one_that_is_killed_does_not_keep_the_folder(number: int, stays: bool, tmp_path: Path, cli: Cli) -> None:
    words = [sys.executable, "-m", "legw_hpc", *SYNTHETIC, "--train", "1000000"]
    process = subprocess.Popen(words, cwd=tmp_path)
    try:
        while not (tmp_path / "d" / "train-00001.h5").exists():
            assert process.poll() is None
            time.sleep(0.02)
        refused = cli(*SYNTHETIC)
        process.send_signal(number)
        process.wait(60)
    finally:
        process.kill()
        process.wait()
    assert (tmp_path / "d" / WRITING).exists() == stays
    assert refused.returncode == 2
    assert f"d: process {process.pid} on {os.uname().nodename} writes into it; wait, or remove d/{WRITING}" in refused.stderr
    assert cli(*SYNTHETIC).returncode == 0
    assert verify(tmp_path / "d") == {"train": 3000, "test": 100}


# whose mark stands there -> may another write
MARKS: dict[str, tuple[Callable[[], Owner], bool]] = {
    "a process that has ended": (gone, True),
    "a process of another host": (lambda: ELSEWHERE, False),
    "this process": (mark.myself, False),
}


@pytest.mark.parametrize("name", MARKS)
def test_whose_folder_it_is(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mark, "SETTLE_SECONDS", 0.1)
    who, free = MARKS[name]
    put(tmp_path / "d", who())
    if free:
        synthetic.write(tmp_path / "d", (2,), 2, 3, 3)
    else:
        with pytest.raises(InputError, match=rf"d: .*process \d+ on .* writes into it; wait, or remove .*{WRITING}"):
            synthetic.write(tmp_path / "d", (2,), 2, 3, 3)
    assert (tmp_path / "d" / WRITING).exists() == (not free)


def test_what_this_made_and_left_empty_is_removed_again(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for folder in (tmp_path / "mine", tmp_path / "a/b/c"):
        with pytest.raises(ZeroDivisionError), writing(folder):
            raise ZeroDivisionError
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]


@pytest.mark.parametrize("words", [SYNTHETIC, ("data", "mnist", "--download", "--out", "d")], ids=["synthetic", "download"])
def test_a_runs_folder_is_refused(tmp_path: Path, cli: Cli, words: tuple[str, ...]) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / LOG).touch()
    done = cli(*words)
    assert (done.returncode, done.stderr) == (2, f"legw-hpc: d: already holds a run ({LOG}); nothing overwritten\n")
    assert [path.name for path in (tmp_path / "d").iterdir()] == [LOG]
