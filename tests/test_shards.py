"""The shard format: what is written is read back in any order."""

from __future__ import annotations

import mmap
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from legw_hpc.data.format import Field
from legw_hpc.data.mapped import Mapped
from legw_hpc.data.reading import Reader
from legw_hpc.data.shards import Shards, verify
from legw_hpc.data.writer import Writer, cut_by_size, finished_shard, write_index, write_shard
from legw_hpc.errors import InputError

FIELDS = {"image": Field("uint8", (4, 5)), "label": Field("int64", (), classes=10), "jpeg": Field("uint8", None)}


def samples(count: int, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (count, 4, 5), dtype=np.uint8),
        "label": rng.integers(0, 10, count),
        "jpeg": [rng.bytes(int(n)) for n in rng.integers(0, 20, count)],
    }


def write(folder: Path, made: dict[str, Any], per_shard: int | None = None, compress: int | None = None) -> None:
    writer = Writer(folder, "train", FIELDS, per_shard, compress)
    writer.write(made)
    write_index(folder, [writer], source="test")


@settings(max_examples=30, deadline=None)
@given(
    count=st.integers(1, 40),
    per_shard=st.one_of(st.none(), st.integers(1, 17)),
    compress=st.sampled_from([None, 4]),
    seed=st.integers(0, 5),
    data=st.data(),
)
def test_reads_back_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, count: int, per_shard: int | None, compress: int | None, seed: int, data: Any
) -> None:
    folder = tmp_path_factory.mktemp("shards") / "data"
    made = samples(count, seed)
    write(folder, made, per_shard, compress)
    shards = Shards(folder, "train")
    wanted = np.array(data.draw(st.lists(st.integers(0, count - 1), max_size=50)), dtype=np.int64)
    np.testing.assert_array_equal(shards.take("image", wanted), made["image"][wanted])
    np.testing.assert_array_equal(shards.take("label", wanted), made["label"][wanted])
    assert shards.take("jpeg", wanted) == [made["jpeg"][i] for i in wanted]
    assert len(shards) == count
    assert verify(folder) == {"train": count}


def test_the_file_of_a_sample(tmp_path: Path) -> None:
    write(tmp_path / "d", samples(9), per_shard=4)
    shards = Shards(tmp_path / "d", "train")
    assert [int(shards.file_of(sample).stem[-1]) for sample in range(9)] == [0] * 4 + [1] * 4 + [2]


def test_a_large_compressed_dataset_is_read_by_selection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = samples(30)
    write(tmp_path / "d", made, compress=4)
    monkeypatch.setattr("legw_hpc.data.shardfile.KEEP_BYTES", 0)
    wanted = np.array([29, 3, 3, 0, 17])
    np.testing.assert_array_equal(Shards(tmp_path / "d", "train").take("image", wanted), made["image"][wanted])


def test_contiguous_data_is_mapped_and_read_only(tmp_path: Path) -> None:
    write(tmp_path / "d", samples(8))
    mapped = Shards(tmp_path / "d", "train").files[0].datasets["image"][...]
    owner = mapped
    while isinstance(owner, np.ndarray):
        owner = owner.base
    assert isinstance(owner, mmap.mmap)
    assert not mapped.flags.writeable


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(1, 40), shape=st.sampled_from([(), (3,), (5, 7)]), piece=st.integers(1, 200), data=st.data())
def test_every_row_of_a_map_is_read_before_it_is_used(rows: int, shape: tuple[int, ...], piece: int, data: st.DataObject) -> None:
    """By an explicit read, once; whatever a piece and a row measure."""
    wanted = np.array(data.draw(st.lists(st.integers(0, rows - 1), min_size=1)))
    cut = slice(wanted.min(), wanted.max() + 1) if data.draw(st.booleans()) else None  # all between, at once
    wanted = wanted if cut is None else np.arange(cut.start, cut.stop)
    values = np.arange(rows * int(np.prod(shape)), dtype=np.int16).reshape(rows, *shape)
    with tempfile.NamedTemporaryFile() as file, pytest.MonkeyPatch.context() as patch:
        file.write(b"ahead" + values.tobytes())
        file.flush()
        patch.setattr("legw_hpc.data.mapped.PIECE_BYTES", piece)
        mapped = Mapped(Reader(Path(file.name)), 5, values.shape, values.dtype)
        seen = []
        patch.setattr(mapped._reader, "read", lambda start, end: seen.extend(range(start, end)))
        for _ in range(2):
            if cut is None:
                mapped.read(wanted)
            else:
                np.testing.assert_array_equal(mapped[cut], values[cut])
    row = values.nbytes // rows
    assert set(seen) >= {5 + at * row + byte for at in wanted.tolist() for byte in range(row)}
    assert len(seen) == len(set(seen))
    assert min(seen) >= 5
    assert max(seen) < 5 + values.nbytes
    np.testing.assert_array_equal(mapped.values, values)


