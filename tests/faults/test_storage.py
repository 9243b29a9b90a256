"""Storage that fails a run: full, forbidden, gone."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from legw_hpc import checkpoint, runlog
from legw_hpc.comm import Serial
from legw_hpc.data.files import written_whole
from legw_hpc.errors import InputError
from tests.conftest import Cli
from tests.test_run import wait_for_steps

# Root may write anywhere, but for a root without these rights.
AS_A_USER = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
needs_a_user = pytest.mark.skipif(bool(AS_A_USER) and shutil.which("setpriv") is None, reason="root may write anywhere")


def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays(cli: Cli, arguments: list[str], tmp_path: Path) -> None:
    """A limit on the size of files stands for the quota."""
    assert cli("train", *arguments, "out=r", "max_steps=4").returncode == 0
    limited = f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000,) * 2); {MAIN}"
    words = [sys.executable, "-c", limited, "train", *arguments, "out=r"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "step-00000024.pt: cannot be written: File too large" in done.stderr
    assert [path.name for path in (tmp_path / "r" / "checkpoints").glob("*.pt")] == ["step-00000004.pt"]
    assert "resumed after step 4" in cli("train", *arguments, "out=r").stdout


MAIN = "from legw_hpc.cli import main; main()"


def test_two_containers_with_one_process_number_write_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a table of processes of its own; the last one's file stays, and it is whole."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    with written_whole(tmp_path / "f") as first:
        first.write_text("first")
        with written_whole(tmp_path / "f") as second:
            second.write_text("second")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("f", "first")]


def test_a_log_on_a_full_disk_is_named(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    log = runlog.RunLog(tmp_path)
    with pytest.raises(InputError, match=r"log\.jsonl: cannot be written: No space left"):
        log.write("step", step=1)
    log.close()


def test_unwritable_output(cli: Cli, arguments: list[str]) -> None:
    """A folder that nobody can make, root included."""
    done = cli("train", *arguments, "out=/proc/legw/run")
    assert done.returncode == 2
    assert "/proc/legw/run" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_folder_is_not_everybodys(cli: Cli, arguments: list[str], tmp_path: Path) -> None:
    """Whatever the umask."""
    before = os.umask(0)
    try:
        assert cli("train", *arguments, "max_steps=1", "out=runs/of/mine/r").returncode == 0
    finally:
        os.umask(before)
    for path in tmp_path.rglob("*"):
        assert not path.stat().st_mode & 0o002, path


@needs_a_user
def test_read_only_output(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "r").mkdir(mode=0o555)
    words = [*AS_A_USER, sys.executable, "-m", "legw_hpc", "train", *arguments, "out=r"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, "r: this folder cannot be written" in done.stderr, done.stderr.count("\n")) == (2, True, 1)


@needs_a_user
def test_checkpoints_that_cannot_be_listed_are_not_taken_for_none(cli: Cli, arguments: list[str], tmp_path: Path) -> None:
    """The run would begin anew, and its log be cut to nothing."""
    run = tmp_path / "r"
    assert cli("train", *arguments, "out=r", "max_steps=9", "checkpoint.every_steps=4").returncode == 0
    before = (run / "log.jsonl").read_bytes()
    (run / "checkpoints").chmod(0)
    words = [*AS_A_USER, sys.executable, "-m", "legw_hpc", "train", *arguments, "out=r"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    (run / "checkpoints").chmod(0o755)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "r/checkpoints: its list cannot be read, tried 4 times: Permission denied" in done.stderr
    assert (run / "log.jsonl").read_bytes() == before


@pytest.mark.parametrize("failures", [1, 3])
def test_a_list_of_checkpoints_is_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int) -> None:
    checkpoint.save(tmp_path / "checkpoints", 3, {}, keep=2)
    listed, left = os.listdir, [failures]

    def listdir(folder: Path) -> list[str]:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(errno.EIO, "Input/output error")
        return listed(folder)

    monkeypatch.setattr(os, "listdir", listdir)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    state = checkpoint.load_newest(tmp_path / "checkpoints", Serial(), print)
    assert state is not None
    assert state["step"] == 3


def test_a_log_that_has_lost_its_tail_ends_with_a_whole_line(tmp_path: Path) -> None:
    """What is appended to half a line would hide all lines after it."""
    log = runlog.RunLog(tmp_path)
    log.write("step", step=1)
    log.write("step", step=2)
    position = log.position()
    log.close()
    os.truncate(tmp_path / runlog.LOG, position - 5)
    log = runlog.RunLog(tmp_path)
    log.cut(position)
    log.write("step", step=2)
    log.close()
    assert [line["step"] for line in runlog.read(tmp_path)] == [1, 2]


def test_an_editors_lock_is_no_source(tmp_path: Path) -> None:
    source, lock = tmp_path / "mine.py", tmp_path / ".#mine.py"
    source.write_text("x = 1\n")
    lock.symlink_to("somebody@host.123")
    assert runlog.code(source, lock) == runlog.code(source) != runlog.code()


@pytest.mark.parametrize(("words", "code"), [(["train"], 141), (["plan"], 0)], ids=["train", "plan"])
def test_a_reader_that_goes_away_makes_no_success_of_half_a_run(
    arguments: list[str], tmp_path: Path, words: list[str], code: int
) -> None:
    """As in `legw-hpc train ... | head -1`."""
    command = [sys.executable, "-u", "-m", "legw_hpc", *words, *arguments]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.close()
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (code, "")


# What befalls the run folder while it is trained in, the words that are told, and how it is mended.
LOSSES: dict[str, tuple[Callable[[Path], object], str, Callable[[Path], object]]] = {
    "checkpoints forbidden": (
        lambda run: (run / "checkpoints").chmod(0o555),
        "r/checkpoints: this folder cannot be written",
        lambda run: (run / "checkpoints").chmod(0o755),
    ),
    "folder moved away": (
        lambda run: run.rename(run.with_name("elsewhere")),
        "legw-hpc: r",  # of the folder, or of the checkpoint that it was writing
        lambda run: run.with_name("elsewhere").rename(run),
    ),
}


@needs_a_user
@pytest.mark.parametrize(("harm", "words", "mend"), LOSSES.values(), ids=LOSSES)
def test_a_folder_that_is_lost_during_the_run_is_named_and_its_last_checkpoint_stays(
    harm: Callable[[Path], object], words: str, mend: Callable[[Path], object], arguments: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "r"
    command = [sys.executable, "-m", "legw_hpc", "train", *arguments, "epochs=4000", "checkpoint.every_steps=4", "out=r"]
    process = subprocess.Popen([*AS_A_USER, *command], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        wait_for_steps(run)
        while not list((run / "checkpoints").glob("*.json")):  # written after the first evaluation
            time.sleep(0.05)
        harm(run)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 2, said
    assert words in said
    assert "Traceback" not in said
    mend(run)
    last = max((run / "checkpoints").glob("*.json")).stem.removeprefix("step-")
    again = subprocess.run([*command, f"max_steps={int(last) + 1}"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "; resumed after step " in again.stdout, again.stderr


# file of a run folder -> what somebody else has put there, and what is said
FOREIGN = {
    "recipe.json": (lambda path: path.write_text("[]"), "r/recipe.json: not a run's recipe"),
    "log.jsonl": (lambda path: path.write_text(path.read_text() + "7\n"), "r/log.jsonl: line 4 is no JSON object: '7'"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_that_holds_no_json_object_is_one_line(cli: Cli, arguments: list[str], tmp_path: Path, name: str) -> None:
    words = [*arguments, "out=r", "evaluate=false"]
    assert cli("train", *words, "max_steps=2").returncode == 0
    harm, said = FOREIGN[name]
    harm(tmp_path / "r" / name)
    done = cli("train", *words, "max_steps=3")
    assert (done.returncode, done.stderr.count("\n"), said in done.stderr) == (2, 1, True), done.stderr
