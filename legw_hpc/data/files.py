"""A finished file is whole: written aside, synced, renamed."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from legw_hpc.errors import InputError


def keep_from_others() -> None:
    """Let nothing that this process writes be everybody's to write, whatever the umask it was started with."""
    os.umask(os.umask(0o002) | 0o002)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path to write to; on a clean end it becomes `path`, on an error it is removed.

    Raises:
        InputError: the folder cannot be written.
    """
    # Two containers that share a folder may have one host name, and the same process numbers.
    aside = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}.part")
    try:
        try:
            yield aside
            with open(aside, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(aside, path)
            sync_folder(path.parent)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error


def sync_folder(folder: Path) -> None:
    """Make the names in a folder last (a rename is otherwise only in the cache)."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        pass  # some network file systems refuse this on folders; the rename itself has happened
    finally:
        os.close(handle)


def make_folder(folder: Path, parents: bool = True) -> None:
    """Make a folder that not everybody may write to, whatever the umask, and see that it can be written.

    Args:
        folder: may be there.
        parents: made as well; False where their absence means that somebody has removed them.

    Raises:
        InputError: it cannot be made or written.
    """
    try:
        folder.mkdir(mode=0o775, parents=parents, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot make this folder: {error.strerror}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{folder}: this folder cannot be written")