def test_a_shard_of_words_is_read_in_little_memory(tmp_path: Path) -> None:
    """A number for each of its rows would take eight times what it has."""
    values = np.arange(1 << 20, dtype=np.int8)
    (tmp_path / "words").write_bytes(values.tobytes())
    mapped = Mapped(Reader(tmp_path / "words"), 0, values.shape, values.dtype)
    tracemalloc.start()
    try:
        np.testing.assert_array_equal(mapped[...][-5:], values[-5:])
        mapped[1000:2000]
        assert tracemalloc.get_traced_memory()[1] < values.nbytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("cut", [slice(0, 9, 2), slice(9, 0, -1)])
def test_a_map_gives_rows_next_to_each_other_alone(cut: slice, tmp_path: Path) -> None:
    (tmp_path / "words").write_bytes(bytes(10))
    with pytest.raises(IndexError, match="next to each other"):
        Mapped(Reader(tmp_path / "words"), 0, (10,), np.int8)[cut]


def test_any_hdf5_tool_can_read_it(tmp_path: Path) -> None:
    made = samples(9)
    write(tmp_path / "d", made, per_shard=4)
    with h5py.File(tmp_path / "d" / "train-00002.h5") as file:
        assert file.attrs["count"] == 1
        np.testing.assert_array_equal(file["image"][...], made["image"][8:])
        offsets = file["jpeg/offsets"][...]
        assert bytes(file["jpeg/bytes"][offsets[0] : offsets[1]]) == made["jpeg"][8]


# --- what the writer refuses, and where it cuts ---------------------------------------------------


def wrong(**changed: Any) -> dict[str, Any]:
    return samples(4) | changed


