"""One shard, opened: its datasets as arrays, mapped where that is possible.

Fixed-size datasets are contiguous: the reader maps them (mapped.py), which at random order is 90 times the
speed of sorted h5py selections (measured on 28x28 samples, batches of 1,024, one core).  Bytes of
any length are read from the file piece by piece.  Chunked or compressed datasets are read
too, through h5py.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from legw_hpc.data import header
from legw_hpc.data.format import FORMAT, VERSION, Field, Shard, check_labels, expected_datasets, sha256
from legw_hpc.data.mapped import Mapped
from legw_hpc.data.reading import Reader, tried
from legw_hpc.errors import InputError

# A compressed dataset up to this size is decompressed once and kept (assumed: small beside a node's
# memory); a larger one is read selection by selection.
KEEP_BYTES = 256 << 20


# What a shard keeps open at most: the file it reads, its map, and h5py's of a compressed dataset larger than KEEP_BYTES.
OPEN_FILES = 3


class ShardFile:
    """A shard as the index describes it, opened when its samples are first asked for: not every rank reads every shard.

    Args:
        path: of the file.
        split: that it belongs to.
        shard: what the index says of it.
        fields: of the split.

    Raises:
        InputError: missing.
    """

    def __init__(self, path: Path, split: str, shard: Shard, fields: Mapping[str, Field]):
        self.path, self.split, self.shard, self.fields = path, split, shard, fields
        try:
            self.status = tried(path.stat, str(path), absent=True)  # before it is read
        except FileNotFoundError:
            raise InputError(f"{path}: this shard is missing; the index names it") from None
        self._take = _named(_take, path)

    @functools.cached_property
    def datasets(self) -> dict[str, Any]:
        """By name: maps, arrays, or h5py's; opened now if they were not.

        Raises:
            InputError: damaged in its header, or other than the index says.
        """
        reader = Reader(self.path)
        if self.shard.header is not None:
            header.compare(reader, self.status.st_size, self.shard.header)
        try:
            return self._open(reader, _open_file(self.path, self.split, self.shard.count))
        except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:  # HDF5's many words for damage
            raise InputError(f"{self.path}: damaged: {type(error).__name__} {error}") from None

    def _open(self, reader: Reader, file: h5py.File) -> dict[str, Any]:
        datasets = {}
        for name, field in self.fields.items():
            for dataset_name, (dtype, shape) in expected_datasets(name, field, self.shard.count).items():
                if how := leads_out(file, dataset_name):
                    raise InputError(f"{self.path}: {dataset_name} refers to another file ({how}); a shard holds its own samples")
                dataset = file.get(dataset_name)
                if not isinstance(dataset, h5py.Dataset):
                    raise InputError(f"{self.path}: no dataset {dataset_name!r}, which the index names")
                fits = len(dataset.shape) == len(shape) and all(
                    want in (None, have) for have, want in zip(dataset.shape, shape, strict=True)
                )
                if dataset.dtype != np.dtype(dtype) or not fits:
                    raise InputError(
                        f"{self.path}: {dataset_name} is {dataset.shape} {dataset.dtype}, the index says "
                        f"{tuple('any' if n is None else n for n in shape)} {np.dtype(dtype)}"
                    )
                datasets[dataset_name] = _array(reader, self.status.st_size, dataset, packed=dataset_name == f"{name}/bytes")
        return datasets

    def take(self, name: str, samples: NDArray[np.int64]) -> Any:
        """The field of samples of this shard: an array [n, *shape], or a list of bytes."""
        if self.fields[name].shape is not None:
            return self._take(self.datasets[name], samples)
        packed = self.datasets[f"{name}/bytes"]
        offsets = self._take(self.datasets[f"{name}/offsets"], np.stack([samples, samples + 1]))
        return [bytes(packed[start:end]) for start, end in offsets.T.tolist()]

    def verify(self, samples: bool = True) -> None:
        """Open it, and read every sample: label ranges, checksums and offsets.

        Args:
            samples: else open it alone.

        Raises:
            InputError: the first fault, with file, dataset and both values.
        """
        datasets = self.datasets
        if not samples:
            return
        for name, field in self.fields.items():
            if field.classes is not None:  # a wrong label would end the training in the loss
                check_labels(str(self.path), name, field, _whole(datasets[name], f"{self.path}: {name}"))
        for name, values in datasets.items():
            rows = 0 if isinstance(values, np.ndarray) else max(1, KEEP_BYTES * len(values) // max(1, values.nbytes))
            wanted = self.shard.sha256.get(name, "nothing")
            found = tried(functools.partial(_named(sha256, self.path), values, rows), f"{self.path}: {name}")
            if found != wanted:
                raise InputError(f"{self.path}: {name} is damaged: SHA-256 {found[:16]}..., the index says {wanted[:16]}...")
            if name.endswith("/offsets"):
                size = len(datasets[name.removesuffix("offsets") + "bytes"])
                offsets = _whole(values, f"{self.path}: {name}")
                if offsets[0] != 0 or offsets[-1] != size or (np.diff(offsets) < 0).any():
                    raise InputError(f"{self.path}: {name} does not rise from 0 to {size}, the length of the bytes")

    def check_unchanged(self) -> bool:
        """Refuse a file that is another than when the split was opened, by size and time of change.

        One whose time alone is new may be the same: `touch` keeps files from a purge.  Only its header is compared here.

        Returns:
            Is its time of change new; from now on it counts.

        Raises:
            InputError: with both.
        """
        try:
            now = tried(self.path.stat, str(self.path), absent=True)
        except FileNotFoundError as error:
            raise InputError(f"{self.path}: gone since it was opened: {error.strerror}") from None
        # Not the inode's number: FUSE and some network file systems number anew, and a copy of one size and time is the same.
        if (now.st_size, now.st_mtime_ns) == (self.status.st_size, self.status.st_mtime_ns):
            return False
        known = self.shard.header
        same = (
            known and now.st_size == known.bytes and header.sha256(Reader(self.path), known.bytes, known.elements) == known.sha256
        )
        if not same:
            what = [f"{at.st_size} bytes, changed at {at.st_mtime_ns / 1e9:.3f}" for at in (self.status, now)]
            raise InputError(f"{self.path}: replaced or changed while it was read: it was {what[0]}; it is {what[1]}")
        self.status = now
        return True


class _Packed:
    """The bytes of a variable-size field, read from the file piece by piece."""

    def __init__(self, reader: Reader, offset: int, size: int):
        self._reader, self._offset, self.size = reader, offset, size
        self.nbytes = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, cut: slice) -> NDArray[np.uint8]:
        start, end, _ = cut.indices(self.size)
        return np.frombuffer(self._reader.read(self._offset + start, self._offset + end), np.uint8)


def _array(reader: Reader, size: int, dataset: h5py.Dataset, packed: bool) -> Any:
    """The dataset as a read-only map if it is contiguous, else in memory or through h5py."""
    path, offset = reader.path, dataset.id.get_offset()
    if dataset.chunks is None and offset is not None:
        end = offset + dataset.nbytes
        if end > size:
            raise InputError(f"{path}: truncated: {dataset.name} ends at byte {end}, the file at {size}")
        if packed:
            return _Packed(reader, offset, len(dataset))
        return Mapped(reader, offset, dataset.shape, dataset.dtype)
    if dataset.nbytes <= KEEP_BYTES:
        return _whole(dataset, f"{path}: {dataset.name}")
    return dataset


def _whole(values: Any, what: str) -> Any:
    """All of a dataset, of a map or of an array."""
    return tried(lambda: values[...], what)


def _open_file(path: Path, split: str, count: int) -> h5py.File:
    try:
        # No lock: shards are never written again, and many parallel file systems refuse locks.
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        raise InputError(f"{path}: truncated or not HDF5 ({path.stat().st_size} bytes): {error}") from None
    attributes = dict(file.attrs)
    if attributes.get("format") != FORMAT:
        raise InputError(f"{path}: HDF5, but not one of {FORMAT}")
    for name, want in {"version": VERSION, "split": split, "count": count}.items():
        if attributes.get(name) != want:
            raise InputError(f"{path}: {name} is {attributes.get(name)}, expected {want}")
    return file


def leads_out(file: h5py.File, name: str) -> str:
    """How a dataset takes its elements from elsewhere, so that a shard would be read outside its folder; "" if it does not.

    A soft link counts: where it leads to may be an external one.
    """
    parts = name.split("/")
    for end in range(1, len(parts) + 1):  # the group of a variable-size field may be a link, too
        link = file.get("/".join(parts[:end]), getlink=True)
        if link is not None and not isinstance(link, h5py.HardLink):
            return f"{type(link).__name__} {getattr(link, 'filename', link.path)}"
    dataset = file.get(name)
    if not isinstance(dataset, h5py.Dataset):
        return ""
    return "virtual dataset" if dataset.is_virtual else f"external storage {dataset.external[0][0]}" if dataset.external else ""


def _take(values: Any, samples: NDArray[np.int64]) -> Any:
    if isinstance(values, Mapped):
        values.read(samples)
        values = values.values
    if isinstance(values, np.ndarray):
        return np.take(values, samples, axis=0)
    unique, back = np.unique(samples, return_inverse=True)  # h5py wants rising indices
    return tried(lambda: values[unique], f"{values.file.filename}: {values.name}")[back]


def _named(function: Any, path: Path) -> Any:
    """A copy of a function that a traceback shows as the file that it reads.

    A mapped file that is cut after it was read ends the process by SIGBUS.  All that is told then is what Python's
    fault handler prints: the functions that were running.
    """
    code = function.__code__.replace(co_filename=str(path), co_name="reading_a_shard_that_was_cut")
    return types.FunctionType(code, function.__globals__)
