"""The jobs of a run: recorded when they are submitted, looked up later.

RUN/jobs/submitted.jsonl    {"scheduler", "id", "time", "script", ...} a line a job
TO/jobs/submitted.jsonl     of an array: a line a task, with "run", the name of its folder in TO
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from legw_hpc.owner import ALIVE_SECONDS, last_beat
from legw_hpc.runlog import JOBS, parse

RECORD = "submitted.jsonl"
# As sacct, squeue and qstat call them (documented); any other state is that of a job that has ended.
LIVE = (
    "RUNNING", "COMPLETING", "SUSPENDED", "SIGNALING", "STAGE_OUT", "STOPPED", "RESIZING",
    "R", "E", "B", "S", "U",
)  # fmt: skip
WAITING = (
    "PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD",
    "Q", "H", "W", "T", "M",
)  # fmt: skip
TAIL_BYTES = 65536
AT_ONCE = 500  # jobs that one question names (assumed: far below a command line's length)
# Who else tells of an end, at the beginning of a line.
OTHERS = ("slurmstepd: error", "srun: error", "=>> PBS:", "mpirun", "prterun", "mpiexec", "qsub: ", "scontrol: ", "qsub error")
# What a script says before it trains (submit/script.py).
_BEGUN = re.compile(r"^\S+, machine .*, job .*, run \d+ of at most \d+$", re.MULTILINE)


@dataclass(frozen=True)
class Submitted:
    """One job, or one task of an array.

    Attributes:
        scheduler: "slurm" or "pbs".
        id: as the scheduler calls it.
        output: the file that takes what it prints.
    """

    scheduler: str
    id: str
    output: Path

    def printed(self) -> float:
        """When it last printed something, in seconds since 1970; 0 if it has not, or its output may not be read."""
        return self.output.stat().st_mtime if os.access(self.output, os.R_OK) else 0.0

    def last_error(self) -> str:
        """The last word of its output from legw-hpc; else from the launcher or the scheduler; else how it ends."""
        if not self.printed():
            return ""
        with self.output.open("rb") as file:
            file.seek(max(0, self.output.stat().st_size - TAIL_BYTES))
            text = file.read().decode(errors="replace")
        lines = _BEGUN.split(text)[-1].splitlines()  # a job that was queued again goes on in one file
        said = [line for line in lines if line.startswith("legw-hpc: ")] or [line for line in lines if line.startswith(OTHERS)]
        if said:
            return said[-1].removeprefix("legw-hpc: ")
        ends = [line.strip() for line in lines if line.strip()]  # such as a shell's word on the machine's set-up
        return f"{self.output} ends with: {ends[-1]}" if ends else ""


def add(folder: Path, scheduler: str, name: str, runs: list[str], **facts: Any) -> None:
    """Write down a job.

    Args:
        folder: RUN/jobs or TO/jobs.
        name: the scheduler's id.
        runs: names of the folders of an array's tasks, in their order; empty for one run.
    """
    line = {"scheduler": scheduler, "id": name, "time": round(time.time()), **facts}
    tasks = [line | {"id": task_id(scheduler, name, number), "run": run} for number, run in enumerate(runs)]
    with (folder / RECORD).open("a") as record:
        record.writelines(json.dumps(each) + "\n" for each in tasks or [line])


def task_id(scheduler: str, array: str, number: int) -> str:
    """SLURM: 20 -> 20_3; PBS: 20[].host -> 20[3].host."""
    return f"{array}_{number}" if scheduler == "slurm" else array.replace("[]", f"[{number}]")


def tasks(to: Path) -> list[str]:
    """Names of the run folders of the arrays that were submitted into a folder, whether they have begun or not."""
    return list(dict.fromkeys(str(line["run"]) for line in _lines(to) if "run" in line))


def jobs(run: Path) -> list[Submitted]:
    """Those of a run, in the order of their submission."""
    run = run.absolute()  # "." has no name
    own = [(line, run) for line in _lines(run) if "run" not in line]
    tasks = [(line, run.parent) for line in _lines(run.parent) if line.get("run") == run.name]
    found = []
    for line, where in own + tasks:
        scheduler, name = str(line["scheduler"]), str(line["id"])
        found.append(Submitted(scheduler, name, where / JOBS / f"{name}{'.out' if scheduler == 'slurm' else '.OU'}"))
    return found


def holders(runs: Iterable[Path]) -> dict[Path, str]:
    """Who trains a run or is about to, of those that somebody does: a job the scheduler tells of, or who gives signs of life."""
    of = {run: jobs(run) for run in runs}
    told = states([job for submitted in of.values() for job in submitted])
    found: dict[Path, str] = {}
    for run, submitted in of.items():
        held = [f"job {job.id}: {told[job.id]}" for job in submitted if told[job.id].partition(" ")[0] in (*LIVE, *WAITING)]
        if not held and time.time() - last_beat(run) < ALIVE_SECONDS:
            held = ["it gives signs of life"]
        found |= {run: held[-1]} if held else {}
    return found


def _lines(folder: Path) -> list[dict[str, Any]]:
    try:
        lines = parse((folder / JOBS / RECORD).read_text())
    except (OSError, ValueError):
        return []
    return [line for line in lines if isinstance(line, dict) and {"scheduler", "id"} <= line.keys()]


def states(submitted: Sequence[Submitted]) -> dict[str, str]:
    """Of each job by id, as its scheduler calls it; "" where it does not answer or has forgotten."""
    found: dict[str, str] = {}
    for scheduler, questions in _QUESTIONS.items():
        for ask in questions:
            left = [job.id for job in submitted if job.scheduler == scheduler and job.id not in found]
            for begin in range(0, len(left), AT_ONCE):
                found |= ask(left[begin : begin + AT_ONCE])
    return {job.id: found.get(job.id, "") for job in submitted}


def _accounted(names: Sequence[str]) -> dict[str, str]:
    """Those that SLURM's accounting tells of: a line a job, or one for the tasks of an array that wait."""
    ids = ",".join(names)
    return _slurm(names, _ask("sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State", f"--jobs={ids}"))


