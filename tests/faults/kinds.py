"""The faults: what happens to a running job, how it must end, and what becomes of its files."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

from legw_hpc.errors import EXIT_INPUT, EXIT_RESUME, EXIT_STALLED
from tests.faults.job import POLL_SECONDS, Hang, Job, Missed
from tests.faults.subjects import CHECKPOINT_STEPS

# Seconds that a strike waits for its moment, and for all ranks to be there (assumed).
MOMENT_SECONDS = 60.0
RANKS_SECONDS = 30.0


@dataclass(frozen=True)
class Fault:
    """One kind.

    Attributes:
        strike: on a job that trains; what it must say then, as a regular expression ("" is anything).
        ends: the exit codes that the job may have; none is any but 0.
        damage: to its files once it has ended; undone when the context ends.
        refused: what a start must say while the damage is there; "" is a start that goes on.
        told: what the start after it must say.
        moment: "" is a random step after the second checkpoint; "first" before or in the first one, which the strike waits
            for; "start" within the time that the last start took.
    """

    strike: Callable[[Job, Random], str]
    ends: tuple[int, ...] = ()
    damage: Callable[[Job, Random], Iterator[None]] | None = None
    refused: str = ""
    told: str = ""
    moment: str = ""

    @contextmanager
    def damaged(self, job: Job, random: Random) -> Iterator[None]:
        yield from self.damage(job, random) if self.damage else [None]


def _a_rank(job: Job, random: Random, rank: int | None = None) -> tuple[int, int]:
    """The number of one, any if none is given, and that of its process, once all are there."""
    until = time.monotonic() + RANKS_SECONDS
    while len(ranks := job.ranks()) < job.size:  # they begin and end one after the other
        if not job.runs():
            raise Missed
        if time.monotonic() > until:
            raise Hang(f"{len(ranks)} of {job.size} ranks after {RANKS_SECONDS:g} s")
        time.sleep(POLL_SECONDS)
    rank = random.randrange(job.size) if rank is None else rank
    return rank, ranks[rank]


def _kill(rank: int, process: int) -> str:
    """SIGKILL, of which the launcher tells the rank and the host."""
    os.kill(process, signal.SIGKILL)
    return rf"rank {rank} .{{0,40}} on node {re.escape(socket.gethostname())} exited on signal 9"


def _kill_a_rank(job: Job, random: Random) -> str:
    return _kill(*_a_rank(job, random))


def _kill_a_rank_that_starts(job: Job, random: Random) -> str:
    """Open MPI does not name a rank that has not yet called MPI_Init."""
    _kill_a_rank(job, random)
    return ""


def _kill_in_a_checkpoint(job: Job, random: Random) -> str:
    """Rank 0, while the file that it writes aside is there."""
    writer, stale = _a_rank(job, random, 0), job.begun()  # of an earlier kill
    _await(job, lambda: bool(job.begun() - stale))
    return _kill(*writer)


def _kill_in_the_first_checkpoint(job: Job, random: Random) -> str:
    if job.manifests():  # an earlier kill came after its manifest
        raise Missed
    return _kill_in_a_checkpoint(job, random)


def _kill_before_a_checkpoint(job: Job, random: Random) -> str:
    """At a step before the first one."""
    step, victim = random.randrange(1, CHECKPOINT_STEPS - 1), _a_rank(job, random)
    _await(job, lambda: job.step() >= step)
    if job.manifests():
        raise Missed
    return _kill(*victim)


def _kill_in_an_evaluation(job: Job, random: Random) -> str:
    """Stopped first, so that it can be seen that the metrics are not yet there."""
    victim = _a_rank(job, random)
    until = time.monotonic() + MOMENT_SECONDS
    while True:
        _await(job, job.evaluates)
        os.kill(victim[1], signal.SIGSTOP)
        if job.evaluates():
            return _kill(*victim)
        os.kill(victim[1], signal.SIGCONT)
        if time.monotonic() > until:
            raise Hang(f"no evaluation was met within {MOMENT_SECONDS:g} s")


def _await(job: Job, come: Callable[[], bool]) -> None:
    until = time.monotonic() + MOMENT_SECONDS
    while not come():
        if not job.runs():
            raise Missed
        if time.monotonic() > until:
            raise Hang(f"the moment for a fault has not come within {MOMENT_SECONDS:g} s:\n{job.said()[-2000:]}")


def _kill_the_launcher(job: Job, random: Random) -> str:
    os.kill(job.process.pid, signal.SIGKILL)
    return ""


def _tell_a_rank(job: Job, random: Random) -> str:
    os.kill(_a_rank(job, random)[1], random.choice([signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT]))
    return "stopped by a signal after step"


def _tell_a_rank_that_starts(job: Job, random: Random) -> str:
    """It dies of it, or stops at its first step; a traceback is of a rank that has lost its peer, or of Python's own Ctrl-C."""
    _tell_a_rank(job, random)
    return r"\A(?!.*legw-hpc: rank \d+ on \S+: (?!Horovod))(?!.*Traceback(?!.*(HorovodInternalError|KeyboardInterrupt)))"


