"""The header of a shard: what of the file HDF5 itself reads, and the digest of it.

HDF5 trusts the bytes that it parses: one flipped bit can make it loop for ever, ask for any amount of
memory, or read elements from another place.  So the digest is compared before HDF5 sees the file.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import h5py

from legw_hpc.data.format import Header
from legw_hpc.data.reading import Reader
from legw_hpc.errors import InputError

PIECE_BYTES = 64 << 20


def measure(path: Path) -> Header:
    """The header of a whole file.

    Raises:
        OSError, RuntimeError: HDF5's, where it is not whole.
    """
    elements: list[tuple[int, int]] = []

    def add(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            elements.extend(_elements(item))

    with h5py.File(path, "r", locking=False) as file:
        file.visititems(add)
    size, joined = path.stat().st_size, _joined(elements)
    return Header(size, joined, sha256(Reader(path), size, joined))


def compare(reader: Reader, size: int, header: Header) -> None:
    """Refuse a file whose header is not the one that was measured.

    Args:
        reader: of the file.
        size: of the file, in bytes.
        header: that was measured.

    Raises:
        InputError: with both values.
    """
    path = reader.path
    if size != header.bytes:
        raise InputError(
            f"{path}: {'truncated' if size < header.bytes else 'damaged'}: {size} bytes, the index says {header.bytes}"
        )
    found = sha256(reader, size, header.elements)
    if found != header.sha256:
        raise InputError(f"{path}: its header is damaged: SHA-256 {found[:16]}..., the index says {header.sha256[:16]}...")


def _elements(dataset: h5py.Dataset) -> list[tuple[int, int]]:
    """Where its elements are in the file; the gaps of an unfinished one are left out."""
    if dataset.chunks is not None:
        chunks = (dataset.id.get_chunk_info(number) for number in range(dataset.id.get_num_chunks()))
        return [(chunk.byte_offset, chunk.byte_offset + chunk.size) for chunk in chunks]
    offset = dataset.id.get_offset()  # None: in the header, or nowhere
    return [] if offset is None or not dataset.nbytes else [(offset, offset + dataset.nbytes)]


def _joined(elements: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Rising, neighbours as one."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(elements):
        if joined and joined[-1][1] == start:
            start = joined.pop()[0]
        joined.append((start, end))
    return tuple(joined)


def sha256(reader: Reader, size: int, elements: tuple[tuple[int, int], ...]) -> str:
    """Of a file of `size` bytes, without its elements."""
    whole, start = hashlib.sha256(), 0
    for end, after in (*elements, (size, size)):
        for piece in range(start, end, PIECE_BYTES):
            whole.update(reader.read(piece, min(end, piece + PIECE_BYTES)))
        start = after
    return whole.hexdigest()
