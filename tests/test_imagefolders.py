"""Folders of images, one a class, become shards; what is broken is named, and nothing is left half-written."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from legw_hpc.data.format import INDEX
from legw_hpc.data.shards import Shards, verify
from legw_hpc.data.sources import image_check, items, pack
from legw_hpc.errors import InputError
from tests.pictures import CLASSES, CMYK, PNG, RGB, Harm, about, content, convert, picture, refused, samples


def test_a_folder_becomes_shards_with_unchanged_bytes(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert convert(source, out) == {"train": 18, "val": 6}
    assert verify(out) == {"train": 18, "val": 6}
    for split in ("train", "val"):
        wanted = {
            f"{name}/{path.name}": (label, path.read_bytes())
            for label, name in enumerate(CLASSES)
            for path in (source / split / name).iterdir()
        }
        assert samples(out, split) == wanted
    labels = Shards(out, "train").take("label", np.arange(18))
    assert np.bincount(labels).tolist() == [5, 6, 7]
    assert (np.diff(labels) < 0).any()  # not sorted by class
    assert len(list(out.glob("train-*.h5"))) > 2
    for path in out.glob("*.h5"):
        with h5py.File(path) as file:
            assert len(file["image/bytes"]) <= 3000
    said = about(out)
    assert (said["classes"], said["converted"]["count"], said["skipped"]) == (list(CLASSES), 0, {})


def test_two_workers_write_the_same_shards_as_one(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "one")
    convert(source, tmp_path / "two", workers=2)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert (tmp_path / "one" / INDEX).read_text() == (tmp_path / "two" / INDEX).read_text()


def test_workers_import_no_torch() -> None:
    code = "import sys, legw_hpc.data.sources.imagenet, legw_hpc.data.sources.cifar10; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- what one file may be -------------------------------------------------------------------------

UNCHANGED = {
    "RGB": RGB,
    "grey": picture(7, mode="L"),
    "progressive": picture(7, progressive=True),
    "4:4:4": picture(7, subsampling=0),
    "stored as RGB": picture(7, keep_rgb=True),
    "bytes after the end": RGB + b"more",
    "smallest": picture(7, size=(8, 8)),
}
CONVERTED = {
    "CMYK": (CMYK, "JPEG, CMYK"),
    "PNG": (PNG, "PNG"),
    "PNG with palette": (picture(7, "PNG", "P"), "PNG"),
    "PNG with transparency": (picture(7, "PNG", "RGBA"), "PNG"),
    "grey PNG": (picture(7, "PNG", "L"), "PNG"),
    "BMP": (picture(7, "BMP"), "BMP"),
    "WebP": (picture(7, "WEBP", lossless=True), "WEBP"),
    "GIF": (picture(7, "GIF"), "GIF"),
    "TIFF": (picture(7, "TIFF"), "TIFF"),
    "junk before the end": (RGB[:-2] + bytes(9) + RGB[-2:], "JPEG, Corrupt JPEG data: 2 extraneous bytes before marker 0xd9"),
}


def deep_png() -> bytes:
    packed = io.BytesIO()
    Image.fromarray(np.full((9, 9), 300, np.uint16)).save(packed, "PNG")
    return packed.getvalue()


def claiming(width: int, height: int) -> bytes:
    at = RGB.index(b"\xff\xc0") + 5
    return RGB[:at] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + RGB[at + 4 :]


BROKEN = {
    "zero bytes": (b"", "empty: 0 bytes"),
    "half a JPEG": ((large := picture(7, size=(400, 300)))[: len(large) // 2], "truncated: Premature end"),
    "JPEG without its last byte": (RGB[:-1], "truncated: Premature end"),
    "JPEG cut in its header": (RGB[:40], "truncated or damaged"),
    "JPEG of two bytes": (RGB[:2], "header: 2 bytes, the first are ffd8"),
    "JPEG cut and closed": (RGB[:-40] + RGB[-2:], "damaged: Corrupt JPEG data: premature end"),
    "progressive JPEG cut": (UNCHANGED["progressive"][:-40], "truncated"),
    "CMYK JPEG cut": (CMYK[:-60], "truncated"),
    "PNG cut": (PNG[:-40], "truncated or damaged"),
    "text": (b"hello", "not an image: 5 bytes, the first are 68656c6c"),
    "1x1": (picture(7, size=(1, 1)), "1x1 pixels, at least 8"),
    "one side short": (picture(7, size=(40, 7)), "40x7 pixels, at least 8"),
    "1x1 PNG": (picture(7, "PNG", size=(1, 1)), "1x1 pixels, at least 8"),
    "too large": (claiming(60000, 60000), "60000x60000 pixels, at most 178,956,970"),
    "16 bits": (deep_png(), "more than 8 bits a channel"),
}


@pytest.mark.parametrize("name", UNCHANGED)
def test_an_ordinary_jpeg_is_stored_as_it_is(name: str) -> None:
    assert image_check.as_jpeg(UNCHANGED[name]) == (UNCHANGED[name], None)


@pytest.mark.parametrize("name", CONVERTED)
def test_other_images_become_rgb_jpeg(name: str) -> None:
    data, was = CONVERTED[name]
    jpeg, why = image_check.as_jpeg(data)
    assert why == was
    assert simplejpeg.decode_jpeg_header(jpeg) == (16, 20, "YCbCr", "444")
    wanted = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(simplejpeg.decode_jpeg(jpeg) - wanted).mean() < 4


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("skip", [False, True], ids=["refused", "skipped"])
def test_a_broken_file_is_named(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, skip: bool) -> None:
    data, why = BROKEN[name]
    out = tmp_path / "out"
    (source / "train/bee/bee1.JPEG").write_bytes(data)
    if skip:
        assert convert(source, out, skip_broken=True) == {"train": 17, "val": 6} == verify(out)
        assert "bee/bee1.JPEG" not in samples(out, "train")
        assert why in about(out)["skipped"]["train/bee/bee1.JPEG"]
        assert why in capsys.readouterr().err
        return
    with pytest.raises(InputError) as caught:
        convert(source, out)
    assert str(caught.value).startswith(f"{source}/train/bee/bee1.JPEG: ")
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {path.suffix for path in out.glob("*")} == {".h5"} or not out.exists()


@pytest.mark.parametrize("there", [False, True], ids=["made", "there before"])
def test_a_folder_made_for_nothing_is_removed(source: Path, tmp_path: Path, there: bool) -> None:
    out = tmp_path / "out"
    if there:
        out.mkdir()
    for path in (source / "train").rglob("*.JPEG"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match="empty: 0 bytes"):
        convert(source, out)
    assert out.exists() == there


def test_a_worker_names_a_broken_file_and_all_end(source: Path, tmp_path: Path) -> None:
    (source / "val/cat/cat1.JPEG").write_bytes(RGB[:-9])
    with pytest.raises(InputError, match=r"cat1\.JPEG: truncated"):
        convert(source, tmp_path / "out", workers=2)
    assert not [path for path in (tmp_path / "out").iterdir() if path.suffix != ".h5"]


def test_what_is_converted_is_counted_and_named(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source / "train/ant/ant0.JPEG").write_bytes(PNG)
    (source / "val/ant/ant0.JPEG").write_bytes(CMYK)
    convert(source, tmp_path / "out")
    converted = about(tmp_path / "out")["converted"]
    assert converted["count"] == 2
    assert converted["names"] == {"train/ant/ant0.JPEG": "PNG", "val/ant/ant0.JPEG": "JPEG, CMYK"}
    assert verify(tmp_path / "out") == {"train": 18, "val": 6}
    monkeypatch.setattr(pack, "NAMED", 1)
    convert(source, tmp_path / "named")
    assert (about(tmp_path / "named")["converted"]["count"], len(about(tmp_path / "named")["converted"]["names"])) == (2, 1)


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


LAYOUT: dict[str, tuple[Harm, list[str]]] = {
    "no source": (lambda s: shutil.rmtree(s), ["train", "no such folder"]),
    "no val": (lambda s: shutil.rmtree(s / "val"), ["source/val", "no such folder"]),
    "no classes": (lambda s: empty(s / "train"), ["train", "no class folders"]),
    "class without images": (lambda s: empty(s / "train/bee"), ["train/bee", "no images"]),
    "class of hidden files": (lambda s: (empty(s / "val/bee"), (s / "val/bee/.x.jpg").touch()), ["val/bee", "no images"]),
    "image beside classes": (lambda s: (s / "train/x.jpg").write_bytes(RGB), ["train/x.jpg", "one folder a class"]),
    "folder in a class": (lambda s: (s / "train/bee/more").mkdir(), ["train/bee/more", "not a file"]),
    "dangling link": (lambda s: (s / "train/bee/x.jpg").symlink_to("nowhere"), ["train/bee/x.jpg", "not a file"]),
    "foreign class in val": (lambda s: (s / "val/bee").rename(s / "val/wasp"), ["source/val", "wasp", "3 of train"]),
}


@pytest.mark.parametrize(("harm", "words"), LAYOUT.values(), ids=LAYOUT)
def test_another_layout_is_refused_and_nothing_written(source: Path, tmp_path: Path, harm: Harm, words: list[str]) -> None:
    harm(source)
    with refused(words, tmp_path / "out"):
        convert(source, tmp_path / "out")


def test_other_refusals(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for option in ({"workers": 0}, {"shard_bytes": 0}):
        with pytest.raises(InputError, match="at least 1, not 0"):
            convert(source, tmp_path / "out", **option)
    for path in (source / "val").rglob("*.JPEG"):
        path.write_bytes(b"x")
    with pytest.raises(InputError, match="no whole image is left for val, all 6"):
        convert(source, tmp_path / "out", skip_broken=True)
    full = type("Usage", (), {"free": 10})
    monkeypatch.setattr(pack.shutil, "disk_usage", lambda path: full)  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="10 are free"):
        convert(source, tmp_path / "full")
    monkeypatch.undo()
    listed = items.labelled(items.class_folders(source / "train"), list(CLASSES), "here")
    (source / "train/ant/ant0.JPEG").write_bytes(b"")
    with pytest.raises(InputError, match=r"0 bytes are there, .* when it was listed"):
        items.Reader().read(listed[0])
