"""Hand a job to sbatch or qsub: its script and ids stay in the run folder's `jobs`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from legw_hpc import runlog
from legw_hpc.allowed import check_samples
from legw_hpc.data.files import make_folder, written_whole
from legw_hpc.derived import derive
from legw_hpc.errors import InputError
from legw_hpc.owner import belongs
from legw_hpc.recipe import Recipe
from legw_hpc.strict import named
from legw_hpc.submit import pbs, record, slurm
from legw_hpc.submit.job import Job, next_number
from legw_hpc.submit.machine import Machine


def text(job: Job) -> str:
    """The script, in the scheduler's dialect."""
    return slurm.text(job) if job.machine.scheduler == "slurm" else pbs.text(job)


def command(job: Job, after: str = "") -> list[str]:
    """What submits the script.

    Args:
        job: see `job.make`.
        after: id of the job that has to end before this one starts.
    """
    if job.machine.scheduler == "slurm":
        wait = [f"--dependency=afterany:{after}"] if after else []
        return ["sbatch", "--parsable", *wait, str(job.file)]
    wait = ["-W", f"depend=afterany:{after}"] if after else []
    # Not directives: a task that goes on submits the same script as a job of its own.  PBS takes no array that may not be
    # rerun, and none of one task.
    array = ["-r", "y", "-J", job.numbers] if len(job.tasks) > 1 else []
    return ["qsub", *array, *wait, str(job.file)]


def send(job: Job) -> tuple[list[str], Path]:
    """Submit a job, or all jobs of a chain that is queued ahead.

    Returns:
        The ids, and the script: another than `job.file` where somebody else has just taken that name.

    Raises:
        InputError: no such scheduler here, or it refuses; its words are in the message.
    """
    if shutil.which(command(job)[0]) is None:
        raise InputError(f"no {command(job)[0]} on the PATH: submit from a login node of the cluster, or see --dry-run")
    folder = job.file.parent
    new = [place for place in (folder, *folder.parents) if not os.path.exists(place)]
    make_folder(folder)  # SLURM does not, and a job without it dies in silence
    job = _named(job)
    with written_whole(job.file) as aside:
        aside.write_text(text(job))
    job.file.chmod(0o755)
    ids: list[str] = []
    for _ in range(job.chain if job.machine.chain == "ahead" else 1):
        words = command(job, ids[-1] if ids else "")
        before = f"; of the chain {', '.join(ids)} {'is' if len(ids) == 1 else 'are'} queued" if ids else ""
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=120)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise InputError(f"{words[0]}: {error}{before}") from None
        if done.returncode:
            if not ids:
                _take_away(job.file, new)
            raise InputError(f"{' '.join(words)}: {done.stderr.strip() or f'exit code {done.returncode}'}{before}")
        ids.append(done.stdout.strip().split("\n")[-1].split(";")[0])
        facts = {"script": str(job.file), "machine": job.machine.name, "nodes": job.nodes, "chain": job.chain}
        record.add(folder, job.machine.scheduler, ids[-1], job.runs, **facts)
    return ids, job.file


def _named(job: Job) -> Job:
    """With the name of its script taken: of two that are submitted at once, one has the next number."""
    while True:
        try:
            job.file.touch(exist_ok=False)
        except FileExistsError:
            job = dataclasses.replace(job, file=job.file.with_stem(str(next_number(job.file.parent))))
        except OSError as error:
            raise InputError(f"{job.file}: cannot be written: {error.strerror}") from None
        else:
            return job


def _take_away(script: Path, new: Sequence[Path]) -> None:
    """What a submission that was refused has made: the run would be shown as an empty one."""
    script.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # somebody else has begun to use it
        for folder in new:
            folder.rmdir()


def check_folder(recipe: Recipe) -> None:
    """Refuse a run that is finished, or a folder of another run, before it has waited in a queue.

    Raises:
        InputError: names what differs.
    """
    folder = recipe.out_folder()
    end: dict[str, Any] = next((line for line in reversed(runlog.read(folder)) if line.get("event") == "end"), {})
    # A run that ended at max_steps goes on with more of them.
    if end and runlog.settles(end, derive(recipe).last):
        raise InputError(f"{folder}: this run has ended ({end['status']}); see legw-hpc status {folder}")
    if folder.is_dir():
        belongs(folder, json.loads(json.dumps(recipe.identity())), unknown=["data"])  # whose digest the ranks make


def check_free(recipe: Recipe) -> None:
    """Refuse a run that somebody trains or is about to: the job would hold its nodes only to be refused the folder.

    Raises:
        InputError: names who.
    """
    folder = recipe.out_folder()
    if who := record.holders([folder]).get(folder):
        raise InputError(f"{folder}: this run is being trained, or queued: {who}; see legw-hpc status {folder}")


def check_start(recipe: Recipe) -> None:
    """Refuse a run that is to begin with the weights of one that is not there; one that still trains may have ended by then.

    A run with a checkpoint of its own needs them no more.

    Raises:
        InputError: names it.
    """
    begun = any((recipe.out_folder() / "checkpoints").glob("step-*.json"))  # checkpoint.any_in, but without torch
    if recipe.start and not begun and not runlog.read(named(recipe.start)):
        raise InputError(f"start={recipe.start}: no run there")


def check_data(recipe: Recipe, staged: Machine | None = None) -> None:
    """Refuse a job whose shards are not there or not as many, or too large for the local storage of a machine they are copied to.

    Raises:
        InputError: names the folder.
    """
    from legw_hpc.data.format import read_index  # numpy

    folder = recipe.data.folder()
    check_samples(recipe, read_index(folder)["splits"].get("train", {}).get("count"))
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e9
    if staged and size > staged.local_gb:
        raise InputError(f"--stage: {folder} has {size:,.1f} GB, {staged.local} of machine {staged.name} {staged.local_gb:g} GB")
