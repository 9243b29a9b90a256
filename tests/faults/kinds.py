"""The faults: what happens to a running job, how it must end, and what becomes of its files."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

from legw_hpc.errors import EXIT_INPUT, EXIT_RESUME, EXIT_STALLED
from tests.faults.job import Hang, Job, Missed

# Seconds that a strike waits for a checkpoint to begin.
CHECKPOINT_SECONDS = 30.0


@dataclass(frozen=True)
class Fault:
    """One kind.

    Attributes:
        strike: on a job that trains.
        ends: the exit codes that the job may have; none is any but 0.
        said: what it must have said.
        damage: to its files once it has ended; undone when the context ends.
        refused: what a start must say while the damage is there; "" is a start that goes on.
        told: what the start after it must say.
    """

    strike: Callable[[Job, Random], None]
    ends: tuple[int, ...] = ()
    said: str = ""
    damage: Callable[[Job, Random], Iterator[None]] | None = None
    refused: str = ""
    told: str = ""

    @contextmanager
    def damaged(self, job: Job, random: Random) -> Iterator[None]:
        yield from self.damage(job, random) if self.damage else [None]


def _kill_a_rank(job: Job, random: Random) -> None:
    os.kill(random.choice(job.ranks()), signal.SIGKILL)


def _kill_in_a_checkpoint(job: Job, random: Random) -> None:
    """Rank 0, while the file that it writes aside is there."""
    writer, folder = job.ranks()[0], job.out / "checkpoints"
    until = time.monotonic() + CHECKPOINT_SECONDS
    while not (folder.is_dir() and any(name.endswith(".part") for name in os.listdir(folder))):
        if not job.runs():
            raise Missed
        if time.monotonic() > until:
            raise Hang(f"no checkpoint was begun within {CHECKPOINT_SECONDS:g} s")
    os.kill(writer, signal.SIGKILL)


def _kill_the_launcher(job: Job, random: Random) -> None:
    os.kill(job.process.pid, signal.SIGKILL)


def _tell_a_rank(job: Job, random: Random) -> None:
    os.kill(random.choice(job.ranks()), random.choice([signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]))


def _stop_a_rank(job: Job, random: Random) -> None:
    os.kill(random.choice(job.ranks()), signal.SIGSTOP)


def _fill_the_disk(job: Job, random: Random) -> None:
    """The job's folder is a file system of its own (campaign.py)."""
    with open(job.ballast, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            pass


def _room_again(job: Job, random: Random) -> Iterator[None]:
    job.ballast.unlink()
    yield


def _move_the_folder(job: Job, random: Random) -> None:
    job.out.rename(_aside(job))


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
    "rank 0 killed in a checkpoint": Fault(_kill_in_a_checkpoint),
    "mpirun killed": Fault(_kill_the_launcher),
    "a signal to a rank": Fault(_tell_a_rank, (EXIT_RESUME,), "stopped by a signal after step"),
    "a rank stopped": Fault(_stop_a_rank, (EXIT_STALLED,), "does not answer"),
    "disk full": Fault(_fill_the_disk, (EXIT_INPUT,), "No space left", _room_again),
    "run folder removed": Fault(_move_the_folder, (EXIT_INPUT,), "No such file or directory", _folder_again),
    "checkpoint torn": Fault(_kill_a_rank, damage=_tear_the_checkpoint, told="damaged"),
    "bit of a checkpoint flipped": Fault(_kill_a_rank, damage=_flip_in_the_checkpoint, told="damaged"),
    "bit of a shard flipped": Fault(_kill_a_rank, damage=_flip_in_a_shard, refused="train-0"),
}
MOUNTED = ("disk full",)  # kinds that need a file system of their own
