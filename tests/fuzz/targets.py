"""What is fuzzed: readers of files that somebody else has made.  Each takes bytes and may raise InputError alone."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np

from legw_hpc.data.format import INDEX
from legw_hpc.data.shards import Shards
from legw_hpc.data.sources import mnist, synthetic
from legw_hpc.derived import derive
from legw_hpc.errors import InputError
from legw_hpc.recipe import RECIPES, load

FLIPS = 8  # bytes of an input that change one of a shard: where (7) and how (1)


@cache
def _place() -> Path:
    """A folder of this process, in memory where there is such a file system."""
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="legw-fuzz-", dir=memory if memory.is_dir() else None))


def clear() -> None:
    """Remove it."""
    shutil.rmtree(_place())


@cache
def _shards() -> Path:
    folder = _place() / "good"
    synthetic.write(folder, (3, 2), 3, 20, 6, samples_per_shard=11)
    return folder


def idx(data: bytes) -> None:
    """A file of MNIST, plain or compressed."""
    path = _place() / "idx"
    path.write_bytes(data)
    _refused(lambda: mnist.read_idx(path))


def shards(data: bytes) -> None:
    """A data folder with another index (first byte even), or with other bytes in a shard (odd)."""
    folder = _place() / "folder"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(_shards(), folder)
    if data[:1] and data[0] % 2:
        name = ("train-00000.h5", "train-00001.h5", "test-00000.h5")[data[0] // 2 % 3]
        content = bytearray((folder / name).read_bytes())
        for start in range(1, len(data) - FLIPS + 1, FLIPS):
            content[int.from_bytes(data[start : start + FLIPS - 1], "big") % len(content)] ^= data[start + FLIPS - 1]
        (folder / name).write_bytes(content)
    else:
        (folder / INDEX).write_bytes(data[1:])

    def read() -> None:
        for split in ("train", "test"):
            opened = Shards(folder, split)
            for name in opened.fields:
                opened.take(name, np.arange(min(len(opened), 10)))
            for file in opened.files:
                file.verify()

    _refused(read)


def recipe(data: bytes) -> None:
    """A recipe file, and a line of overrides after a zero byte."""
    path = _place() / "fuzzed.toml"
    content, _, words = data.partition(b"\0")
    path.write_bytes(content)
    overrides = words.decode("utf-8", "replace").split()
    _refused(lambda: derive(load(str(path), overrides)))


def _refused(read: Callable[[], object]) -> None:
    said = ""
    try:
        read()
    except InputError as error:
        said = str(error)
    assert len(said.splitlines()) <= 1, said


def seeds(name: str) -> Iterator[bytes]:
    """Good inputs, to start from."""
    if name == "idx":
        import gzip

        plain = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 2]) + bytes(12)
        yield from (plain, gzip.compress(plain), bytes([0, 0, 8, 1, 0, 0, 0, 3, 1, 2, 3]))
    elif name == "shards":
        index = (_shards() / INDEX).read_bytes()
        yield b"\0" + index
        yield b"\0" + json.dumps(json.loads(index), separators=(",", ":")).encode()
        yield from (bytes([which, *range(FLIPS)]) for which in (1, 3, 5))
        for dtype in ("O", "S4", "f8,f8", "M8[s]"):  # of what may not be in a shard
            yield b"\0" + index.replace(b'"uint8"', json.dumps(dtype).encode(), 1)
        for name in ("..", "a\0b", "\ud800", "a\nb"):
            changed = json.loads(index)
            changed["splits"]["train"]["shards"][0]["file"] = name
            yield b"\0" + json.dumps(changed).encode()
    else:
        for path in sorted(RECIPES.glob("*.toml")):
            yield path.read_bytes() + b"\0batch=256 baseline.lr=0.2 decay=poly"


TARGETS: dict[str, Callable[[bytes], None]] = {"idx": idx, "shards": shards, "recipe": recipe}
