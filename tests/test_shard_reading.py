"""Shards while they are read: changed, cut, shared by threads and by ranks."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from legw_hpc.comm import Serial
from legw_hpc.data import reading, shardfile
from legw_hpc.data.reading import SPARE_FILES
from legw_hpc.data.shards import Shards, _copies, verify, verify_together
from legw_hpc.data.sources import synthetic
from legw_hpc.errors import InputError
from tests.test_run import wait_for_steps
from tests.test_shard_damage import SHARD, rewrite_index, set_attribute, without_headers
from tests.test_shards import samples, write

CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "its header changed": (lambda path: set_attribute(path, "count", 3), "replaced or changed while it was read"),
    "another in its place": (lambda path: os.replace(path.with_name("train-00000.h5"), path), "replaced or changed"),
    "cut": (lambda path: os.truncate(path, 700), "it is 700 bytes"),
    "removed": (lambda path: path.unlink(), "gone since it was opened"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_shard_that_changes_while_it_is_read_is_named(tmp_path: Path, name: str) -> None:
    write(tmp_path / "d", samples(20), per_shard=7)
    os.utime(tmp_path / "d" / SHARD, (0, 0))
    files = Shards(tmp_path / "d", "train").files
    harm, words = CHANGES[name]
    harm(tmp_path / "d" / SHARD)
    assert not files[2].check_unchanged()
    with pytest.raises(InputError, match=rf"{SHARD}: .*{words}"):
        files[1].check_unchanged()


def test_a_shard_that_is_touched_is_the_same(tmp_path: Path) -> None:
    """As people do to keep files from a purge; one without a digest of its header may be any."""
    write(tmp_path / "d", samples(20), per_shard=7)
    data = Shards(tmp_path / "d", "train")
    (tmp_path / "d" / SHARD).touch()
    assert [[file.check_unchanged() for file in data.files] for _ in range(2)] == [[False, True, False], [False] * 3]
    rewrite_index(tmp_path / "d", without_headers)
    data = Shards(tmp_path / "d", "train")
    (tmp_path / "d" / SHARD).touch()
    with pytest.raises(InputError, match=rf"{SHARD}: replaced or changed"):
        data.files[1].check_unchanged()


OPENED = """
import sys
from pathlib import Path
from legw_hpc.comm import Serial
from legw_hpc.data.shards import Shards, verify_together
class Rank(Serial):
    def gather(self, value):
        return [value] * self.size
comm = Rank()
comm.rank, comm.size = 1, 2
data = Shards(Path(sys.argv[1]), "train")
seen = []
sys.addaudithook(lambda event, what: event == "open" and str(what[0]).endswith(".h5") and seen.append(Path(what[0]).name))
verify_together((data,), comm, samples=sys.argv[2] == "samples")
print(*seen)
for file in data.files:
    file.datasets
print(*seen)
"""


@pytest.mark.parametrize("samples_too", ["samples", "headers"])
def test_a_rank_opens_what_it_verifies_and_each_shard_once(tmp_path: Path, samples_too: str) -> None:
    """Beside HDF5's own opening, which no hook sees."""
    write(tmp_path / "d", samples(40), per_shard=7)
    words = [sys.executable, "-c", OPENED, str(tmp_path / "d"), samples_too]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    mine, rest = ([f"train-0000{number}.h5" for number in numbers] for numbers in ([1, 3, 5], [0, 2, 4]))
    assert done.stdout.splitlines() == [" ".join(mine), " ".join(mine + rest)], done.stderr


OPEN = """
import os, resource, sys
from pathlib import Path
import numpy as np
from legw_hpc.data.shards import Shards
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[2]), int(sys.argv[3])))
before = len(os.listdir("/proc/self/fd"))
data = Shards(Path(sys.argv[1]), "train")
assert len(data.take("image", np.arange(len(data)))) == len(data.take("jpeg", np.arange(len(data)))) == 40
print(len(os.listdir("/proc/self/fd")) - before)
"""


