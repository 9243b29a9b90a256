"""CIFAR-10: from its binary version, or from a tree of its images, to shards of 32x32 RGB arrays."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from legw_hpc.data.format import Field
from legw_hpc.data.sources import small_images
from legw_hpc.data.writer import refuse_finished
from legw_hpc.errors import InputError

ATTRIBUTION = "CIFAR-10: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009"
SIZE = (32, 32)
# In label order, which is also their alphabetical order: a tree of folders has the same labels.
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FIELDS = {"image": Field("uint8", (*SIZE, 3)), "label": Field("int64", (), classes=len(CLASSES))}
FILES = {"train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)), "test": ("test_batch.bin",)}
RECORD = 1 + 3 * SIZE[0] * SIZE[1]  # the label; the red, green and blue planes
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"  # of cifar-10-binary.tar.gz as published


def convert(source: Path, out: Path, samples_per_shard: int | None = None) -> dict[str, int]:
    """Write the shards of both splits.

    Args:
        source: cifar-10-binary.tar.gz; or a folder with its six .bin files; or a folder, tar or tar.gz
            of images, train/CLASS/* and test/CLASS/*.
        out: the data folder to make.
        samples_per_shard: by size if None.

    Returns:
        split -> number of samples.

    Raises:
        InputError: a file that is missing, cut or damaged, an image of another size, a wrong label.
    """
    refuse_finished(out)
    batches = _batches(source)
    if not batches:
        return small_images.convert(source, out, SIZE, samples_per_shard, len(CLASSES), attribution=ATTRIBUTION)
    missing = [name for names in FILES.values() for name in names if name not in batches]
    if missing:
        raise InputError(f"{source}: {', '.join(missing)} missing, {len(batches)} of 6 batches are there")
    parts = {split: [_decode(f"{source}: {name}", batches.pop(name)) for name in names] for split, names in FILES.items()}
    arrays = {
        split: (np.concatenate([images for images, _ in both]), np.concatenate([labels for _, labels in both]))
        for split, both in parts.items()
    }
    about = {"source": _edition(source), "attribution": ATTRIBUTION, "classes": CLASSES}
    return small_images.write(out, FIELDS, arrays, samples_per_shard, **about)


def _batches(source: Path) -> dict[str, bytes]:
    """The .bin files of a folder or an archive; none if it holds something else."""
    wanted = {name for names in FILES.values() for name in names}
    if not source.is_dir():
        entries = small_images.tar_entries(source)
        return {path.name: read() for path, read in entries if read is not None and path.name in wanted}
    try:
        return {name: (source / name).read_bytes() for name in sorted(wanted) if (source / name).exists()}
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read: {error.strerror}") from None


def _decode(where: str, data: bytes) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    if not data or len(data) % RECORD:
        raise InputError(f"{where}: {len(data)} bytes, not a multiple of the {RECORD} of a record")
    records = np.frombuffer(data, np.uint8).reshape(-1, RECORD)
    labels = records[:, 0]
    if labels.max() >= len(CLASSES):
        bad = int(np.argmax(labels >= len(CLASSES)))
        raise InputError(f"{where}: label {labels[bad]} of record {bad} is out of range, 0 to {len(CLASSES) - 1} expected")
    planes = records[:, 1:].reshape(-1, 3, *SIZE)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels.astype(np.int64)


def _edition(source: Path) -> str:
    """Which archive it was; one that is whole but not the published one is taken, with a word."""
    if source.is_dir():
        return f"CIFAR-10, the binary files of {source.resolve()}"
    found = hashlib.md5(source.read_bytes()).hexdigest()
    if found == MD5:
        return "CIFAR-10, binary version, the archive as published"
    print(f"{source}: whole, but not the published archive: MD5 {found}, published is {MD5}", file=sys.stderr)
    return f"CIFAR-10, binary version, an archive with MD5 {found}"
