"""Data made up for the benchmarks, of the real size and shape, in folders that go when the program ends.

Each function is called on every rank and gives the words for a recipe.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import simplejpeg

from benchmarks.measure import Bench
from legw_hpc.data.format import Field
from legw_hpc.data.sources import images, synthetic
from legw_hpc.data.writer import Writer, write_index

VOCABULARY = 10000


def temporary(bench: Bench) -> Path:
    """An empty folder that all ranks see."""
    comm = bench.comm
    folder = Path(comm.broadcast(tempfile.mkdtemp(prefix="legw-bench-") if comm.rank == 0 else None))
    if comm.rank == 0:
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def mnist(bench: Bench, samples: int = 60000) -> list[str]:
    """28x28 images of 10 classes."""
    return _words(bench, samples, lambda out: synthetic.write(out, (28, 28), 10, samples, 100))


def cifar(bench: Bench, samples: int = 50000) -> list[str]:
    """32x32 RGB images of 10 classes."""
    return _words(bench, samples, lambda out: synthetic.write(out, (32, 32, 3), 10, samples, 100))


def text(bench: Bench, words: int = 929589) -> list[str]:
    """Words in no order: the k-th of the vocabulary as often as 1/k, about as in a language."""

    def write(out: Path) -> None:
        rng = np.random.default_rng(1)
        odds = 1 / np.arange(1, VOCABULARY + 1)
        writers = []
        for split, count in (("train", words), ("valid", 2000), ("test", 2000)):
            writers.append(Writer(out, split, {"token": Field("int32", (), classes=VOCABULARY)}))
            writers[-1].write({"token": rng.choice(VOCABULARY, count, p=odds / odds.sum()).astype(np.int32)})
        write_index(out, writers, source="made up")

    return _words(bench, words, write)


def jpegs(bench: Bench, samples: int = 64) -> list[str]:
    """JPEGs of 500x375, 4:2:0 and about 96 KB, as ImageNet's are: smooth, with noise on top."""

    def write(out: Path) -> None:
        rng = np.random.default_rng(1)
        for split, count in (("train", samples), ("val", 8)):
            for number in range(count):
                smooth = cv2.resize(rng.uniform(0, 255, (12, 16, 3)), (500, 375), interpolation=cv2.INTER_LINEAR)
                picture = np.clip(smooth + rng.normal(0, 18, smooth.shape), 0, 255).astype(np.uint8)
                path = out.parent / "jpegs" / split / f"class{number % 8}" / f"{number:05d}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(simplejpeg.encode_jpeg(picture, quality=90, colorsubsampling="420"))
        images.convert(out.parent / "jpegs", out, workers=1)

    return _words(bench, samples, write)


def _words(bench: Bench, samples: int, write: Callable[[Path], None]) -> list[str]:
    out = temporary(bench) / "data"
    if bench.comm.rank == 0:
        write(out)
    bench.comm.barrier()
    return [f"data.dir={out}", f"data.train_samples={samples}", "epochs=1000"]
