"""Folders and tars of images become shards; what is broken is named, and nothing is left half-written."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from legw_hpc.data.format import INDEX, Field
from legw_hpc.data.shards import Shards, verify
from legw_hpc.data.sources import cifar10, image_check, imagenet, images, items, pack, small_images
from legw_hpc.data.writer import Writer, cut_by_bytes, finished_shard, write_index, write_shard
from legw_hpc.errors import InputError

SHARED = Path(__file__).parents[2] / "shared" / "data"
CLASSES = ("ant", "bee", "cat")


def picture(seed: int, kind: str = "JPEG", mode: str = "RGB", size: tuple[int, int] = (20, 16), **options: Any) -> bytes:
    """A smooth random image of (width, height)."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize(size).convert(mode)
    packed = io.BytesIO()
    image.save(packed, kind, **options)
    return packed.getvalue()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three classes; 5, 6 and 7 images for training, 2 each for val."""
    folder = tmp_path / "source"
    for label, name in enumerate(CLASSES):
        for split, count in (("train", 5 + label), ("val", 2)):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                (folder / split / name / f"{name}{i}.JPEG").write_bytes(picture(100 * label + i + (50 if split == "val" else 0)))
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

RGB = picture(7)
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
    "CMYK": (picture(7, mode="CMYK"), "JPEG, CMYK"),
    "PNG": (picture(7, "PNG"), "PNG"),
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
    "CMYK JPEG cut": (CONVERTED["CMYK"][0][:-60], "truncated"),
    "PNG cut": (CONVERTED["PNG"][0][:-40], "truncated or damaged"),
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
    assert not [path for path in out.iterdir() if path.suffix != ".h5"]


def test_a_worker_names_a_broken_file_and_all_end(source: Path, tmp_path: Path) -> None:
    (source / "val/cat/cat1.JPEG").write_bytes(RGB[:-9])
    with pytest.raises(InputError, match=r"cat1\.JPEG: truncated"):
        convert(source, tmp_path / "out", workers=2)
    assert not [path for path in (tmp_path / "out").iterdir() if path.suffix != ".h5"]


def test_what_is_converted_is_counted_and_named(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source / "train/ant/ant0.JPEG").write_bytes(CONVERTED["PNG"][0])
    (source / "val/ant/ant0.JPEG").write_bytes(CONVERTED["CMYK"][0])
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


LAYOUT: dict[str, tuple[Callable[[Path], object], list[str]]] = {
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


@pytest.mark.parametrize("name", LAYOUT)
def test_another_layout_is_refused_and_nothing_written(source: Path, tmp_path: Path, name: str) -> None:
    harm, words = LAYOUT[name]
    harm(source)
    with pytest.raises(InputError) as caught:
        convert(source, tmp_path / "out")
    for word in words:
        assert word in str(caught.value)
    assert not (tmp_path / "out").exists()


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


def test_finished_shards_are_not_overwritten(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "out")
    before = content(tmp_path / "out")
    with pytest.raises(InputError, match="nothing overwritten"):
        convert(source, tmp_path / "out")
    assert content(tmp_path / "out") == before


# --- going on after an interruption ---------------------------------------------------------------


def interrupt_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    left = iter(range(count))

    def one(data: bytes) -> tuple[bytes, str | None]:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return image_check.as_jpeg(data)

    monkeypatch.setattr(pack, "as_jpeg", one)


def test_the_same_command_keeps_finished_shards(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (source / "train/ant/ant0.JPEG").write_bytes(CONVERTED["PNG"][0])
    (source / "train/ant/ant1.JPEG").write_bytes(b"")
    out = tmp_path / "out"
    convert(source, tmp_path / "whole", skip_broken=True)
    interrupt_after(17, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        convert(source, out, skip_broken=True)
    monkeypatch.undo()
    kept = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert kept
    assert all(name.endswith(".h5") for name in kept)
    (out / ".train-00009.h5.123.part").write_bytes(b"from a killed run")
    capsys.readouterr()
    convert(source, out, skip_broken=True)
    assert f"{len(kept)} of " in capsys.readouterr().err
    assert kept.items() <= {path.name: path.stat().st_mtime_ns for path in out.iterdir()}.items()
    assert content(out) == content(tmp_path / "whole")
    assert about(out) == about(tmp_path / "whole")
    assert not list(out.glob(".*"))


CHANGES: dict[str, Callable[[Path, Path], object]] = {
    "an image more": lambda s, out: (s / "train/ant/new.JPEG").write_bytes(RGB),
    "a shard cut": lambda s, out: os.truncate(out / "train-00000.h5", 900),
    "a foreign shard": lambda s, out: (out / "train-00000.h5").write_text("hello"),
    "a broken image no longer skipped": lambda s, out: (s / "train/ant/ant1.JPEG").write_bytes(b""),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_shard_of_something_else_is_made_again(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    out = tmp_path / "out"
    if name.startswith("a broken"):
        CHANGES[name](source, out)
        convert(source, out, skip_broken=True)
        (out / INDEX).unlink()
        with pytest.raises(InputError, match=r"ant1\.JPEG: empty"):
            convert(source, out)
        return
    convert(source, out)
    (out / INDEX).unlink()
    CHANGES[name](source, out)
    (out / "train-00099.h5").touch()
    counts = convert(source, out)
    assert "can be deleted: train-00099.h5" in capsys.readouterr().err
    assert verify(out) == counts
    assert len(samples(out, "train")) == counts["train"]


SCRIPT = """
import multiprocessing, os, signal, sys, threading, time
from pathlib import Path
from legw_hpc.data.sources import images
from legw_hpc.errors import InputError

