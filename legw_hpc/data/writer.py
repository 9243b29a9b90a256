"""Writes data folders in the shard format; see format.py."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from legw_hpc.data import header, mark
from legw_hpc.data.files import make_folder, written_whole
from legw_hpc.data.format import FORMAT, INDEX, VERSION, Field, Shard, expected_datasets, sha256
from legw_hpc.data.samples import Packed, fitting
from legw_hpc.data.shardfile import leads_out
from legw_hpc.errors import InputError
from legw_hpc.runlog import LOG

# A shard's size on disk where the writer may choose (assumed: few files, yet many per rank at 1K ranks).
SHARD_BYTES = 1 << 30
# The dataset of a shard's notes; readers leave alone what the index does not name.
NOTES = "notes"
WRITING = ".writing"  # the mark of the process that makes a data folder


@dataclass(frozen=True)
class Split:
    """What the index says of one split: for shards that were not written by a Writer."""

    split: str
    fields: Mapping[str, Field]
    shards: list[Shard]


class Writer:
    """Writes one split of a data folder; the index comes last, so an unfinished folder has none.

    Samples that do not fill a shard yet are held in memory, until more come or `write_index` ends the split.

    Args:
        folder: made if need be; must not hold an index yet.
        split: "train", "test" ...
        fields: name -> Field.
        samples_per_shard: of every file but the last; by SHARD_BYTES if None.
        compress: gzip level for fixed-size fields, None for contiguous.

    Raises:
        InputError: a folder that is finished, a run's or cannot be written; no field, or no such gzip level.
    """

    def __init__(
        self,
        folder: Path | str,
        split: str,
        fields: Mapping[str, Field],
        samples_per_shard: int | None = None,
        compress: int | None = None,
    ):
        self.folder, self.split, self.fields, self.compress = Path(folder), split, dict(fields), compress
        if not fields:
            raise InputError(f"{folder}/{split}: no field is declared; a sample has one at least")
        if compress not in (None, *range(10)):
            raise InputError(f"{folder}/{split}: compress={compress!r}: a gzip level is 0 to 9, or None")
        make_folder(self.folder)
        refuse_finished(self.folder)
        self._fixed = {name: _sample_bytes(f.dtype, f.shape) for name, f in fields.items() if f.shape is not None}
        self._by_bytes = samples_per_shard is None and len(self._fixed) < len(fields)
        self.samples_per_shard = samples_per_shard or max(1, SHARD_BYTES // max(1, sum(self._fixed.values())))  # at most
        self.shards: list[Shard] = []
        self._limit = SHARD_BYTES if self._by_bytes else self.samples_per_shard
        self._begin_shard()

    def _begin_shard(self) -> None:
        self._held: dict[str, list[Any]] = {name: [] for name in self.fields}  # arrays, or samples of any length
        self._count = self._size = 0  # of what is held: samples, and as the limit counts

    def write(self, samples: Mapping[str, Any]) -> None:
        """Append samples.

        Args:
            samples: every field's: an array [n, *shape] for a fixed-size one; for a variable one n of bytes, bytearrays or 1-d
                arrays of uint8.

        Raises:
            InputError: fields, counts, shapes or types other than declared, a label out of range, or a folder with an index.
        """
        refuse_finished(self.folder)  # its index would not name them
        samples = fitting(f"{self.folder}/{self.split}", self.fields, samples)
        count = len(next(iter(samples.values())))
        sizes = self._sizes(samples, count)
        for cut in cut_by_size(np.append(self._size, sizes), self._limit):  # what is held goes before them, as one sample
            if cut.start:
                self.end_shard()
            part = slice(max(0, cut.start - 1), cut.stop - 1)
            for name, held in self._held.items():
                held.extend([samples[name][part]] if name in self._fixed else samples[name][part])
            self._count += part.stop - part.start
            self._size += int(sizes[part].sum())
        if self._size >= self._limit:
            self.end_shard()
        elif self._count:
            for name in self._fixed:
                self._held[name][-1] = self._held[name][-1].copy()  # the caller may fill the array anew

    def end_shard(self) -> None:
        """Write what is held, if anything is, whether or not a shard is full.

        Raises:
            InputError: a folder with an index, or that cannot be written.
        """
        if self._count:
            refuse_finished(self.folder)
            samples: dict[str, Any] = dict(self._held)
            for name in self._fixed:
                samples[name] = samples[name][0] if len(samples[name]) == 1 else np.concatenate(samples[name])
            number = len(self.shards)
            self.shards.append(write_shard(self.folder, self.split, number, self.fields, samples, compress=self.compress))
        self._begin_shard()

    def _sizes(self, samples: Mapping[str, Any], count: int) -> NDArray[np.int64]:
        """Of each sample as the limit counts: in bytes, or 1."""
        if not self._by_bytes:
            return np.ones(count, np.int64)
        sizes = np.full(count, sum(self._fixed.values()), np.int64)
        for name in self.fields.keys() - self._fixed.keys():
            sizes += np.fromiter(map(len, samples[name]), np.int64, count)
        return sizes


def cut_by_size(sizes: NDArray[np.int64], limit: int) -> list[slice]:
    """Cut samples of these sizes into runs of at most `limit` together; a larger sample is a run of its own."""
    ends = np.cumsum(sizes)
    cuts, start = [], 0
    while start < len(ends):
        room = limit + (int(ends[start - 1]) if start else 0)
        end = max(start + 1, int(np.searchsorted(ends, room, side="right")))
        cuts.append(slice(start, end))
        start = end
    return cuts


def refuse_finished(folder: Path) -> None:
    """A folder with an index, or one of a run, is never written to."""
    for name, what in {INDEX: "finished shards", LOG: "a run"}.items():
        if (folder / name).exists():
            raise InputError(f"{folder}: already holds {what} ({name}); nothing overwritten")


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Have a data folder for this process alone, from before its first shard until its index is written.

    A process that is gone does not keep it.

    Args:
        folder: made if need be; removed again if nothing is in it at the end.

    Raises:
        InputError: it is finished, a run's, cannot be written, or another process writes into it.
    """
    refuse_finished(folder)
    new = [each for each in (folder, *folder.parents) if not each.exists()]
    make_folder(folder)
    path, me = folder / WRITING, mark.myself()
    try:
        while not mark.create(path, me):
            owner, at = mark.look(path)
            if at and not (owner and owner.is_gone()):
                who = owner or "another process"
                raise InputError(f"{folder}: {who} writes into it; wait, or remove {path} if that process is gone")
            if at and mark.take(path, me):
                break
        try:
            refuse_finished(folder)  # another may have ended meanwhile
            yield
        finally:
            if mark.look(path)[0] == me:
                path.unlink(missing_ok=True)
    finally:
        with contextlib.suppress(OSError):  # not empty
            for each in new:
                each.rmdir()


