"""Where images lie: in class folders or in uncompressed tar files, as byte ranges that any process reads alone."""

from __future__ import annotations

import itertools
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from legw_hpc.errors import InputError

ZERO_BLOCK = bytes(tarfile.BLOCKSIZE)  # a tar ends with at least one


class Range(NamedTuple):
    """A file, or a member of an uncompressed tar (of a tar): its name, where its bytes are, when they were last changed."""

    file: str
    path: str
    offset: int
    size: int
    modified: float


class Item(NamedTuple):
    """One image of a split: CLASS/file, its label, and where its bytes are; see `Range`."""

    name: str
    label: int
    path: str
    offset: int
    size: int
    modified: float

    def where(self) -> str:
        """For a message: the file, and the member if it lies in a tar."""
        return self.path if self.offset == 0 else f"{self.path}: {self.name} (byte {self.offset})"


# class -> its images
Tree = Mapping[str, list[Range]]


def class_folders(folder: Path) -> Tree:
    """The images of FOLDER/CLASS/*; every file counts as one but those whose name begins with a dot.

    Raises:
        InputError: no such folder, no class folder, one without images, or what does not belong there.
    """
    tree: dict[str, list[Range]] = {}
    for entry in _entries(folder):
        if not entry.is_dir():
            raise InputError(f"{entry.path}: not a folder; {folder} should hold one folder a class and nothing else")
        tree[entry.name] = [_range(image) for image in _entries(Path(entry.path))]
        if not tree[entry.name]:
            raise InputError(f"{entry.path}: this class folder has no images")
    if not tree:
        raise InputError(f"{folder}: no class folders here; the layout is {folder.name}/CLASS/image.jpg")
    return tree


def flat_folder(folder: Path) -> list[Range]:
    """The files of a folder without class folders."""
    return [_range(entry) for entry in _entries(folder)]


def has_class_folders(folder: Path) -> bool:
    """Is there a folder in this folder?"""
    return folder.is_dir() and any(entry.is_dir() for entry in _entries(folder))


def tar_files(path: Path) -> list[Range]:
    """The files in an uncompressed tar, without the folders they are in.

    Raises:
        InputError: not such a tar, cut or damaged, or with links in it.
    """
    with _opened(path) as tar:
        return [Range(Path(m.name).name, str(path), m.offset_data, m.size, m.mtime) for m in members(tar, str(path))]


def tar_of_tars(path: Path) -> Tree:
    """The images of a tar that holds one tar a class, such as ILSVRC2012_img_train.tar; nothing is extracted."""
    tree: dict[str, list[Range]] = {}
    with _opened(path) as outer:
        for member in members(outer, str(path)):
            where = f"{path}: {member.name}"
            name = Path(member.name).stem
            if not member.name.endswith(".tar"):
                raise InputError(f"{where}: not a tar; this file should hold one tar a class and nothing else")
            if name in tree:
                raise InputError(f"{where}: a second tar of class {name}")
            try:
                inner = tarfile.open(fileobj=outer.extractfile(member), mode="r:")
            except (tarfile.TarError, OSError) as error:
                raise InputError(f"{where}: cannot be read as an uncompressed tar: {error}") from None
            start = member.offset_data
            with inner:
                ranges = [
                    Range(Path(m.name).name, str(path), start + m.offset_data, m.size, m.mtime) for m in members(inner, where)
                ]
            if not ranges:
                raise InputError(f"{where}: this class has no images")
            tree[name] = ranges
    return tree


def members(tar: tarfile.TarFile, where: str, folders: bool = False) -> Iterator[tarfile.TarInfo]:
    """The plain files of a tar, and its folders if wanted; names that begin with a dot are left out.

    Raises:
        InputError: cut or damaged, or with links in it.
    """
    try:
        for member in tar:
            if Path(member.name).name.startswith(".") or (member.isdir() and not folders):
                continue
            if not (member.isdir() or member.isreg()) or member.issparse():
                raise InputError(f"{where}: {member.name} is a link, a device or sparse; only plain files belong here")
            yield member
        # tarfile takes a damaged header for the end, without a word.
        assert tar.fileobj is not None
        tar.fileobj.seek(tar.offset)
        if tar.fileobj.read(len(ZERO_BLOCK)) != ZERO_BLOCK:
            raise InputError(f"{where}: truncated or damaged: no member and no end of archive at byte {tar.offset}")
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"{where}: truncated or damaged: {error}") from None


def labelled(tree: Tree, classes: list[str], where: str) -> list[Item]:
    """The images of a split by name, with their labels.

    Args:
        tree: class -> images.
        classes: in label order.
        where: for a message.

    Raises:
        InputError: a class that is not among `classes`, or two images of one name.
    """
    labels = {name: label for label, name in enumerate(classes)}
    foreign = sorted(tree.keys() - labels.keys())
    if foreign:
        raise InputError(f"{where}: {len(foreign)} of its classes are not among the {len(classes)} of train: {_some(foreign)}")
    items = sorted(Item(f"{name}/{r.file}", labels[name], *r[1:]) for name in tree for r in tree[name])
    for one, other in itertools.pairwise(items):
        if one.name == other.name:
            raise InputError(f"{where}: {one.name} is there twice: {one.where()} and {other.where()}")
    return items


class Reader:
    """Reads items; the file last read stays open, as the next item is often in the same tar."""

    def __init__(self) -> None:
        self._path, self._handle = "", -1

    def read(self, item: Item) -> bytes:
        """The bytes of an item.

        Raises:
            InputError: the file cannot be read, or has become shorter.
        """
        try:
            if item.path != self._path:
                self.close()
                self._handle = os.open(item.path, os.O_RDONLY)
                self._path = item.path
            data = os.pread(self._handle, item.size, item.offset)
        except OSError as error:
            raise InputError(f"{item.where()}: cannot be read: {error.strerror}") from None
        if len(data) != item.size:
            raise InputError(f"{item.where()}: {len(data)} bytes are there, {item.size} when it was listed")
        return data

    def close(self) -> None:
        """Close the file that stayed open."""
        if self._handle >= 0:
            os.close(self._handle)
        self._path, self._handle = "", -1


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except FileNotFoundError:
        raise InputError(f"{folder}: no such folder; the layout is {folder.name}/CLASS/image.jpg") from None
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed: {error.strerror}") from None


def _range(entry: os.DirEntry[str]) -> Range:
    try:
        if not entry.is_file():
            raise InputError(f"{entry.path}: not a file; images lie right in the folder of their class")
        about = entry.stat()
        return Range(entry.name, entry.path, 0, about.st_size, about.st_mtime)
    except OSError as error:
        raise InputError(f"{entry.path}: {error.strerror}") from None


def _opened(path: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(path, "r:")
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"{path}: cannot be read as an uncompressed tar: {error}") from None


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
