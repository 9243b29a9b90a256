"""Two jobs and one run folder: living and dead ones, of this host and of others, in turn and at once."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from legw_hpc import owner, runlog
from legw_hpc.comm import Serial
from legw_hpc.data import mark
from legw_hpc.data.mark import Owner, myself
from legw_hpc.errors import InputError
from legw_hpc.owner import OWNER, Hold, owning
from tests.conftest import Cli

QUICK = {"BEAT_SECONDS": 0.1, "SILENT_SECONDS": 2.0, "POLL_SECONDS": 0.05}
ELSEWHERE = Owner("n7", "pid:[1]", 123, "456", "41")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in QUICK.items():
        monkeypatch.setattr(owner, name, value)
    monkeypatch.setattr(mark, "SETTLE_SECONDS", 0.1)


def record(run: Path, who: Owner) -> Path:
    run.mkdir(exist_ok=True)
    (run / OWNER).write_text(json.dumps(dataclasses.asdict(who)))
    return run / OWNER


def gone() -> Owner:
    """A process of this host that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return dataclasses.replace(myself(), pid=process.pid, started="1")


@contextlib.contextmanager
def beating(path: Path) -> Iterator[None]:
    """A living job on another host."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(0.1):
            os.utime(path)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_folder_is_left_as_it_was(tmp_path: Path) -> None:
    with owning(tmp_path, Serial()):
        assert json.loads((tmp_path / OWNER).read_text())["pid"] == os.getpid()
        first = owner.last_beat(tmp_path)
        time.sleep(0.3)
        assert owner.last_beat(tmp_path) > first
    assert list(tmp_path.iterdir()) == []
    assert owner.last_beat(tmp_path) == 0


# what stands in the record, and the seconds until the folder is taken
LEFT_BEHIND = {
    "a process of this host that has ended": (gone, 0),
    "a number that another process has now": (lambda: dataclasses.replace(myself(), pid=os.getppid(), started="1"), 0),
    "a job of another host that is silent": (lambda: ELSEWHERE, 2),
    "a container of this host that is silent": (lambda: dataclasses.replace(gone(), processes="pid:[1]"), 2),
    "a job of another host of the same name": (lambda: dataclasses.replace(gone(), boot="another"), 2),
    "a job of before the boot was kept": (lambda: dataclasses.replace(gone(), boot=""), 2),
}


@pytest.mark.parametrize("name", LEFT_BEHIND)
def test_a_dead_job_does_not_keep_a_folder(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    who, seconds = LEFT_BEHIND[name]
    record(tmp_path, who())
    start = time.monotonic()
    with owning(tmp_path, Serial()):
        assert seconds <= time.monotonic() - start < seconds + 2
    assert (f"{tmp_path}: in use by job 41, process 123 on n7; waiting" in capsys.readouterr().out) == (who() == ELSEWHERE)


def test_a_record_of_before_the_boot_was_kept_is_read(tmp_path: Path) -> None:
    path = record(tmp_path, ELSEWHERE)
    values = json.loads(path.read_text())
    del values["boot"]
    path.write_text(json.dumps(values))
    assert mark.look(tmp_path / OWNER)[0] == ELSEWHERE


def test_a_kernel_that_hides_its_boot_is_like_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mark, "BOOT", tmp_path / "none")
    assert myself().boot == ""
    assert gone().is_gone()
    assert not myself().is_gone()


@pytest.mark.parametrize("text", ["", "[]"])
def test_a_record_that_nobody_can_read_counts_for_as_long_as_one_that_is_silent(text: str, tmp_path: Path) -> None:
    (tmp_path / OWNER).write_text(text)
    with owning(tmp_path, Serial()):
        assert json.loads((tmp_path / OWNER).read_text())["pid"] == os.getpid()


def test_a_living_job_keeps_its_folder(tmp_path: Path) -> None:
    path = record(tmp_path, ELSEWHERE)
    said = rf"^{tmp_path}: in use by job 41, process 123 on n7; wait for it, or choose another folder with out=...$"
    with beating(path), pytest.raises(InputError, match=said), owning(tmp_path, Serial()):
        pass
    assert Owner(**json.loads(path.read_text())) == ELSEWHERE


def test_a_job_that_ends_meanwhile_is_waited_for(tmp_path: Path) -> None:
    path = record(tmp_path, ELSEWHERE)
    threading.Timer(0.4, path.unlink).start()
    with owning(tmp_path, Serial()):
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_a_job_whose_folder_was_taken_ends(tmp_path: Path) -> None:
    ended: list[int] = []

    class Told(Serial):
        def abort(self, code: int) -> None:
            ended.append(code)

    with owning(tmp_path, Told()):
        record(tmp_path, ELSEWHERE)
        time.sleep(0.4)
    assert ended[0] == 2
    assert (tmp_path / OWNER).exists()  # the other's


@pytest.mark.parametrize("over", [False, True], ids=["while the other trains", "when the other has ended"])
def test_a_job_that_comes_to_life_again_looks_before_it_writes(
    over: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Ended(Serial):
        def abort(self, code: int) -> None:
            raise SystemExit(code)

    hold = Hold(tmp_path, myself(), Ended())
    log = runlog.RunLog(tmp_path, hold.check)
    if not over:
        record(tmp_path, ELSEWHERE)
    log.write("step", step=1)  # not silent for long: no look at the file system for every line
    later = time.monotonic() + 100
    monkeypatch.setattr(time, "monotonic", lambda: later)
    with pytest.raises(SystemExit):
        log.write("step", step=2)
    log.close()
    assert [line["step"] for line in runlog.read(tmp_path)] == [1]
    who = "another job, which has ended," if over else "job 41, process 123 on n7"
    assert f"{who} has taken this folder; this job was silent" in capsys.readouterr().err


@pytest.fixture
def training(arguments: list[str], tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A long run into r, seen to have begun."""
    process = subprocess.Popen([*train("r", *arguments, "epochs=4000")], cwd=tmp_path)
    try:
        end = time.monotonic() + 60
        while not any(line["event"] == "start" for line in runlog.read(tmp_path / "r")):
            assert time.monotonic() < end
            time.sleep(0.1)
        yield process
    finally:
        process.kill()
        process.wait()


