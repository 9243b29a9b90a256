"""Our own job scripts on a real SLURM with two or more nodes: `make test-slurm`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from legw_hpc import runlog
from legw_hpc.launcher import local_ranks

ROOT = Path(__file__).parents[2]
BIN = str(Path(sys.executable).parent)
# As root (containers) Open MPI wants to be allowed; the job has the submitter's environment.
ENVIRONMENT = os.environ | {
    "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "PATH": f"{BIN}:{os.environ['PATH']}",
}  # fmt: skip
MACHINE = ["--machine", "localhost", "--nodes", "2", "--time", "00:10:00"]
SECONDS = 180


def answers() -> bool:
    """Is there a SLURM with two idle nodes."""
    if shutil.which("sinfo") is None:
        return False
    said = subprocess.run(["sinfo", "-h", "-o", "%D"], capture_output=True, text=True)
    return said.returncode == 0 and sum(map(int, said.stdout.split())) >= 2


pytestmark = pytest.mark.skipif(not answers(), reason="no SLURM with two nodes answers here")
Call = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def call(tmp_path: Path) -> Call:
    """Runs a command in a folder that all nodes see."""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(words, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)

    return run


def submitted(call: Call, out: Path, recipe: list[str], *options: str) -> str:
    """The id of a job of `legw-hpc submit`."""
    done = call("legw-hpc", "submit", *recipe, f"out={out}", *MACHINE, *options)
    assert done.returncode == 0, done.stderr
    line = (out / "jobs" / "submitted.jsonl").read_text().splitlines()[-1]
    return str(json.loads(line)["id"])


def wait_for(what: Callable[[], Any], seconds: float = SECONDS) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.5)
    raise AssertionError(f"not within {seconds:g} s")


def said(out: Path) -> str:
    return "\n".join(path.read_text(errors="replace") for path in sorted((out / "jobs").glob("*.out")))


def finished(out: Path) -> bool:
    return any(line["event"] == "end" for line in runlog.read(out))


def weights(out: Path) -> dict[str, torch.Tensor]:
    return dict(torch.load(max((out / "checkpoints").glob("*.pt")), weights_only=True)["model"])


def local(recipe: list[str], out: Path, cwd: Path) -> dict[str, torch.Tensor]:
    """The same run on two ranks of this machine, uninterrupted."""
    command, environment = local_ranks(2)
    words = [*command, sys.executable, "-m", "legw_hpc", "train", *recipe, f"out={out}", "threads=1"]
    subprocess.run(words, cwd=cwd, env=environment, check=True, capture_output=True, timeout=SECONDS)
    return weights(out)


@pytest.mark.parametrize("launcher", ["srun", "mpirun"])
def test_two_nodes_train_to_the_weights_of_a_local_run(launcher: str, call: Call, tmp_path: Path) -> None:
    recipe, out = ["mnist-lstm-sample", "batch=256", "epochs=3"], tmp_path / "r"
    job = submitted(call, out, recipe, "--set", f"slurm.launcher={launcher}")
    wait_for(lambda: finished(out))
    assert runlog.read(out)[0]["nodes"] == 2
    mine, theirs = weights(out), local(recipe, tmp_path / "local", tmp_path)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    wait_for(lambda: f"job {job}: COMPLETED" in status(call, out), 30)
    assert "done, step 60 of 60" in status(call, out)


def status(call: Call, out: Path) -> str:
    return call("legw-hpc", "status", str(out)).stdout


def test_the_warning_writes_a_checkpoint_and_the_job_goes_on_to_the_bit(call: Call, tmp_path: Path) -> None:
    recipe, out = ["mnist-lstm-sample", "batch=256", "epochs=40"], tmp_path / "r"
    job = submitted(call, out, recipe, "--chain", "3")
    wait_for(lambda: any(line["event"] == "eval" for line in runlog.read(out)))
    subprocess.run(["scancel", "--batch", "--signal=USR1", job], check=True)
    wait_for(lambda: "stopped by a signal after step" in said(out), 60)
    wait_for(lambda: finished(out))
    assert "run 2 of at most 3" in said(out)
    assert any(line["event"] == "resume" for line in runlog.read(out))
    mine, theirs = weights(out), local(recipe, tmp_path / "local", tmp_path)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_a_failure_is_not_repeated(call: Call, tmp_path: Path) -> None:
    out = tmp_path / "r"
    job = submitted(call, out, ["mnist-lstm-sample", "batch=256", "solver=sgd", "lr=1e30"], "--chain", "3")
    wait_for(lambda: "diverged at step" in said(out), 90)
    state = wait_for(lambda: "JobState=FAILED" in (shown := call("scontrol", "show", "job", job).stdout) and shown, 60)
    assert "ExitCode=3:0" in state
    assert "Restarts=0" in state
    assert "diverged" in status(call, out)


def test_an_array_is_a_sweep(call: Call, tmp_path: Path) -> None:
    words = ["mnist-lstm-sample", "batch=128,256", "epochs=1", "--array", "--to", "runs/grid"]
    done = call("legw-hpc", "submit", *words, *MACHINE)
    assert done.returncode == 0, done.stderr
    wait_for(lambda: [finished(path.parent) for path in tmp_path.glob("runs/grid/*/log.jsonl")] == [True, True])


def test_scripts_are_accepted_and_what_cannot_work_is_refused_before(call: Call, tmp_path: Path) -> None:
    done = call("legw-hpc", "submit", "mnist-lstm-sample", "batch=256", *MACHINE, "--dry-run")
    (tmp_path / "job.sbatch").write_text(done.stdout)
    assert call("sbatch", "--test-only", "job.sbatch").returncode == 0
    refused = call("legw-hpc", "submit", "mnist-lstm-sample", "batch=255", *MACHINE)
    assert (refused.returncode, "255" in refused.stderr) == (2, True)
    assert not (tmp_path / "runs").exists()
