"""A contiguous dataset as a memory map, each piece of which is read explicitly before its first use.

A failed read of a mapped page is a SIGBUS: nothing can be tried again, and the process ends.  So the first touch of
every piece is a `pread`, which can be tried again and names what failed; after it the page is in the system's memory,
until it is evicted there: the map then reads it again by itself, and a failure of that is a SIGBUS still.
Costs one read of what the map would have read, and nothing once all of the dataset has been seen.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from legw_hpc.data.reading import Reader

# What Linux itself reads around a page of a map that is not in memory, by default (read_ahead_kb).
PIECE_BYTES = 128 << 10


class Mapped:
    """Rows of a file, read-only.

    Args:
        reader: of the file.
        offset: of the first row, in bytes.
        shape: [rows, ...].
        dtype: of an element.
    """

    def __init__(self, reader: Reader, offset: int, shape: tuple[int, ...], dtype: DTypeLike):
        self.values: NDArray[Any] = np.ndarray(shape, dtype, buffer=reader.map, offset=offset)
        self.nbytes = self.values.nbytes
        self.size = self.values.size
        self._reader, self._offset = reader, offset
        self._row_bytes = max(1, self.nbytes // max(1, len(self.values)))
        self._rows = max(1, PIECE_BYTES // self._row_bytes)  # of a piece
        self._unread: NDArray[np.bool_] | None = np.ones(-(-len(self.values) // self._rows), np.bool_)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, cut: Any) -> NDArray[Any]:
        """Rows next to each other, or all of them (`...`); it stays a map."""
        start, stop, step = (slice(None) if cut is ... else cut).indices(len(self))
        if step != 1:
            raise IndexError(f"rows next to each other, not every {step}")
        if start < stop:  # by pieces: a number for each row of a text would take eight times its memory
            self._bring(np.arange(start // self._rows, (stop - 1) // self._rows + 1))
        return self.values[cut]

    def read(self, rows: NDArray[np.int64]) -> None:
        """Bring the pieces of these rows into memory.

        Raises:
            InputError: the file, and the bytes that cannot be read or that it ends before.
        """
        if self._unread is not None:
            self._bring(rows // self._rows)

    def _bring(self, pieces: NDArray[np.int64]) -> None:
        unread = self._unread  # another thread may be through with the last piece meanwhile
        if unread is None:
            return
        for piece in np.unique(pieces[unread[pieces]]).tolist():
            start, end = (min(row * self._rows, len(self)) * self._row_bytes for row in (piece, piece + 1))
            self._reader.read(self._offset + start, self._offset + end)
            unread[piece] = False
        if not unread.any():
            self._unread = None
