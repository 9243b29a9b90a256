"""Small images of one size, and CIFAR-10 as images or as published: arrays in shards, or a refusal that names the file."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from legw_hpc.data.shards import Shards, verify
from legw_hpc.data.sources import cifar10, image_check, small_images
from tests.pictures import SHARED, Harm, about, content, picture, refused, tar, unpack


@pytest.fixture
def tree() -> dict[str, bytes]:
    """Ten classes of 32x32 images, 3 for training and 1 for test of each: file -> bytes."""
    kinds = ("JPEG", "PNG", "JPEG")
    made = {f"train/{name}/{i}.x": (10 * label + i, kinds[i]) for label, name in enumerate(cifar10.CLASSES) for i in range(3)}
    made |= {f"test/{name}/0.x": (10 * label + 9, "PNG") for label, name in enumerate(cifar10.CLASSES)}
    return {path: picture(seed, kind, size=(32, 32)) for path, (seed, kind) in made.items()}


def test_folder_and_archives_make_the_same_arrays(tree: dict[str, bytes], tmp_path: Path) -> None:
    unpack(tree, tmp_path / "folder")
    unpack({name.replace("test/", "val/"): data for name, data in tree.items()}, tmp_path / "with val")
    tar(tmp_path / "plain.tar", dict(reversed(tree.items())), folders=("train", "train/bird"))
    tar(tmp_path / "packed.tar.gz", {f"./top/{name}": data for name, data in tree.items()}, "w:gz")
    made = []
    for name in ("folder", "with val", "plain.tar", "packed.tar.gz"):
        out = tmp_path / f"out {name}"
        assert cifar10.convert(tmp_path / name, out) == {"train": 30, "test": 10} == verify(out)
        made.append(content(out))
    assert made[0] == made[1] == made[2] == made[3]
    assert about(out)["classes"] == list(cifar10.CLASSES)
    data = Shards(out, "train")
    found = data.take("image", np.arange(30))
    labels = data.take("label", np.arange(30))
    assert np.bincount(labels).tolist() == [3] * 10
    wanted = {
        (cifar10.CLASSES.index(name.split("/")[1]), image_check.as_rgb(packed).tobytes())
        for name, packed in tree.items()
        if name.startswith("train")
    }
    assert {(label, image.tobytes()) for label, image in zip(labels.tolist(), found, strict=True)} == wanted


def test_any_size_and_classes(tmp_path: Path) -> None:
    files = {f"{split}/{name}/0.png": picture(1, "PNG", "L", (5, 3)) for split in ("train", "val") for name in "ab"}
    unpack(files, tmp_path / "s")
    assert small_images.convert(tmp_path / "s", tmp_path / "out", (3, 5), samples_per_shard=1) == {"train": 2, "test": 2}
    assert Shards(tmp_path / "out", "test").take("image", np.arange(2)).shape == (2, 3, 5, 3)


Tree = dict[str, bytes]
BAD_SMALL: dict[str, tuple[Callable[[Tree], object], list[str]]] = {
    "other size": (lambda t: t.update({"train/cat/1.x": picture(1, size=(32, 31))}), ["train/cat/1.x", "31x32", "32x32"]),
    "truncated": (lambda t: t.update({"train/cat/1.x": picture(1, size=(32, 32))[:-3]}), ["train/cat/1.x", "truncated"]),
    "zero bytes": (lambda t: t.update({"test/cat/0.x": b""}), ["test/cat/0.x", "0 bytes"]),
    "nine classes": (lambda t: [t.pop(name) for name in list(t) if "/truck/" in name], ["9 classes", "10"]),
    "foreign class": (lambda t: t.update({"test/wasp/0.x": t["test/cat/0.x"]}), ["wasp", "10 of train"]),
    "no test": (lambda t: [t.pop(name) for name in list(t) if name.startswith("test")], ["test"]),
    "no train": (lambda t: [t.pop(name) for name in list(t) if name.startswith("train")], ["train"]),
}
BAD_SMALL_TAR: dict[str, tuple[Callable[[Path, Tree], object], list[str]]] = {
    "missing": (lambda p, t: p.unlink(), ["No such file"]),
    "cut": (lambda p, t: p.write_bytes(p.read_bytes()[:9000]), ["damaged"]),
    "cut gzip": (lambda p, t: p.write_bytes(gzip.compress(p.read_bytes())[:-30]), ["damaged"]),
    "text": (lambda p, t: p.write_text("hello"), ["no tar"]),
    "elsewhere": (lambda p, t: tar(p, t | {"README": b"x"}), ["README", "train/CLASS/"]),
    "test and val": (lambda p, t: tar(p, t | {"val/cat/1.x": t["test/cat/0.x"]}), ["both test/ and val/"]),
    "empty class": (lambda p, t: tar(p, t, folders=("train/wasp",)), ["wasp", "no images"]),
}


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "tar"])
@pytest.mark.parametrize("name", BAD_SMALL)
def test_bad_small_images_are_named_and_nothing_written(tree: Tree, tmp_path: Path, name: str, packed: bool) -> None:
    harm, words = BAD_SMALL[name]
    harm(tree)
    source = unpack(tree, tmp_path / "source")
    if packed:
        source = tmp_path / "source.tar"
        tar(source, tree)
    with refused(words, tmp_path / "out"):
        cifar10.convert(source, tmp_path / "out")


@pytest.mark.parametrize("name", BAD_SMALL_TAR)
def test_a_bad_archive_is_named_and_nothing_written(tree: Tree, tmp_path: Path, name: str) -> None:
    harm, words = BAD_SMALL_TAR[name]
    source = tmp_path / "source.tar"
    tar(source, tree)
    harm(source, tree)
    with refused(["source.tar", *words], tmp_path / "out"):
        cifar10.convert(source, tmp_path / "out")


def records(count: int, seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    made = np.random.default_rng(seed).integers(0, 256, (count, cifar10.RECORD), dtype=np.uint8)
    made[:, 0] %= 10
    return made


BINARY = [name for names in cifar10.FILES.values() for name in names]


def test_the_binary_version_becomes_rgb_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    batches = {name: records(7, seed) for seed, name in enumerate(BINARY)}
    files = {name: batch.tobytes() for name, batch in batches.items()}
    unpack(files, tmp_path / "folder")
    inside = {f"cifar-10-batches-bin/{name}": data for name, data in files.items()}
    tar(tmp_path / "c.tar.gz", inside | {"cifar-10-batches-bin/readme.html": b"x"}, "w:gz")
    made = []
    for name in ("folder", "c.tar.gz"):
        assert cifar10.convert(tmp_path / name, tmp_path / f"out {name}") == {"train": 35, "test": 7}
        made.append(content(tmp_path / f"out {name}"))
    assert made[0] == made[1]
    assert "not the published archive" in capsys.readouterr().err
    data = Shards(tmp_path / "out folder", "train")
    found = {
        (int(label), image.transpose(2, 0, 1).tobytes())
        for label, image in zip(data.take("label", np.arange(35)), data.take("image", np.arange(35)), strict=True)
    }
    assert found == {(int(row[0]), row[1:].tobytes()) for name in BINARY[:5] for row in batches[name]}


def set_label(path: Path, record: int, label: int) -> None:
    data = bytearray(path.read_bytes())
    data[record * cifar10.RECORD] = label
    path.write_bytes(data)


BAD_BINARY: dict[str, tuple[Harm, list[str]]] = {
    "batch missing": (lambda f: (f / BINARY[2]).unlink(), [BINARY[2], "5 of 6"]),
    "batch cut": (lambda f: os.truncate(f / BINARY[5], 4000), [BINARY[5], "4000 bytes", "3073"]),
    "batch empty": (lambda f: os.truncate(f / BINARY[0], 0), [BINARY[0], "0 bytes"]),
    "label out of range": (lambda f: set_label(f / BINARY[1], 3, 10), [BINARY[1], "label 10 of record 3"]),
}


@pytest.mark.parametrize(("harm", "words"), BAD_BINARY.values(), ids=BAD_BINARY)
def test_a_damaged_batch_is_named(tmp_path: Path, harm: Harm, words: list[str]) -> None:
    folder = unpack({name: records(5, seed).tobytes() for seed, name in enumerate(BINARY)}, tmp_path / "folder")
    harm(folder)
    with refused(words, tmp_path / "out"):
        cifar10.convert(folder, tmp_path / "out")


def test_the_cifar10_images(tmp_path: Path) -> None:
    if not (SHARED / "cifar10-images.tar.gz").is_file():
        pytest.skip("no CIFAR-10 images here")
    assert cifar10.convert(SHARED / "cifar10-images.tar.gz", tmp_path / "out") == {"train": 50000, "test": 10000}
    labels = Shards(tmp_path / "out", "train").take("label", np.arange(50000))
    assert np.bincount(labels).tolist() == [5000] * 10
