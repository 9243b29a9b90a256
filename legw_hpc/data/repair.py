"""`legw-hpc data verify --repair-index`: a lost or damaged index, made again from intact shards."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import resource
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py

from legw_hpc.data import header
from legw_hpc.data.files import written_whole
from legw_hpc.data.format import FORMAT, INDEX, VERSION, read_index, shard_from
from legw_hpc.data.reading import Reader
from legw_hpc.data.shardfile import leads_out
from legw_hpc.data.shards import verify
from legw_hpc.data.writer import NOTES
from legw_hpc.errors import InputError

# Damage can keep HDF5 busy for ever, or make it ask for any amount of memory; a whole file is described in less than a
# second (assumed: with a busy file system, and a field of labels, no more than this).
DESCRIBE_SECONDS, DESCRIBE_BYTES = 120, 8 << 30


def repair_index(folder: Path) -> dict[str, int]:
    """Write the index of a data folder anew, once every sample has been read.

    What shards do not hold is taken from the old index where it can be read: what it says about the data, and
    how many classes a label has, where an older version wrote the shards.  Without it there are as many as
    the largest label needs.

    Returns:
        split -> number of samples.

    Raises:
        InputError: a shard that is damaged or missing; the old index stays as it is.
    """
    old: Mapping[str, Any] = {}
    with contextlib.suppress(InputError):
        old = read_index(folder)
    index = {"format": FORMAT, "version": VERSION, "splits": _splits(folder, old), "about": old.get("about", {})}
    counts = verify(folder, index)
    with written_whole(folder / INDEX) as path:
        path.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return counts


def _splits(folder: Path, old: Mapping[str, Any]) -> dict[str, Any]:
    """What the index says of the splits, from the files that are there."""
    listed = {shard["file"]: shard for entry in old.get("splits", {}).values() for shard in entry["shards"]}
    there = {path.name for path in folder.glob("*-?????.h5")}
    # Others of a split that the index lists are none of the data: a conversion that was begun with smaller shards left them.
    names = sorted({name for name in there if _split(name) not in old.get("splits", {})} | listed.keys())
    if not names:
        raise InputError(f"{folder}: no index, and no shards (SPLIT-00000.h5) to make one from")
    shards: dict[str, list[_Shard]] = {}
    for name in names:
        split = _split(name)
        before = shards.setdefault(split, [])
        path = folder / f"{split}-{len(before):05d}.h5"
        if not path.is_file():
            raise InputError(f"{path}: this shard is missing")
        if name in listed and (known := shard_from(folder, listed[name]).header):
            header.compare(Reader(path), path.stat().st_size, known)
        before.append(_described(path))
    told = {name: field["classes"] for entry in old.get("splits", {}).values() for name, field in entry["fields"].items()}
    classes = _classes([shard for each in shards.values() for shard in each], told)
    splits = {}
    for split in sorted(shards, key=lambda name: (name != "train", name)):
        first = shards[split][0]
        for shard in shards[split]:
            if shard.fields != first.fields:
                where = folder / shard.entry["file"]
                raise InputError(f"{where}: its fields are {shard.fields}, those of {first.entry['file']} {first.fields}")
        splits[split] = {
            "count": sum(shard.entry["count"] for shard in shards[split]),
            "fields": {name: field | {"classes": classes[name]} for name, field in first.fields.items()},
            "shards": [shard.entry for shard in shards[split]],
        }
    return splits


def _split(name: str) -> str:
    return name[: -len("-00000.h5")]


@dataclass(frozen=True)
class _Shard:
    """A file: its entry in the index, dtype and shape of its fields, their classes, and their largest labels."""

    entry: dict[str, Any]
    fields: dict[str, dict[str, Any]]
    classes: dict[str, int]
    largest: dict[str, int]


def _classes(shards: list[_Shard], told: Mapping[str, int | None]) -> dict[str, int | None]:
    """Of each field: what the shards say, or else the old index, or else the labels that are there."""
    found: dict[str, int | None] = {name: None for shard in shards for name in shard.fields}
    for shard in shards:
        found |= {name: max(found[name] or 0, label + 1) for name, label in shard.largest.items()}
    found |= {name: classes for name, classes in told.items() if name in found}
    return found | {name: classes for shard in shards for name, classes in shard.classes.items()}


def _described(path: Path) -> _Shard:
    """What a shard says of itself, found by another process: see DESCRIBE_SECONDS."""
    words = [sys.executable, "-c", "import sys; from legw_hpc.data.repair import main; main(sys.argv[1])", str(path)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=DESCRIBE_SECONDS)
    except subprocess.TimeoutExpired:
        raise InputError(f"{path}: damaged: HDF5 has not come to the end of its header in {DESCRIBE_SECONDS} s") from None
    if done.returncode:
        why = done.stderr.strip().splitlines()[-1:] or [f"HDF5 ended with {done.returncode}"]
        raise InputError(f"{path}: damaged: {why[0]}")
    return _Shard(**json.loads(done.stdout))


def main(path: str) -> None:
    """The other process: prints what `_described` returns."""
    resource.setrlimit(resource.RLIMIT_AS, (DESCRIBE_BYTES, DESCRIBE_BYTES))
    print(json.dumps(dataclasses.asdict(_describe(Path(path)))))


def _describe(path: Path) -> _Shard:
    sums: dict[str, str] = {}
    fields: dict[str, dict[str, Any]] = {}
    classes: dict[str, int] = {}
    largest: dict[str, int] = {}
    with h5py.File(path, "r", locking=False) as file:
        for name in file:
            if name == NOTES:
                continue
            if how := next(filter(None, (leads_out(file, each) for each in (name, f"{name}/bytes", f"{name}/offsets"))), ""):
                raise ValueError(f"{name} refers to another file ({how})")
            item = file[name]
            if isinstance(item, h5py.Group):
                fields[name] = {"dtype": "uint8", "shape": None}
                sums |= {f"{name}/{part}": str(item[part].attrs["sha256"]) for part in ("bytes", "offsets")}
                continue
            fields[name] = {"dtype": item.dtype.name, "shape": list(item.shape[1:])}
            sums[name] = str(item.attrs["sha256"])
            if "classes" in item.attrs:
                classes[name] = int(item.attrs["classes"])
            elif item.ndim == 1 and item.dtype.kind in "iu" and item.size:
                largest[name] = int(item[...].max())
        count = int(file.attrs["count"])
    entry = {"file": path.name, "count": count, "sha256": sums, "header": dataclasses.asdict(header.measure(path))}
    return _Shard(entry, fields, classes, largest)