def shard_name(split: str, number: int) -> str:
    """The file of a shard."""
    return f"{split}-{number:05d}.h5"


def write_shard(
    folder: Path,
    split: str,
    number: int,
    fields: Mapping[str, Field],
    samples: Mapping[str, Any],
    *,
    compress: int | None = None,
    source: str | None = None,
    notes: Any = None,
) -> Shard:
    """Write one shard; one of the same name is replaced.

    Args:
        folder: must be there.
        split: "train", "test" ...
        number: of the file within its split, from 0.
        fields: name -> Field.
        samples: as for `Writer.write`; a variable-size field may be Packed.
        compress: gzip level for fixed-size fields, None for contiguous.
        source: a digest of what the shard is made from, for `finished_shard`.
        notes: what else belongs to this shard, as JSON has it; see `shard_notes`.

    Raises:
        InputError: samples that do not fit the fields, or a folder that cannot be written.
    """
    name = shard_name(split, number)
    samples = fitting(f"{folder / name}", fields, samples)
    count = len(next(iter(samples.values())))
    sums: dict[str, str] = {}
    with written_whole(folder / name) as path, h5py.File(path, "w", libver=("earliest", "v110")) as file:
        file.attrs.update(format=FORMAT, version=VERSION, split=split, count=count)
        if source is not None:
            file.attrs["source"] = source
        if notes is not None:  # not an attribute: those end at 64 KiB
            file.create_dataset(NOTES, data=np.frombuffer(json.dumps(notes).encode(), np.uint8))
        for field_name, field in fields.items():
            for dataset, values in _as_datasets(field_name, field, samples[field_name]).items():
                options: dict[str, Any] = {}
                if compress is not None and values.ndim > 1:
                    options = {"chunks": (min(256, count), *values.shape[1:]), "compression": compress}
                made = file.create_dataset(dataset, data=values, **options)
                sums[dataset] = made.attrs["sha256"] = sha256(values)
                if field.classes is not None:
                    made.attrs["classes"] = field.classes
    return Shard(name, count, sums, header.measure(folder / name))


