"""A text of words, one file a split, to token shards: PTB, or any text in the same layout.

    DIR/ptb.train.txt  ptb.valid.txt  ptb.test.txt      one sentence a line, words parted by blanks

As in the TensorFlow tutorial the end of a line is the word <eos>, and the vocabulary is that of the
training text, by falling count, then by alphabet.  A sample is a word: the field `token` of the
splits train, valid and test.  The split vocabulary holds the words, in the order of their tokens.
"""

from __future__ import annotations

import collections
import hashlib
import re
from pathlib import Path

import numpy as np

from legw_hpc.data.format import Field
from legw_hpc.data.writer import Writer, refuse_finished, write_index, writing
from legw_hpc.errors import InputError

SPLITS = ("train", "valid", "test")
END = "<eos>"
# Of the published files (T. Mikolov's preprocessing of the Penn Treebank).
PTB_MD5 = {
    "train": "f26c4b92c5fdc7b3f8c7cdcb991d8420",
    "valid": "aa0affc06ff7c36e977d7cd49e3839bf",
    "test": "8b80168b89c18661a38ef683c0dc3721",
}


def convert_ptb(source: Path, out: Path) -> dict[str, int]:
    """Write PTB's shards from its three files, whose MD5 must be the published ones.

    Raises:
        InputError: as `convert`; or another text under PTB's names.
    """
    for split, md5 in PTB_MD5.items():
        path = _path(source, "ptb", split)
        try:
            found = hashlib.md5(path.read_bytes()).hexdigest()
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from None
        if found != md5:
            raise InputError(f"{path}: MD5 {found}, the published file has {md5}; for another text use `legw-hpc data text`")
    return convert(source, out, "ptb")


def convert(source: Path, out: Path, name: str = "ptb") -> dict[str, int]:
    """Write the shards of a text.

    Args:
        source: the folder of NAME.train.txt, NAME.valid.txt and NAME.test.txt.
        out: the data folder to make.
        name: see source.

    Returns:
        split -> number of words, line ends included.

    Raises:
        InputError: a file that is missing, not UTF-8, has a byte order mark, a lone carriage return, an
            empty line, no final newline, or a word that the training text does not have.
    """
    refuse_finished(out)
    paths = {split: _path(source, name, split) for split in SPLITS}
    texts = {split: _words(path) for split, path in paths.items()}
    counts = collections.Counter(texts["train"])
    vocabulary = sorted(counts, key=lambda word: (-counts[word], word))
    token = {word: number for number, word in enumerate(vocabulary)}
    for split, words in texts.items():
        for place, word in enumerate(words):
            if word not in token:
                where = 1 + words[:place].count(END)
                raise InputError(f"{paths[split]}: line {where}: {word!r} is not a word of {paths['train'].name}")
    with writing(out):
        writers = [Writer(out, split, {"token": Field("int32", (), classes=len(vocabulary))}) for split in SPLITS]
        for writer, words in zip(writers, texts.values(), strict=True):
            writer.write({"token": np.array([token[word] for word in words], np.int32)})
        writers.append(Writer(out, "vocabulary", {"word": Field("uint8", None)}))
        writers[-1].write({"word": [word.encode() for word in vocabulary]})
        write_index(out, writers, source=f"{name}.{{train,valid,test}}.txt", end_of_line=END)
    return {split: len(words) for split, words in texts.items()}


def _path(source: Path, name: str, split: str) -> Path:
    path = source / f"{name}.{split}.txt"
    if not path.is_file():
        raise InputError(f"{path}: not found; a text is {', '.join(f'{name}.{s}.txt' for s in SPLITS)}")
    return path


def _words(path: Path) -> list[str]:
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        where = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{path}: line {where}: not UTF-8: byte 0x{error.object[error.start]:02x}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if not text:
        raise InputError(f"{path}: empty")
    if text.startswith("\ufeff"):
        raise InputError(f"{path}: line 1 begins with a byte order mark, which would be part of its first word")
    if lone := re.search(r"\r(?!\n)", text):
        where = text.count("\n", 0, lone.start()) + 1
        raise InputError(f"{path}: line {where} has a carriage return without a newline; a line ends in \\n or \\r\\n")
    if not text.endswith("\n"):
        raise InputError(f"{path}: no newline at the end: the file may have been cut short")
    words: list[str] = []
    for number, line in enumerate(text[:-1].split("\n"), 1):
        parts = line.split()
        if not parts:
            raise InputError(f"{path}: line {number} is empty")
        if END in parts:
            raise InputError(f"{path}: line {number} has the word {END}, which stands for the end of a line")
        words += [*parts, END]
    return words
