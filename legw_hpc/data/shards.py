"""The shard format: ordinary HDF5 files beside an index.  docs: data/FORMAT.md.

    DIR/index.json           format, version, and for each split its fields and its files
    DIR/train-00000.h5       /image  (n, 28, 28) uint8     a fixed-size field: one dataset
                             /label  (n,)        int64
    DIR/train-00001.h5       /jpeg/bytes    (sum,) uint8   a variable-size field: a group of two
                             /jpeg/offsets  (n+1,) int64

Fixed-size datasets are contiguous: the reader maps them, which at random order is 90 times the
speed of sorted h5py selections (measured on 28x28 samples, batches of 1,024, one core).  Chunked
or compressed ones are read too, through h5py.  Each dataset carries the SHA-256 of its bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from legw_hpc.data.files import make_folder, written_whole
from legw_hpc.errors import InputError

FORMAT = "legw_hpc shards"
VERSION = 1
INDEX = "index.json"

# A compressed dataset up to this size is decompressed once and kept (assumed: small beside a node's
# memory); a larger one is read selection by selection.
KEEP_BYTES = 256 << 20

# A shard's size on disk where the writer may choose (assumed: few files, yet many per rank at 1K ranks).
SHARD_BYTES = 1 << 30


@dataclass(frozen=True)
class Field:
    """One thing that every sample has.

    Attributes:
        dtype: NumPy's name for the element type.
        shape: of one sample; None for bytes of any length.
        classes: for a label: values are 0 ... classes-1.
    """

    dtype: str
    shape: tuple[int, ...] | None = ()
    classes: int | None = None


@dataclass(frozen=True)
class Shard:
    """One file of a split: its name, its samples, and the SHA-256 of each dataset in it."""

    file: str
    count: int
    sha256: Mapping[str, str]


class Writer:
    """Writes one split of a data folder; the index comes last, so an unfinished folder has none.

    Args:
        folder: made if need be; must not hold an index yet.
        split: "train", "test" ...
        fields: name -> Field.
        samples_per_shard: where a new file begins; by SHARD_BYTES if None.
        compress: gzip level for fixed-size fields, None for contiguous.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        fields: Mapping[str, Field],
        samples_per_shard: int | None = None,
        compress: int | None = None,
    ):
        make_folder(folder)
        if (folder / INDEX).exists():
            raise InputError(f"{folder}: already holds finished shards ({INDEX}); nothing overwritten")
        self.folder, self.split, self.fields, self.compress = folder, split, dict(fields), compress
        sizes = [np.dtype(f.dtype).itemsize * int(np.prod(f.shape)) for f in fields.values() if f.shape is not None]
        self.samples_per_shard = samples_per_shard or max(1, SHARD_BYTES // max(1, sum(sizes)))
        self.shards: list[Shard] = []

    def write(self, samples: Mapping[str, Any]) -> None:
        """Append samples: an array [n, *shape] for a fixed-size field, n bytes objects for a variable one.

        Raises:
            InputError: counts, shapes or types that do not fit the fields, or a label out of range.
        """
        count = len(next(iter(samples.values())))
        for name, field in self.fields.items():
            _check_field(f"{self.folder}/{self.split}", name, field, samples[name], count)
        for start in range(0, count, self.samples_per_shard):
            part = {name: values[start : start + self.samples_per_shard] for name, values in samples.items()}
            self.shards.append(self._write_shard(part, min(self.samples_per_shard, count - start)))

    def _write_shard(self, samples: Mapping[str, Any], count: int) -> Shard:
        name = f"{self.split}-{len(self.shards):05d}.h5"
        sums: dict[str, str] = {}
        with written_whole(self.folder / name) as path, h5py.File(path, "w", libver=("earliest", "v110")) as file:
            file.attrs.update(format=FORMAT, version=VERSION, split=self.split, count=count)
            for field_name, field in self.fields.items():
                for dataset, values in _as_datasets(field_name, field, samples[field_name]).items():
                    options: dict[str, Any] = {}
                    if self.compress is not None and values.ndim > 1:
                        options = {"chunks": (min(256, count), *values.shape[1:]), "compression": self.compress}
                    made = file.create_dataset(dataset, data=values, **options)
                    sums[dataset] = made.attrs["sha256"] = _sha256(values)
        return Shard(name, count, sums)


def write_index(folder: Path, writers: Iterable[Writer], **about: Any) -> None:
    """Finish a data folder.

    Args:
        folder: where the writers wrote.
        writers: one a split.
        about: what else the index should say (source, attribution, class names ...).
    """
    splits = {
        writer.split: {
            "count": sum(shard.count for shard in writer.shards),
            "fields": {name: _field_json(field) for name, field in writer.fields.items()},
            "shards": [{"file": s.file, "count": s.count, "sha256": dict(s.sha256)} for s in writer.shards],
        }
        for writer in writers
    }
    text = json.dumps({"format": FORMAT, "version": VERSION, "splits": splits, "about": about}, indent=1)
    with written_whole(folder / INDEX) as path:
        path.write_text(text + "\n")


class Shards:
    """One split of a data folder, opened for reading in any order.

    Opening checks the index and the shape of every file, which touches no sample; `verify` reads
    all of them.  Use from one process; threads may share it.

    Args:
        folder: a data folder.
        split: "train", "test" ...

    Raises:
        InputError: a folder, index or file that is missing, truncated, of another version, or that
            does not fit the index.
    """

    def __init__(self, folder: Path, split: str):
        self.folder, self.split = Path(folder), split
        self.index = read_index(self.folder)
        if split not in self.index["splits"]:
            raise InputError(f"{self.folder}: no split {split!r}: it has {', '.join(self.index['splits'])}")
        entry = self.index["splits"][split]
        self.fields = {name: _field_from(value) for name, value in entry["fields"].items()}
        self.shards = [_shard_from(self.folder, value) for value in entry["shards"]]
        self._starts = np.cumsum([0, *(shard.count for shard in self.shards)])
        self._data = [self._open(shard) for shard in self.shards]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def take(self, name: str, samples: NDArray[np.int64]) -> Any:
        """The field of the given samples: an array [n, *shape], or a list of bytes.

        Args:
            name: a fixed-size or variable-size field.
            samples: global sample numbers, in any order, repeats allowed.
        """
        if len(self.shards) == 1:
            return self._take_from(0, name, samples)
        which = np.searchsorted(self._starts, samples, side="right") - 1
        field = self.fields[name]
        out: Any = [None] * len(samples)
        if field.shape is not None:
            out = np.empty((len(samples), *field.shape), dtype=field.dtype)
        for shard in np.unique(which):
            here = np.flatnonzero(which == shard)
            values = self._take_from(int(shard), name, samples[here] - self._starts[shard])
            if field.shape is not None:
                out[here] = values
            else:
                for place, value in zip(here, values, strict=True):
                    out[place] = value
        return out

    def _take_from(self, shard: int, name: str, samples: NDArray[np.int64]) -> Any:
        data = self._data[shard]
        if self.fields[name].shape is None:
            packed, offsets = data[f"{name}/bytes"], data[f"{name}/offsets"]
            return [bytes(packed[offsets[i] : offsets[i + 1]]) for i in samples]
        values = data[name]
        if isinstance(values, np.ndarray):
            return np.take(values, samples, axis=0)
        unique, back = np.unique(samples, return_inverse=True)  # h5py wants rising indices
        return values[unique][back]

    def _open(self, shard: Shard) -> dict[str, Any]:
        path = self.folder / shard.file
        file = _open_file(path, self.split, shard.count)
        data: dict[str, Any] = {}
        for name, field in self.fields.items():
            for dataset_name, (dtype, shape) in _expected_datasets(name, field, shard.count).items():
                dataset = file.get(dataset_name)
                if not isinstance(dataset, h5py.Dataset):
                    raise InputError(f"{path}: no dataset {dataset_name!r}, which the index names")
                fits = len(dataset.shape) == len(shape) and all(
                    want in (None, have) for have, want in zip(dataset.shape, shape, strict=True)
                )
                if dataset.dtype != np.dtype(dtype) or not fits:
                    raise InputError(
                        f"{path}: {dataset_name} is {dataset.shape} {dataset.dtype}, the index says "
                        f"{tuple('any' if n is None else n for n in shape)} {np.dtype(dtype)}"
                    )
                data[dataset_name] = _mapped(path, dataset)
        return data


def verify(folder: Path) -> dict[str, int]:
    """Read every sample of a data folder and compare all checksums, counts, offsets and label ranges.

    Returns:
        split -> number of samples.

    Raises:
        InputError: the first fault, with file, dataset and both values.
    """
    counts = {}
    for split in read_index(folder)["splits"]:
        shards = Shards(folder, split)
        for shard in shards.shards:
            with _open_file(folder / shard.file, split, shard.count) as file:
                for dataset_name, wanted in shard.sha256.items():
                    _verify_dataset(folder / shard.file, file, dataset_name, wanted, shards.fields)
        counts[split] = len(shards)
    return counts


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a data folder.

    Raises:
        InputError: missing, not ours, or of another version.
    """
    path = folder / INDEX
    try:
        index = json.loads(path.read_text())
    except FileNotFoundError:
        why = "an unfinished or foreign folder" if folder.is_dir() else "no such folder"
        raise InputError(f"{path}: not found ({why}); `legw-hpc data` makes shards") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise InputError(f"{path}: not an index of {FORMAT}")
    if index.get("version") != VERSION:
        raise InputError(f"{path}: format version {index.get('version')}, this program reads version {VERSION}")
    try:
        for entry in index["splits"].values():
            total = sum(int(shard["count"]) for shard in entry["shards"])
            if total != entry["count"]:
                raise InputError(f"{path}: count is {entry['count']}, its shards hold {total}")
            for value in entry["fields"].values():
                _field_from(value)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: damaged index: {type(error).__name__} {error}") from None
    return index


def _open_file(path: Path, split: str, count: int) -> h5py.File:
    if not path.is_file():
        raise InputError(f"{path}: this shard is missing; the index names it")
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


def _mapped(path: Path, dataset: h5py.Dataset) -> Any:
    """The dataset as a read-only memory map if it is contiguous, else in memory or through h5py."""
    offset = dataset.id.get_offset()
    if dataset.chunks is None and offset is not None:
        end = offset + dataset.nbytes
        if end > path.stat().st_size:
            raise InputError(f"{path}: truncated: {dataset.name} ends at byte {end}, the file at {path.stat().st_size}")
        return np.memmap(path, dtype=dataset.dtype, mode="r", offset=offset, shape=dataset.shape)
    if dataset.nbytes <= KEEP_BYTES:
        try:
            return dataset[...]
        except OSError as error:
            raise InputError(f"{path}: {dataset.name} cannot be read: {error}") from None
    return dataset


def _verify_dataset(path: Path, file: h5py.File, name: str, wanted: str, fields: Mapping[str, Field]) -> None:
    try:
        values = file[name][...]
    except (KeyError, OSError) as error:
        raise InputError(f"{path}: {name} cannot be read: {error}") from None
    found = _sha256(values)
    if found != wanted:
        raise InputError(f"{path}: {name} is damaged: SHA-256 {found[:16]}..., the index says {wanted[:16]}...")
    field = fields.get(name)
    if field is not None:
        _check_labels(str(path), name, field, values)
    if name.endswith("/offsets"):
        size = len(file[name.removesuffix("offsets") + "bytes"])
        if values[0] != 0 or values[-1] != size or (np.diff(values) < 0).any():
            raise InputError(f"{path}: {name} does not rise from 0 to {size}, the length of the bytes")


def _check_field(where: str, name: str, field: Field, values: Any, count: int) -> None:
    if len(values) != count:
        raise InputError(f"{where}: {name} has {len(values)} samples, the first field {count}")
    if field.shape is None:
        return
    if values.shape[1:] != field.shape or values.dtype != np.dtype(field.dtype):
        raise InputError(
            f"{where}: {name} has samples of {values.shape[1:]} {values.dtype}, declared {field.shape} {field.dtype}"
        )
    _check_labels(where, name, field, values)


def _check_labels(where: str, name: str, field: Field, values: NDArray[Any]) -> None:
    if field.classes is not None and values.size and not (values.min() >= 0 and values.max() < field.classes):
        bad = int(np.flatnonzero((values < 0) | (values >= field.classes))[0])
        raise InputError(f"{where}: {name} of sample {bad} is {values[bad]}, out of range for {field.classes} classes")


def _as_datasets(name: str, field: Field, values: Any) -> dict[str, NDArray[Any]]:
    if field.shape is not None:
        return {name: np.ascontiguousarray(values)}
    offsets = np.cumsum([0, *map(len, values)], dtype=np.int64)
    return {f"{name}/bytes": np.frombuffer(b"".join(values), dtype=np.uint8), f"{name}/offsets": offsets}


def _expected_datasets(name: str, field: Field, count: int) -> dict[str, tuple[str, tuple[int | None, ...]]]:
    if field.shape is not None:
        return {name: (field.dtype, (count, *field.shape))}
    return {f"{name}/bytes": ("uint8", (None,)), f"{name}/offsets": ("int64", (count + 1,))}


def _sha256(values: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).view(np.uint8).data if values.size else b"").hexdigest()


def _field_json(field: Field) -> dict[str, Any]:
    shape = None if field.shape is None else list(field.shape)
    return {"dtype": field.dtype, "shape": shape, "classes": field.classes}


def _field_from(value: Mapping[str, Any]) -> Field:
    shape = value["shape"]
    return Field(np.dtype(value["dtype"]).name, None if shape is None else tuple(map(int, shape)), value["classes"])


def _shard_from(folder: Path, value: Mapping[str, Any]) -> Shard:
    name = str(value["file"])
    if Path(name).name != name:
        raise InputError(f"{folder / INDEX}: shard {name!r} is not a plain file name of this folder")
    return Shard(name, int(value["count"]), dict(value["sha256"]))
