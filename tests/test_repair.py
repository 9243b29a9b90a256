"""An index that was lost or damaged, made again from whole shards: data verify --repair-index."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from legw_hpc.data import repair
from legw_hpc.data.format import INDEX
from legw_hpc.data.writer import write_shard
from legw_hpc.errors import InputError
from tests.conftest import Cli
from tests.test_shard_damage import SHARD, flip, flip_byte, replace, rewrite_index, without_headers
from tests.test_shards import FIELDS, samples, write

LOST: dict[str, Callable[[Path], object]] = {
    "lost": lambda d: (d / INDEX).unlink(),
    "torn": lambda d: (d / INDEX).write_text((d / INDEX).read_text()[:300]),
    "wrong sum": lambda d: rewrite_index(d, lambda i: i["splits"]["train"]["shards"][1]["sha256"].update(image="0" * 64)),
    "of before headers": lambda d: rewrite_index(d, without_headers),
}


@pytest.mark.parametrize("name", LOST)
def test_an_index_is_made_again_from_whole_shards(tmp_path: Path, cli: Cli, name: str) -> None:
    folder = tmp_path / "d"
    write(folder, samples(20), per_shard=7)
    before = json.loads((folder / INDEX).read_text())
    LOST[name](folder)
    done = cli("data", "verify", folder, "--repair-index")
    assert (done.returncode, done.stdout) == (0, f"{folder}: index written anew; whole: train 20\n")
    after = json.loads((folder / INDEX).read_text())
    assert after["splits"] == before["splits"]
    assert after["about"] == (before["about"] if name in ("wrong sum", "of before headers") else {})


def test_a_shard_that_the_index_does_not_list_stays_out_of_it(tmp_path: Path) -> None:
    """A conversion that was begun with smaller shards leaves one; its samples are in the others."""
    folder = tmp_path / "d"
    write(folder, samples(20), per_shard=10)
    write_shard(folder, "train", 2, FIELDS, samples(5))
    assert repair.repair_index(folder) == {"train": 20}
    (folder / INDEX).unlink()
    assert repair.repair_index(folder) == {"train": 25}  # nothing tells it apart then


def test_classes_that_no_shard_names_are_those_of_the_old_index_or_of_the_labels(tmp_path: Path) -> None:
    folder, made = tmp_path / "d", samples(20)
    made["label"] %= 7
    made["label"][11] = 6
    write(folder, made, per_shard=7)
    for path in folder.glob("*.h5"):
        with h5py.File(path, "r+") as file:
            del file["label"].attrs["classes"]
    rewrite_index(folder, without_headers)

    def classes() -> object:
        assert repair.repair_index(folder) == {"train": 20}
        return json.loads((folder / INDEX).read_text())["splits"]["train"]["fields"]["label"]["classes"]

    assert classes() == 10
    (folder / INDEX).unlink()
    assert classes() == 7


UNREPAIRABLE: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "nothing there": (lambda d: [path.unlink() for path in d.iterdir()], ["no index, and no shards"]),
    "shard missing": (lambda d: (d / SHARD).unlink(), [SHARD, "missing"]),
    "last shard missing": (lambda d: (d / "train-00002.h5").unlink(), ["train-00002.h5", "missing"]),
    "sample flipped": (lambda d: flip(d / SHARD, "image"), [SHARD, "image is damaged"]),
    "header flipped": (lambda d: flip_byte(d / SHARD, 100), [SHARD, "header is damaged"]),
    "sample flipped, index lost": (lambda d: (flip(d / SHARD, "image"), (d / INDEX).unlink()), [SHARD, "image is damaged"]),
    "cut, index lost": (lambda d: (os.truncate(d / SHARD, 700), (d / INDEX).unlink()), [SHARD, "truncated"]),
    "text, index lost": (lambda d: ((d / SHARD).write_text("hello"), (d / INDEX).unlink()), [SHARD, "OSError"]),
    "no checksum, index lost": (
        lambda d: (replace(d / SHARD, "image", np.zeros((7, 4, 5), "u1")), (d / INDEX).unlink()),
        [SHARD, "KeyError", "sha256"],
    ),
    "other shape, index lost": (
        lambda d: (replace(d / SHARD, "image", np.zeros((7, 4, 6), "u1")), set_sum(d / SHARD, "image"), (d / INDEX).unlink()),
        [SHARD, "[4, 6]", "[4, 5]"],
    ),
}


def set_sum(path: Path, dataset: str) -> None:
    with h5py.File(path, "r+") as file:
        file[dataset].attrs["sha256"] = "0" * 64


@pytest.mark.parametrize("name", UNREPAIRABLE)
def test_no_index_is_made_of_damaged_shards(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "d"
    write(folder, samples(20), per_shard=7)
    harm, words = UNREPAIRABLE[name]
    harm(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(InputError) as caught:
        repair.repair_index(folder)
    for word in words:
        assert word in str(caught.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_header_without_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "d", samples(20))
    (tmp_path / "d" / INDEX).unlink()
    monkeypatch.setattr(repair, "DESCRIBE_SECONDS", 0.01)
    with pytest.raises(InputError, match=r"train-00000\.h5: damaged: HDF5 has not come to the end"):
        repair.repair_index(tmp_path / "d")


def test_a_run_goes_on_with_an_index_that_was_made_again(cli: Cli, arguments: list[str], shards: Path, tmp_path: Path) -> None:
    shutil.copytree(shards, tmp_path / "data")
    words = [*arguments, f"data.dir={tmp_path / 'data'}", "out=r"]
    assert cli("train", *words, "max_steps=2").returncode == 0
    (tmp_path / "data" / INDEX).unlink()
    assert "not found" in cli("train", *words, "max_steps=3").stderr
    assert cli("data", "verify", tmp_path / "data", "--repair-index").returncode == 0
    assert "resumed after step 2" in cli("train", *words, "max_steps=3").stdout