def _stop_a_rank(job: Job, random: Random) -> str:
    rank, process = _a_rank(job, random)
    os.kill(process, signal.SIGSTOP)
    return rf"stalled for [\d.]+ s: rank {rank} on {re.escape(socket.gethostname())} does not answer\. "


def _fill_the_disk(job: Job, random: Random) -> str:
    """The job's folder is a file system of its own (campaign.py)."""
    with open(job.ballast, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            return "No space left"


def _room_again(job: Job, random: Random) -> Iterator[None]:
    job.ballast.unlink()
    yield


def _move_the_folder(job: Job, random: Random) -> str:
    job.out.rename(_aside(job))
    return "No such file or directory"


def _folder_again(job: Job, random: Random) -> Iterator[None]:
    assert not job.out.exists(), "the job has made a new folder in the place of the one that was removed"
    _aside(job).rename(job.out)
    yield


def _aside(job: Job) -> Path:
    return job.out.with_name("moved")


def _tear_the_checkpoint(job: Job, random: Random) -> Iterator[None]:
    path = job.newest()
    os.truncate(path, random.randrange(path.stat().st_size))
    yield


def _flip_in_the_checkpoint(job: Job, random: Random) -> Iterator[None]:
    _flip(job.newest(), random)
    yield


def _flip_in_a_shard(job: Job, random: Random) -> Iterator[None]:
    path = random.choice(sorted(job.data.glob("train-*.h5")))
    place = _flip(path, random)
    yield
    _flip(path, random, place)


def _flip(path: Path, random: Random, place: tuple[int, int] | None = None) -> tuple[int, int]:
    """One bit of a file; the same again is the file as it was."""
    at, bit = place or (random.randrange(path.stat().st_size), random.randrange(8))
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))
    return at, bit


KINDS = {
    "a rank killed": Fault(_kill_a_rank),
    "a rank killed as it starts or resumes": Fault(_kill_a_rank_that_starts, moment="start"),
    "a rank killed before the first checkpoint": Fault(_kill_before_a_checkpoint, moment="first"),
    "rank 0 killed in the first checkpoint": Fault(_kill_in_the_first_checkpoint, moment="first"),
    "rank 0 killed in a checkpoint": Fault(_kill_in_a_checkpoint),
    "a rank killed in an evaluation": Fault(_kill_in_an_evaluation),
    "mpirun killed": Fault(_kill_the_launcher),
    "a signal to a rank": Fault(_tell_a_rank, (EXIT_RESUME,)),
    "a signal to a rank that starts or resumes": Fault(_tell_a_rank_that_starts, moment="start"),
    "a rank stopped": Fault(_stop_a_rank, (EXIT_STALLED,)),
    "disk full": Fault(_fill_the_disk, (EXIT_INPUT,), damage=_room_again),
    "run folder removed": Fault(_move_the_folder, (EXIT_INPUT,), damage=_folder_again),
    "checkpoint torn": Fault(_kill_a_rank, damage=_tear_the_checkpoint, told="damaged"),
    "bit of a checkpoint flipped": Fault(_kill_a_rank, damage=_flip_in_the_checkpoint, told="damaged"),
    "bit of a shard flipped": Fault(_kill_a_rank, damage=_flip_in_a_shard, refused="train-0"),
}
MOUNTED = ("disk full",)  # kinds that need a file system of their own
