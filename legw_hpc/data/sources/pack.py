"""From a list of images to JPEG shards: one task a shard, restartable, the index last."""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from legw_hpc.data import order
from legw_hpc.data.format import VERSION, Field, Shard
from legw_hpc.data.samples import Packed
from legw_hpc.data.sources import pool
from legw_hpc.data.sources.image_check import MAX_PIXELS, MIN_SIDE, QUALITY, RULE, Broken, as_jpeg
from legw_hpc.data.sources.items import Item, Reader
from legw_hpc.data.writer import Split, cut_by_size, finished_shard, shard_notes, write_index, write_shard, writing
from legw_hpc.errors import InputError

ORDER_SEED = 0  # of the order of the samples in the shards: each shard then has all classes
NAMED = 1000  # of the converted images so many are named in the index, which every rank reads (assumed)
PART = re.compile(r"\.(index\.json|[^.]+-\d{5}\.h5)\..+\.part")  # what a killed run leaves; see files.written_whole


@dataclass(frozen=True)
class Task:
    """One shard to make: all that a worker needs to know."""

    folder: Path
    split: str
    number: int
    fields: Mapping[str, Field]
    items: Sequence[Item]
    source: str
    skip_broken: bool


class Made(NamedTuple):
    """A shard, and which images are not in it as they were: name -> why."""

    shard: Shard
    converted: dict[str, str]
    skipped: dict[str, str]


def pack(
    out: Path,
    splits: Mapping[str, list[Item]],
    classes: Sequence[str],
    *,
    workers: int,
    shard_bytes: int,
    skip_broken: bool,
    **about: Any,
) -> dict[str, int]:
    """Write a data folder of JPEGs with the fields image, label and name.

    Args:
        out: made if need be.  Shards that an earlier, unfinished run made from the same list are kept.
        splits: split -> its images, in a fixed order.
        classes: in label order.
        workers: processes; each holds the bytes of about one shard.
        shard_bytes: where a new shard begins.
        skip_broken: leave out what is not a whole image, and name it, instead of ending.
        about: for the index.

    Returns:
        split -> number of samples.

    Raises:
        InputError: `out` is finished, in use, has no room or cannot be written, or an image is broken.  Then an `out` that
            this call made is removed again, unless a shard is in it.
    """
    for name, number in {"workers": workers, "bytes of a shard": shard_bytes}.items():
        if number < 1:
            raise InputError(f"{name} must be at least 1, not {number}")
    with writing(out):
        _remove_parts(out)
        return _pack(out, splits, classes, workers=workers, shard_bytes=shard_bytes, skip_broken=skip_broken, about=about)


def _pack(
    out: Path, splits: Mapping[str, list[Item]], classes: Sequence[str], *, workers: int, shard_bytes: int, skip_broken: bool,
    about: dict[str, Any],
) -> dict[str, int]:  # fmt: skip
    fields = {"image": Field("uint8", None), "label": Field("int64", (), classes=len(classes)), "name": Field("uint8", None)}
    tasks = [
        Task(out, split, number, fields, items, _digest(split, number, items), skip_broken)
        for place, (split, listed) in enumerate(splits.items())
        for number, items in enumerate(_cut(listed, place, shard_bytes))
    ]
    made = _make(out, tasks, workers)
    entries = [Split(split, fields, [m.shard for m, t in zip(made, tasks, strict=True) if t.split == split]) for split in splits]
    counts = {entry.split: sum(shard.count for shard in entry.shards) for entry in entries}
    for split, count in counts.items():
        if count == 0:
            raise InputError(f"{out}: no whole image is left for {split}, all {len(splits[split])} are broken")
    converted = {f"{t.split}/{name}": why for m, t in zip(made, tasks, strict=True) for name, why in m.converted.items()}
    skipped = {f"{t.split}/{name}": why for m, t in zip(made, tasks, strict=True) for name, why in m.skipped.items()}
    about |= {
        "classes": list(classes),
        "converted": {
            "rule": f"what is no ordinary JPEG is stored as RGB JPEG, quality {QUALITY}, 4:4:4",
            "count": len(converted),
            "names": dict(sorted(converted.items())[:NAMED]),
        },
        "skipped": dict(sorted(skipped.items())),
    }
    write_index(out, entries, **about)
    others = sorted({path.name for path in out.glob("*.h5")} - {m.shard.file for m in made})
    if others:  # an unfinished run with other shards was here
        _say(f"{out}: {len(others)} files are no part of this and can be deleted: {', '.join(others)}")
    return counts


