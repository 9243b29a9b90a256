"""Ends a run whose ranks wait for one that has stopped, and names that rank and its host.

A rank that dies is noticed by its launcher.  One that stops (a file system that hangs, a node that
swaps, SIGSTOP) is not: the others wait in a collective until the allocation is spent.  Horovod's own
check does not see a stopped process, as its coordinator waits for it too.

So each rank has a thread that looks now and then where the main thread is.  A rank that has been in
one collective for too long leaves a mark, RUN/stalled/WATCH/RANK.waits; the others that are alive see it and
leave theirs: RANK.waits, or RANK.works where micro-batches still come, or RANK.stays.  While one works, and says so
anew at every look, the others wait for it as long as it takes.  Else whoever has no mark, or stays, is who they wait
for: the lowest waiting rank says so and ends the job.  Until then nothing is written and nothing exchanged; a rank that
goes on after all takes its mark away.

Where no rank is left to wait for another (the file system of all of them hangs, or that of the marks), `not_for_ever` ends
each rank that has not gone on for much longer.  It touches no file.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType

from legw_hpc.comm import Comm
from legw_hpc.data.files import make_folder, written_whole
from legw_hpc.errors import EXIT_STALLED
from legw_hpc.runlog import STALLED

PACKAGE = Path(__file__).parent
GOES_ON = "The same command goes on from the last checkpoint, if there is one"
STATES = ("waits", "works", "stays")
# Looks at which a rank that works may be late to say so anew (assumed).
LATE = 6


@contextlib.contextmanager
def not_for_ever(comm: Comm, seconds: float) -> Iterator[None]:
    """End this rank, and the job with it, if its main thread stays where it is; one rank alone too.

    Args:
        comm: its `beats` count the micro-batches; its `abort` ends the job, with EXIT_STALLED.
        seconds: at one place without a beat, from which on it has stopped; 0 is never.
    """
    if not seconds:
        yield
        return
    main, over = threading.get_ident(), threading.Event()
    every = min(10.0, seconds / 8)

    def loop() -> None:
        seen, since = None, 0.0
        while not over.wait(every):
            here = (comm.beats, comm.worked, _place(main))
            if here != seen:
                seen, since = here, time.monotonic()
                continue
            waits = _collective(main) is not None
            # One line will do: first who is no other's victim, and of several rank 0.
            if time.monotonic() - since >= seconds + 2 * every * (2 * waits + (comm.rank > 0)):
                print(
                    f"legw-hpc: stalled: rank {comm.rank} on {comm.node} "
                    f"{'has waited for another rank' if waits else 'has not gone on'} for {seconds:g} s: "
                    f"it is at {_where(next(_frames(main), None))}. {GOES_ON}",
                    file=sys.stderr,
                    flush=True,
                )
                comm.abort(EXIT_STALLED)

    thread = threading.Thread(target=loop, name="legw-not-for-ever", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def watching(run: Path, comm: Comm, seconds: float) -> Iterator[None]:
    """Watch this rank's main thread; a collective: all ranks enter together.

    Args:
        run: the run folder; it need not be there yet.  Where the ranks do not share it, all but those of one node count as
            stopped.
        comm: its `abort` ends the job, with EXIT_STALLED.
        seconds: in one collective, from which on a rank counts as waiting in vain, and without a micro-batch, from which on it
            does not work; 0 is never.
    """
    nodes = comm.gather(comm.node)
    # Of this watch alone: another job may train into this folder, which is known when it is owned (owner.py).
    marks = run / STALLED / str(comm.broadcast(secrets.token_hex(4)))
    if not seconds or comm.size == 1:  # after the collectives: a rank with another `stall_minutes` is not yet refused
        yield
        return
    watch = _Watch(marks, comm, nodes, seconds, fresh=not run.exists())
    thread = threading.Thread(target=watch.loop, name="legw-watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        watch.over.set()
        thread.join()
        with contextlib.suppress(OSError):  # there is none, or a mark of another rank in it, which removes it then
            marks.rmdir()
            marks.parent.rmdir()


def clear(run: Path) -> None:
    """Remove the marks of jobs that ended so.

    Args:
        run: the run folder, owned by this job.
    """
    shutil.rmtree(run / STALLED, ignore_errors=True)


class _Watch:
    def __init__(self, folder: Path, comm: Comm, nodes: list[str], seconds: float, fresh: bool):
        self.folder, self.comm, self.nodes, self.seconds, self.fresh = folder, comm, nodes, seconds, fresh
        self.main = threading.get_ident()
        self.over = threading.Event()
        self.worked: dict[int, tuple[float, int]] = {}  # rank -> time of its mark, by the file system's clock; looks since
        # So often that a stall is told within a quarter more than the limit, and seldom enough for a shared file system.
        self.every = min(10.0, seconds / 8)

    def loop(self) -> None:
        waits_in: FrameType | None = None  # kept, so that another call cannot take its place in memory
        since, beats, beat = 0.0, self.comm.beats, -math.inf
        state, marked, marked_in = "", 0.0, waits_in
        while not self.over.wait(self.every):
            here, now = _collective(self.main), time.monotonic()
            if here is None or here is not waits_in:
                waits_in, since = here, now
            if self.comm.beats != beats:
                beats, beat = self.comm.beats, now
            waited = here is not None and now - since >= self.seconds
            is_so = ""
            if waited or self._others_wait():
                is_so = "waits" if here is not None else "works" if now - beat < self.seconds else "stays"
            if is_so != state or here is not marked_in:  # it went on: a mark that stays would mislead the next time
                self._mark(is_so)
                if is_so != state:
                    self._unmark(state)
                state, marked, marked_in = is_so, now, here
            elif is_so == "works":
                self._mark(is_so)
            # Every rank that runs has had time to leave its mark.
            elif waited and now - marked >= 2 * self.every + 1 and self._judge():
                self.comm.abort(EXIT_STALLED)
        self._unmark(state)

    def _mark(self, state: str) -> None:
        if not state:
            return
        with contextlib.suppress(Exception):  # what cannot be written is taken for stopped, and told as such
            make_folder(self.folder.parent, parents=self.fresh)  # else a run folder that is gone was removed, and stays so
            make_folder(self.folder)
            with written_whole(self.folder / f"{self.comm.rank}.{state}") as path:
                path.write_text(_where(next(_frames(self.main), None)))

    def _unmark(self, state: str) -> None:
        if state:
            with contextlib.suppress(OSError):
                (self.folder / f"{self.comm.rank}.{state}").unlink(missing_ok=True)

    def _marks(self) -> dict[int, str]:
        """Of each rank that has left one, its state: one look at the folder, however many ranks."""
        with contextlib.suppress(OSError):  # no folder yet, or none that can be listed now
            named = [name.partition(".") for name in os.listdir(self.folder)]
            return {int(rank): state for rank, _, state in named if state in STATES}
        return {}

    def _others_wait(self) -> bool:
        return any(state == "waits" for rank, state in self._marks().items() if rank != self.comm.rank)

    def _judge(self) -> bool:
        """Is it for this rank to end the job; if so, it has told why."""
        marks = self._marks()
        waiting = [rank for rank, state in marks.items() if state == "waits"]
        working = [rank for rank, state in marks.items() if state == "works"]
        if any(self._works(rank) for rank in working):  # one will do
            self.comm.worked += 1
            return False
        if min(waiting, default=self.comm.rank) < self.comm.rank:
            return False
        for rank in working:  # they have stopped since
            del marks[rank]
        at = {rank: self._told(rank) for rank, state in marks.items() if state == "stays"}
        print(f"legw-hpc: {report(marks, at, self.nodes, self.seconds)}", file=sys.stderr, flush=True)
        return True

    def _works(self, rank: int) -> bool:
        """Does a rank still say anew that it works."""
        before, late = self.worked.get(rank, (0.0, 0))
        try:
            with open(self.folder / f"{rank}.works") as file:  # a network file system asks its server when a file is opened
                said = os.fstat(file.fileno()).st_mtime
        except OSError:  # it does something else by now
            return True
        self.worked[rank] = (said, 0 if said != before else late + 1)
        return self.worked[rank][1] <= LATE

    def _told(self, rank: int) -> str:
        with contextlib.suppress(OSError):
            return (self.folder / f"{rank}.stays").read_text()
        return "?"


def _frames(thread: int) -> Iterator[FrameType]:
    """Of a thread in this package, the innermost first."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        if PACKAGE in Path(frame.f_code.co_filename).parents:
            yield frame
        frame = frame.f_back


