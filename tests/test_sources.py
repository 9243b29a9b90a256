"""MNIST from IDX files, synthetic data, and the sample that ships with the package."""

from __future__ import annotations

import gzip
import hashlib
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from legw_hpc.data.shards import Shards, verify
from legw_hpc.data.sources import mnist, synthetic
from legw_hpc.errors import InputError
from legw_hpc.recipe import SAMPLES


def idx(array: np.ndarray, kind: int = 0x08) -> bytes:  # type: ignore[type-arg]
    return struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A tiny MNIST: 12 training and 5 test images; one pair plain, one compressed."""
    rng = np.random.default_rng(0)
    for split, count, pack in (("train", 12, bytes), ("t10k", 5, gzip.compress)):
        suffix = "" if pack is bytes else ".gz"
        (tmp_path / f"{split}-images-idx3-ubyte{suffix}").write_bytes(pack(idx(rng.integers(0, 256, (count, 28, 28)))))
        (tmp_path / f"{split}-labels-idx1-ubyte{suffix}").write_bytes(pack(idx(rng.integers(0, 10, count))))
    return tmp_path


def test_idx_files_become_shards(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert mnist.convert(source, out, samples_per_shard=5) == {"train": 12, "test": 5}
    assert verify(out) == {"train": 12, "test": 5}
    images = mnist.read_idx(source / "train-images-idx3-ubyte")
    np.testing.assert_array_equal(Shards(out, "train").take("image", np.arange(12)), images)


TRAIN = "train-images-idx3-ubyte"
LABELS = "train-labels-idx1-ubyte"
BAD: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "folder missing": (lambda s: [p.unlink() for p in s.iterdir()] + [s.rmdir()], ["no such folder"]),
    "file missing": (lambda s: (s / TRAIN).unlink(), [TRAIN]),
    "empty": (lambda s: (s / TRAIN).write_bytes(b""), [TRAIN, "empty file"]),
    "wrong magic": (lambda s: (s / TRAIN).write_bytes(b"\x89PNG" + bytes(100)), [TRAIN, "magic", "89504e47"]),
    "wrong element type": (lambda s: (s / TRAIN).write_bytes(idx(np.zeros((12, 28, 28)), 0x0D)), [TRAIN, "magic"]),
    "no elements": (
        lambda s: (s / TRAIN).write_bytes(b"\0\0\x08\x04" + bytes([0, 1, 0, 0] * 2 + [0] * 4 + [1, 0, 3, 3])),
        [TRAIN, "0"],
    ),
    "header cut": (lambda s: (s / TRAIN).write_bytes(b"\0\0\x08\x03\0\0"), [TRAIN, "6 bytes", "16"]),
    "truncated": (lambda s: (s / TRAIN).write_bytes((s / TRAIN).read_bytes()[:-1]), [TRAIN, "9407", "9408"]),
    "too long": (lambda s: (s / TRAIN).write_bytes((s / TRAIN).read_bytes() + b"x"), [TRAIN, "9409", "9408"]),
    "broken gzip": (lambda s: (s / TRAIN).write_bytes(gzip.compress(bytes(9000))[:-20]), [TRAIN, "decompressed"]),
    "other image size": (lambda s: (s / TRAIN).write_bytes(idx(np.zeros((12, 28, 27)))), [TRAIN, "(28, 27)", "(28, 28)"]),
    "label out of range": (lambda s: (s / LABELS).write_bytes(idx(np.array([3] * 11 + [10]))), [LABELS, "10", "11"]),
    "labels fewer than images": (lambda s: (s / LABELS).write_bytes(idx(np.zeros(11))), [LABELS, "11", "12"]),
    "labels are images": (lambda s: (s / LABELS).write_bytes(idx(np.zeros((12, 2)))), [LABELS, "(12, 2)"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_idx_is_refused_and_nothing_written(source: Path, tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    out = tmp_path_factory.mktemp("out") / "shards"
    harm, words = BAD[name]
    harm(source)
    with pytest.raises(InputError) as caught:
        mnist.convert(source, out)
    for word in words:
        assert word in str(caught.value)
    assert not out.exists()


def test_download_takes_the_mirror_that_has_the_published_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two local mirrors: one with damaged files, one with good ones; a second call fetches nothing."""
    mirrors = [tmp_path / "damaged", tmp_path / "good"]
    for mirror in mirrors:
        mirror.mkdir()
        for name in mnist.MD5:
            (mirror / f"{name}.gz").write_bytes(mirror.name.encode() + name.encode())
    sums = {name: hashlib.md5((mirrors[1] / f"{name}.gz").read_bytes()).hexdigest() for name in mnist.MD5}
    monkeypatch.setattr(mnist, "MD5", sums)
    monkeypatch.setattr(mnist, "MIRRORS", tuple(f"file://{mirror}/" for mirror in mirrors))
    mnist.download(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(f"{name}.gz" for name in sums)
    monkeypatch.setattr(mnist, "MIRRORS", ())
    mnist.download(tmp_path / "out")


def test_no_mirror_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mnist, "MIRRORS", ("http://127.0.0.1:9/",))
    with pytest.raises(InputError, match="--source"):
        mnist.download(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("shape", [(28, 28), (7,), (3, 8, 8)])
def test_synthetic_data_has_the_same_interface(tmp_path: Path, shape: tuple[int, ...]) -> None:
    synthetic.write(tmp_path / "d", shape, classes=7, train=50, test=11, samples_per_shard=20)
    assert verify(tmp_path / "d") == {"train": 50, "test": 11}
    data = Shards(tmp_path / "d", "train")
    assert data.take("image", np.arange(50)).shape == (50, *shape)


@pytest.mark.parametrize("numbers", [{"classes": 0}, {"train": 0}, {"test": -1}, {"shape": ()}, {"shape": (0,)}])
def test_synthetic_refuses(tmp_path: Path, numbers: dict[str, object]) -> None:
    options = {"shape": (4,), "classes": 2, "train": 3, "test": 3} | numbers
    with pytest.raises(InputError, match=next(iter(numbers))):
        synthetic.write(tmp_path / "d", **options)  # type: ignore[arg-type]


def test_the_packaged_sample() -> None:
    folder = SAMPLES / "mnist"
    assert verify(folder) == {"train": 5000, "test": 1000}
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 1.5e6
    labels = Shards(folder, "train").take("label", np.arange(5000))
    assert np.bincount(labels, minlength=10).min() > 400
    assert "LeCun" in (folder / "ATTRIBUTION.md").read_text()
