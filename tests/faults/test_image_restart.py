"""A conversion of images that is interrupted, killed or repeated: finished shards stay, the others are made again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from legw_hpc.data.format import INDEX
from legw_hpc.data.shards import verify
from legw_hpc.data.sources import image_check, pack
from legw_hpc.errors import InputError
from tests.pictures import PNG, RGB, about, content, convert, picture, samples


def test_finished_shards_are_not_overwritten(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "out")
    before = content(tmp_path / "out")
    with pytest.raises(InputError, match="nothing overwritten"):
        convert(source, tmp_path / "out")
    assert content(tmp_path / "out") == before


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
    (source / "train/ant/ant0.JPEG").write_bytes(PNG)
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
    (out / ".train-00009.h5.n7.site.123.0a1b2c3d.part").write_bytes(b"from a killed run")
    capsys.readouterr()
    convert(source, out, skip_broken=True)
    assert f"{len(kept)} of " in capsys.readouterr().err
    assert kept.items() <= {path.name: path.stat().st_mtime_ns for path in out.iterdir()}.items()
    assert content(out) == content(tmp_path / "whole")
    assert about(out) == about(tmp_path / "whole")
    assert not list(out.glob(".*"))


def replace_by_one_as_large(image: Path) -> None:
    data = bytearray(image.read_bytes())
    data[15] ^= 2  # the density in the JFIF header
    image.write_bytes(data)


CHANGES: dict[str, Callable[[Path, Path], object]] = {
    "an image more": lambda s, out: (s / "train/ant/new.JPEG").write_bytes(RGB),
    "an image as large": lambda s, out: replace_by_one_as_large(s / "train/ant/ant0.JPEG"),
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
    convert(source, tmp_path / "anew")
    assert content(out) | {"train-00099.h5": b""} == content(tmp_path / "anew") | {"train-00099.h5": b""}


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
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts its background jobs with SIGINT ignored
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
    for i in range(64):  # enough for seconds of work after the first shard
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
    assert process.returncode != 0, said
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
    again = subprocess.run([*command[:-1], ""], stderr=subprocess.PIPE, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert f"{finished} of " in again.stderr
    assert verify(out) == {"train": 64, "val": 1}
    assert not list(out.glob(".*"))
