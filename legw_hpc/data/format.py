"""The shard format: ordinary HDF5 files beside an index.  docs: data/FORMAT.md.

    DIR/index.json           format, version, and for each split its fields and its files
    DIR/train-00000.h5       /image  (n, 28, 28) uint8     a fixed-size field: one dataset
                             /label  (n,)        int64
    DIR/train-00001.h5       /jpeg/bytes    (sum,) uint8   a variable-size field: a group of two
                             /jpeg/offsets  (n+1,) int64

Each dataset carries the SHA-256 of its elements, the index that of all other bytes of a file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from legw_hpc.errors import InputError

FORMAT = "legw_hpc shards"
VERSION = 1
INDEX = "index.json"
# By their names, which NumPy does not read: it takes text for a small language, and where that said "O" a file's bytes for
# pointers to Python objects.
DTYPES = tuple(np.dtype(letter).name for letter in "?bhiqBHIQefd")


@dataclass(frozen=True)
class Field:
    """One thing that every sample has.

    Attributes:
        dtype: NumPy's name for the element type, one of DTYPES.
        shape: of one sample; None for bytes of any length, which are uint8 and no label.
        classes: for a label: values are 0 ... classes-1.

    Raises:
        ValueError: another type or shape, or another number of classes.
    """

    dtype: str
    shape: tuple[int, ...] | None = ()
    classes: int | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype {self.dtype!r}: a field is of numbers, {', '.join(DTYPES)}")
        if self.shape is None and (self.dtype, self.classes) != ("uint8", None):
            raise ValueError(f"{self.dtype}, {self.classes} classes: bytes of any length (shape None) are uint8, without classes")
        if not isinstance(self.shape, tuple | None):
            raise ValueError(f"shape {self.shape!r}: give a tuple, () for a number a sample, or None for bytes of any length")
        for number in (*(self.shape or ()), *([] if self.classes is None else [self.classes])):
            _whole(number)


@dataclass(frozen=True)
class Header:
    """All of a file but the elements of its datasets: what HDF5 itself reads.  See header.py.

    Attributes:
        bytes: the size of the file.
        elements: where the elements are: (first byte, end), rising.
        sha256: of the other bytes.
    """

    bytes: int
    elements: tuple[tuple[int, int], ...]
    sha256: str


@dataclass(frozen=True)
class Shard:
    """One file of a split.

    Attributes:
        file: a plain name.
        count: samples.
        sha256: of each dataset's elements.
        header: None in an index of before there was one.
    """

    file: str
    count: int
    sha256: Mapping[str, str]
    header: Header | None = None


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a data folder.

    Raises:
        InputError: missing, not ours, or of another version.
    """
    path = folder / INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        why = "an unfinished or foreign folder" if folder.is_dir() else "no such folder"
        raise InputError(f"{path}: not found ({why}); `legw-hpc data` makes shards") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise InputError(f"{path}: not an index of {FORMAT}")
    if index.get("version") != VERSION:
        raise InputError(f"{path}: format version {index.get('version')}, this program reads version {VERSION}")
    try:
        for entry in index["splits"].values():
            total = sum(_whole(shard["count"]) for shard in entry["shards"])
            if total != entry["count"]:
                raise InputError(f"{path}: count is {entry['count']}, its shards hold {total}")
            for value in entry["fields"].values():
                field_from(value)
            for value in entry["shards"]:
                shard_from(folder, value)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: damaged index: {type(error).__name__} {error}") from None
    return index


def digest(index: Mapping[str, Any]) -> str:
    """Of the checksums of all splits; headers left out, as files of the same samples may differ in them."""
    splits = json.loads(json.dumps(index["splits"]))
    for entry in splits.values():
        for shard in entry["shards"]:
            shard.pop("header", None)
    return hashlib.sha256(json.dumps(splits, sort_keys=True).encode()).hexdigest()


def field_from(value: Mapping[str, Any]) -> Field:
    """A field as the index has it."""
    shape = value["shape"]
    return Field(value["dtype"], None if shape is None else tuple(shape), value["classes"])


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError(f"{value!r} is no whole number of at least 0")
    return value


def shard_from(folder: Path, value: Mapping[str, Any]) -> Shard:
    """A shard as the index has it; its file must be a plain name of the folder."""
    name = str(value["file"])
    if Path(name).name != name or name in ("", ".", "..") or not name.isprintable():
        raise InputError(f"{folder / INDEX}: shard {name!r} is not a plain file name of this folder")
    header, digests = value.get("header"), dict(value["sha256"])
    if not all(isinstance(digest, str) for digest in digests.values()):
        raise ValueError(f"digests {digests!r}")
    return Shard(name, _whole(value["count"]), digests, None if header is None else _header_from(header))


def _header_from(value: Mapping[str, Any]) -> Header:
    elements = tuple((_whole(start), _whole(end)) for start, end in value["elements"])
    header = Header(_whole(value["bytes"]), elements, str(value["sha256"]))
    bounds = [0, *(bound for pair in elements for bound in pair), header.bytes]
    if bounds != sorted(bounds):
        raise ValueError(f"elements {elements} in a file of {header.bytes} bytes")
    return header


def expected_datasets(name: str, field: Field, count: int) -> dict[str, tuple[str, tuple[int | None, ...]]]:
    """Dataset -> (type, shape) of a field in a shard of `count` samples; None is any length."""
    if field.shape is not None:
        return {name: (field.dtype, (count, *field.shape))}
    return {f"{name}/bytes": ("uint8", (None,)), f"{name}/offsets": ("int64", (count + 1,))}


def check_labels(where: str, name: str, field: Field, values: NDArray[Any]) -> None:
    """Refuse a label outside 0 ... classes-1, by its sample."""
    if field.classes is not None and values.size and not (values.min() >= 0 and values.max() < field.classes):
        bad = int(np.flatnonzero((values < 0) | (values >= field.classes))[0])
        raise InputError(f"{where}: {name} of sample {bad} is {values[bad]}, out of range for {field.classes} classes")


def sha256(values: Any, rows: int = 0) -> str:
    """Of the elements in memory order, in hexadecimal; `rows` at a time where they are in a file."""
    whole = hashlib.sha256()
    for start in range(0, len(values) if values.size else 0, rows or len(values) or 1):
        part = values[start : start + rows] if rows else values
        whole.update(np.ascontiguousarray(part).view(np.uint8).data)
    return whole.hexdigest()
