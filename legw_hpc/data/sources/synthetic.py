"""Random samples of any shape and count, as real shards: a benchmark without a data set."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from legw_hpc.data.format import Field
from legw_hpc.data.writer import Writer, write_index, writing
from legw_hpc.errors import InputError

# Bytes of a sample (assumed): a film in full.  A shard of them at a time is made in memory.
LARGEST = 1 << 24


def write(
    out: Path,
    shape: tuple[int, ...],
    classes: int,
    train: int,
    test: int,
    seed: int = 0,
    samples_per_shard: int | None = None,
) -> None:
    """Write a data folder of uint8 samples whose label shows as a brighter band, so that they can be learnt.

    Args:
        out: the data folder to make.
        shape: of one sample.
        classes: labels are 0 ... classes-1.
        train, test: samples of each split.
        seed: of the noise and the labels.
        samples_per_shard: by size if None.

    Raises:
        InputError: a count, shape or number of classes below 1, a seed below 0, too large a sample.
    """
    numbers = {"classes": classes, "train": train, "test": test, **{f"shape[{i}]": n for i, n in enumerate(shape)}}
    for name, number in numbers.items():
        if number < 1:
            raise InputError(f"synthetic {name} must be at least 1, not {number}")
    if seed < 0:
        raise InputError(f"synthetic seed must be at least 0, not {seed}")
    if math.prod(shape) > LARGEST:
        raise InputError(f"synthetic shape {list(shape)}: a sample of {math.prod(shape):,} bytes; at most {LARGEST:,}")
    if not shape:
        raise InputError("synthetic shape needs at least one dimension")
    fields = {"image": Field("uint8", shape), "label": Field("int64", (), classes=classes)}
    with writing(out):
        writers = []
        for split, (name, count) in enumerate((("train", train), ("test", test))):
            writer = Writer(out, name, fields, samples_per_shard)
            rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, split])))
            for start in range(0, count, writer.samples_per_shard):
                size = min(writer.samples_per_shard, count - start)
                labels = rng.integers(0, classes, size)
                images = rng.integers(0, 128, (size, int(np.prod(shape))), dtype=np.uint8)
                width = max(1, images.shape[1] // classes)
                for label in range(classes):
                    images[labels == label, label * width : (label + 1) * width] += 100
                writer.write({"image": images.reshape(size, *shape), "label": labels})
            writers.append(writer)
        write_index(out, writers, source=f"synthetic, seed {seed}")