def pack_shard(task: Task, progress: pool.Progress) -> Made:
    """Make one shard; in a worker or not.

    Raises:
        InputError: an image that cannot be read or, unless the task skips them, is broken.
    """
    fresh = Made(Shard("", 0, {}), {}, {})
    reader, labels = Reader(), []
    images, names = _Growing(), _Growing()
    try:
        for item in task.items:
            try:
                image, was = as_jpeg(reader.read(item))
            except Broken as why:
                if not task.skip_broken:
                    raise InputError(f"{item.where()}: {why}; --skip-broken leaves such files out") from None
                fresh.skipped[item.name] = str(why)
            else:
                images.add(image)
                names.add(item.name.encode(errors="surrogateescape"))
                labels.append(item.label)
                if was is not None:
                    fresh.converted[item.name] = was
            progress(1)
    finally:
        reader.close()
    samples = {"image": images.packed(), "label": np.array(labels, np.int64), "name": names.packed()}
    notes = {"converted": fresh.converted, "skipped": fresh.skipped}
    shard = write_shard(task.folder, task.split, task.number, task.fields, samples, source=task.source, notes=notes)
    return fresh._replace(shard=shard)


class _Growing:
    """Bytes that are in memory once, while they are collected and when they are written."""

    def __init__(self) -> None:
        self._data, self._ends = bytearray(), [0]

    def add(self, sample: bytes) -> None:
        self._data += sample
        self._ends.append(len(self._data))

    def packed(self) -> Packed:
        return Packed(np.frombuffer(self._data, np.uint8), np.array(self._ends, np.int64))


def _cut(items: list[Item], place: int, shard_bytes: int) -> list[list[Item]]:
    shuffled = [items[i] for i in order.epoch_order(len(items), ORDER_SEED, place)]
    return [shuffled[cut] for cut in cut_by_size(np.array([item.size for item in shuffled], np.int64), shard_bytes)]


def _digest(split: str, number: int, items: Sequence[Item]) -> str:
    """What makes a shard: the rule, and the images by name, label and size; not where they lie."""
    total = hashlib.sha256(repr((VERSION, RULE, QUALITY, MIN_SIDE, MAX_PIXELS, split, number)).encode())
    for item in items:
        total.update(f"{item.name}\0{item.label}\0{item.size}\n".encode(errors="surrogateescape"))
    return total.hexdigest()


def _make(out: Path, tasks: Sequence[Task], workers: int) -> list[Made]:
    made = {place: kept for place, task in enumerate(tasks) if (kept := _kept(task)) is not None}
    if made:
        _say(f"{out}: {len(made)} of {len(tasks)} shards are finished from an earlier run and kept")
    missing = [place for place in range(len(tasks)) if place not in made]
    needed = sum(item.size for place in missing for item in tasks[place].items)
    free = shutil.disk_usage(out).free
    if needed > free:
        raise InputError(f"{out}: about {needed:,} bytes are to be written, {free:,} are free there")
    total = sum(len(task.items) for task in tasks)
    done = total - sum(len(tasks[place].items) for place in missing)
    with tqdm(total=total, initial=done, unit="img", dynamic_ncols=True, disable=None) as bar:

        def finished(index: int, result: Made) -> None:
            made[missing[index]] = result
            for name, why in result.skipped.items():
                _say(f"skipped: {tasks[missing[index]].split}/{name}: {why}")
            if bar.disable:  # no terminal
                _say(f"{result.shard.file}: {result.shard.count:,} images; {len(made)} of {len(tasks)} shards")

        try:
            pool.run(pack_shard, [tasks[place] for place in missing], workers, bar.update, finished)
        except KeyboardInterrupt:
            _say(f"{out}: unfinished; {len(made)} of {len(tasks)} shards are there and the same command keeps them")
            raise
        finally:
            _remove_parts(out)  # of a worker that had to be killed
    return [made[place] for place in range(len(tasks))]


def _kept(task: Task) -> Made | None:
    shard = finished_shard(task.folder, task.split, task.number, task.fields, task.source)
    if shard is None or (task.folder / shard.file).stat().st_mtime <= max(item.modified for item in task.items):
        return None  # or an image has been changed since
    notes = shard_notes(task.folder, task.split, task.number)
    if notes["skipped"] and not task.skip_broken:
        return None  # made again, which names what is broken
    return Made(shard, notes["converted"], notes["skipped"])


def _remove_parts(out: Path) -> None:
    for path in out.iterdir():
        if PART.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _say(text: str) -> None:
    tqdm.write(text, file=sys.stderr)
