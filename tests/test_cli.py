"""What the command line takes and refuses, before anything is done."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from legw_hpc.cli import parse

# command line -> its overrides
TAKEN = [
    ("train mnist-lstm", []),
    ("train mnist-lstm batch=64 lr=1", ["batch=64", "lr=1"]),
    ("plan mnist-lstm --json batch=64 lr=1", ["batch=64", "lr=1"]),
    ("plan mnist-lstm batch=64 --json lr=1", ["batch=64", "lr=1"]),
    ("plan --json mnist-lstm batch=64", ["batch=64"]),
    ("sweep mnist-lstm --ranks 2 batch=32,64 --to grid lr=1", ["batch=32,64", "lr=1"]),
    ("sweep mnist-lstm --ranks 2", []),
    ("submit --machine knl mnist-lstm --nodes 2 --set slurm.mpi=pmi2 batch=64", ["batch=64"]),
    ("submit mnist-lstm batch=64 --machine knl --nodes 2 --dry-run lr=1", ["batch=64", "lr=1"]),
]


@pytest.mark.parametrize(("line", "overrides"), TAKEN)
def test_overrides_stand_before_and_after_options(line: str, overrides: list[str]) -> None:
    options = parse(line.split())
    assert (options.recipe, options.overrides) == ("mnist-lstm", overrides)


def test_figures_stand_before_and_after_options() -> None:
    assert parse(["figures", "figure1", "--jobs", "2", "mnist"]).names == ["figure1", "mnist"]
    assert parse(["figures"]).names == []


@pytest.mark.parametrize("line", ["plan mnist-lstm --jsn batch=64", "status --yaml runs/x", "doctor batch=64"])
def test_what_a_command_does_not_know_is_refused(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse(line.split())
    assert end.value.code == 2
    assert "unrecognized arguments: " in capsys.readouterr().err


NOBODY = {
    "who reads no further": ('"$@" | true; exit ${PIPESTATUS[0]}', 0, ""),
    "closed": ('"$@" >&-', 0, ""),
    "a full disk": ('"$@" >/dev/full', 2, "legw-hpc: the output cannot be written: No space left on device\n"),
}


@pytest.mark.parametrize("name", NOBODY)
def test_output_that_nobody_can_take(name: str) -> None:
    """It is buffered until the end, as it is unless PYTHONUNBUFFERED is set."""
    shell, code, said = NOBODY[name]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    words = ["bash", "-c", shell, "bash", sys.executable, "-m", "legw_hpc", "plan", "mnist-lstm"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, said)