def train(out: str, *words: str) -> list[str]:
    """A training process with this module's times."""
    code = f"import legw_hpc.owner as owner; vars(owner).update({QUICK}); from legw_hpc.cli import main; main()"
    return [sys.executable, "-c", code, "train", *words, f"out={out}"]


def test_a_second_run_is_refused_and_changes_nothing(
    training: subprocess.Popen[bytes], cli: Cli, arguments: list[str], tmp_path: Path
) -> None:
    done = cli("train", *arguments, "epochs=4000", "out=r")
    said = f"r: in use by process {training.pid} on {os.uname().nodename}; "
    assert (done.returncode, done.stderr) == (2, f"legw-hpc: {said}wait for it, or choose another folder with out=...\n")
    assert done.stdout.count(said) == 1
    assert training.poll() is None
    assert "holds a run with baseline.lr" in cli("train", *arguments, "epochs=4000", "baseline.lr=9", "out=r").stderr


def test_a_killed_run_is_gone_on_with_at_once(
    training: subprocess.Popen[bytes], cli: Cli, arguments: list[str], tmp_path: Path
) -> None:
    training.send_signal(signal.SIGKILL)
    training.wait()
    assert (tmp_path / "r" / OWNER).exists()
    done = cli("train", *arguments, "epochs=4000", "max_steps=1", "out=r")
    assert (done.returncode, "in use" in done.stdout) == (0, False), done.stderr
    assert not (tmp_path / "r" / OWNER).exists()


def test_of_runs_that_start_at_once_one_trains(arguments: list[str], tmp_path: Path) -> None:
    """Half of them with another recipe: the folder, its log and its recipe are those of one."""
    many = [
        subprocess.Popen([*train("r", *arguments, "epochs=4000", f"seed={i % 2}")], cwd=tmp_path, stderr=subprocess.PIPE)
        for i in range(3)
    ]
    try:
        end = time.monotonic() + 90
        while sum(process.poll() == 2 for process in many) < 2:
            assert time.monotonic() < end
            time.sleep(0.1)
        (left,) = [i for i, process in enumerate(many) if process.poll() is None]
        assert json.loads((tmp_path / "r/recipe.json").read_text())["seed"] == left % 2
        starts = [line for line in runlog.read(tmp_path / "r") if line["event"] == "start"]
        assert [line["recipe"]["seed"] for line in starts] == [left % 2]
    finally:
        for process in many:
            process.kill()
            process.communicate()
