"""Where runs are: read from their logs, the output of their jobs, and the scheduler if it answers."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from legw_hpc import runlog
from legw_hpc.errors import InputError
from legw_hpc.owner import ALIVE_SECONDS, last_beat
from legw_hpc.steps import Course, Stage
from legw_hpc.submit import record
from legw_hpc.submit.record import LIVE, WAITING

# Folders below one that is asked for: runs/scaling has RECIPE/POINT/CELL in it, runs/sweep RECIPE/CELL.
DEEP = 3

# Of a run that has not ended and gives no sign of life: its jobs -> its state before and after it first showed itself:
# by a line of the log, or a job's output.
STATES = {
    "live": ("running", "running"),
    "waiting": ("queued", "stopped, queued again"),
    "unknown": ("queued", "stopped"),
    "over": ("stopped", "stopped"),
    "none": ("empty", "stopped"),
}


@dataclass(frozen=True)
class Status:
    """One run.

    Attributes:
        state: "done", "diverged", "running", or one of STATES.
        step, steps: done, and of the whole run.
        eta_seconds: to the last step at the last rate, evaluations not counted; only of a running one.
        metrics: of the last evaluation, by name.
        error: what it ended with, or the last line of its jobs' output that says what was wrong, or the last of all.
        jobs: (id, state) of the jobs that were submitted for it; the state is "" where no scheduler answers.
    """

    folder: Path
    state: str
    step: int = 0
    steps: int = 0
    epoch: float = 0.0
    samples_per_s: float = 0.0
    eta_seconds: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    error: str = ""
    jobs: tuple[tuple[str, str], ...] = ()

    def lines(self) -> list[str]:
        """For people."""
        about = [f"{self.folder}: {self.state}"]
        if self.steps:
            about.append(f"step {self.step:,} of {self.steps:,}, epoch {round(self.epoch, 3):g}")
        if self.samples_per_s:
            about.append(f"{self.samples_per_s:,.0f} samples/s")
        if self.eta_seconds is not None:
            about.append(f"{_hours(self.eta_seconds)} to go")
        if self.metrics:
            about.append(", ".join(f"{name} {value:.4g}" for name, value in self.metrics.items()))
        lines = [", ".join(about)]
        lines += [f"  job {name}{': ' + state if state else ''}" for name, state in self.jobs]
        return lines + ([f"  {self.error}"] if self.error else [])

    def json(self) -> str:
        """For programs: an object of the attributes, on one line; a metric that is no number, as of a diverged run, is null."""
        metrics = {name: value if math.isfinite(value) else None for name, value in self.metrics.items()}
        jobs = [{"id": name, "state": state} for name, state in self.jobs]
        return json.dumps(dataclasses.asdict(self) | {"folder": str(self.folder), "metrics": metrics, "jobs": jobs})


def runs(folders: Sequence[Path]) -> list[Path]:
    """The folders; in the place of one that holds the runs of sweeps or arrays (TO or TO/jobs), those runs, each once."""
    found: dict[Path, None] = {}
    for folder in folders:
        to = folder.parent if folder.name == runlog.JOBS else folder
        found |= dict.fromkeys(_below(to, DEEP) or [folder])
    return list(found)


def _below(to: Path, deep: int) -> list[Path]:
    """The runs in a folder that is none itself, and in its folders, so many deep."""
    found = [to / name for name in record.tasks(to)]
    if deep == 0 or os.path.exists(to / runlog.LOG):
        return found
    try:
        inside = sorted(to / name for name in os.listdir(to) if os.path.isdir(to / name))  # a broken link is none
    except (FileNotFoundError, NotADirectoryError):
        return found
    except OSError:
        return [to]  # it may not be read, which is told of a run
    for folder in inside:
        found += [folder] if os.path.exists(folder / runlog.LOG) else _below(folder, deep - 1)
    return found


def statuses(folders: Sequence[Path]) -> Iterator[Status | InputError]:
    """Of each run, or why there is none: SLURM's accounting is asked once for the jobs of all."""
    told = record.states([job for folder in folders for job in record.jobs(folder)])
    for folder in folders:
        try:
            yield status(folder, told=told)
        except InputError as error:
            yield error


def status(folder: Path, now: float | None = None, told: Mapping[str, str] | None = None) -> Status:
    """Of one run.

    Args:
        folder: of the run.
        now: seconds since 1970.
        told: the states of jobs by id, of its own at least; the scheduler is asked if need be.

    Raises:
        InputError: there is no such folder, or it may not be read.
    """
    submitted = record.jobs(folder)
    log = [line for line in runlog.read(folder) if isinstance(line, dict)]
    if not log and not submitted and not os.path.isdir(folder):  # an array's task makes its folder when it begins
        raise InputError(f"{folder}: no such folder")
    now = time.time() if now is None else now
    end = log[-1] if log and log[-1].get("event") == "end" else {}
    last = {
        event: next((line for line in reversed(log) if line.get("event") == event), {}) for event in ("start", "step", "eval")
    }
    start, step, evaluation = last["start"], last["step"], last["eval"]
    went_on = next((line for line in reversed(log) if "max_steps" in line), None)  # the last resume: its limit may be another
    planned = _number(start, "derived", "steps")
    most = _number(start, "recipe", "max_steps") if went_on is None else _number(went_on, "max_steps")
    steps = int(min(planned, most) if most else planned)
    at = int(_number(end, "steps") or max(_number(line, "step") for line in (step, evaluation, log[-1] if log else {})))
    rate = _number(end, "samples_per_s") or _number(step, "samples_per_s")
    told = record.states(submitted) if told is None else told
    jobs = tuple((job.id, told.get(job.id, "")) for job in submitted)  # one may have been submitted since
    if end:
        state = str(end.get("status", "done"))
    elif now - last_beat(folder) < ALIVE_SECONDS:
        state = "running"
    else:
        # A job that has printed and been silent since has been there, whatever the scheduler has forgotten.
        printed = any(now - (job.printed() or now) >= ALIVE_SECONDS for job in submitted)
        state = STATES[_phase(jobs)][bool(log) or printed]
    course, eta = _course(start), None
    if state == "running" and rate and steps and course:  # a step of a text trains on a window of each row
        eta = (course.epoch(steps) - course.epoch(at)) * _number(start, "derived", "train_samples") / rate
    metrics = {k: v for k, v in evaluation.items() if k not in ("event", "time", "step", "epoch") and isinstance(v, int | float)}
    epoch = course.epoch(at) if course else max(_number(step, "epoch"), _number(evaluation, "epoch"))
    error = ""
    if state not in ("done", "running", "queued", "empty"):
        error = str(end.get("message", "")) or next((job.last_error() for job in reversed(submitted) if job.printed()), "")
    return Status(folder, state, at, steps, epoch, rate, eta, metrics, error, jobs)


def _course(start: dict[str, Any]) -> Course | None:
    """Of the run; None of a log that does not tell."""
    per_epoch = int(_number(start, "derived", "steps_per_epoch"))
    if not per_epoch:
        return None
    return Course(tuple(Stage(**stage) for stage in start["derived"].get("stages", ())) or (Stage(0, 0, 0, per_epoch),))


def _number(line: dict[str, Any], *keys: str) -> float:
    value: Any = line
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return float(value) if isinstance(value, int | float) else 0.0


def _phase(jobs: tuple[tuple[str, str], ...]) -> str:
    """A key of STATES."""
    words = {state.split()[0] for _, state in jobs if state}
    if not words:
        return "unknown" if jobs else "none"
    return "live" if words & set(LIVE) else "waiting" if words & set(WAITING) else "over"


def _hours(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min"