def _collective(thread: int) -> FrameType | None:
    """The outermost call into comm/ that a thread is in."""
    found = None
    for frame in _frames(thread):
        if Path(frame.f_code.co_filename).parent.name == "comm":
            found = frame
    return found


def _place(thread: int) -> tuple[int, int] | None:
    """Where a thread is in this package.  Numbers: a frame that is kept would keep its tensors."""
    frame = next(_frames(thread), None)
    return None if frame is None else (id(frame), frame.f_lasti)


def _where(frame: FrameType | None) -> str:
    return "?" if frame is None else f"{Path(frame.f_code.co_filename).relative_to(PACKAGE)}:{frame.f_lineno}"


def report(marks: Mapping[int, str], at: Mapping[int, str], nodes: list[str], seconds: float) -> str:
    """Who is waited for, in one line.

    Args:
        marks: rank -> its state, one of STATES.
        at: rank -> file and line, of those that stay.
        nodes: of each rank.
        seconds: how long the others have waited.
    """
    stopped = [f"rank {rank} on {node} does not answer" for rank, node in enumerate(nodes) if rank not in marks]
    busy = [f"rank {rank} on {nodes[rank]} is at {where}" for rank, where in sorted(at.items())]
    who = stopped + busy or ["no rank is missing, so the exchange itself hangs"]
    told = "; ".join(who[:8]) + (f"; and {len(who) - 8} more" if len(who) > 8 else "")
    return f"stalled for {seconds:g} s: {told}. {GOES_ON}"