@pytest.mark.parametrize(
    ("soft", "hard", "said"),
    [
        (1024, 1024, "80"),
        (64, 1024, "80"),  # the limit is raised: else `ulimit -n` would bound how many shards a data set has
        (
            64,
            64,
            "legw_hpc.errors.InputError: {folder}: train: 120 files to open, and this process may have no more than 64 (ulimit",
        ),
    ],
)
def test_many_shards_are_opened(tmp_path: Path, soft: int, hard: int, said: str) -> None:
    """40 of them, with two open files each."""
    write(tmp_path / "d", samples(40), per_shard=1)
    words = [sys.executable, "-c", OPEN, str(tmp_path / "d"), str(soft), str(hard)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (done.stdout + done.stderr).strip().splitlines()[-1].startswith(said.format(folder=tmp_path / "d")), done.stderr


@pytest.mark.parametrize("field", ["jpeg", "image"])
@pytest.mark.parametrize(("failures", "survived"), [(1, True), (reading.TRIES - 1, True), (reading.TRIES, False)])
def test_a_read_error_is_tried_again_and_then_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int, survived: bool, field: str
) -> None:
    """Of bytes of any length, and of the first touch of a map."""
    made = samples(20)
    write(tmp_path / "d", made)
    data = Shards(tmp_path / "d", "train")
    left = [failures]

    def pread(*arguments: int) -> bytes:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(errno.EIO, "Input/output error")
        return whole(*arguments)

    whole, waits = os.pread, []
    monkeypatch.setattr(os, "pread", pread)
    monkeypatch.setattr(time, "sleep", waits.append)
    if survived:
        assert [bytes(value) for value in data.take(field, np.array([3]))] == [bytes(made[field][3])]
    else:
        with pytest.raises(InputError, match=r"train-00000\.h5: bytes \d+ to \d+ cannot be read, tried 4 times: Input/output"):
            data.take(field, np.array([3]))
    assert waits == [1.0, 2.0, 4.0][: min(failures, 3)]


def test_a_map_that_the_system_refuses_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under `ulimit -v`."""
    write(tmp_path / "d", samples(20))

    def refused(*arguments: object, access: int) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", refused)
    with pytest.raises(InputError, match=r"train-00000\.h5: cannot be mapped into memory: Cannot allocate memory"):
        Shards(tmp_path / "d", "train").take("image", np.array([3]))


def test_an_open_file_that_the_system_says_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an object store behind FUSE may; not a traceback, and not the answer that it was removed."""
    write(tmp_path / "d", samples(20))
    data, waits = Shards(tmp_path / "d", "train"), list[float]()

    def pread(*arguments: int) -> bytes:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(os, "pread", pread)
    monkeypatch.setattr(time, "sleep", waits.append)
    with pytest.raises(InputError, match=r"train-00000\.h5: bytes \d+ to \d+ cannot be read, tried 4 times: No such file"):
        data.take("jpeg", np.array([3]))
    assert waits == [1.0, 2.0, 4.0]


@pytest.mark.parametrize("survived", [True, False])
def test_a_read_error_within_hdf5_is_tried_again_and_then_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survived: bool
) -> None:
    """A compressed dataset that is too large to keep; its file's descriptor is closed under HDF5."""
    made = samples(20)
    write(tmp_path / "d", made, compress=4)
    monkeypatch.setattr(shardfile, "KEEP_BYTES", 0)
    data = Shards(tmp_path / "d", "train")
    there = data.files[0].datasets["image"].file.id.get_vfd_handle()
    aside, waits = os.dup(there), list[float]()
    os.close(there)

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if survived:
            os.dup2(aside, there)

    monkeypatch.setattr(time, "sleep", sleep)
    try:
        if survived:
            np.testing.assert_array_equal(data.take("image", np.array([3, 1])), made["image"][[3, 1]])
        else:
            with pytest.raises(InputError, match=r"train-00000\.h5: /image cannot be read, tried 4 times: .*Bad file descr"):
                data.take("image", np.array([3]))
    finally:
        os.dup2(aside, there)  # for HDF5 to close
        os.close(aside)
    assert waits == ([1.0] if survived else [1.0, 2.0, 4.0])


def test_a_damaged_chunk_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "d", samples(20), compress=4)
    monkeypatch.setattr(shardfile, "KEEP_BYTES", 0)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waits"))
    data = Shards(tmp_path / "d", "train")
    chunk = data.files[0].datasets["image"].id.get_chunk_info(0)
    with open(tmp_path / "d" / "train-00000.h5", "r+b") as file:
        file.seek(chunk.byte_offset)
        file.write(bytes(chunk.size))
    with pytest.raises(InputError, match=r"train-00000\.h5: /image cannot be read: "):
        data.take("image", np.array([3]))


@pytest.mark.parametrize("dataset", ["jpeg/bytes", "image"])
def test_bytes_behind_the_end_of_a_cut_file_are_named(tmp_path: Path, dataset: str) -> None:
    write(tmp_path / "d", samples(20))
    values = Shards(tmp_path / "d", "train").files[0].datasets[dataset]
    os.truncate(tmp_path / "d" / "train-00000.h5", 100)
    with pytest.raises(InputError, match=r"train-00000\.h5: truncated: it ends at byte 100, \d+ are wanted"):
        values[0:9]


