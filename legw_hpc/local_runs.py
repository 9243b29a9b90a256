"""Processes and ranks on this machine that end with the command that started them: the cells of a grid, some side by side."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from legw_hpc import errors
from legw_hpc.data.files import make_folder
from legw_hpc.errors import InputError
from legw_hpc.grid import Cell
from legw_hpc.launcher import local_ranks
from legw_hpc.runlog import JOBS

# A run that was told to stop has so long to write its checkpoint (assumed).
STOP_SECONDS = 60.0
POLL_SECONDS = 0.1
# Of a cell's output, where a try begins.
_BEGUN = "# started: "


def train(cells: Sequence[Cell], to: Path, ranks: int, jobs: int, ended: Callable[[Cell], None]) -> None:
    """Train all cells; one that diverges is a result like others.

    Args:
        cells: TO/NAME are their run folders, TO/NAME/jobs/local.out what they print.
        to: made if need be.
        ranks: of each run.
        jobs: runs at the same time; more than one have one rank and cores of their own each.
        ended: told of each cell, in the order in which they end.

    Raises:
        InputError: cells that could not be trained, once all others are through.
        Interrupted: told to stop; the runs have written checkpoints, and the same call goes on.
    """
    slots, failed = _slots(ranks, jobs), list[str]()
    waiting, running = deque(cells), dict[subprocess.Popen[bytes], tuple[Cell, set[int]]]()
    with _interruptible():
        try:
            while waiting or running:
                while waiting and slots:
                    cell, cores = waiting.popleft(), slots.pop(0)
                    running[_start(cell, to, ranks, cores)] = cell, cores
                time.sleep(POLL_SECONDS)
                for process in [process for process in running if process.poll() is not None]:
                    cell, cores = running.pop(process)
                    slots.append(cores)
                    if why := _failure(cell, process.returncode, to):
                        print(f"legw-hpc: {why}", file=sys.stderr, flush=True)
                        failed.append(cell.name)
                    else:
                        ended(cell)
        except KeyboardInterrupt:
            raise errors.Interrupted("stopped; the same command goes on from there") from None
        finally:
            _stop(list(running))
    if failed:
        raise InputError(f"{len(failed)} of {len(cells)} cells failed, as told above; the same command tries them again")


def attended(command: Sequence[str], environment: Mapping[str, str] | None, stop: signal.Signals = signal.SIGUSR1) -> int:
    """Run a command to its end.

    Args:
        command, environment: of a launcher of ranks, say.
        stop: what it is sent where this process is told to stop; then it has time to end by itself.

    Returns:
        Its exit code; EXIT_RESUME where this process was told to stop.
    """
    with _interruptible():
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            return process.wait()
        except KeyboardInterrupt:
            return errors.EXIT_RESUME
        finally:
            _stop([process], stop)


def _slots(ranks: int, jobs: int) -> list[set[int]]:
    """The cores of each run that may be there at the same time."""
    cores = sorted(os.sched_getaffinity(0))
    if ranks < 1 or jobs < 1:
        raise InputError(f"--ranks {ranks} --jobs {jobs}: each must be at least 1")
    if jobs > 1 and ranks > 1:
        raise InputError(f"--jobs {jobs} --ranks {ranks}: runs side by side have one rank each")
    if jobs > len(cores):
        raise InputError(f"--jobs {jobs}: there are {len(cores)} cores here, and each run takes one at least")
    share = len(cores) // jobs
    return [set(cores[i * share : (i + 1) * share]) if jobs > 1 else set(cores) for i in range(jobs)]


def _start(cell: Cell, to: Path, ranks: int, cores: set[int]) -> subprocess.Popen[bytes]:
    command, environment = local_ranks(ranks) if ranks > 1 else ([], None)
    command += [sys.executable, "-m", "legw_hpc", "train", cell.recipe, *cell.overrides, cell.out(to)]
    output = _output(cell, to)
    make_folder(output.parent)
    with output.open("ab") as file:
        file.write(f"{_BEGUN}{shlex.join(command)}\n".encode())
        file.flush()
        own = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cores)  # it is inherited: code between fork and exec (preexec_fn) can hang beside torch's threads
        try:
            # A session of its own: the terminal's Ctrl-C reaches this process alone, which then tells the runs.
            return subprocess.Popen(
                command, env=environment, stdout=file, stderr=file, stdin=subprocess.DEVNULL, start_new_session=True
            )
        finally:
            os.sched_setaffinity(0, own)


def _output(cell: Cell, to: Path) -> Path:
    return to / cell.name / JOBS / "local.out"


def _failure(cell: Cell, code: int, to: Path) -> str:
    """Why a run has no result; nothing if it has one."""
    if code == errors.EXIT_RESUME:
        raise errors.Interrupted(f"cell {cell.name} was told to stop; the same command goes on from there")
    if code in (errors.EXIT_DONE, errors.EXIT_DIVERGED):
        return ""
    output = _output(cell, to)
    lines = output.read_text(errors="replace").rpartition(_BEGUN)[2].splitlines()  # not those of an earlier try
    said = [line for line in lines if line.startswith("legw-hpc: ")]
    why = said[-1].removeprefix("legw-hpc: ") if said else f"see {output}"
    return f"cell {cell.name} ended with exit code {code}: {why}"


def _stop(processes: Sequence[subprocess.Popen[bytes]], how: signal.Signals = signal.SIGUSR1) -> None:
    """Let the runs write a checkpoint; launchers hand this signal on to their ranks."""
    for process in processes:
        process.send_signal(how)
    until = time.monotonic() + STOP_SECONDS
    for process in processes:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def _interruptible() -> Iterator[None]:
    """What ends a process, or warns a job of its end, does here what Ctrl-C does, so that no run outlives this process.

    Not what it ignores, as SIGHUP under nohup.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = [number for number in (*errors.STOP_SIGNALS, signal.SIGHUP) if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, signal.default_int_handler) for number in heard}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