def texts(last: Any) -> dict[str, Any]:
    return wrong(jpeg=[b"a", b"", b"bc", last])


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (wrong(label=np.array([0, 1, 2, 10])), ["sample 3", "10", "10 classes"]),
        (wrong(label=np.array([0, -1, 2, 3])), ["sample 1", "-1"]),
        (wrong(image=np.zeros((4, 5, 5), "u1")), ["(5, 5)", "(4, 5)"]),
        (wrong(image=np.zeros((4, 4, 5), "f8")), ["float64", "uint8"]),
        (wrong(label=np.arange(3)), ["3 samples", "4"]),
        (wrong(label=[0, 1, 2, 3]), ["label", "list", "() int64"]),
        (wrong(label=np.array(4)), ["label", "an array () of int64"]),
        ({"image": samples(4)["image"]}, ["the fields image;", "declared are image, label, jpeg"]),
        (wrong(lable2=np.arange(4)), ["lable2", "declared are image, label, jpeg"]),
        (wrong(jpeg=[b"a"] * 3), ["jpeg", "3 samples", "4"]),
        (wrong(jpeg=4), ["jpeg", "of type int", "list of bytes"]),
        (wrong(jpeg="four"), ["jpeg of sample 0", "of type str"]),
        (wrong(jpeg=b"four"), ["jpeg of sample 0", "of type int"]),
        (texts("d"), ["jpeg of sample 3", "of type str"]),
        (texts(np.ones((3, 4), "u1")), ["jpeg of sample 3", "an array (3, 4) of uint8", "1-d"]),
        (texts(np.uint8(7)), ["jpeg of sample 3", "of type uint8"]),
        (texts(np.ones(3, "i2")), ["jpeg of sample 3", "an array (3,) of int16"]),
        (texts(np.ones(3, "M8[s]")), ["jpeg of sample 3", "datetime64"]),
        (texts(memoryview(np.ones((2, 2), "u1"))), ["jpeg of sample 3", "of type memoryview"]),
    ],
    ids=[
        "label too large", "label negative", "shape", "type", "count", "list for an array", "one number", "field missing",
        "field not declared", "count of bytes", "number for a list", "text for a list", "bytes for a list", "text", "rows",
        "number", "wide elements", "dates", "view of rows",
    ],
)  # fmt: skip
def test_the_writer_refuses(tmp_path: Path, made: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        write(tmp_path / "d", made)
    for word in words:
        assert word in str(caught.value)
    assert not list(tmp_path.rglob("*.h5"))


@pytest.mark.parametrize(("fields", "compress", "words"), [(FIELDS, 99, "compress=99"), ({}, None, "no field is declared")])
def test_a_writer_is_refused(tmp_path: Path, fields: dict[str, Field], compress: int | None, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Writer(tmp_path / "d", "train", fields, compress=compress)
    assert not (tmp_path / "d").exists()


NO_FIELDS: dict[str, tuple[tuple[Any, ...], str]] = {
    "number for a shape": (("float32", 3), "shape 3"),
    "list for a shape": (("float32", [3]), r"shape \[3\]"),
    "half a number": (("float32", (3, 0.5)), "0.5"),
    "negative": (("float32", (-3,)), "-3"),
    "classes": (("int64", (), 1.5), "1.5"),
    "floats of any length": (("float32", None), "float32.*any length.*uint8"),
    "label of any length": (("uint8", None, 3), "3 classes.*any length"),
}


@pytest.mark.parametrize("name", NO_FIELDS)
def test_no_such_field(name: str) -> None:
    given, words = NO_FIELDS[name]
    with pytest.raises(ValueError, match=words):
        Field(*given)


def test_bytes_of_every_kind(tmp_path: Path) -> None:
    """Each is what it was when it was given."""
    array, buffer = np.arange(6, dtype=np.uint8), bytearray(b"abc")
    writer = Writer(str(tmp_path / "d"), "train", {"x": Field("uint8", None)})
    writer.write({"x": [b"", buffer, memoryview(b"de"), array, array[::2]]})
    writer.write({"x": array.reshape(2, 3)})  # two samples
    array[:], buffer[:] = 0, b"zzz"
    write_index(str(tmp_path / "d"), [writer])
    found = Shards(tmp_path / "d", "train").take("x", np.arange(7))
    assert [each.hex() for each in found] == ["", "616263", "6465", "000102030405", "000204", "000102", "030405"]


def test_an_index_names_all_samples(tmp_path: Path) -> None:
    """Or there is none."""
    train, again, test = (Writer(tmp_path, split, FIELDS, 4) for split in ("train", "train", "test"))
    for writer in (train, again):
        writer.write(samples(5))
    for writers, words in {(train, again): "split train is named twice", (train, test): "split test has no samples"}.items():
        with pytest.raises(InputError, match=words):
            write_index(tmp_path, writers)
        assert not (tmp_path / "index.json").exists()
    test.write(samples(3))
    write_index(tmp_path, [train])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for more in (lambda: train.write(samples(1)), test.end_shard, lambda: write_index(tmp_path, [test])):
        with pytest.raises(InputError, match="already holds finished shards"):
            more()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_finished_shards_are_not_overwritten(tmp_path: Path) -> None:
    write(tmp_path / "d", samples(5))
    before = {path: path.read_bytes() for path in (tmp_path / "d").iterdir()}
    with pytest.raises(InputError, match="nothing overwritten"):
        write(tmp_path / "d", samples(6))
    assert {path: path.read_bytes() for path in (tmp_path / "d").iterdir()} == before


def test_an_unfinished_folder_has_no_index_and_no_half_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("legw_hpc.data.writer.sha256", lambda values: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(tmp_path / "d", samples(5))
    assert list((tmp_path / "d").iterdir()) == []


@pytest.mark.parametrize(
    ("sizes", "limit", "ends"),
    [
        ([], 10, []),
        ([5, 5, 1], 10, [2, 3]),
        ([11, 1, 12], 10, [1, 2, 3]),
        ([3, 3, 3, 3], 9, [3, 4]),
        ([0, 0, 10, 0, 1], 10, [4, 5]),
        ([1], 1, [1]),
    ],
)
def test_cuts_by_bytes(sizes: list[int], limit: int, ends: list[int]) -> None:
    cuts = cut_by_size(np.array(sizes, np.int64), limit)
    assert [cut.stop for cut in cuts] == ends
    assert [cut.start for cut in cuts] == [0, *ends][: len(ends)]


@settings(max_examples=30, deadline=None)
@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(any),
    per_shard=st.integers(1, 12),
    by_bytes=st.booleans(),
    compress=st.sampled_from([None, 4]),
)
def test_how_often_the_writer_is_called_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], per_shard: int, by_bytes: bool, compress: int | None
) -> None:
    folder, made = tmp_path_factory.mktemp("shards"), samples(sum(counts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("legw_hpc.data.writer.SHARD_BYTES", 40 * per_shard)
        for name in ("at once", "in pieces"):
            writer, start = Writer(folder / name, "train", FIELDS, None if by_bytes else per_shard, compress), 0
            for count in [sum(counts)] if name == "at once" else counts:
                part = {key: values[start : start + count] for key, values in made.items()}
                part["image"] = part["image"].copy()
                writer.write(part)
                part["image"][:] = 0  # as a loop that fills one array anew
                start += count
            write_index(folder / name, [writer])
            if not by_bytes:
                assert [shard.count for shard in writer.shards[:-1]] == [per_shard] * (len(writer.shards) - 1)
    once, pieces = ({path.name: path.read_bytes() for path in (folder / name).iterdir()} for name in ("at once", "in pieces"))
    assert once == pieces
    np.testing.assert_array_equal(Shards(folder / "in pieces", "train").take("image", np.arange(sum(counts))), made["image"])


def test_the_writer_cuts_variable_fields_by_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("legw_hpc.data.writer.SHARD_BYTES", 100)
    writer = Writer(tmp_path / "d", "train", {"text": Field("uint8", None), "label": Field("int64", ())})
    writer.write({"text": [b"x" * 42] * 5, "label": np.arange(5)})
    write_index(tmp_path / "d", [writer])
    assert [shard.count for shard in writer.shards] == [2, 2, 1]
    assert verify(tmp_path / "d") == {"train": 5}


def test_a_finished_shard_is_known_by_its_source(tmp_path: Path) -> None:
    fields = {"text": Field("uint8", None), "label": Field("int64", (), classes=3)}
    made = {"text": [b"a", b"bc"], "label": np.array([0, 2])}
    shard = write_shard(tmp_path, "train", 4, fields, made, source="digest")
    assert finished_shard(tmp_path, "train", 4, fields, "digest") == shard
    assert finished_shard(tmp_path, "train", 4, fields, "another") is None
    assert finished_shard(tmp_path, "train", 5, fields, "digest") is None
    assert finished_shard(tmp_path, "train", 4, fields | {"more": Field("int64")}, "digest") is None
    assert finished_shard(tmp_path, "train", 4, {"label": Field("int32")}, "digest") is None
    (tmp_path / "test-00004.h5").write_bytes((tmp_path / shard.file).read_bytes())
    assert finished_shard(tmp_path, "test", 4, fields, "digest") is None
    with h5py.File(tmp_path / shard.file, "r+") as file:  # whose samples are elsewhere
        del file["label"]
        file["label"] = h5py.ExternalLink("../other.h5", "label")
    assert finished_shard(tmp_path, "train", 4, fields, "digest") is None
    with pytest.raises(InputError, match="out of range for 3 classes"):
        write_shard(tmp_path, "train", 6, fields, made | {"label": np.array([0, 3])})
    assert not (tmp_path / "train-00006.h5").exists()
