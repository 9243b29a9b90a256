"""A run folder has one recipe, and one job that trains into it; a second one waits for it, or refuses.

    RUN/recipe.json   the recipe that the folder belongs to
    RUN/owner.json    host, process and job of rank 0; touched every BEAT_SECONDS, removed at the end

The record is a mark (data/mark.py).  One that a dead job left behind is known by its process, on the same host, or by its
silence, by the waiting process's own clock: those of two hosts are never compared.  A job that was only stopped and comes to
life again finds another's record in the place of its own, or none where that one has ended, and ends itself: before it writes
anything, and at its next beat.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from legw_hpc import runlog
from legw_hpc.data import mark
from legw_hpc.data.files import written_whole
from legw_hpc.data.mark import Owner
from legw_hpc.errors import EXIT_INPUT, InputError

if TYPE_CHECKING:
    from legw_hpc.comm import Comm  # which imports torch; `legw-hpc status` does not

OWNER, RECIPE = "owner.json", "recipe.json"
# Assumed: seldom enough for a shared file system, and a pause of four beats is no living job's.
BEAT_SECONDS = 10.0
SILENT_SECONDS = 45.0
# To those who only look, by this host's clock, a sign of life may be so old: that clock is not the file system's (assumed).
ALIVE_SECONDS = 120.0
POLL_SECONDS = 0.5


class Hold:
    """Rank 0's hold on a run folder.

    Args:
        run: the run folder.
        me: in its record.
        comm: its `abort` ends the job if another has taken the folder.
    """

    def __init__(self, run: Path, me: Owner, comm: Comm):
        self._run, self._me, self._comm = run, me, comm
        self._seen = time.monotonic()

    def check(self) -> None:
        """Before something is written: if this job was silent, as one that was stopped, see whose the folder is by now."""
        if time.monotonic() - self._seen > 2 * BEAT_SECONDS:
            self.look()

    def look(self) -> None:
        """End this job if another has taken the folder."""
        now, (owner, at) = time.monotonic(), mark.look(self._run / OWNER)
        # Nobody but a job that took the folder removes a record; it took it only if this one was silent for long.
        ended = not at and now - self._seen >= SILENT_SECONDS and self._run.exists()
        if ended or owner not in (None, self._me):
            who = owner or "another job, which has ended,"
            print(f"legw-hpc: {self._run}: {who} has taken this folder; this job was silent", file=sys.stderr, flush=True)
            self._comm.abort(EXIT_INPUT)
        self._seen = now

    def beat(self, over: threading.Event) -> None:
        """Give signs of life until it is over."""
        while not over.wait(BEAT_SECONDS):
            self.look()
            with contextlib.suppress(OSError):  # the folder is gone, or its disk full: who writes there says so
                os.utime(self._run / OWNER)


@contextlib.contextmanager
def owning(run: Path, comm: Comm) -> Iterator[Hold]:
    """Have a run folder for oneself; a collective.

    Args:
        run: the run folder.
        comm: rank 0 does the work; its `abort` ends the job if another has taken the folder.

    Raises:
        InputError: another job trains into it, and goes on doing so.
    """
    me, over = mark.myself(), threading.Event()
    hold = Hold(run, me, comm)
    with comm.together():
        if comm.rank == 0:
            _take(run, me)
    thread = threading.Thread(target=hold.beat, args=(over,), name="legw-owner", daemon=True)
    if comm.rank == 0:
        thread.start()
    try:
        yield hold
    finally:
        if comm.rank == 0:
            over.set()
            thread.join()
            if mark.look(run / OWNER)[0] == me:
                with contextlib.suppress(OSError):  # the folder may be gone
                    (run / OWNER).unlink()


def _take(run: Path, me: Owner) -> None:
    start = since = time.monotonic()
    seen: tuple[Owner | None, int] | None = None
    beats = told = False
    while not mark.create(run / OWNER, me):
        now, look = time.monotonic(), mark.look(run / OWNER)
        owner, _ = look
        if look != seen:
            beats, seen, since = seen is not None, look, now
        if (owner and owner.is_gone()) or now - since >= SILENT_SECONDS:
            if mark.take(run / OWNER, me):
                return
            continue
        if beats and now - start >= SILENT_SECONDS:
            raise InputError(f"{run}: in use by {owner}; wait for it, or choose another folder with out=...")
        if not told:
            print(f"{run}: in use by {owner or 'another job'}; waiting up to {SILENT_SECONDS:g} s for its end", flush=True)
            told = True
        time.sleep(POLL_SECONDS)


def last_beat(run: Path) -> float:
    """When a job that has not ended gave its last sign of life, in seconds since 1970; 0 if there is none."""
    try:
        return (run / OWNER).stat().st_mtime
    except OSError:
        return 0.0


def claim(folder: Path, identity: dict[str, Any]) -> None:
    """Write the identity of the run into a new folder."""
    if not belongs(folder, identity):
        with written_whole(folder / RECIPE) as aside:
            aside.write_text(json.dumps(identity, indent=1) + "\n")


def belongs(folder: Path, identity: dict[str, Any], unknown: Collection[str] = ()) -> bool:
    """Is the folder this run's; not yet, if it is new.

    Args:
        folder: must be there.
        identity: of the run, see `Recipe.identity`, and its data.
        unknown: keys of it that are not looked at.

    Raises:
        InputError: it is another's.
    """
    path = folder / RECIPE
    try:
        theirs = json.loads(path.read_text())
    except FileNotFoundError:
        names = sorted(entry.name for entry in folder.iterdir())
        if strangers := [
            name for name in names if name not in (runlog.JOBS, OWNER, runlog.STALLED) and not name.endswith(".part")
        ]:
            raise InputError(f"{folder}: not empty ({strangers[0]}) and not a run's folder; nothing overwritten") from None
        return False
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    if not isinstance(theirs, dict):
        raise InputError(f"{path}: not a run's recipe, which is a JSON object; nothing overwritten")
    for key in sorted((identity.keys() | theirs.keys()).difference(unknown)):
        if identity.get(key) != theirs.get(key):
            raise InputError(
                f"{folder}: holds a run with {key} {theirs.get(key)!r}, this one has {identity.get(key)!r}; "
                "choose another folder with out=..., nothing overwritten"
            )
    return True
