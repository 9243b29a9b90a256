"""ImageNet as it is published, tars of tars and a flat val with labels: the same shards as from class folders."""

from __future__ import annotations

import gzip
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from legw_hpc.data.shards import verify
from legw_hpc.data.sources import imagenet, items
from legw_hpc.errors import InputError
from tests.pictures import CLASSES, RGB, SHARED, Harm, about, content, refused, tar


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


def train_of_class_tars(published: Path) -> Path:
    """train/CLASS.tar, with a hidden file."""
    folder = (published.parent / "tars").rename(published / "train")
    (folder / ".hidden.tar").touch()
    return folder


def other_suffix(labels: Path) -> None:
    labels.write_text(labels.read_text().replace("ant0.JPEG", "ant0.png"))


TRAIN, VAL = imagenet.TRAIN_TAR, imagenet.VAL_TAR
BAD_IMAGENET: dict[str, tuple[Harm, list[str]]] = {
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
    "label of another suffix": (lambda p: other_suffix(p / "labels.txt"), ["labels.txt", "no line for ant0.JPEG"]),
    "image beside class tars": (
        lambda p: (train_of_class_tars(p) / "lost.JPEG").write_bytes(RGB),
        ["train/lost.JPEG: not a tar", "one tar a class"],
    ),
    "compressed class": (
        lambda p: (train_of_class_tars(p) / "a.tar.gz").touch(),
        ["train/a.tar.gz: not a tar", "one tar a class"],
    ),
    "folder beside class tars": (lambda p: (train_of_class_tars(p) / "more").mkdir(), ["train/ant.tar: not a folder"]),
    "no labels file": (lambda p: (p / "labels.txt").unlink(), ["labels.txt", "cannot be read"]),
    "foreign label": (
        lambda p: (p / "labels.txt").write_text((p / "labels.txt").read_text().replace(" bee", " wasp")),
        [VAL, "wasp", "3 of train"],
    ),
}


@pytest.mark.parametrize(("harm", "words"), BAD_IMAGENET.values(), ids=BAD_IMAGENET)
def test_damaged_imagenet_is_named_and_nothing_written(published: Path, tmp_path: Path, harm: Harm, words: list[str]) -> None:
    harm(published)
    with refused(words, tmp_path / "out"):
        imagenet_shards(published, tmp_path / "out")


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
