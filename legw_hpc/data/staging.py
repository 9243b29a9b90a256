"""Shards copied to node-local storage: one process of each node copies and checks, its others wait."""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path

from legw_hpc.data import mark
from legw_hpc.data.format import INDEX, read_index
from legw_hpc.data.shards import verify
from legw_hpc.errors import InputError

BEGUN, WHOLE, BROKEN = ".begun", ".whole", ".broken"
POLL_SECONDS = 0.5
# A process of another container that copies and is killed leaves no word; its launcher ends the others, or this does (assumed).
LONGEST_SECONDS = 4 * 3600.0
# Between making the folder and saying so: a call each (assumed).
BEGIN_SECONDS = 10.0


def stage(source: Path, to: Path) -> bool:
    """Copy a data folder; every process of a node calls it with the same folders.

    Args:
        source: a data folder.
        to: on a disk of the node's own; must not exist.

    Returns:
        Did this process copy.

    Raises:
        InputError: the copy is not whole, on every process of the node; `source` is no data folder, or `to` in it; `to` is
            there and is no copy, or one of other data.
    """
    read_index(source)
    if to.resolve().is_relative_to(source.resolve()):
        raise InputError(f"{to}: it is in {source}, which would be copied into itself")
    me = mark.myself()
    try:
        to.mkdir()  # one of them succeeds: no ranks needed, and no MPI
    except FileExistsError:
        if not _must_copy(to, me):
            _compare(source, to)
            return False
    except OSError as error:
        raise InputError(f"{to}: cannot make this folder: {error.strerror}") from None
    try:
        mark.create(to / BEGUN, me)  # not where the place of another was taken
        # A source that is a copy itself has marks, which would say that this one is whole before it is.
        shutil.copytree(source, to, dirs_exist_ok=True, ignore=shutil.ignore_patterns(BEGUN, WHOLE, BROKEN))
        verify(to)
    except (OSError, InputError) as error:
        text = f"{source}: no whole copy in {to}: {error}"
        with contextlib.suppress(OSError):  # even a full disk has room for a name, most often
            (to / BROKEN).touch()
        raise InputError(text) from None
    (to / WHOLE).touch()
    return True


def _must_copy(to: Path, me: mark.Owner) -> bool:
    """Wait for the copy of another process: False once it is whole, True if that process is gone and this one has its place."""
    start = time.monotonic()
    while not (to / WHOLE).exists():
        if (to / BROKEN).exists():
            raise InputError(f"{to}: another process of this node could not make the copy; remove it to try again")
        strange = time.monotonic() - start > BEGIN_SECONDS or not to.is_dir() or any(to.iterdir())
        if strange and not (to / BEGUN).exists():  # asked last: whatever a copy has in it, this came first
            raise InputError(f"{to}: it is there already, and no copy that another process of this node makes")
        if time.monotonic() - start > LONGEST_SECONDS:
            raise InputError(f"{to}: another process of this node has been copying for {LONGEST_SECONDS / 3600:g} h; gave up")
        owner, _ = mark.look(to / BEGUN)
        if owner == me:  # taken in the round before, and nothing was said meanwhile by the process that is gone
            return True
        if owner is None or not owner.is_gone() or not mark.take(to / BEGUN, me):
            time.sleep(POLL_SECONDS)
    return False


def _compare(source: Path, to: Path) -> None:
    """Refuse a copy of other data."""
    try:
        alike = (to / INDEX).read_bytes() == (source / INDEX).read_bytes()
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read: {error.strerror}") from None
    if not alike:
        raise InputError(f"{to}: it is there already, with other data than {source}")
