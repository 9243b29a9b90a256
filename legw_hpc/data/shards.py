"""Reads data folders in the shard format (format.py), in any order of samples."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from legw_hpc.data.format import field_from, read_index, shard_from
from legw_hpc.data.reading import make_room
from legw_hpc.data.shardfile import OPEN_FILES, ShardFile
from legw_hpc.errors import InputError

if TYPE_CHECKING:
    from legw_hpc.comm import Comm  # which imports torch


# Above this, rank 0 says what it is waiting for: seconds of reading (assumed).
SAY_BYTES = 1 << 30


class Shards:
    """One split of a data folder, opened for reading in any order.

    This checks the index, and that every file is there.  A file is opened, and its header checked, when one of its samples
    is first asked for; nothing but `verify` compares samples with their checksums, and labels with the number of classes.
    Use from one process; threads may share it.

    Args:
        folder: a data folder.
        split: "train", "test" ...
        index: instead of the one in the folder.

    Raises:
        InputError: a folder, index or file that is missing, or an index that is damaged or of another version.
    """

    def __init__(self, folder: Path, split: str, index: Mapping[str, Any] | None = None):
        self.folder, self.split = Path(folder), split
        self.index = read_index(self.folder) if index is None else index
        if split not in self.index["splits"]:
            raise InputError(f"{self.folder}: no split {split!r}: it has {', '.join(self.index['splits'])}")
        entry = self.index["splits"][split]
        self.fields = {name: field_from(value) for name, value in entry["fields"].items()}
        shards = [shard_from(self.folder, value) for value in entry["shards"]]
        self._starts = np.cumsum([0, *(shard.count for shard in shards)])
        make_room(OPEN_FILES * len(shards), f"{self.folder}: {split}")
        self.files = [ShardFile(self.folder / shard.file, split, shard, self.fields) for shard in shards]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def file_of(self, sample: int) -> Path:
        """The file that holds a sample, for a message."""
        return self.files[int(np.searchsorted(self._starts, sample, side="right")) - 1].path

    def take(self, name: str, samples: NDArray[np.int64]) -> Any:
        """The field of the given samples: an array [n, *shape], or a list of bytes.

        Args:
            name: a fixed-size or variable-size field.
            samples: global sample numbers, in any order, repeats allowed.

        Raises:
            InputError: a file that is truncated, of another version, or that does not fit the index.
        """
        if len(self.files) == 1:
            return self.files[0].take(name, samples)
        which = np.searchsorted(self._starts, samples, side="right") - 1
        field = self.fields[name]
        out: Any = [None] * len(samples)
        if field.shape is not None:
            out = np.empty((len(samples), *field.shape), dtype=field.dtype)
        for number in np.unique(which):
            here = np.flatnonzero(which == number)
            values = self.files[number].take(name, samples[here] - self._starts[number])
            if field.shape is not None:
                out[here] = values
            else:
                for place, value in zip(here, values, strict=True):
                    out[place] = value
        return out


def verify(folder: Path, index: Mapping[str, Any] | None = None) -> dict[str, int]:
    """Read every sample of a data folder: checksums, counts, offsets and label ranges.

    Args:
        folder: a data folder.
        index: instead of the one in the folder.

    Returns:
        split -> number of samples.

    Raises:
        InputError: the first fault, with file, dataset and both values.
    """
    counts = {}
    for split in (index or read_index(folder))["splits"]:
        shards = Shards(folder, split, index)
        for file in shards.files:
            file.verify()
        counts[split] = len(shards)
    return counts


def verify_together(splits: tuple[Shards, ...], comm: Comm, samples: bool = True) -> None:
    """Verify this rank's part of all shards: no more than an epoch reads, once, and it is in memory then; a collective.

    Ranks share out what they see of one copy: the same path, and files that were put there at the same time.  So a copy
    on each node is read on each, also where all have one name for it.

    Args:
        splits: all that the run reads.
        comm: every rank's.
        samples: else the files' headers alone, and neither checksums nor the range of labels.

    Raises:
        InputError: the first fault of any rank, on all.
    """
    copies = _copies(splits)
    everyone = comm.gather(copies)
    peers = [rank for rank, theirs in enumerate(everyone) if theirs == everyone[comm.rank]]
    mine = [file for data in splits for file in data.files][peers.index(comm.rank) :: len(peers)]
    with comm.together():
        size = sum(file.status.st_size for file in mine)
        if samples and comm.rank == 0 and size > SAY_BYTES:
            print(
                f"data     reading {size * len(peers) / 1e9:.0f} GB to compare checksums (not with data.verify=false)", flush=True
            )
        for file in mine:
            file.verify(samples)


def _copies(splits: tuple[Shards, ...]) -> str:
    """Which copies these are.  By change times, that no copying keeps: some network file systems number inodes anew."""
    times = [(str(data.folder.resolve()), [file.status.st_ctime_ns for file in data.files]) for data in splits]
    return hashlib.sha256(repr(times).encode()).hexdigest()