def kill_one(out):
    while not list(out.glob("*.h5")):
        time.sleep(0.01)
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

if __name__ == "__main__":
    source, out, how = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    if how == "kill a worker":
        threading.Thread(target=kill_one, args=[out], daemon=True).start()
    try:
        images.convert(source, out, workers=2, shard_bytes=1_500_000)
    except InputError as error:
        sys.exit(str(error))
"""


def alive(group: int) -> bool:
    """Is there a process left of the group: a worker, say?"""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("how", ["SIGINT", "SIGKILL", "kill a worker"])
def test_processes_end_together_and_the_command_goes_on(tmp_path: Path, how: str) -> None:
    """Two workers; after the first shard the parent is interrupted or killed, or a worker is killed."""
    source, out = tmp_path / "source", tmp_path / "out"
    large = picture(3, size=(2000, 2000), quality=98, subsampling=0, progressive=True)
    for name in ("train/a", "val/a"):
        (source / name).mkdir(parents=True)
    (source / "val/a/0.jpg").write_bytes(RGB)
    for i in range(32):
        (source / f"train/a/{i}.jpg").write_bytes(large)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(source), str(out), how]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not list(out.glob("*.h5")) and time.monotonic() < until:
        time.sleep(0.01)
    if how == "SIGINT":
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    elif how == "SIGKILL":
        process.kill()
    said = process.communicate(timeout=60)[1]
    assert process.returncode != 0
    if how == "kill a worker":
        assert "killed by signal 9" in said
    assert said.count("Traceback") == (how == "SIGINT"), said  # of the parent, none of a worker
    while alive(process.pid) and time.monotonic() < until:
        time.sleep(0.02)
    assert not alive(process.pid)
    assert not (out / INDEX).exists()
    if how != "SIGKILL":
        assert not list(out.glob(".*"))
    finished = len(list(out.glob("*.h5")))
    again = subprocess.run([*command[:-1], ""], stderr=subprocess.PIPE, text=True, check=True)
    assert f"{finished} of " in again.stderr
    assert verify(out) == {"train": 32, "val": 1}
    assert not list(out.glob(".*"))


# --- ImageNet: tars, tars of tars, flat val with labels -------------------------------------------


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


def class_tars(folder: Path, to: Path) -> dict[str, bytes]:
    to.mkdir()
    return {
        f"{path.name}.tar": tar(to / f"{path.name}.tar", {file.name: file.read_bytes() for file in sorted(path.iterdir())})
        for path in sorted(folder.iterdir())
    }


@pytest.fixture
def published(source: Path, tmp_path: Path) -> Path:
    """The same images as in `source`, as ImageNet is published: a tar of tars, a flat tar, and labels."""
    folder = tmp_path / "published"
    folder.mkdir()
    tar(folder / imagenet.TRAIN_TAR, class_tars(source / "train", tmp_path / "tars"))
    val = sorted((source / "val").rglob("*.JPEG"))
    tar(folder / imagenet.VAL_TAR, {path.name: path.read_bytes() for path in val})
    (folder / "labels.txt").write_text("".join(f"{path.name} {path.parent.name}\n" for path in val))
    return folder


def imagenet_shards(source: Path, out: Path, labels: str | None = "labels.txt", **options: Any) -> dict[str, bytes]:
    val_labels = None if labels is None else source / labels
    imagenet.convert(source, out, val_labels=val_labels, **{"workers": 1, "shard_bytes": 3000} | options)
    verify(out)
    return content(out)


def test_published_tars_make_the_same_shards_as_folders(source: Path, published: Path, tmp_path: Path) -> None:
    wanted = imagenet_shards(source, tmp_path / "folders", None)
    assert imagenet_shards(published, tmp_path / "tars of tars") == wanted
    assert imagenet_shards(published, tmp_path / "two workers", workers=2) == wanted
    (tmp_path / "tars").rename(published / "train")
    (published / imagenet.TRAIN_TAR).unlink()
    assert imagenet_shards(published, tmp_path / "a tar a class") == wanted
    (published / imagenet.VAL_TAR).unlink()
    (published / "val").mkdir()
    for path in (source / "val").rglob("*.JPEG"):
        shutil.copy(path, published / "val")
    lines = (published / "labels.txt").read_text().split()
    rows = [f"{Path(file).stem},{name} 1 2 3 4" for file, name in zip(lines[::2], lines[1::2], strict=True)]
    (published / "LOC.csv").write_text("\n".join(["ImageId,PredictionString", *rows]))
    assert imagenet_shards(published, tmp_path / "flat val", "LOC.csv") == wanted


def test_an_item_of_a_nested_tar_is_a_range_of_the_outer_file(source: Path, published: Path) -> None:
    tree = items.tar_of_tars(published / imagenet.TRAIN_TAR)
    listed = items.labelled(tree, list(CLASSES), "here")
    assert {item.path for item in listed} == {str(published / imagenet.TRAIN_TAR)}
    reader = items.Reader()
    for item in listed:
        assert reader.read(item) == (source / "train" / item.name).read_bytes()
    reader.close()


def test_readable_names_are_kept(source: Path, tmp_path: Path) -> None:
    (source / "LOC_synset_mapping.txt").write_text("ant ant, emmet, pismire\ncat true cat\n")
    imagenet_shards(source, tmp_path / "out", None)
    assert about(tmp_path / "out")["class_names"] == ["ant, emmet, pismire", "bee", "true cat"]


def retar(published: Path, change: Callable[[dict[str, bytes]], object]) -> None:
    with tarfile.open(published / imagenet.TRAIN_TAR) as archive:
        files = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    change(files)
    tar(published / imagenet.TRAIN_TAR, files)


def link_in(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("a.JPEG")
        info.type, info.linkname = tarfile.SYMTYPE, "b"
        archive.addfile(info)


def damage(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at : at + 8] = b"\xff" * 8
    path.write_bytes(data)


def cut_class(files: dict[str, bytes]) -> None:
    files["bee.tar"] = files["bee.tar"][:1024]


TRAIN, VAL = imagenet.TRAIN_TAR, imagenet.VAL_TAR
BAD_IMAGENET: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "no train": (lambda p: (p / TRAIN).unlink(), ["neither train/CLASS/", TRAIN]),
    "no val": (lambda p: (p / VAL).unlink(), ["neither val/CLASS/", VAL]),
    "outer tar cut": (lambda p: os.truncate(p / TRAIN, 6000), [TRAIN, "unexpected end of data"]),
    "outer tar cut at a header": (lambda p: os.truncate(p / TRAIN, 512 + 10240), [TRAIN, "truncated or damaged"]),
    "header damaged": (lambda p: damage(p / VAL, 1536), [VAL, "no member and no end of archive at byte 1536"]),
    "not a tar": (lambda p: (p / VAL).write_bytes(b"x" * 3000), [VAL, "uncompressed tar"]),
    "gzip-compressed": (lambda p: (p / TRAIN).write_bytes(gzip.compress((p / TRAIN).read_bytes())), [TRAIN, "uncompressed tar"]),
    "link in a tar": (lambda p: link_in(p / VAL), [VAL, "a.JPEG is a link"]),
    "empty val tar": (lambda p: tar(p / VAL, {}), [VAL, "no images"]),
    "inner tar cut": (lambda p: retar(p, cut_class), [TRAIN, "bee.tar", "truncated or damaged"]),
    "inner tar empty": (lambda p: retar(p, lambda f: f.update({"bee.tar": bytes(1024)})), [TRAIN, "bee.tar", "no images"]),
    "inner is no tar": (lambda p: retar(p, lambda f: f.update({"x.JPEG": RGB})), [TRAIN, "x.JPEG", "not a tar"]),
    "class twice": (lambda p: retar(p, lambda f: f.update({"x/bee.tar": f["bee.tar"]})), [TRAIN, "x/bee.tar", "second tar"]),
    "image without label": (lambda p: (p / "labels.txt").write_text("ant0.JPEG ant\n"), ["labels.txt", "ant1.JPEG", "1 images"]),
    "label without class": (lambda p: (p / "labels.txt").write_text("ant0.JPEG\n"), ["labels.txt", "line 1", "ant0.JPEG"]),
    "two labels": (lambda p: (p / "labels.txt").write_text("a ant\na bee\n"), ["labels.txt", "line 2", "bee", "ant"]),
    "no labels file": (lambda p: (p / "labels.txt").unlink(), ["labels.txt", "cannot be read"]),
    "foreign label": (
        lambda p: (p / "labels.txt").write_text((p / "labels.txt").read_text().replace(" bee", " wasp")),
        [VAL, "wasp", "3 of train"],
    ),
}


@pytest.mark.parametrize("name", BAD_IMAGENET)
def test_damaged_imagenet_is_named_and_nothing_written(published: Path, tmp_path: Path, name: str) -> None:
    harm, words = BAD_IMAGENET[name]
    harm(published)
    with pytest.raises(InputError) as caught:
        imagenet_shards(published, tmp_path / "out")
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_labels_are_asked_for_where_they_are_needed(source: Path, published: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"6 images without class folders; .*--val-labels"):
        imagenet_shards(published, tmp_path / "out", None)
    (source / "labels.txt").write_text("x y")
    with pytest.raises(InputError, match="leave out one"):
        imagenet_shards(source, tmp_path / "out")
    shutil.rmtree(published / "train", ignore_errors=True)
    (published / "train").mkdir()
    tar(published / "train/ant.tar", {})
    with pytest.raises(InputError, match=r"ant\.tar: this class has no images"):
        imagenet_shards(published, tmp_path / "out")


def test_a_broken_image_in_a_tar_is_named_with_its_byte(published: Path, tmp_path: Path) -> None:
    files = {"ant0.JPEG": RGB, "ant1.JPEG": RGB[:-5]}
    tar(published / VAL, files)
    (published / "labels.txt").write_text("ant0.JPEG ant\nant1.JPEG ant\nant2.JPEG ant\n")
    at = 512 + -(-len(RGB) // 512) * 512 + 512
    with pytest.raises(InputError, match=rf"{VAL}: ant/ant1\.JPEG \(byte {at}\): truncated"):
        imagenet_shards(published, tmp_path / "out")


# --- small images of one size ---------------------------------------------------------------------


@pytest.fixture
def tree() -> dict[str, bytes]:
    """Ten classes of 32x32 images, 3 for training and 1 for test of each: file -> bytes."""
    kinds = ("JPEG", "PNG", "JPEG")
    made = {f"train/{name}/{i}.x": (10 * label + i, kinds[i]) for label, name in enumerate(cifar10.CLASSES) for i in range(3)}
    made |= {f"test/{name}/0.x": (10 * label + 9, "PNG") for label, name in enumerate(cifar10.CLASSES)}
    return {path: picture(seed, kind, size=(32, 32)) for path, (seed, kind) in made.items()}


def unpack(tree: dict[str, bytes], folder: Path) -> Path:
    for name, data in tree.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


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
    with pytest.raises(InputError) as caught:
        cifar10.convert(source, tmp_path / "out")
    for word in words:
        assert word in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", BAD_SMALL_TAR)
def test_a_bad_archive_is_named_and_nothing_written(tree: Tree, tmp_path: Path, name: str) -> None:
    harm, words = BAD_SMALL_TAR[name]
    source = tmp_path / "source.tar"
    tar(source, tree)
    harm(source, tree)
    with pytest.raises(InputError) as caught:
        cifar10.convert(source, tmp_path / "out")
    for word in ["source.tar", *words]:
        assert word in str(caught.value)
    assert not (tmp_path / "out").exists()


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


BAD_BINARY: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "batch missing": (lambda f: (f / BINARY[2]).unlink(), [BINARY[2], "5 of 6"]),
    "batch cut": (lambda f: os.truncate(f / BINARY[5], 4000), [BINARY[5], "4000 bytes", "3073"]),
    "batch empty": (lambda f: os.truncate(f / BINARY[0], 0), [BINARY[0], "0 bytes"]),
    "label out of range": (lambda f: set_label(f / BINARY[1], 3, 10), [BINARY[1], "label 10 of record 3"]),
}


@pytest.mark.parametrize("name", BAD_BINARY)
def test_a_damaged_batch_is_named(tmp_path: Path, name: str) -> None:
    folder = unpack({name: records(5, seed).tobytes() for seed, name in enumerate(BINARY)}, tmp_path / "folder")
    harm, words = BAD_BINARY[name]
    harm(folder)
    with pytest.raises(InputError) as caught:
        cifar10.convert(folder, tmp_path / "out")
    for word in words:
        assert word in str(caught.value)
    assert not (tmp_path / "out").exists()


# --- the writer's part ----------------------------------------------------------------------------


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
    cuts = cut_by_bytes(np.array(sizes, np.int64), limit)
    assert [cut.stop for cut in cuts] == ends
    assert [cut.start for cut in cuts] == [0, *ends][: len(ends)]


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
    with pytest.raises(InputError, match="out of range for 3 classes"):
        write_shard(tmp_path, "train", 6, fields, made | {"label": np.array([0, 3])})
    assert not (tmp_path / "train-00006.h5").exists()


# --- real images ----------------------------------------------------------------------------------


def test_the_imagenet_sample(tmp_path: Path) -> None:
    if not (SHARED / "imagenet-sample").is_dir():
        pytest.skip("no ImageNet sample here")
    (tmp_path / "source/val").mkdir(parents=True)
    (tmp_path / "source/train").symlink_to(SHARED / "imagenet-sample/train")
    for folder in sorted((SHARED / "imagenet-sample/train").iterdir())[:3]:
        (tmp_path / "source/val" / folder.name).symlink_to(folder)
    count = len(list((SHARED / "imagenet-sample/train").glob("*/*")))
    imagenet.convert(tmp_path / "source", tmp_path / "out", workers=2, shard_bytes=8 << 20)
    assert verify(tmp_path / "out")["train"] == count
    assert about(tmp_path / "out")["converted"]["count"] == 0


def test_the_cifar10_images(tmp_path: Path) -> None:
    if not (SHARED / "cifar10-images.tar.gz").is_file():
        pytest.skip("no CIFAR-10 images here")
    assert cifar10.convert(SHARED / "cifar10-images.tar.gz", tmp_path / "out") == {"train": 50000, "test": 10000}
    labels = Shards(tmp_path / "out", "train").take("label", np.arange(50000))
    assert np.bincount(labels).tolist() == [5000] * 10
