"""Explicit reads of a file: tried again a few times, then named."""

from __future__ import annotations

import os
import time
import weakref
from pathlib import Path

from legw_hpc.errors import InputError

TRIES = 4
WAIT_SECONDS = 1.0  # before the second try, twice as long before each after it (assumed: servers fail over in seconds)


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
            self._file = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise InputError(f"{path}: cannot be opened: {error.strerror}") from None
        weakref.finalize(self, os.close, self._file)

    def read(self, start: int, end: int) -> bytes:
        """The bytes from `start` to before `end`."""
        for tried in range(1, TRIES + 1):
            try:
                return self._read(start, end)
            except OSError as error:
                why = error.strerror
            if tried < TRIES:
                time.sleep(WAIT_SECONDS * 2 ** (tried - 1))
                self._open_again()
        raise InputError(f"{self.path}: bytes {start} to {end} cannot be read, tried {TRIES} times: {why}")

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
