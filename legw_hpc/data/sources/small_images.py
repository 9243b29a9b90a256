"""Small images of one size, train/CLASS/* and test/CLASS/*, decoded once: fixed-size arrays that training maps.

The source is a folder, or a tar or tar.gz of one, which is read in one pass and not extracted.
Images are RGB, [height, width, 3].
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from legw_hpc.data import order
from legw_hpc.data.format import Field
from legw_hpc.data.sources.image_check import Broken, as_rgb
from legw_hpc.data.sources.items import Reader, class_folders, labelled, members
from legw_hpc.data.sources.pack import ORDER_SEED
from legw_hpc.data.writer import Writer, refuse_finished, write_index, writing
from legw_hpc.errors import InputError

FOLDERS = {"train": "train", "test": "test", "val": "test"}  # in the source -> split

Pixels = NDArray[np.uint8]
# split -> class -> (file, pixels) of each image
Found = dict[str, dict[str, list[tuple[str, Pixels]]]]


def convert(
    source: Path, out: Path, size: tuple[int, int], samples_per_shard: int | None = None, classes: int | None = None, **about: Any
) -> dict[str, int]:
    """Write the shards of a tree of small images; both splits are in memory before anything is written.

    Args:
        source: a folder or tar that holds train/CLASS/* and test/CLASS/* (or val/CLASS/*).
        out: the data folder to make.
        size: height and width of every image.
        samples_per_shard: by size if None.
        classes: how many there must be; any number if None.
        about: for the index, beside the classes and the source.

    Returns:
        split -> number of samples.

    Raises:
        InputError: a tree of another layout, an image that is broken or of another size, by name.
    """
    refuse_finished(out)
    found = _from_folder(source, size) if source.is_dir() else _from_tar(source, size)
    names = sorted(found["train"])
    if classes is not None and len(names) != classes:
        raise InputError(f"{source}: train has {len(names)} classes, expected {classes}")
    foreign = sorted(found["test"].keys() - set(names))
    if foreign:
        raise InputError(f"{source}: class {foreign[0]} of test is not among the {len(names)} of train")
    fields = {"image": Field("uint8", (*size, 3)), "label": Field("int64", (), classes=len(names))}
    arrays = {split: _arrays(tree, names) for split, tree in found.items()}
    return write(out, fields, arrays, samples_per_shard, classes=names, **{"source": f"images of {source.resolve()}"} | about)


def write(
    out: Path,
    fields: dict[str, Field],
    splits: dict[str, tuple[Pixels, NDArray[np.int64]]],
    samples_per_shard: int | None,
    **about: Any,
) -> dict[str, int]:
    """Write images and labels of each split in a fixed pseudo-random order.

    Returns:
        split -> number of samples.
    """
    with writing(out):
        writers = []
        for place, (split, (images, labels)) in enumerate(splits.items()):
            writer = Writer(out, split, fields, samples_per_shard)
            shuffled = order.epoch_order(len(labels), ORDER_SEED, place)
            writer.write({"image": images[shuffled], "label": labels[shuffled]})
            writers.append(writer)
        write_index(out, writers, **about)
    return {split: len(labels) for split, (_, labels) in splits.items()}


def _arrays(tree: dict[str, list[tuple[str, Pixels]]], names: Sequence[str]) -> tuple[Pixels, NDArray[np.int64]]:
    """By class and file name, whatever the order in which they were found."""
    images, labels = [], []
    for label, name in enumerate(names):
        for _, pixels in sorted(tree.get(name, []), key=lambda image: image[0]):
            images.append(pixels)
            labels.append(label)
    return np.stack(images), np.array(labels, np.int64)


def _from_folder(source: Path, size: tuple[int, int]) -> Found:
    second = "val" if not (source / "test").exists() and (source / "val").exists() else "test"
    trees = {folder: class_folders(source / folder) for folder in ("train", second)}
    found: Found = {"train": {}, "test": {}}
    reader = Reader()
    for folder, tree in trees.items():
        for item in labelled(tree, sorted(tree), str(source / folder)):
            name, file = item.name.split("/")
            found[FOLDERS[folder]].setdefault(name, []).append((file, _pixels(item.where(), reader.read(item), size)))
    reader.close()
    return found


def _from_tar(source: Path, size: tuple[int, int]) -> Found:
    found: Found = {"train": {}, "test": {}}
    tops: dict[str, PurePosixPath] = {}  # split -> its folder
    for path, read in tar_entries(source):
        if read is None:  # a folder; one of a class is noted, as it may be empty
            if len(path.parts) >= 2 and path.parts[-2] in FOLDERS:
                found[FOLDERS[path.parts[-2]]].setdefault(path.name, [])
            continue
        if len(path.parts) < 3 or path.parts[-3] not in FOLDERS:
            raise InputError(f"{source}: {path} is not in train/CLASS/, test/CLASS/ or val/CLASS/")
        top = path.parents[1]
        split = FOLDERS[top.name]
        if tops.setdefault(split, top) != top:
            raise InputError(f"{source}: both {tops[split]}/ and {top}/ are there; one of them can be {split}")
        found[split].setdefault(path.parent.name, []).append((path.name, _pixels(f"{source}: {path}", read(), size)))
    for split, tree in found.items():
        if not tree:
            raise InputError(f"{source}: no {split}/CLASS/ in this archive")
        for name, images in tree.items():
            if not images:
                raise InputError(f"{source}: class folder {name} of {split} has no images")
    return found


def tar_entries(source: Path) -> Iterator[tuple[PurePosixPath, Callable[[], bytes] | None]]:
    """The files of a tar, or gzip-compressed tar, with a function that reads each, and its folders with None.

    A compressed one is decompressed into memory, which checks it as a whole.

    Raises:
        InputError: missing, not a tar, truncated or damaged, or with links in it.
    """
    try:
        with open(source, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            with tarfile.open(fileobj=io.BytesIO(gzip.decompress(file.read())) if packed else file, mode="r:") as tar:
                for member in members(tar, str(source), folders=True):
                    yield PurePosixPath(member.name), None if member.isdir() else partial(_read, tar, member)
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise InputError(f"{source}: no tar or tar.gz, or a damaged one: {error}") from None


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None  # members() has seen to it
    return file.read()


def _pixels(where: str, data: bytes, size: tuple[int, int]) -> Pixels:
    try:
        pixels = as_rgb(data)
    except Broken as why:
        raise InputError(f"{where}: {why}") from None
    if pixels.shape[:2] != size:
        raise InputError(f"{where}: {pixels.shape[0]}x{pixels.shape[1]} pixels, expected {size[0]}x{size[1]}")
    return pixels
