"""`status`: what a log, half a log and no log say of a run."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from legw_hpc.errors import InputError
from legw_hpc.owner import OWNER
from legw_hpc.status import ALIVE_SECONDS, status
from legw_hpc.submit import record
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
    if lines or tail:
        (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
    return folder


def beat(folder: Path, at: float) -> None:
    """A sign of life of the job that trains."""
    folder.mkdir(exist_ok=True)
    (folder / OWNER).write_text("{}")
    os.utime(folder / OWNER, (at, at))


# lines, a torn last one; state, step and time to go of a run that gave a sign of life just now
CASES = [
    ([START, STEP, EVAL], "", "running", 20, 40.0),
    ([START, STEP, EVAL, RESUME], "", "running", 20, 40.0),
    ([START, STEP], '{"event": "step", "st', "running", 20, 40.0),
    ([START], "", "running", 0, None),
    ([], '{"event": "sta', "running", 0, None),
    ([START, STEP, EVAL, DONE], "", "done", 40, None),
    ([START, STEP, DIVERGED], "", "diverged", 20, None),
    ([{"event": "start"}, {"event": "step", "step": None}], "[1]\n3\n", "running", 0, None),
]


@pytest.mark.parametrize(("lines", "tail", "state", "step", "eta"), CASES)
def test_what_the_log_says(
    lines: list[dict[str, object]], tail: str, state: str, step: int, eta: float | None, tmp_path: Path
) -> None:
    beat(tmp_path / "r", 1100)
    found = status(write(tmp_path / "r", *lines, tail=tail), 1110)
    assert (found.state, found.step, found.eta_seconds) == (state, step, eta)
    assert "\n".join(found.lines()).startswith(f"{tmp_path / 'r'}: {state}")


# what the scheduler says of the jobs ("" does not answer): state before and after the first line of the log
UNHEARD = {
    "no job": ([], "empty", "stopped"),
    "no scheduler": ([""], "queued", "stopped"),
    "waits": (["PENDING"], "queued", "stopped, queued again"),
    "will run again": (["REQUEUED"], "queued", "stopped, queued again"),
    "waits for the one before": (["F 85", "H"], "queued", "stopped, queued again"),
    "starts": (["R"], "running", "running"),
    "copies its results": (["STAGE_OUT"], "running", "running"),
    "is suspended by a workstation's user": (["U"], "running", "running"),
    "is held after its exit": (["SPECIAL_EXIT"], "queued", "stopped, queued again"),
    "has gone to another server": (["M"], "queued", "stopped, queued again"),
    "runs, and the next waits": (["RUNNING", "PENDING"], "running", "running"),
    "ended": (["COMPLETED"], "stopped", "stopped"),
    "lost its node": (["NODE_FAIL"], "stopped", "stopped"),
    "all of a chain have ended": (["F 85", "F 271"], "stopped", "stopped"),
}


@pytest.mark.parametrize("name", UNHEARD)
def test_what_the_scheduler_says_of_a_run_that_gives_no_sign_of_life(name: str, tmp_path: Path) -> None:
    jobs, before, after = UNHEARD[name]
    told = {str(number): state for number, state in enumerate(jobs)}
    (tmp_path / "r/jobs").mkdir(parents=True)
    for number in told:
        record.add(tmp_path / "r/jobs", "slurm", number, [])
    beat(tmp_path / "r", 1100)
    assert status(tmp_path / "r", 1101 + ALIVE_SECONDS, told).state == before
    assert status(write(tmp_path / "r", START, STEP), 1101 + ALIVE_SECONDS, told).state == after


def test_a_job_that_printed_and_is_forgotten_has_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It failed before its first line of the log; PBS without history, SLURM without accounting."""
    monkeypatch.setenv("PATH", "/nowhere")
    folder = tmp_path / "r" / "jobs"
    folder.mkdir(parents=True)
    record.add(folder, "slurm", "5", [])
    (folder / "5.out").write_text("legw-hpc: expected 2 ranks on each of 2 nodes; nothing trained\n")
    printed = (folder / "5.out").stat().st_mtime
    assert status(tmp_path / "r", printed + 1).state == "queued"
    found = status(tmp_path / "r", printed + ALIVE_SECONDS)
    assert (found.state, found.error) == ("stopped", "expected 2 ranks on each of 2 nodes; nothing trained")


