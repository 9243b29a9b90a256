"""Any folder of images, train/CLASS/* and val/CLASS/*, to shards of JPEGs.

Nothing is resized or cropped: training decodes the JPEGs and augments them anew each epoch.  What
is stored unchanged and what is converted is the rule of image_check.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

from legw_hpc.data.sources import items, pack
from legw_hpc.data.writer import SHARD_BYTES, refuse_finished


def convert(
    source: Path,
    out: Path,
    *,
    splits: tuple[str, ...] = ("train", "val"),
    workers: int,
    shard_bytes: int = SHARD_BYTES,
    skip_broken: bool = False,
) -> dict[str, int]:
    """Write the shards of a folder of images; every image is decoded once to know that it is whole.

    The same command after an interruption keeps the shards that are finished.

    Args:
        source: holds SPLIT/CLASS/*.
        out: the data folder to make.
        splits: folders of `source`; the first one defines the classes, by name.
        workers: processes.
        shard_bytes: about the size of a shard.
        skip_broken: leave out broken files, printed and named in the index, instead of ending.

    Returns:
        split -> number of samples.

    Raises:
        InputError: a folder that is missing, empty or foreign, or a broken image, by name.
    """
    refuse_finished(out)
    print(f"listing the images of {source}", file=sys.stderr)  # minutes for a million on a slow file system
    trees = {split: items.class_folders(source / split) for split in splits}
    classes = sorted(trees[splits[0]])
    listed = {split: items.labelled(tree, classes, str(source / split)) for split, tree in trees.items()}
    return pack.pack(
        out,
        listed,
        classes,
        workers=workers,
        shard_bytes=shard_bytes,
        skip_broken=skip_broken,
        source=f"images of {source.resolve()}",
    )
