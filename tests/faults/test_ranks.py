"""Ranks that are told to stop, die, stop answering or have a bug: how the job ends, and what it says."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import pytest

from legw_hpc import runlog
from legw_hpc.comm import Serial
from legw_hpc.data.sources import images
from legw_hpc.errors import EXIT_STALLED
from legw_hpc.launcher import local_ranks
from legw_hpc.runlog import STALLED
from legw_hpc.watchdog import LATE, _Watch, clear, report
from tests import test_images
from tests.parallel.ranks import ROOT, forget_launcher, launch, needs_mpi, on_ranks, ranks_of

pytestmark = needs_mpi
TRAIN = [sys.executable, "-m", "legw_hpc", "train"]


@pytest.fixture(autouse=True)
def _horovod_is_installed() -> None:
    pytest.importorskip("horovod")


@pytest.fixture
def training(arguments: list[str], tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Two ranks that train for long, seen to have taken steps; nothing of them is left."""
    command, environment = local_ranks(2)
    out = tmp_path / "r"
    process = subprocess.Popen(
        [*command, *TRAIN, *arguments, "epochs=4000", "stall_minutes=0.05", f"out={out}"],
        env=environment | {"PYTHONPATH": str(ROOT)},
        cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        for _ in range(900):
            if any(line["event"] == "eval" for line in runlog.read(out)):
                break
            time.sleep(0.1)
        else:
            raise AssertionError("no step within 90 s")
        yield process, out
    finally:
        for pid in [process.pid, *ranks_of(out)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate(timeout=30)
        forget_launcher(process.pid)


def test_a_signal_to_one_rank_stops_all_at_one_step(training: tuple[subprocess.Popen[str], Path]) -> None:
    process, out = training
    os.kill(ranks_of(out)[1], signal.SIGUSR1)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 85, said
    assert len(re.findall(r"^legw-hpc: stopped by a signal after step \d+", said, re.M)) == 1
    assert list((out / "checkpoints").glob("*.pt"))


def test_a_killed_rank_ends_the_others(training: tuple[subprocess.Popen[str], Path]) -> None:
    process, out = training
    os.kill(ranks_of(out)[1], signal.SIGKILL)
    said, _ = process.communicate(timeout=30)
    assert process.returncode != 0
    assert re.search(rf"rank 1 .*on node {socket.gethostname()} exited on signal 9", " ".join(said.split())), said
    for _ in range(100):
        if not ranks_of(out):
            return
        time.sleep(0.1)
    raise AssertionError("a rank is still there")


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stopped_rank_is_named_with_its_host_and_ends_the_others(
    stopped: int, training: tuple[subprocess.Popen[str], Path]
) -> None:
    process, out = training
    os.kill(ranks_of(out)[stopped], signal.SIGSTOP)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == EXIT_STALLED, said
    assert re.findall(r"rank (\d) on \S+ does not answer", said) == [str(stopped)]
    assert f"rank {stopped} on {socket.gethostname()} does not answer" in said
    assert not ranks_of(out)


def test_a_rank_that_stops_before_the_first_step_is_named(arguments: list[str], tmp_path: Path) -> None:
    """A file system that does not answer while the shards are verified; the run folder is not there yet."""
    (tmp_path / "sitecustomize.py").write_text(HANGS)
    words = ["env", f"PYTHONPATH={tmp_path}:{ROOT}", *TRAIN, *arguments, "stall_minutes=0.03", f"out={tmp_path / 'r'}"]
    code, said = launch(2, words, timeout=90)
    assert code == EXIT_STALLED, said
    assert re.search(rf"stalled for 10\.8 s: rank 1 on {socket.gethostname()} is at work\.py:\d+", said), said
    code, said = launch(2, [*TRAIN, *arguments, "max_steps=1", f"out={tmp_path / 'r'}"], timeout=90)  # nothing is in the way
    assert code == 0, said


def test_a_rank_whose_imports_hang_is_named(arguments: list[str], tmp_path: Path) -> None:
    """The file system that holds Python, on one node; the other rank waits in MPI_Init by then."""
    hangs = HANGS.replace("import time, legw_hpc.work as work", "import time, legw_hpc.launcher as launcher")
    hangs = hangs[: hangs.index("    work.")] + IMPORTS
    (tmp_path / "sitecustomize.py").write_text(hangs)
    words = ["env", f"PYTHONPATH={tmp_path}:{ROOT}", *TRAIN, *arguments, "stall_minutes=0.03", f"out={tmp_path / 'r'}"]
    code, said = launch(2, words, timeout=90)
    assert code == EXIT_STALLED, said
    told = rf"^legw-hpc: stalled: rank 1 on {socket.gethostname()} has not imported torch within 21.6 s: it is at .*sitecustomize"
    assert re.search(told, said, re.M), said
    assert said.count("has not") == 1


def test_ranks_that_all_hang_end(arguments: list[str], tmp_path: Path) -> None:
    """The file system of every rank: nobody waits for another."""
    (tmp_path / "sitecustomize.py").write_text(HANGS.replace('== "1"', "is not None"))
    words = ["env", f"PYTHONPATH={tmp_path}:{ROOT}", *TRAIN, *arguments, "stall_minutes=0.03", f"out={tmp_path / 'r'}"]
    code, said = launch(2, words, timeout=90)
    assert code == EXIT_STALLED, said
    assert re.search(rf"stalled: rank 0 on {socket.gethostname()} has not gone on for 21\.6 s: it is at work\.py:\d+", said), said


STAYS = """
import sys, time
from legw_hpc.comm import Serial
from legw_hpc.watchdog import not_for_ever
class Waits(Serial):
    def gather_bytes(self, data):
        time.sleep(20)
comm = Waits()
with not_for_ever(comm, 1.0):
    if sys.argv[1] == "waits":
        comm.barrier()
    for _ in range(30):
        time.sleep(0.1)
        comm.beats += sys.argv[1] == "beats"
"""


STAY_CASES = {
    "stays": (EXIT_STALLED, "has not gone on for 1 s"),
    "waits": (EXIT_STALLED, "has waited for another rank for 1 s"),
    "beats": (0, ""),
}


@pytest.mark.parametrize("how", STAY_CASES)
def test_one_rank_alone_ends_if_it_does_not_go_on(how: str) -> None:
    code, said = STAY_CASES[how]
    done = subprocess.run([sys.executable, "-c", STAYS, how], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    assert said in done.stderr


@pytest.mark.parametrize("others", [[], ["7.waits"]], ids=["alone", "beside another job"])
def test_a_rank_that_comes_late_leaves_no_mark(tmp_path: Path, others: list[str]) -> None:
    """A mark that stays would name the wrong rank at the next stall, or keep all from ending."""
    for name in others:
        folder = tmp_path / STALLED / "another-job"
        folder.mkdir(parents=True)
        (folder / name).write_text("?")
    answers = on_ranks(2, "programs:goes_on_after_all", folder=str(tmp_path), seconds=6.0, late=8.0, works=False)
    assert answers[1][0] == ["0.waits", "1.stays", *others]
    assert [after for _, after in answers] == [others, others]
    clear(tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_rank_that_works_is_waited_for_as_long_as_it_takes(tmp_path: Path) -> None:
    """Its step takes five times the limit, a micro-batch much less."""
    answers = on_ranks(2, "programs:goes_on_after_all", folder=str(tmp_path), seconds=2.0, late=10.0, works=True)
    assert [*answers[1]] == [["0.waits", "1.works"], []]


def test_a_rank_that_has_stopped_since_it_worked_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its mark stays, and says nothing new."""
    watch = _Watch(tmp_path, Serial(), ["a", "b"], 1.0, fresh=False)
    for name in ("0.waits", "1.works"):
        (tmp_path / name).write_text("?")
    looks = [watch._judge() for _ in range(LATE + 2)]
    assert looks == [False] * (LATE + 1) + [True]
    assert "rank 1 on b does not answer" in capsys.readouterr().err


def test_a_rank_that_does_not_end_after_the_run_is_not_waited_for(arguments: list[str], tmp_path: Path) -> None:
    """MPI_Finalize, at the end of the process, waits for all ranks."""
    (tmp_path / "sitecustomize.py").write_text(STAYS_AT_THE_END)
    words = ["env", f"PYTHONPATH={tmp_path}:{ROOT}", *TRAIN, *arguments, "max_steps=1", f"out={tmp_path / 'r'}"]
    code, said = launch(2, words, timeout=90)
    assert code != 0
    assert runlog.read(tmp_path / "r")[-1]["status"] == "done"
    assert re.search(r"rank 0 .*exited on signal 14", " ".join(said.split())), said


def test_a_bug_on_one_rank_ends_all(arguments: list[str], tmp_path: Path) -> None:
    """Not an InputError, and not on every rank: a traceback, and no hang."""
    (tmp_path / "sitecustomize.py").write_text(BUG)
    code, said = launch(2, ["env", f"PYTHONPATH={tmp_path}:{ROOT}", *TRAIN, *arguments, f"out={tmp_path / 'r'}"], timeout=90)
    assert code == 1, said
    assert "legw-hpc: rank 1 on " in said
    assert "ZeroDivisionError" in said


def test_a_fault_that_one_rank_finds_in_the_middle_is_told_and_ends_all(tmp_path: Path) -> None:
    """A JPEG that was whole when its shard was written; whichever rank reads it."""
    images.convert(test_images.pictures(tmp_path / "source", ".jpg", (48, 64)), tmp_path / "jpegs", workers=1)
    with h5py.File(tmp_path / "jpegs" / "train-00000.h5", "r+") as file:
        offsets = file["image/offsets"][...]
        file["image/bytes"][offsets[5] : offsets[6]] = 0
    changed = {"options.size": 32, "options.resize": 36, "data.verify": "false"}
    words = test_images.training("imagenet-resnet50", tmp_path / "jpegs", **changed)
    code, said = launch(2, [*TRAIN, *words, f"out={tmp_path / 'r'}"], timeout=90)
    assert code == 2, said
    assert len(re.findall(r"legw-hpc: .*train sample 5 .*\(rank [01] on ", said, re.M)) == 1, said


BUG = """
import os, sys
if os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMI_RANK")) == "1" and "legw_hpc" in sys.argv + sys.orig_argv:
    import legw_hpc.data.order as order
    order.epoch_order = lambda samples, seed, epoch: 1 / 0
"""

IMPORTS = """
    class Hangs:
        def find_spec(name, path, target=None):
            if name == "torch":
                time.sleep(600)
    sys.meta_path.insert(0, Hangs)
"""

STAYS_AT_THE_END = """
import atexit, os, sys, time
if "legw_hpc" in sys.argv + sys.orig_argv:
    import legw_hpc.cli as cli
    cli.LEAVE_SECONDS = 3 if os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMI_RANK")) == "0" else 0
    if not cli.LEAVE_SECONDS:
        atexit.register(time.sleep, 600)
"""

HANGS = BUG.replace("import legw_hpc.data.order as order", "import time, legw_hpc.work as work").replace(
    "order.epoch_order = lambda samples, seed, epoch: 1 / 0", "work.verify_together = lambda *of: time.sleep(600)"
)


# marks, nodes -> what is said
STALLS = {
    "stopped": ({0: "waits"}, "rank 1 on b does not answer"),
    "busy": ({0: "waits", 1: "stays"}, "rank 1 on b is at data/loader.py:9"),
    "nobody": ({0: "waits", 1: "waits"}, "no rank is missing"),
}


@pytest.mark.parametrize("name", STALLS)
def test_who_is_waited_for(name: str) -> None:
    marks, expected = STALLS[name]
    at = {rank: "data/loader.py:9" for rank, state in marks.items() if state == "stays"}
    assert expected in report(marks, at, ["a", "b"], 300)


def test_many_stopped_ranks_stay_one_line() -> None:
    assert "and 12 more" in report({0: "waits"}, {}, ["n"] * 21, 300)
