"""Folders and tars of small images for the tests of conversions, and what stands in the shards made of them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from legw_hpc.data.format import INDEX
from legw_hpc.data.shards import Shards
from legw_hpc.data.sources import images
from legw_hpc.errors import InputError

Harm = Callable[[Path], object]  # what is done to a good folder
SHARED = Path(__file__).parents[2] / "shared" / "data"
CLASSES = ("ant", "bee", "cat")


def picture(seed: int, kind: str = "JPEG", mode: str = "RGB", size: tuple[int, int] = (20, 16), **options: Any) -> bytes:
    """A smooth random image of (width, height)."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize(size).convert(mode)
    packed = io.BytesIO()
    image.save(packed, kind, **options)
    return packed.getvalue()


RGB = picture(7)
PNG = picture(7, "PNG")
CMYK = picture(7, mode="CMYK")


def tar(path: Path, files: dict[str, bytes], mode: str = "w", folders: tuple[str, ...] = ()) -> bytes:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name in folders:
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE
            archive.addfile(info)
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path.read_bytes()


def unpack(tree: dict[str, bytes], folder: Path) -> Path:
    for name, data in tree.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def convert(source: Path, out: Path, **options: Any) -> dict[str, int]:
    return images.convert(source, out, **{"workers": 1, "shard_bytes": 3000} | options)


def about(out: Path) -> Any:
    return json.loads((out / INDEX).read_text())["about"]


def content(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.h5"))}


def samples(out: Path, split: str) -> dict[str, tuple[int, bytes]]:
    data = Shards(out, split)
    every = np.arange(len(data))
    names = (name.decode() for name in data.take("name", every))
    return dict(zip(names, zip(data.take("label", every).tolist(), data.take("image", every), strict=True), strict=True))


@contextmanager
def refused(words: list[str], out: Path) -> Iterator[None]:
    """The conversion within ends with one line that has these words, and `out` is not begun."""
    with pytest.raises(InputError) as caught:
        yield
    said = str(caught.value)
    for word in words:
        assert word in said, f"{word!r} is not in {said!r}"
    assert "\n" not in said, said
    assert not out.exists(), f"{out} was written"