def finished_shard(folder: Path, split: str, number: int, fields: Mapping[str, Field], source: str) -> Shard | None:
    """The shard of this number if an earlier run has written it from the same source, else None.

    A name that is there is a whole file (files.written_whole), so its checksums are taken from it,
    not computed.
    """
    name = shard_name(split, number)
    try:
        with h5py.File(folder / name, "r", locking=False) as file:
            have = dict(file.attrs)
            count = int(have["count"])
            if (have["format"], have["version"], have["split"], have["source"]) != (FORMAT, VERSION, split, source):
                return None
            sums = {}
            for field_name, field in fields.items():
                for dataset, (dtype, shape) in expected_datasets(field_name, field, count).items():
                    if leads_out(file, dataset):
                        return None
                    values = file[dataset]
                    if values.dtype != np.dtype(dtype) or (None not in shape and values.shape != shape):
                        return None
                    sums[dataset] = str(values.attrs["sha256"])
        return Shard(name, count, sums, header.measure(folder / name))
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError):  # not there, cut, or foreign
        return None


def shard_notes(folder: Path, split: str, number: int) -> Any:
    """The notes of a finished shard; None if it has none."""
    with h5py.File(folder / shard_name(split, number), "r", locking=False) as file:
        return json.loads(file[NOTES][...].tobytes()) if NOTES in file and not leads_out(file, NOTES) else None


def write_index(folder: Path | str, splits: Iterable[Writer | Split], **about: Any) -> None:
    """Finish a data folder.

    Args:
        folder: where the shards are.
        splits: in the order of the index: a writer, whose last shard is written now, or a Split for shards written one by one.
        about: what else the index should say (source, attribution, class names ...).

    Raises:
        InputError: a folder that is finished or cannot be written; a split that is named twice, or has no samples.
    """
    folder, splits = Path(folder), list(splits)
    refuse_finished(folder)
    names = [entry.split for entry in splits]
    for name in names:
        if names.count(name) > 1:  # their shards have the same names
            raise InputError(f"{folder}: split {name} is named twice; give one writer all its samples")
    for entry in splits:
        if isinstance(entry, Writer):
            entry.end_shard()
        if not any(shard.count for shard in entry.shards):
            raise InputError(f"{folder}: split {entry.split} has no samples; write some, or leave it out")
    entries = {
        entry.split: {
            "count": sum(shard.count for shard in entry.shards),
            "fields": {name: _field_json(field) for name, field in entry.fields.items()},
            "shards": [shard_json(shard) for shard in entry.shards],
        }
        for entry in splits
    }
    text = json.dumps({"format": FORMAT, "version": VERSION, "splits": entries, "about": about}, indent=1)
    with written_whole(folder / INDEX) as path:
        path.write_text(text + "\n")


def _sample_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    return np.dtype(dtype).itemsize * math.prod(shape)


def _as_datasets(name: str, field: Field, values: Any) -> dict[str, NDArray[Any]]:
    if field.shape is not None:
        return {name: np.ascontiguousarray(values)}
    if not isinstance(values, Packed):
        offsets = np.cumsum([0, *map(len, values)], dtype=np.int64)
        values = Packed(np.frombuffer(b"".join(values), dtype=np.uint8), offsets)
    return {f"{name}/bytes": values.data, f"{name}/offsets": values.offsets}


def shard_json(shard: Shard) -> dict[str, Any]:
    """A shard as the index has it."""
    entry = dataclasses.asdict(shard)
    return entry if shard.header is not None else {key: value for key, value in entry.items() if key != "header"}


def _field_json(field: Field) -> dict[str, Any]:
    shape = None if field.shape is None else list(field.shape)
    return {"dtype": field.dtype, "shape": shape, "classes": field.classes}
