"""`status`: what a log, half a log and no log say of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from legw_hpc.errors import InputError
from legw_hpc.status import QUIET_SECONDS, status
from tests.conftest import Cli

START = {
    "event": "start", "time": 1000.0, "recipe": {"max_steps": 0},
    "derived": {"steps": 40, "steps_per_epoch": 10, "train_samples": 1000, "batch": 100},
}  # fmt: skip
STEP = {"event": "step", "time": 1100.0, "step": 20, "epoch": 2.0, "loss": 1.0, "samples_per_s": 50.0}
EVAL = {"event": "eval", "time": 1101.0, "step": 20, "epoch": 2.0, "accuracy": 91.234}
RESUME = {"event": "resume", "time": 1102.0, "step": 20}
DONE = {"event": "end", "time": 1200.0, "status": "done", "metrics": {"accuracy": 95.0}, "steps": 40, "samples_per_s": 55.0}
DIVERGED = {"event": "end", "time": 1200.0, "status": "diverged", "message": "step 21: loss is nan"}


def write(folder: Path, *lines: dict[str, object], tail: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
    return folder


CASES = [
    ([START, STEP, EVAL], "", 1110, "running", 20, 40.0),
    ([START, STEP, EVAL, RESUME], "", 1110, "running", 20, 40.0),
    ([START, STEP], '{"event": "step", "st', 1110, "running", 20, 40.0),
    ([START, STEP, EVAL], "", 1102 + QUIET_SECONDS, "stopped", 20, None),
    ([START], "", 1010, "running", 0, None),
    ([START, STEP, EVAL, DONE], "", 9999, "done", 40, None),
    ([START, STEP, DIVERGED], "", 9999, "diverged", 20, None),
    ([], '{"event": "sta', 1000, "empty", 0, None),
    ([], "", 1000, "empty", 0, None),
    ([{"event": "start"}, {"event": "step", "step": None}], "[1]\n3\n", 0, "running", 0, None),
]


@pytest.mark.parametrize(("lines", "tail", "now", "state", "step", "eta"), CASES)
def test_states(
    lines: list[dict[str, object]], tail: str, now: float, state: str, step: int, eta: float | None, tmp_path: Path
) -> None:
    found = status(write(tmp_path / "r", *lines, tail=tail), now)
    assert (found.state, found.step, found.eta_seconds) == (state, step, eta)
    assert "\n".join(found.lines()).startswith(f"{tmp_path / 'r'}: {state}")


def test_a_shortened_run_counts_to_its_own_end(tmp_path: Path) -> None:
    assert status(write(tmp_path / "r", START | {"recipe": {"max_steps": 30}}, STEP), 1110).steps == 30


def test_words(tmp_path: Path) -> None:
    (text,) = status(write(tmp_path / "r", START, STEP, EVAL), 1110).lines()
    assert text == f"{tmp_path / 'r'}: running, step 20 of 40, epoch 2, 50 samples/s, 0 h 01 min to go, accuracy 91.23"
    assert status(write(tmp_path / "r", START, STEP, DIVERGED)).error == "step 21: loss is nan"
    with pytest.raises(InputError, match="no such folder"):
        status(tmp_path / "nowhere")


def submitted(folder: Path, scheduler: str) -> None:
    (folder / "jobs").mkdir(parents=True, exist_ok=True)
    (folder / "jobs/submitted.jsonl").write_text(json.dumps({"scheduler": scheduler, "id": "7"}) + "\n" + '{"torn')


# What a scheduler's commands print, and the state of the job and of a run whose log is silent and has no end.
SCHEDULERS = [
    ("slurm", {"sacct": "RUNNING"}, "RUNNING", "running"),
    (
        "slurm",
        {"sacct": "", "scontrol": "JobId=7 JobName=x JobState=PENDING Reason=BeginTime"},
        "PENDING",
        "stopped, queued again",
    ),
    ("slurm", {"sacct": "NODE_FAIL"}, "NODE_FAIL", "stopped"),
    ("slurm", {}, "", "stopped"),
    ("pbs", {"qstat": '{"Jobs": {"7.pbs": {"job_state": "R"}}}'}, "R", "running"),
    ("pbs", {"qstat": '{"Jobs": {"7.pbs": {"job_state": "F", "Exit_status": 85}}}'}, "F 85", "stopped"),
    ("pbs", {"qstat": "qstat: Unknown Job Id"}, "", "stopped"),
]


@pytest.mark.parametrize(("scheduler", "commands", "job", "state"), SCHEDULERS)
def test_the_scheduler_is_asked(
    scheduler: str, commands: dict[str, str], job: str, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    for name, says in commands.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\ncat <<'E'\n{says}\nE\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin" if commands else "/nowhere")
    folder = write(tmp_path / "r", START, STEP)
    submitted(folder, scheduler)
    found = status(folder, 99999)
    assert found.jobs == (("7", job),)
    assert found.state == state


def test_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    submitted(tmp_path / "r", "slurm")
    assert status(tmp_path / "r").state == "queued"
    submitted(tmp_path / "sweep", "slurm")
    assert status(write(tmp_path / "sweep" / "cell", START)).jobs == (("7", ""),)


def test_the_last_error_of_the_output(cli: Cli, tmp_path: Path) -> None:
    folder = write(tmp_path / "r", START, STEP)
    (folder / "jobs").mkdir()
    (folder / "jobs/6.out").write_bytes(b"x" * 100_000 + b"\xff\nlegw-hpc: rank 3 has stopped\nanother line\n")
    done = cli("status", "r")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "r: stopped, step 20 of 40, epoch 2, 50 samples/s\n  rank 3 has stopped\n"