def test_a_mapped_shard_that_is_cut_in_the_middle_of_a_run_is_named(arguments: list[str], shards: Path, tmp_path: Path) -> None:
    """The system ends the process; its last words, and the next launch, name the file."""
    shutil.copytree(shards, tmp_path / "data")
    cut = tmp_path / "data" / "train-00001.h5"
    words = [*arguments, f"data.dir={tmp_path / 'data'}", "epochs=4000", "out=r"]
    command = [sys.executable, "-m", "legw_hpc", "train", *words]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for_steps(tmp_path / "r")
    os.truncate(cut, 4096)
    _, said = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGBUS
    assert f'File "{cut}", line ' in said
    assert "in reading_a_shard_that_was_cut" in said
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (again.returncode, "train-00001.h5: truncated: 4096 bytes" in again.stderr) == (2, True)


def test_threads_may_share_a_map(tmp_path: Path) -> None:
    """One is through with the last piece while another still reads it."""
    write(tmp_path / "d", samples(20))
    values = Shards(tmp_path / "d", "train").files[0].datasets["image"]
    read, rows, reading_it, over = values._reader.read, np.arange(20), threading.Event(), threading.Event()

    def slow(start: int, end: int) -> bytes:
        if threading.current_thread() is not threading.main_thread():
            reading_it.set()
            assert over.wait(30)
        return bytes(read(start, end))

    values._reader.read = slow
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(values.read, rows)
        assert reading_it.wait(30)
        values.read(rows)
        over.set()
        late.result(30)


class Rank(Serial):
    """One of several, as its verification sees it."""

    def __init__(self, rank: int, copies: list[str]):
        super().__init__()
        self.rank, self.size, self.copies = rank, len(copies), copies

    def gather(self, value: Any) -> list[Any]:
        return self.copies if isinstance(value, str) else super().gather(value)


# the folder of each of four ranks -> the shards that each verifies
VERIFIED = {
    "one folder": ("dddd", [[0], [1], [2], []]),
    "a copy on each node": ("ddee", [[0, 2], [1], [0, 2], [1]]),
    "a copy of one rank": ("deff", [[0, 1, 2], [0, 1, 2], [0, 2], [1]]),
}


@pytest.mark.parametrize("name", VERIFIED)
def test_every_copy_is_verified(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    places, wanted = VERIFIED[name]
    for folder in "def":
        write(tmp_path / folder, samples(20), per_shard=7)
    copies = [_copies((Shards(tmp_path / folder, "train"),)) for folder in places]
    found: list[list[int]] = []
    for rank, folder in enumerate(places):
        data, seen = Shards(tmp_path / folder, "train"), list[int]()
        for number, file in enumerate(data.files):
            monkeypatch.setattr(file, "verify", lambda samples, number=number, seen=seen: seen.append(number))
        verify_together((data,), Rank(rank, copies))
        found.append(seen)
    assert found == wanted


def test_a_copy_of_the_same_name_is_another(tmp_path: Path) -> None:
    """As on the disks of two nodes; times, sizes and names are kept by `cp -a`."""
    write(tmp_path / "d", samples(20), per_shard=7)
    first, again = (_copies((Shards(tmp_path / "d", "train"),)) for _ in range(2))
    assert first == again
    shutil.copytree(tmp_path / "d", tmp_path / "copy")
    shutil.rmtree(tmp_path / "d")
    (tmp_path / "copy").rename(tmp_path / "d")
    assert _copies((Shards(tmp_path / "d", "train"),)) != first


def test_a_lock_that_was_left_behind_does_not_matter(tmp_path: Path) -> None:
    write(tmp_path / "d", samples(20))
    with open(tmp_path / "d" / "train-00000.h5", "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert verify(tmp_path / "d") == {"train": 20}


MANY = """
import resource, sys
from legw_hpc.comm import Serial
from legw_hpc.data.shardfile import OPEN_FILES
from legw_hpc.recipe import load
from legw_hpc.work import prepare
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
work = prepare(load(sys.argv[1], [*sys.argv[2:], "data.verify=false"]), Serial())
files = sum(len(data.files) for data in (work.training, *work.evaluated))
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0] - OPEN_FILES * files)
"""


def test_room_is_made_for_the_shards_of_all_splits(tmp_path: Path) -> None:
    """They are opened when they are read, long after the splits have been looked at one by one."""
    synthetic.write(tmp_path / "d", (28, 28), 10, 60, 60, samples_per_shard=1)
    words = ["mnist-lstm", f"data.dir={tmp_path / 'd'}", "data.train_samples=60", "batch=60", "threads=1"]
    done = subprocess.run([sys.executable, "-c", MANY, *words], capture_output=True, text=True, timeout=60, check=True)
    assert int(done.stdout) >= SPARE_FILES
