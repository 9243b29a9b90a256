"""Shards copied to a node's own storage: one process copies, its others wait, and nothing else is taken for a copy."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from legw_hpc.data import staging
from legw_hpc.data.shards import verify
from legw_hpc.data.sources import synthetic
from legw_hpc.errors import InputError


def test_one_process_of_a_node_copies(shards: Path, tmp_path: Path) -> None:
    assert staging.stage(shards, tmp_path / "copy")
    assert not staging.stage(shards, tmp_path / "copy")
    marks = {staging.BEGUN, staging.WHOLE}
    assert {p.name for p in shards.iterdir()} == {p.name for p in (tmp_path / "copy").iterdir()} - marks


def test_a_copy_of_a_copy_is_not_whole_before_it_is(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    staging.stage(shards, tmp_path / "copy")
    whole: list[bool] = []

    def look(folder: Path) -> None:
        whole.append((folder / staging.WHOLE).exists())

    monkeypatch.setattr(staging, "verify", look)
    assert staging.stage(tmp_path / "copy", tmp_path / "copy of it")
    assert whole == [False]
    assert (tmp_path / "copy of it" / staging.WHOLE).exists()


@pytest.mark.parametrize("there", ["a file", "a folder of something", "an empty folder", "a copy of other data"])
def test_what_is_there_and_no_copy_is_not_waited_for(
    there: str, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "BEGIN_SECONDS", 0.2)
    monkeypatch.setattr(staging, "POLL_SECONDS", 0.05)
    to = tmp_path / "to"
    if there == "a copy of other data":
        synthetic.write(tmp_path / "other", (28, 28), 10, 30, 10)
        assert staging.stage(tmp_path / "other", to)
    elif there == "a file":
        to.write_text("mine")
    else:
        to.mkdir()
        if "something" in there:
            (to / "mine").write_text("mine")
    with pytest.raises(InputError, match=r"to: it is there already, (with other data|and no copy)"):
        staging.stage(shards, to)


# source, to -> what is said; the right source can be copied there afterwards
REFUSED = {
    "a source that is not there": ("nowhere", "to", r"nowhere/index\.json: not found \(no such folder\)"),
    "a source that is no data folder": (".", "to", r"index\.json: not found"),
    "a folder into itself": ("d", "d/inside", r"d/inside: it is in .*/d, which would be copied into itself"),
    "a folder to itself": ("d", "d", r"d: it is in .*/d, which"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_copied_makes_nothing(name: str, shards: Path, tmp_path: Path) -> None:
    shutil.copytree(shards, tmp_path / "d")
    before = sorted(tmp_path.rglob("*"))
    source, to, words = REFUSED[name]
    with pytest.raises(InputError, match=words):
        staging.stage(tmp_path / source, tmp_path / to)
    assert sorted(tmp_path.rglob("*")) == before


BEGIN = """
import os, shutil, signal, sys
from pathlib import Path
from legw_hpc.data import staging
shutil.copytree = lambda source, to, **how: shutil.copy(source / "train-00001.h5", to) and os.kill(os.getpid(), signal.SIGKILL)
staging.stage(*map(Path, sys.argv[1:]))
"""
STAGE = [sys.executable, "-m", "legw_hpc", "data", "stage"]


def test_a_copy_whose_process_was_killed_is_begun_anew(shards: Path, tmp_path: Path) -> None:
    """By one of those that find it."""
    words = [str(shards), str(tmp_path / "to")]
    assert subprocess.run([sys.executable, "-c", BEGIN, *words], timeout=60).returncode == -signal.SIGKILL
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == [staging.BEGUN, "train-00001.h5"]
    both = [subprocess.Popen([*STAGE, *words], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = sorted(process.communicate(timeout=60)[0] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert said[0] == ""
    assert said[1].endswith("to, whole\n")
    assert verify(tmp_path / "to") == verify(shards)


def test_a_copy_that_is_not_whole_is_refused_by_all(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "source"
    shutil.copytree(shards, broken)
    victim = max(broken.glob("*.h5"), key=lambda p: p.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    for words in ("no whole copy", "another process of this node could not"):
        with pytest.raises(InputError, match=words):
            staging.stage(broken, tmp_path / "copy")
    (tmp_path / "stuck").mkdir()
    (tmp_path / "stuck" / staging.BEGUN).touch()
    monkeypatch.setattr(staging, "LONGEST_SECONDS", 0.0)
    with pytest.raises(InputError, match="gave up"):
        staging.stage(shards, tmp_path / "stuck")


FULL = """
import resource, signal, sys
from pathlib import Path
from legw_hpc.data.staging import stage
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # EFBIG then, at the first byte
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
stage(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_a_disk_without_room_for_a_word_is_told_to_all(shards: Path, tmp_path: Path) -> None:
    words = [str(shards), str(tmp_path / "to")]
    done = subprocess.run([sys.executable, "-c", FULL, *words], capture_output=True, text=True, timeout=60)
    assert "no whole copy" in done.stderr
    with pytest.raises(InputError, match="another process of this node could not"):
        staging.stage(shards, tmp_path / "to")
