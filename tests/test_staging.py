"""Shards copied to a node's own storage: one process copies, its others wait, and nothing else is taken for a copy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from legw_hpc.data import staging
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

    def verify(folder: Path) -> None:
        whole.append((folder / staging.WHOLE).exists())

    monkeypatch.setattr(staging, "verify", verify)
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


def test_a_source_that_is_not_there_is_named(shards: Path, tmp_path: Path) -> None:
    staging.stage(shards, tmp_path / "to")
    with pytest.raises(InputError, match=r"nowhere/index\.json: cannot be read"):
        staging.stage(tmp_path / "nowhere", tmp_path / "to")


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
