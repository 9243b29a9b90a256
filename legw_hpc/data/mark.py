"""A process's mark in a folder that it alone writes to: host, process and start, as JSON.

No file lock: network file systems have none, or keep one of a node that is gone.
"""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from legw_hpc.data.files import written_whole
from legw_hpc.errors import InputError

BOOT = Path("/proc/sys/kernel/random/boot_id")
# Between taking a dead process's mark and looking whose it is now: another may do the same (assumed).
SETTLE_SECONDS = 1.0


@dataclass(frozen=True)
class Owner:
    """Whose a folder is: a process by its host, table of processes (containers have their own) and number, and its job.

    `started` tells a process from a later one with its number: ticks since the host's start.  `boot` is that start:
    two machines may have one name, and the outermost table is called the same on all.  "" if it is not known, as in
    records of before it was kept.
    """

    host: str
    processes: str
    pid: int
    started: str
    job: str
    boot: str = ""

    def __str__(self) -> str:
        return f"{f'job {self.job}, ' if self.job else ''}process {self.pid} on {self.host}"

    def is_gone(self) -> bool:
        """For certain: on this host, and no such process."""
        here = myself()
        same = (self.host, self.boot, self.processes) == (here.host, here.boot, here.processes)
        return same and _started(self.pid) != self.started


def myself() -> Owner:
    """This process."""
    environment, pid = os.environ, os.getpid()
    job = environment.get("SLURM_JOB_ID") or environment.get("PBS_JOBID", "")
    return Owner(socket.gethostname(), os.readlink("/proc/self/ns/pid"), pid, _started(pid), job, _boot())


def _boot() -> str:
    """Of the running kernel, at random; "" where that is hidden."""
    try:
        return BOOT.read_text().strip()
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Ticks since the host's start; "" for a process that is gone, or has ended and is not collected yet."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def create(path: Path, me: Owner) -> bool:
    """Write a mark where there is none.

    Raises:
        InputError: it cannot be written.
    """
    try:
        with open(path, "x") as file:
            try:
                file.write(_text(me))
                file.flush()
            except OSError:  # a full disk: an empty mark would be nobody's, and stay
                path.unlink()
                raise
    except FileExistsError:
        return False
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
    return True


def take(path: Path, me: Owner) -> bool:
    """Put this process's mark in the place of one whose process is gone; of several that do so, one has it.

    Raises:
        InputError: it cannot be written.
    """
    with written_whole(path) as aside:
        aside.write_text(_text(me))
    time.sleep(SETTLE_SECONDS)
    return look(path)[0] == me


def _text(owner: Owner) -> str:
    return json.dumps(asdict(owner)) + "\n"


def look(path: Path) -> tuple[Owner | None, int]:
    """Whose mark it is, if it can be read, and its time of change, as the file system counts (0: there is none)."""
    try:
        with open(path) as file:  # a network file system asks its server when a file is opened
            at = os.fstat(file.fileno()).st_mtime_ns
            return Owner(**json.load(file)), at
    except FileNotFoundError:
        return None, 0
    except (OSError, ValueError, TypeError):  # half written, or not by us
        return None, 1