RUN = "2026-01-01T10:00:00+00:00, machine knl, job 5, run {} of at most 3\n"
KILLED, LIMIT = "mpirun noticed that process rank 1 exited on signal 9", "=>> PBS: job killed: walltime 600 exceeded limit 590"
OUTPUTS = {
    "ours before the launcher's": ("legw-hpc: no shards\nsrun: error: n1: task 0: Exited with exit code 2\n", "no shards"),
    "the launcher's": (f"a line\n{KILLED}\n", KILLED),
    "the scheduler's": (f"{LIMIT}\n", LIMIT),
    "nobody's": ("step 3 of 9\n\n", "{} ends with: step 3 of 9"),
    "a shell's": ("5: line 9: module: command not found\n", "{} ends with: 5: line 9: module: command not found"),
    "nothing": ("\n", ""),
    "of a job that was queued again": (
        f"{RUN.format(1)}legw-hpc: stopped\n{RUN.format(2)}srun: error: oom\n",
        "srun: error: oom",
    ),
    "of one that may not run again": (f"{RUN.format(1)}x\nlegw-hpc: run 3 of 2: not started\n", "run 3 of 2: not started"),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_the_last_error_of_an_output(name: str, tmp_path: Path) -> None:
    text, error = OUTPUTS[name]
    (tmp_path / "5.out").write_text(text)
    assert record.Submitted("slurm", "5", tmp_path / "5.out").last_error() == error.format(tmp_path / "5.out")


def test_an_epoch_is_of_the_step_that_a_run_came_to(tmp_path: Path) -> None:
    """It stopped before its first line of a step."""
    assert "step 15 of 40, epoch 1.5" in status(write(tmp_path / "r", START, RESUME | {"step": 15})).lines()[0]


def test_a_shortened_run_counts_to_its_own_end(tmp_path: Path) -> None:
    assert status(write(tmp_path / "r", START | {"recipe": {"max_steps": 30}}, STEP)).steps == 30


def test_programs_read_a_line_a_run(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    write(tmp_path / "a", START, STEP, EVAL | {"loss": float("nan")}, DIVERGED)
    (tmp_path / "b/jobs").mkdir(parents=True)
    record.add(tmp_path / "b/jobs", "slurm", "7", [])
    done = cli("status", "--json", "a", "b", "nowhere")
    first, second = (json.loads(line, parse_constant=pytest.fail) for line in done.stdout.splitlines())
    assert first == {
        "folder": "a", "state": "diverged", "step": 20, "steps": 40, "epoch": 2.0, "samples_per_s": 50.0, "eta_seconds": None,
        "metrics": {"accuracy": 91.234, "loss": None}, "error": "step 21: loss is nan", "jobs": [],
    }  # fmt: skip
    assert (second["state"], second["jobs"]) == ("queued", [{"id": "7", "state": ""}])
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, "legw-hpc: nowhere: no such folder")


def test_words(tmp_path: Path) -> None:
    beat(tmp_path / "r", 1100)
    (text,) = status(write(tmp_path / "r", START, STEP, EVAL), 1110).lines()
    assert text == f"{tmp_path / 'r'}: running, step 20 of 40, epoch 2, 50 samples/s, 0 h 01 min to go, accuracy 91.23"
    assert status(write(tmp_path / "r", START, STEP, DIVERGED)).error == "step 21: loss is nan"
    with pytest.raises(InputError, match="no such folder"):
        status(tmp_path / "nowhere")


# A scheduler's commands, and the state of job 7.
SCHEDULERS = [
    ("slurm", {"sacct": "echo '7|RUNNING'"}, "RUNNING"),
    ("slurm", {"sacct": "echo '7|CANCELLED by 0'"}, "CANCELLED"),
    ("slurm", {"sacct": "echo '7_[0-1]|PENDING'", "squeue": "echo '7|RUNNING'"}, "RUNNING"),
    ("slurm", {"sacct": "echo '8|RUNNING'", "squeue": "echo '7|PENDING'"}, "PENDING"),
    ("slurm", {"sacct": "exit 1", "squeue": "echo '7|PENDING'"}, "PENDING"),
    ("slurm", {"sacct": "exit 1", "squeue": "exit 1"}, ""),
    ("slurm", {}, ""),
    ("pbs", {"qstat": """echo '{"Jobs": {"7": {"job_state": "R"}}}'"""}, "R"),
    ("pbs", {"qstat": """echo '{"Jobs": {"7": {"job_state": "F", "Exit_status": 85}}}'"""}, "F 85"),
    ("pbs", {"qstat": """[ $1 = -f ] && echo '{"Jobs": {"7": {"job_state": "Q"}}}'"""}, "Q"),
    ("pbs", {"qstat": "echo qstat: Unknown Job Id"}, ""),
    ("pbs", {}, ""),
]


@pytest.mark.parametrize(("scheduler", "commands", "state"), SCHEDULERS)
def test_the_scheduler_is_asked(
    scheduler: str, commands: dict[str, str], state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}")
    for name, body in commands.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    assert record.states([record.Submitted(scheduler, "7", tmp_path)]) == {"7": state}


def test_the_scheduler_is_asked_once_for_all_jobs(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """40 tasks of an array, submitted three times."""
    place = tmp_path / "grid/jobs"
    place.mkdir(parents=True)
    for array in ("20", "21", "22"):
        record.add(place, "slurm", array, [f"lr={i}" for i in range(40)])
    (tmp_path / "bin").mkdir()
    told = ["20_[0-9,11-38%4]|COMPLETED", "20_10|COMPLETED by 0", "20_39|COMPLETED", "21_[0-39]|COMPLETED", "22_[0-39]|COMPLETED"]
    options = "--noheader|--parsable2|--allocations|--format|--jobs"  # an older one refuses others
    known = f"for word in ${{@%%=*}}; do case $word in {options}) ;; *) exit 1;; esac; done"
    body = f"{known}; echo >>{tmp_path}/calls; " + "; ".join(f"echo '{line}'" for line in told)
    (tmp_path / "bin/sacct").write_text(f"#!/bin/bash\n{body}\n")
    (tmp_path / "bin/sacct").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}")
    assert cli("status", "grid").stdout.count(": COMPLETED") == 120
    assert (tmp_path / "calls").read_text().count("\n") == 1


# What the commands are asked for three jobs, and what they tell: the accounting of none, PBS's history of one.
ASKED = {
    "slurm": (
        {"sacct": "exit 1", "squeue": "echo '7_1|RUNNING'; echo '8|PENDING'"},
        ["7_1", "8", "9"], ["RUNNING", "PENDING", ""], 2,
    ),
    "pbs": (
        {"qstat": """[ $1 = -f ] || { echo '{"Jobs": {"7[1].host": {"job_state": "F", "Exit_status": 85}}}'; exit 35; }
                     echo '{"Jobs": {"8.host.domain": {"job_state": "Q"}}}'"""},
        ["7[1].host", "8.host", "9.host"], ["F 85", "Q", ""], 2,
    ),
    "pbs that writes no JSON of one": (
        {"qstat": """case $* in *7.host*) echo '{"Jobs": {"' ;; *) echo '{"Jobs": {"8.host": {"job_state": "R"}}}' ;; esac"""},
        ["7.host", "8.host"], ["", "R"], 4,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ASKED)
def test_a_question_is_for_all_jobs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands, ids, states, questions = ASKED[name]
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    (tmp_path / "bin").mkdir()
    for command, body in commands.items():
        (tmp_path / "bin" / command).write_text(f"#!/bin/bash\necho >>{tmp_path}/calls\n{body}\n")
        (tmp_path / "bin" / command).chmod(0o755)
    jobs = [record.Submitted(name.split()[0], each, tmp_path) for each in ids]
    assert record.states(jobs) == dict(zip(ids, states, strict=True))
    assert (tmp_path / "calls").read_text().count("\n") == questions


@pytest.mark.parametrize(
    ("scheduler", "name", "expected"),
    [("slurm", "20", ["20_1.out", "21_1.out"]), ("pbs", "20[].host", ["20[1].host.OU", "21[1].host.OU", "33.host.OU"])],
)
def test_the_jobs_of_an_arrays_task(scheduler: str, name: str, expected: list[str], tmp_path: Path) -> None:
    """With a second array of the chain, and the job that goes on after a task under PBS."""
    place = tmp_path / "grid/jobs"
    place.mkdir(parents=True)
    for each in (name, name.replace("20", "21")):
        record.add(place, scheduler, each, ["lr=1", "lr=2"])
    if scheduler == "pbs":
        with (place / record.RECORD).open("a") as file:
            file.write('{"scheduler": "pbs", "id": "33.host", "run": "lr=2"}\n{"torn')
    assert [job.output.relative_to(place).name for job in record.jobs(tmp_path / "grid/lr=2")] == expected
    assert record.jobs(tmp_path / "grid/other") == record.jobs(tmp_path / "grid") == []


def test_the_runs_of_a_sweep_are_seen_by_its_folder_and_what_is_none_stops_no_list(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "grid").mkdir()
    for name in ("a", "b"):
        write(tmp_path / "grid" / name, START, STEP)
    write(tmp_path / "z", START, STEP)
    (tmp_path / "notes.txt").touch()
    done = cli("status", "grid", "notes.txt", "z")
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["grid/a", "grid/b", "z"]
    assert done.returncode == 2
    assert done.stderr == "legw-hpc: notes.txt: no such folder\nlegw-hpc: 1 of 4 are no run, or may not be read, as told above\n"


def test_runs_are_found_deeper_where_sweeps_and_studies_have_them(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    for name in ("sweep/mnist/a", "scaling/mnist/strong-1/c", "one", "far/1/2/3/4"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        write(tmp_path / "runs" / name, START, STEP)
    (tmp_path / "runs/scaling/mnist/strong-2/jobs").mkdir(parents=True)
    record.add(tmp_path / "runs/scaling/mnist/strong-2/jobs", "slurm", "20", ["waits"])
    (tmp_path / "runs/one/checkpoints").mkdir()
    (tmp_path / "runs/sweep/mnist/loop").symlink_to("loop")
    done = cli("status", *sorted((tmp_path / "runs").relative_to(tmp_path).glob("*")))
    assert [line.split(":")[0] for line in done.stdout.splitlines() if "job" not in line] == [
        "runs/far", "runs/one", "runs/scaling/mnist/strong-1/c", "runs/scaling/mnist/strong-2/waits", "runs/sweep/mnist/a",
    ]  # fmt: skip


def test_an_array_that_waits_is_seen_by_its_folder(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tasks make their folders when they begin."""
    monkeypatch.setenv("PATH", "/nowhere")
    place = tmp_path / "grid/jobs"
    place.mkdir(parents=True)
    record.add(place, "slurm", "20", ["lr=1", "lr=2"])
    (tmp_path / "grid/lr=1").mkdir()
    said = "grid/lr=1: queued\n  job 20_0\ngrid/lr=2: queued\n  job 20_1\n"
    for words in (["grid"], ["grid/jobs"], ["grid/lr=1", "grid/jobs"]):
        assert cli("status", *words).stdout == said
    monkeypatch.chdir(tmp_path / "grid/lr=1")
    assert [name for name, _ in status(Path(".")).jobs] == ["20_0"]


def test_the_last_error_is_of_the_last_job_that_has_run(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    folder = write(tmp_path / "r", START, STEP)
    (folder / "jobs").mkdir()
    for name in ("5", "6", "7"):
        record.add(folder / "jobs", "slurm", name, [])
    (folder / "jobs/6.out").write_bytes(b"x" * 100_000 + b"\xff\nlegw-hpc: rank 3 has stopped\nanother line\n")
    (folder / "jobs/5.out").write_text("legw-hpc: older\n")
    done = cli("status", "r")
    assert done.returncode == 0, done.stderr
    said = "r: stopped, step 20 of 40, epoch 2, 50 samples/s\n  job 5\n  job 6\n  job 7\n  rank 3 has stopped\n"
    assert done.stdout == said
    beat(folder, time.time())
    assert "rank 3" not in cli("status", "r").stdout
