"""Writes data folders in the shard format; see format.py."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from legw_hpc.data.files import make_folder, written_whole
from legw_hpc.data.format import FORMAT, INDEX, VERSION, Field, Shard, check_labels, sha256
from legw_hpc.errors import InputError

# A shard's size on disk where the writer may choose (assumed: few files, yet many per rank at 1K ranks).
SHARD_BYTES = 1 << 30


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
                    sums[dataset] = made.attrs["sha256"] = sha256(values)
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


def _check_field(where: str, name: str, field: Field, values: Any, count: int) -> None:
    if len(values) != count:
        raise InputError(f"{where}: {name} has {len(values)} samples, the first field {count}")
    if field.shape is None:
        return
    if values.shape[1:] != field.shape or values.dtype != np.dtype(field.dtype):
        raise InputError(
            f"{where}: {name} has samples of {values.shape[1:]} {values.dtype}, declared {field.shape} {field.dtype}"
        )
    check_labels(where, name, field, values)


def _as_datasets(name: str, field: Field, values: Any) -> dict[str, NDArray[Any]]:
    if field.shape is not None:
        return {name: np.ascontiguousarray(values)}
    offsets = np.cumsum([0, *map(len, values)], dtype=np.int64)
    return {f"{name}/bytes": np.frombuffer(b"".join(values), dtype=np.uint8), f"{name}/offsets": offsets}


def _field_json(field: Field) -> dict[str, Any]:
    shape = None if field.shape is None else list(field.shape)
    return {"dtype": field.dtype, "shape": shape, "classes": field.classes}
