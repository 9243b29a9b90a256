"""Processes on this machine that end with the command that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from legw_hpc import runlog
from legw_hpc.errors import InputError
from legw_hpc.grid import cells
from legw_hpc.local_runs import _failure, _output, _slots
from tests.conftest import Cli
from tests.test_sweep import logs


@pytest.mark.parametrize(
    ("ranks", "jobs", "said"), [(2, 2, "one rank each"), (1, 0, "at least 1"), (1, 10000, "--jobs 10000"), (0, 1, "at least 1")]
)
def test_bad_layouts(ranks: int, jobs: int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        _slots(ranks, jobs)


def test_runs_side_by_side_have_cores_of_their_own() -> None:
    cores = os.sched_getaffinity(0)
    assert _slots(4, 1) == [cores]
    for jobs in range(2, len(cores) + 1):
        slots = _slots(1, jobs)
        assert len(slots) == jobs
        assert len(set.union(*slots)) == sum(map(len, slots))


STOPPED = [
    ("exit 3", 3, ""),
    *((f"sleep 1; kill -{name} $PPID; exec sleep 60", 85, "") for name in ("TERM", "USR1", "USR2", "HUP")),
]


@pytest.mark.parametrize(("command", "code", "said"), STOPPED)
def test_a_command_that_is_attended_ends_with_this_one(command: str, code: int, said: str) -> None:
    program = "import signal, sys; signal.signal(signal.SIGHUP, signal.SIG_DFL); "  # these tests may run under nohup
    program += "from legw_hpc.local_runs import attended; sys.exit(attended(['sh', '-c', sys.argv[1]], None))"
    words = [program, command]
    done = subprocess.run([sys.executable, "-c", *words], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stderr) == (code, said)


def test_what_nohup_has_it_ignore_ends_no_sweep() -> None:
    words = ["import sys; from legw_hpc.local_runs import attended; sys.exit(attended(['sh', '-c', sys.argv[1]], None))"]
    words += ["sleep 1; kill -HUP $PPID; sleep 0.5; exit 7"]
    done = subprocess.run(["nohup", sys.executable, "-c", *words], capture_output=True, text=True, timeout=50)
    assert done.returncode == 7


def test_a_folder_with_braces_is_taken_as_it_is(grid: list[str], cli: Cli, tmp_path: Path) -> None:
    done = cli(*grid, "batch=96", "max_steps=1", "--to", "s{batch}")
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("s{batch}/*/log.jsonl"))) == 1


def test_a_cell_that_fails_tells_of_this_try(grid: list[str], tmp_path: Path) -> None:
    (cell,) = cells(grid[1], [*grid[2:], "batch=96"])
    output = _output(cell, tmp_path)
    output.parent.mkdir(parents=True)
    output.write_text("# started: legw-hpc train\nlegw-hpc: nodata: no shards\n# started: legw-hpc train\n")
    assert _failure(cell, -9, tmp_path).endswith(f"ended with exit code -9: see {output}")


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_a_sweep_that_is_told_to_stop_leaves_checkpoints_and_no_process(grid: list[str], tmp_path: Path) -> None:
    words = [sys.executable, "-m", "legw_hpc", *grid, "batch=96", "seeds=2", "epochs=4000", "--to", "s", "--jobs", "2"]
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(900):
            if sum(any(line["event"] == "eval" for line in runlog.read(path.parent)) for path in logs(tmp_path)) == 2:
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=90)
    finally:
        process.kill()
    assert (process.returncode, said) == (85, "legw-hpc: stopped; the same command goes on from there\n")
    assert len(list(tmp_path.glob("s/*/checkpoints/*.pt"))) == 2
    assert not [entry for entry in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path).encode() in _words(entry)]


def _words(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
