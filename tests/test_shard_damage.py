"""Damaged data folders: what is done to a good one, and what is then said."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from legw_hpc.comm import Serial
from legw_hpc.data.format import INDEX
from legw_hpc.data.repair import repair_index
from legw_hpc.data.shards import Shards, verify
from legw_hpc.errors import InputError
from legw_hpc.recipe import load
from legw_hpc.work import prepare
from tests.test_shards import samples, write


def rewrite_index(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))


def without_headers(index: dict[str, Any]) -> None:
    for shard in index["splits"]["train"]["shards"]:
        del shard["header"]


def flip(path: Path, dataset: str) -> None:
    with h5py.File(path) as file:
        at = file[dataset].id.get_offset()
    flip_byte(path, at)


def flip_byte(path: Path, at: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def set_attribute(path: Path, name: str, value: Any) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs[name] = value


def replace(path: Path, dataset: str, values: Any) -> None:
    with h5py.File(path, "r+") as file:
        del file[dataset]
        file[dataset] = values


def opened(folder: Path) -> None:
    """All shards for training, without reading a sample."""
    for file in Shards(folder, "train").files:
        assert file.datasets


SHARD = "train-00001.h5"
OPENING = {  # found when the folder is opened, or a shard of it
    "folder missing": (lambda d: shutil.rmtree(d), ["no such folder"]),
    "index missing": (lambda d: (d / INDEX).unlink(), [INDEX, "unfinished"]),
    "index is not JSON": (lambda d: (d / INDEX).write_text("{"), [INDEX, "JSON"]),
    "index of something else": (lambda d: (d / INDEX).write_text("[]"), [INDEX]),
    "index of version 2": (lambda d: rewrite_index(d, lambda i: i.update(version=2)), ["version 2", "version 1"]),
    "index without fields": (lambda d: rewrite_index(d, lambda i: i["splits"]["train"].pop("fields")), ["damaged", "fields"]),
    "index without a file": (
        lambda d: rewrite_index(d, lambda i: i["splits"]["train"]["shards"][0].pop("file")),
        ["damaged", "file"],
    ),
    "index without sums": (
        lambda d: rewrite_index(d, lambda i: i["splits"]["train"]["shards"][0].pop("sha256")),
        ["damaged", "sha256"],
    ),
    "splits are a list": (lambda d: rewrite_index(d, lambda i: i["splits"].update(train=[])), ["damaged"]),
    "index counts wrong": (lambda d: rewrite_index(d, lambda i: i["splits"]["train"].update(count=99)), ["99", "20"]),
    "index leads outside": (
        lambda d: rewrite_index(d, lambda i: i["splits"]["train"]["shards"][0].update(file="../x.h5")),
        ["../x.h5", "plain file name"],
    ),
    **{
        f"index names a shard {name!r}": (
            lambda d, name=name: rewrite_index(d, lambda i: i["splits"]["train"]["shards"][0].update(file=name)),
            [INDEX, "plain file name"],
        )
        for name in ("", ".", "..", "a\0b", "a\nb", "\ud800")
    },
    **{
        f"index has a field of type {dtype!r}": (
            lambda d, dtype=dtype: rewrite_index(d, lambda i: i["splits"]["train"]["fields"]["label"].update(dtype=dtype)),
            [INDEX, "a field is of numbers"],
        )
        for dtype in ("O", "S4", "f8,f8", ",int8", "M8[s]", None)
    },
    "shard missing": (lambda d: (d / SHARD).unlink(), [SHARD, "missing"]),
    "shard empty": (lambda d: (d / SHARD).write_bytes(b""), [SHARD, "0 bytes"]),
    "shard cut": (lambda d: (d / SHARD).write_bytes((d / SHARD).read_bytes()[:700]), [SHARD, "truncated"]),
    "shard is text": (lambda d: (d / SHARD).write_text("hello"), [SHARD, "not HDF5"]),
    "foreign HDF5": (lambda d: set_attribute(d / SHARD, "format", "other"), [SHARD, "not one of"]),
    "shard of version 2": (lambda d: set_attribute(d / SHARD, "version", 2), [SHARD, "version is 2", "1"]),
    "shard of another split": (lambda d: set_attribute(d / SHARD, "split", "test"), [SHARD, "test", "train"]),
    "shard counts wrong": (lambda d: set_attribute(d / SHARD, "count", 3), [SHARD, "3", "7"]),
    "mixed shapes": (lambda d: replace(d / SHARD, "image", np.zeros((7, 4, 6), "u1")), [SHARD, "(7, 4, 6)", "(7, 4, 5)"]),
    "mixed types": (lambda d: replace(d / SHARD, "image", np.zeros((7, 4, 5), "f4")), [SHARD, "float32", "uint8"]),
    "field missing": (lambda d: replace(d / SHARD, "jpeg", np.zeros(3)), [SHARD, "jpeg/bytes"]),
}
READING = {  # found by verify
    "byte flipped": (lambda d: flip(d / SHARD, "image"), [SHARD, "image", "SHA-256"]),
    "label flipped": (lambda d: flip(d / SHARD, "label"), [SHARD, "label", "SHA-256"]),
    "no checksum": (
        lambda d: rewrite_index(d, lambda i: i["splits"]["train"]["shards"][1]["sha256"].pop("image")),
        [SHARD, "image", "the index says nothing"],
    ),
    "packed byte flipped": (lambda d: flip(d / SHARD, "jpeg/bytes"), [SHARD, "jpeg/bytes", "SHA-256"]),
}


def test_a_shard_of_python_objects_is_refused_before_it_is_mapped(tmp_path: Path) -> None:
    """Its bytes would be pointers."""
    folder = tmp_path / "data"
    write(folder, samples(20), per_shard=7)
    for shard in folder.glob("train-*.h5"):
        with h5py.File(shard, "r+") as file:
            count = len(file["label"])
            del file["label"]
            file.create_dataset("label", data=["x"] * count, dtype=h5py.string_dtype())
    rewrite_index(folder, without_headers)
    rewrite_index(folder, lambda i: i["splits"]["train"]["fields"]["label"].update(dtype="O"))
    with pytest.raises(InputError, match="dtype 'O': a field is of numbers"):
        Shards(folder, "train")


@pytest.mark.parametrize("name", [*OPENING, *READING])
def test_damage_is_named(tmp_path: Path, name: str) -> None:
    """In a folder of before headers had a digest, which would be the first to differ."""
    folder = tmp_path / "data"
    write(folder, samples(20), per_shard=7)
    rewrite_index(folder, without_headers)
    harm, words = (OPENING | READING)[name]
    harm(folder)
    with pytest.raises(InputError) as caught:
        verify(folder) if name in READING else opened(folder)
    text = str(caught.value)
    assert "\n" not in text.replace("\\n", "")
    for word in words:
        assert word in text


def test_a_label_out_of_range_is_found_though_its_checksum_is_right(tmp_path: Path) -> None:
    write(tmp_path / "d", samples(5))
    rewrite_index(tmp_path / "d", lambda i: i["splits"]["train"]["fields"]["label"].update(classes=1))
    opened(tmp_path / "d")
    with pytest.raises(InputError, match=r"train-00000\.h5: label of sample \d is \d, out of range for 1 classes"):
        verify(tmp_path / "d")


# --- elements of elsewhere --------------------------------------------------------------------------


def external(file: h5py.File, name: str, values: Any) -> None:
    values.tofile(Path(file.filename).parents[1] / "raw")
    file.create_dataset(name, values.shape, values.dtype, external=[("../raw", 0, values.nbytes)])


def virtual(file: h5py.File, name: str, values: Any) -> None:
    other(file, name, values)
    layout = h5py.VirtualLayout(values.shape, values.dtype)
    layout[...] = h5py.VirtualSource("../other.h5", name, values.shape)
    file.create_virtual_dataset(name, layout)


def other(file: h5py.File, name: str, values: Any) -> None:
    with h5py.File(Path(file.filename).parents[1] / "other.h5", "w") as outside:
        outside[name] = values


def link(file: h5py.File, name: str, values: Any) -> None:
    other(file, name, values)
    file[name] = h5py.ExternalLink("../other.h5", name)


def soft_link(file: h5py.File, name: str, values: Any) -> None:
    link(file, f"{name}2", values)
    file[name] = h5py.SoftLink(f"/{name}2")


def link_of_group(file: h5py.File, name: str, values: Any) -> None:
    """Of a field of any length, by its last dataset: the group is somewhere else."""
    group = name.split("/")[0]
    with h5py.File(Path(file.filename).parents[1] / "other.h5", "w") as outside:
        file.copy(group, outside)
        outside[name] = values
    del file[group]
    file[group] = h5py.ExternalLink("../other.h5", group)


ELSEWHERE = {
    "external storage": (external, "image", "external storage ../raw"),
    "virtual dataset": (virtual, "image", "virtual dataset"),
    "external link": (link, "label", "ExternalLink ../other.h5"),
    "soft link to an external one": (soft_link, "jpeg/bytes", "SoftLink /jpeg/bytes2"),
    "group": (link_of_group, "jpeg/offsets", "ExternalLink ../other.h5"),
}


@pytest.mark.parametrize("repaired", [False, True])
@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_shard_reads_no_other_file(tmp_path: Path, name: str, repaired: bool) -> None:
    """Even where it holds the same samples, as here."""
    folder = tmp_path / "data"
    write(folder, samples(20), per_shard=7)
    rewrite_index(folder, without_headers)
    lead, dataset, how = ELSEWHERE[name]
    with h5py.File(folder / SHARD, "r+") as file:
        values, attributes = file[dataset][...], dict(file[dataset].attrs)
        del file[dataset]
        lead(file, dataset, values)
        if "link" not in name and name != "group":
            file[dataset].attrs.update(attributes)
    with pytest.raises(InputError, match=rf"{SHARD}: .*refers to another file \({re.escape(how)}"):
        repair_index(folder) if repaired else opened(folder)


# --- the header: compared before HDF5 parses it ----------------------------------------------------


def header_bytes(folder: Path) -> list[int]:
    """Of SHARD: the places of all bytes that are not samples."""
    header = json.loads((folder / INDEX).read_text())["splits"]["train"]["shards"][1]["header"]
    samples_at = {at for start, end in header["elements"] for at in range(start, end)}
    return [at for at in range(header["bytes"]) if at not in samples_at]


@pytest.mark.parametrize("compress", [None, 4])
def test_a_flipped_bit_in_a_header_never_reaches_hdf5(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compress: int | None
) -> None:
    """Unseen, some of these make HDF5 loop for ever, others end the process."""
    folder = tmp_path / "data"
    write(folder, samples(20), per_shard=7, compress=compress)
    places = header_bytes(folder)
    assert len(places) > 1000
    monkeypatch.setattr("h5py.File", unreachable)
    rewrite_index(folder, lambda index: index["splits"]["train"]["shards"].pop(0))
    rewrite_index(folder, lambda index: index["splits"]["train"].update(count=13))
    rng = np.random.default_rng(0)
    whole = (folder / SHARD).read_bytes()
    for at in rng.choice(places, 300, replace=False):
        flip_byte(folder / SHARD, int(at), int(rng.integers(8)))
        with pytest.raises(InputError, match=rf"{SHARD}: its header is damaged: SHA-256"):
            opened(folder)
        (folder / SHARD).write_bytes(whole)
    (folder / SHARD).write_bytes(whole[:-1])
    with pytest.raises(InputError, match=rf"{SHARD}: truncated: {len(whole) - 1} bytes, the index says {len(whole)}"):
        opened(folder)


def unreachable(*arguments: Any, **options: Any) -> None:
    raise AssertionError("HDF5 has seen a damaged file")


def test_every_byte_is_a_sample_or_in_the_header(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write(folder, samples(20), per_shard=7)
    header = json.loads((folder / INDEX).read_text())["splits"]["train"]["shards"][1]["header"]
    sizes = sum(end - start for start, end in header["elements"])
    made = Shards(folder, "train").files[1].datasets
    assert sizes == sum(values.nbytes for values in made.values())
    assert len(header_bytes(folder)) + sizes == (folder / SHARD).stat().st_size


def test_a_run_goes_on_where_shards_are_touched(
    arguments: list[str], shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(shards, tmp_path / "data")
    work = prepare(load(arguments[0], [*arguments[1:], f"data.dir={tmp_path / 'data'}"]), Serial())
    for shard in (tmp_path / "data").glob("train-*.h5"):
        shard.touch()
    for said in (f"{tmp_path / 'data'}: 4 shards were touched, and are the same; going on\n", ""):
        work.check(4)
        assert capsys.readouterr().err == said
    with shard.open("r+b") as file:
        file.seek(shard.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(InputError, match=rf"{shard.name}: \w+ is damaged"):
        work.check(8)
