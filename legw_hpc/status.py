"""Where runs are: read from their logs, the output of their jobs, and the scheduler if it answers."""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from legw_hpc import runlog
from legw_hpc.errors import InputError
from legw_hpc.submit.send import RECORD

# A run that has logged nothing for so long is not running (assumed: longer than an evaluation).
QUIET_SECONDS = 600.0
TAIL_BYTES = 65536


@dataclass(frozen=True)
class Status:
    """One run.

    Attributes:
        state: "done", "diverged", "running", "stopped" (no end, and nothing new), "queued" (a job, no log) or "empty".
        step, steps: done, and of the whole run.
        eta_seconds: to the last step at the last rate, evaluations not counted; only of a running one.
        error: the last line of its jobs' output that says what was wrong.
        jobs: (id, state) of the jobs that were submitted for it; the state is "" where no scheduler answers.
    """

    folder: Path
    state: str
    step: int = 0
    steps: int = 0
    epoch: float = 0.0
    samples_per_s: float = 0.0
    eta_seconds: float | None = None
    metrics: str = ""
    error: str = ""
    jobs: tuple[tuple[str, str], ...] = ()

    def lines(self) -> list[str]:
        """For people."""
        about = [f"{self.folder}: {self.state}"]
        if self.steps:
            about.append(f"step {self.step:,} of {self.steps:,}, epoch {self.epoch:g}")
        if self.samples_per_s:
            about.append(f"{self.samples_per_s:,.0f} samples/s")
        if self.eta_seconds is not None:
            about.append(f"{_hours(self.eta_seconds)} to go")
        if self.metrics:
            about.append(self.metrics)
        lines = [", ".join(about)]
        lines += [f"  job {name}{': ' + state if state else ''}" for name, state in self.jobs]
        return lines + ([f"  {self.error}"] if self.error else [])


def status(folder: Path, now: float | None = None) -> Status:
    """Of one run.

    Args:
        folder: of the run.
        now: seconds since 1970.

    Raises:
        InputError: there is no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    now = time.time() if now is None else now
    log = [line for line in runlog.read(folder) if isinstance(line, dict)]
    jobs = tuple((name, _job_state(scheduler, name)) for scheduler, name in _jobs(folder))
    last = {
        event: next((line for line in reversed(log) if line.get("event") == event), {}) for event in ("start", "step", "eval")
    }
    start, step, evaluation = last["start"], last["step"], last["eval"]
    end = log[-1] if log and log[-1].get("event") == "end" else None
    told, total = _number(start, "derived", "steps"), _number(start, "recipe", "max_steps")
    steps = int(min(told, total) if total else told)
    at = int(
        (end or {}).get("steps")
        or max(_number(step, "step"), _number(evaluation, "step"), _number(log[-1] if log else {}, "step"))
    )
    rate = _number(end or {}, "samples_per_s") or _number(step, "samples_per_s")
    live = any(state.upper() in ("RUNNING", "R", "COMPLETING") for _, state in jobs)
    waits = any(state.upper() in ("PENDING", "REQUEUED", "Q", "H", "CONFIGURING") for _, state in jobs)
    quiet = now - _number(log[-1], "time") if log else 0.0
    if end is not None:
        state = str(end.get("status", "done"))
    elif not log:
        state = (
            "running" if live else "queued" if waits or (jobs and not any(s for _, s in jobs)) else "stopped" if jobs else "empty"
        )
    elif live or (quiet < QUIET_SECONDS and not any(s for _, s in jobs)):
        state = "running"
    else:
        state = "stopped, queued again" if waits else "stopped"
    eta = None
    if state == "running" and rate and steps:
        eta = (steps - at) * _samples_per_step(start) / rate
    shown = {k: v for k, v in evaluation.items() if k not in ("event", "time", "step", "epoch") and isinstance(v, int | float)}
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in shown.items())
    epoch = max(_number(step, "epoch"), _number(evaluation, "epoch"))
    error = "" if state == "done" else str((end or {}).get("message", "")) or _last_error(folder)
    return Status(folder, state, at, steps, epoch, rate, eta, metrics, error, jobs)


def _samples_per_step(start: dict[str, Any]) -> float:
    """On average; a step of a text trains on a window of each row."""
    per_epoch = _number(start, "derived", "steps_per_epoch")
    return _number(start, "derived", "train_samples") / per_epoch if per_epoch else 0.0


def _number(line: dict[str, Any], *keys: str) -> float:
    value: Any = line
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return float(value) if isinstance(value, int | float) else 0.0


def _jobs(folder: Path) -> list[tuple[str, str]]:
    """(scheduler, id) of what was submitted for the run, or for the sweep that it belongs to."""
    for record in (folder / runlog.JOBS / RECORD, folder.parent / runlog.JOBS / RECORD):
        try:
            lines = runlog.parse(record.read_text())
        except (OSError, ValueError):
            continue
        return [(str(line["scheduler"]), str(line["id"])) for line in lines if isinstance(line, dict) and "id" in line]
    return []


def _job_state(scheduler: str, name: str) -> str:
    """As the scheduler calls it; "" if it does not answer or has forgotten."""
    if scheduler == "slurm":
        words = _ask("sacct", "--noheader", "--allocations", "--format=State%20", "--jobs", name).split()
        if not words:  # no accounting: the controller knows a job for some minutes after its end
            shown = _ask("scontrol", "--oneliner", "show", "job", name).split()
            words = [word.removeprefix("JobState=") for word in shown if word.startswith("JobState=")]
        return ", ".join(sorted(set(words)))
    try:
        known = json.loads(_ask("qstat", "-xf", "-F", "json", name))["Jobs"].values()
        return ", ".join(
            sorted({f"{job['job_state']}" + (f" {job['Exit_status']}" if "Exit_status" in job else "") for job in known})
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""


def _ask(*words: str) -> str:
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _last_error(folder: Path) -> str:
    """The newest output's last word from legw-hpc, or from the launcher or the scheduler."""
    outputs = sorted(
        (p for p in (folder / runlog.JOBS).glob("*") if p.suffix in (".out", ".OU")), key=lambda p: p.stat().st_mtime
    )
    for path in reversed(outputs):
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            text = file.read().decode(errors="replace")
        marks = ("legw-hpc: ", "slurmstepd: error", "srun: error", "=>> PBS:")
        said = [line for line in text.splitlines() if line.startswith(marks)]
        return said[-1].removeprefix("legw-hpc: ") if said else ""
    return ""


def _hours(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min"
