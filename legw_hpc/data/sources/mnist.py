"""MNIST: from the four IDX files (plain or .gz), or downloaded, to shards."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import math
import struct
import urllib.error
import urllib.request
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from legw_hpc.data.files import make_folder, written_whole
from legw_hpc.data.format import Field
from legw_hpc.data.writer import Writer, write_index, writing
from legw_hpc.errors import InputError

ATTRIBUTION = (
    "MNIST: Y. LeCun, C. Cortes, C. J. C. Burges, The MNIST database of handwritten digits; "
    "a remix of NIST Special Databases 1 and 3. Licence: CC BY-SA 3.0"
)
FIELDS = {"image": Field("uint8", (28, 28)), "label": Field("int64", (), classes=10)}
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
# split -> (images, labels); MD5 of the published .gz files.
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
MD5 = {
    "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
}
IDX_UINT8 = 0x08
# Of a file, decompressed (assumed): the largest of MNIST has 47 MB, and a small .gz can stand for a memory full.
MOST_BYTES = 1 << 28


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array in an IDX file of unsigned bytes, plain or gzip-compressed.

    Layout: two zero bytes, the element type, the number of dimensions, each dimension as a 4-byte
    big-endian integer, the elements.

    Raises:
        InputError: missing, not IDX, not of bytes, of more than MOST_BYTES, or not as long as its header says.
    """
    try:
        with open(path, "rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            data = (gzip.GzipFile(fileobj=raw) if packed else raw).read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise InputError(f"{path}: not found") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read or decompressed: {error}") from None
    if len(data) > MOST_BYTES:
        raise InputError(f"{path}: more than {MOST_BYTES} bytes, which no file of MNIST has")
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] != IDX_UINT8 or not 1 <= data[3] <= 4:
        raise InputError(f"{path}: wrong magic {data[:4].hex() or '(empty file)'}, expected 000008 and 1 to 4 dimensions")
    header = 4 + 4 * data[3]
    if len(data) < header:
        raise InputError(f"{path}: truncated in its header: {len(data)} bytes, {header} needed")
    shape = struct.unpack(f">{data[3]}I", data[4:header])
    if len(data) - header != math.prod(shape):
        raise InputError(f"{path}: {len(data) - header} bytes of data, its header says {math.prod(shape)} {shape}")
    if not len(data) - header:  # beside a 0 the other dimensions may be larger than an array's
        raise InputError(f"{path}: no elements, its header says {shape}")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def convert(source: Path, out: Path, samples_per_shard: int | None = None) -> dict[str, int]:
    """Write the shards of both splits from a folder with the four IDX files.

    Args:
        source: the folder; each file plain or with .gz.
        out: the data folder to make.
        samples_per_shard: by size if None.

    Returns:
        split -> number of samples.

    Raises:
        InputError: a file that is missing or damaged, or counts, shapes or labels that do not fit.
    """
    arrays = {split: _read_split(source, *names) for split, names in FILES.items()}  # both, before anything is written
    with writing(out):
        writers = []
        for split, (images, labels) in arrays.items():
            writer = Writer(out, split, FIELDS, samples_per_shard)
            writer.write({"image": images, "label": labels})
            writers.append(writer)
        write_index(out, writers, source="MNIST, IDX files", attribution=ATTRIBUTION)
    return {split: len(labels) for split, (_, labels) in arrays.items()}


def convert_sample(source: Path, out: Path, train: int = 5000, test: int = 1000) -> None:
    """Write the sample that ships with the package: the first images of each split, compressed."""
    with writing(out):
        writers = []
        for split, count in (("train", train), ("test", test)):
            images, labels = _read_split(source, *FILES[split])
            writer = Writer(out, split, FIELDS, compress=9)
            writer.write({"image": images[:count], "label": labels[:count]})
            writers.append(writer)
        about = f"MNIST, the first {train} training and {test} test images"
        write_index(out, writers, source=about, attribution=ATTRIBUTION)


def download(folder: Path) -> None:
    """Fetch the four .gz files from a public mirror, each checked; files already there are kept.

    Raises:
        InputError: no mirror has the file with its published MD5.
    """
    make_folder(folder)
    for name, md5 in MD5.items():
        target = folder / f"{name}.gz"
        if target.exists() and hashlib.md5(target.read_bytes()).hexdigest() == md5:
            continue
        data = _fetch(f"{name}.gz", md5)
        with written_whole(target) as path:
            path.write_bytes(data)


def _fetch(name: str, md5: str) -> bytes:
    errors = []
    for mirror in MIRRORS:
        try:
            with urllib.request.urlopen(mirror + name, timeout=60) as reply:
                data = bytes(reply.read())
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            errors.append(f"{mirror}: {error}")
            continue
        found = hashlib.md5(data).hexdigest()
        if found == md5:
            return data
        errors.append(f"{mirror}: MD5 {found}, published is {md5}")
    raise InputError(f"cannot download {name} ({'; '.join(errors)}); fetch the four files elsewhere and use --source DIR")


def _read_split(source: Path, images_name: str, labels_name: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    images_path, labels_path = _find(source, images_name), _find(source, labels_name)
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.ndim != 3 or images.shape[1:] != FIELDS["image"].shape:
        raise InputError(f"{images_path}: images of shape {images.shape[1:]}, expected {FIELDS['image'].shape}")
    if labels.ndim != 1 or len(labels) != len(images):
        raise InputError(f"{labels_path}: {labels.shape} labels for the {len(images)} images of {images_path.name}")
    if labels.size and labels.max() >= 10:
        bad = int(np.argmax(labels >= 10))
        raise InputError(f"{labels_path}: label {labels[bad]} of image {bad} is out of range, 0 to 9 expected")
    return images, labels.astype(np.int64)


def _find(source: Path, name: str) -> Path:
    if not source.is_dir():
        raise InputError(f"{source}: no such folder; it should hold the four IDX files of MNIST")
    for candidate in (source / name, source / f"{name}.gz"):
        if candidate.exists():
            return candidate
    raise InputError(f"{source}: neither {name} nor {name}.gz is here")
