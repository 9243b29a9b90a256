"""Explicit reads of a file: tried again a few times, then named; and how many files may be open."""

from __future__ import annotations

import functools
import mmap
import os
import resource
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from legw_hpc.errors import InputError

TRIES = 4
# What else a rank has open beside shards: libraries, pipes, its connections to other ranks (assumed).
SPARE_FILES = 256
WAIT_SECONDS = 1.0  # before the second try, twice as long before each after it (assumed: servers fail over in seconds)


Read = TypeVar("Read")


def tried(read: Callable[[], Read], what: str, again: Callable[[], None] = lambda: None, absent: bool = False) -> Read:
    """What a read gives, tried again a few times where the system says that it failed.

    Args:
        read: raises OSError; one of HDF5 counts where its text has the system's error number, else the file is damaged.
        what: is read, for the message.
        again: called before each try but the first.
        absent: that there is no such file is an answer, which the caller takes.

    Raises:
        InputError: it cannot be read.
        FileNotFoundError: where `absent` says so.
    """
    for number in range(1, TRIES + 1):
        try:
            return read()
        except OSError as error:
            if absent and isinstance(error, FileNotFoundError):
                raise
            why = " ".join((error.strerror or str(error)).split())  # HDF5 has line ends in it
            if error.errno is None and "errno" not in why:
                raise InputError(f"{what} cannot be read: {why}") from None
        if number < TRIES:
            time.sleep(WAIT_SECONDS * 2 ** (number - 1))
            again()
    raise InputError(f"{what} cannot be read, tried {TRIES} times: {why}")


def make_room(files: int, what: str) -> None:
    """Let this process open so many files more, where the usual limit of 1,024 is less than its shards want.

    Args:
        files: to be opened.
        what: they are, for the message.

    Raises:
        InputError: the system allows it fewer.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)  # numbers: Linux has no infinity here
    wanted = len(os.listdir("/proc/self/fd")) + files
    if wanted > hard:
        raise InputError(f"{what}: {files} files to open, and this process may have no more than {hard} (ulimit -Hn)")
    if wanted + SPARE_FILES > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, wanted + SPARE_FILES), hard))


class Reader:
    """A file that is read from where one says; threads may share it.

    Args:
        path: of the file.

    Raises:
        InputError: it cannot be opened or read, or ends too early.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self._file = tried(lambda: os.open(path, os.O_RDONLY), str(path), absent=True)
        except FileNotFoundError:
            raise InputError(f"{path}: cannot be opened: No such file or directory") from None
        weakref.finalize(self, os.close, self._file)

    @functools.cached_property
    def map(self) -> mmap.mmap:
        """All of the file, mapped, read-only: once, since each map holds an open file of its own."""
        try:
            return mmap.mmap(self._file, 0, access=mmap.ACCESS_READ)
        except OSError as error:  # the file is whole; it is the process that may have no more (ulimit -v)
            raise InputError(f"{self.path}: cannot be mapped into memory: {error.strerror}") from None

    def read(self, start: int, end: int) -> bytes:
        """The bytes from `start` to before `end`."""
        return tried(lambda: self._read(start, end), f"{self.path}: bytes {start} to {end}", self._open_again)

    def _read(self, start: int, end: int) -> bytes:
        pieces = []
        while start < end:
            piece = os.pread(self._file, end - start, start)
            if not piece:
                raise InputError(f"{self.path}: truncated: it ends at byte {os.fstat(self._file).st_size}, {end} are wanted")
            pieces.append(piece)
            start += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _open_again(self) -> None:
        """A network file system may have given up the old handle for good."""
        try:
            fresh = os.open(self.path, os.O_RDONLY)
        except OSError:
            return  # the next try says why
        os.dup2(fresh, self._file, inheritable=False)
        os.close(fresh)
