"""ImageNet (ILSVRC 2012) as it is published or as it is usually unpacked, or a sample of it, to shards of JPEGs.

The published tar files are read where they are: they are uncompressed, so an image is a range of
bytes.  The same images make the same shards, whether from tars or from folders.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from legw_hpc.data.sources.items import (
    Range,
    Tree,
    class_folders,
    flat_folder,
    has_class_folders,
    labelled,
    tar_files,
    tar_of_tars,
)
from legw_hpc.data.sources.pack import pack
from legw_hpc.data.writer import SHARD_BYTES, refuse_finished
from legw_hpc.errors import InputError

ATTRIBUTION = "ImageNet: O. Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, IJCV 2015; image-net.org"
TRAIN_TAR = "ILSVRC2012_img_train.tar"
VAL_TAR = "ILSVRC2012_img_val.tar"
# Lines such as `n01440764 tench, Tinca tinca`.
NAMES = ("LOC_synset_mapping.txt", "synset_words.txt")
VAL_LABELS = "lines such as `ILSVRC2012_val_00000001.JPEG n01751748`, or LOC_val_solution.csv"


def convert(
    source: Path,
    out: Path,
    *,
    val_labels: Path | None = None,
    workers: int,
    shard_bytes: int = SHARD_BYTES,
    skip_broken: bool = False,
) -> dict[str, int]:
    """Write the shards of train and val; see images.convert for what is checked and kept.

    Args:
        source: holds, for train, train/CLASS/* or train/CLASS.tar or ILSVRC2012_img_train.tar, and for
            val, val/CLASS/* or val/* or ILSVRC2012_img_val.tar; the first that is there is taken.
        out: the data folder to make.
        val_labels: the class of each file of val, where it has no class folders.
        workers, shard_bytes, skip_broken: as for images.convert.

    Returns:
        split -> number of samples.

    Raises:
        InputError: what is missing or foreign, or a broken image, by name.
    """
    refuse_finished(out)
    print(f"listing the images of {source}", file=sys.stderr)  # minutes on a slow file system
    train, train_from = _train(source)
    val, val_from = _val(source, val_labels)
    classes = sorted(train)
    listed = {"train": labelled(train, classes, str(train_from)), "val": labelled(val, classes, str(val_from))}
    for split, where in (("train", train_from), ("val", val_from)):
        print(
            f"{split}: {len(listed[split]):,} images of {len(train if split == 'train' else val):,} classes in {where}",
            file=sys.stderr,
        )
    about: dict[str, Any] = {"source": f"ImageNet, {train_from.resolve()} and {val_from.resolve()}", "attribution": ATTRIBUTION}
    names = _class_names(source)
    if names:
        about["class_names"] = [names.get(name, name) for name in classes]
    return pack(out, listed, classes, workers=workers, shard_bytes=shard_bytes, skip_broken=skip_broken, **about)


def _train(source: Path) -> tuple[Tree, Path]:
    folder, tar = source / "train", source / TRAIN_TAR
    if has_class_folders(folder):
        return class_folders(folder), folder
    tars = sorted(folder.glob("[!.]*"))
    if any(path.suffix == ".tar" for path in tars):
        for path in tars:
            if path.suffix != ".tar":
                raise InputError(f"{path}: not a tar; {folder} should hold one tar a class and nothing else")
        tree = {path.stem: tar_files(path) for path in tars}
        for path in tars:
            if not tree[path.stem]:
                raise InputError(f"{path}: this class has no images")
        return tree, folder
    if tar.is_file():
        return tar_of_tars(tar), tar
    raise InputError(f"{source}: neither train/CLASS/, nor train/CLASS.tar, nor {TRAIN_TAR} is here")


def _val(source: Path, val_labels: Path | None) -> tuple[Tree, Path]:
    folder, tar = source / "val", source / VAL_TAR
    if has_class_folders(folder):
        if val_labels is not None:
            raise InputError(f"{folder}: has class folders, so {val_labels} cannot be what labels it; leave out one of them")
        return class_folders(folder), folder
    if folder.is_dir():
        images, where = flat_folder(folder), folder
    elif tar.is_file():
        images, where = tar_files(tar), tar
    else:
        raise InputError(f"{source}: neither val/CLASS/, nor val/ with images, nor {VAL_TAR} is here")
    if not images:
        raise InputError(f"{where}: no images here")
    if val_labels is None:
        raise InputError(
            f"{where}: {len(images)} images without class folders; name their classes by --val-labels FILE ({VAL_LABELS})"
        )
    return _by_class(images, where, val_labels), where


def _by_class(images: list[Range], where: Path, val_labels: Path) -> Tree:
    labels = _read_labels(val_labels)
    tree: dict[str, list[Range]] = {}
    for image in images:
        name = labels.get(image.file, labels.get(Path(image.file).stem))  # LOC_val_solution.csv has no suffixes
        if name is None:
            raise InputError(f"{val_labels}: no line for {image.file} of {where}; {len(labels)} images are named")
        tree.setdefault(name, []).append(image)
    if len(images) < len(labels):
        print(f"val: {len(images):,} of the {len(labels):,} images of {val_labels} are in {where}", file=sys.stderr)
    return tree


def _read_labels(path: Path) -> dict[str, str]:
    """File name as the line has it -> class."""
    labels: dict[str, str] = {}
    for number, line in enumerate(_lines(path), 1):
        words = re.split(r"[\s,]+", line.strip())
        if words == [""] or (number == 1 and words[0] == "ImageId"):  # the head of LOC_val_solution.csv
            continue
        if len(words) < 2:
            raise InputError(f"{path}: line {number} is {line.strip()[:60]!r}, expected a file and its class")
        file = Path(words[0]).name
        if labels.setdefault(file, words[1]) != words[1]:
            raise InputError(f"{path}: line {number} says {words[1]} of {words[0]}, an earlier one {labels[file]}")
    return labels


def _class_names(source: Path) -> dict[str, str]:
    """Class -> readable name, if a file in `source` has them."""
    for path in (source / name for name in NAMES):
        if path.is_file():
            return {key: name.strip() for key, _, name in (line.partition(" ") for line in _lines(path)) if name.strip()}
    return {}


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