def _controlled(names: Sequence[str]) -> dict[str, str]:
    """Those that SLURM's controller tells of: without accounting, and until some minutes after their end."""
    ids = ",".join(dict.fromkeys(name.partition("_")[0] for name in names))  # of a whole array, whose tasks may share a line
    return _slurm(names, _ask("squeue", "--noheader", "--array", "--states=all", "--format=%i|%T", f"--jobs={ids}"))


def _slurm(names: Sequence[str], told: str) -> dict[str, str]:
    """Of lines ID|STATE."""
    lines = [line.partition("|") for line in told.splitlines()]
    return {name: state.split()[0] for ids, _, state in lines for name in _each(ids) if name in names and state.split()}


def _each(ids: str) -> list[str]:
    """Of "20_[0-2,7%2]", which sacct before SLURM 23.02 knows no other form of, each task; of another id, itself."""
    array, bracket, tasks = ids.partition("_[")
    spans = [span.partition("-") for span in tasks.rstrip("]").partition("%")[0].split(",")]
    if not bracket or not all(begin.isdigit() and (end or begin).isdigit() for begin, _, end in spans):
        return [ids]
    return [f"{array}_{number}" for begin, _, end in spans for number in range(int(begin), int(end or begin) + 1)]


def _pbs(how: str, names: Sequence[str]) -> dict[str, str]:
    """Those that PBS tells of; by "-xf" jobs that have ended, too, where the site keeps them."""
    told = _ask("qstat", how, "-F", "json", *names)
    try:
        jobs = {name.partition(".")[0]: job for name, job in json.loads(told)["Jobs"].items()}  # without the server's name
        known = {name: job for name in names if (job := jobs.get(name.partition(".")[0]))}
        return {name: f"{job['job_state']} {job.get('Exit_status', '')}".strip() for name, job in known.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        # A job may have what makes no JSON of the answer: of the others each by itself.
        apart = [_pbs(how, [name]) for name in names] if told and len(names) > 1 else []
        return {name: state for each in apart for name, state in each.items()}


# The later ones are for jobs that those before do not tell of.
_QUESTIONS: dict[str, tuple[Callable[[Sequence[str]], dict[str, str]], ...]] = {
    "slurm": (_accounted, _controlled),
    "pbs": (partial(_pbs, "-xf"), partial(_pbs, "-f")),
}


def _ask(*words: str) -> str:
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
