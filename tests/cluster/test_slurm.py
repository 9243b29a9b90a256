"""Our own job scripts on a real SLURM with two or more nodes: `make test-slurm`.

SLURM_CLUSTER may name a command that takes `crash NODE` and `boot NODE`; without it no node is crashed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
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
from tests.parallel.ranks import ranks_of

ROOT = Path(__file__).parents[2]
BIN = str(Path(sys.executable).parent)
# As root (containers) Open MPI wants to be allowed; the job has the submitter's environment.
ENVIRONMENT = os.environ | {
    "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "PATH": f"{BIN}:{os.environ['PATH']}",
}  # fmt: skip
SECONDS = 180
CLUSTER = os.environ.get("SLURM_CLUSTER", "")


def nodes() -> int:
    """Of the SLURM that answers here; 0 if none does."""
    if shutil.which("sinfo") is None:
        return 0
    said = subprocess.run(["sinfo", "-h", "-o", "%D"], capture_output=True, text=True)
    return sum(map(int, said.stdout.split())) if said.returncode == 0 else 0


NODES = nodes()
pytestmark = pytest.mark.skipif(NODES < 2, reason="no SLURM with two nodes answers here")
# `#PBS` lines and qsub as SLURM has them: Debian's slurm-wlm-torque.
needs_qsub = pytest.mark.skipif(shutil.which("qsub") is None, reason="this SLURM has no qsub")
Call = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def call(tmp_path: Path) -> Call:
    """Runs a command in a folder that all nodes see."""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(words, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)

    return run


def machine(count: int = 2) -> list[str]:
    return ["--machine", "localhost", "--nodes", str(count), "--time", "00:10:00"]


def submitted(call: Call, out: Path, recipe: list[str], *options: str, count: int = 2) -> str:
    """The id of a job of `legw-hpc submit`."""
    done = call("legw-hpc", "submit", *recipe, f"out={out}", *machine(count), *options)
    assert done.returncode == 0, done.stderr
    line = (out / "jobs" / "submitted.jsonl").read_text().splitlines()[-1]
    return str(json.loads(line)["id"])


def wait_for(what: Callable[[], Any], seconds: float = SECONDS) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.5)
    queue = subprocess.run(["squeue", "-l"], capture_output=True, text=True).stdout
    raise AssertionError(f"not within {seconds:g} s; the queue:\n{queue}")


def said(out: Path) -> str:
    """The output of a run's jobs; SLURM's qsub puts it beside, in two files."""
    outputs = [*(out / "jobs").glob("*.out"), *out.parent.glob("*.[eo][0-9]*")]
    return "\n".join(path.read_text(errors="replace") for path in sorted(outputs))


def evaluated(out: Path, starts: int = 1) -> bool:
    """Has the run been started so often, and evaluated since."""
    events = [line["event"] for line in runlog.read(out)]
    begun = [i for i, event in enumerate(events) if event in ("start", "resume")]
    return len(begun) >= starts and "eval" in events[begun[-1] :]


def finished(out: Path) -> bool:
    return any(line["event"] == "end" for line in runlog.read(out))


def weights(out: Path) -> dict[str, torch.Tensor]:
    return dict(torch.load(max((out / "checkpoints").glob("*.pt")), weights_only=True)["model"])


def same_as_a_local_run(out: Path, recipe: list[str], ranks: int = 2) -> None:
    """The weights are those of as many ranks of this machine, uninterrupted, to the bit."""
    command, environment = local_ranks(ranks)
    local = out.parent / "local"
    words = [*command, sys.executable, "-m", "legw_hpc", "train", *recipe, f"out={local}", "threads=1"]
    subprocess.run(words, cwd=out.parent, env=environment, check=True, capture_output=True, timeout=SECONDS)
    mine, theirs = weights(out), weights(local)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("launcher", ["srun", "mpirun"])
@pytest.mark.parametrize("count", [2, 4])
def test_nodes_train_to_the_weights_of_a_local_run(count: int, launcher: str, call: Call, tmp_path: Path) -> None:
    if count > NODES:
        pytest.skip(f"this SLURM has {NODES} nodes")
    recipe, out = ["mnist-lstm-sample", "batch=256", "epochs=3"], tmp_path / "r"
    job = submitted(call, out, recipe, "--set", f"slurm.launcher={launcher}", count=count)
    wait_for(lambda: finished(out))
    assert runlog.read(out)[0]["nodes"] == count
    same_as_a_local_run(out, recipe, count)
    wait_for(lambda: f"job {job}: COMPLETED" in status(call, out), 30)
    assert "done, step 60 of 60" in status(call, out)


def status(call: Call, out: Path) -> str:
    return call("legw-hpc", "status", str(out)).stdout


def test_the_warning_writes_a_checkpoint_and_a_chain_of_3_ends_to_the_bit(call: Call, tmp_path: Path) -> None:
    recipe, out = ["mnist-lstm-sample", "batch=256", "epochs=20"], tmp_path / "r"
    job = submitted(call, out, recipe, "--chain", "3")
    for link in (1, 2):
        wait_for(lambda starts=link: evaluated(out, starts))
        subprocess.run(["scancel", "--batch", "--signal=USR1", job], check=True)
        wait_for(lambda link=link: said(out).count("stopped by a signal after step") == link, 60)
    wait_for(lambda: finished(out))
    assert "run 3 of at most 3" in said(out)
    same_as_a_local_run(out, recipe)


@pytest.mark.skipif(not CLUSTER, reason="SLURM_CLUSTER names no command that crashes a node")
def test_a_crashed_node_costs_the_steps_since_the_last_checkpoint_alone(call: Call, tmp_path: Path) -> None:
    recipe, out = ["mnist-lstm-sample", "batch=256", "epochs=20", "checkpoint.every_steps=20"], tmp_path / "r"
    job = submitted(call, out, recipe, "--chain", "2")
    wait_for(lambda: evaluated(out))
    listed = call("squeue", "-h", "-j", job, "-o", "%N").stdout.strip()
    lost = call("scontrol", "show", "hostnames", listed).stdout.split()[-1]
    subprocess.run([CLUSTER, "crash", lost], check=True, timeout=60)
    try:
        wait_for(lambda: finished(out))
    finally:
        subprocess.run([CLUSTER, "boot", lost], check=True, timeout=60)
    assert "Restarts=1" in call("scontrol", "show", "job", job).stdout
    resumed = [line["step"] for line in runlog.read(out) if line["event"] == "resume"]
    assert len(resumed) == 1
    assert resumed[0] % 20 == 0
    same_as_a_local_run(out, recipe)


@needs_qsub
def test_a_chain_of_pbs_scripts_ends_to_the_bit(call: Call, tmp_path: Path) -> None:
    """Layout, ranks, hand-over and successor; signals, limits and mpirun's hosts are SLURM's here, not PBS's."""
    recipe, out = ["mnist-lstm-sample", "batch=256", "epochs=20"], tmp_path / "r"
    # A successor has PBS's environment, not the submitter's: as root it must be told what Open MPI wants.
    root = [f'environment.OMPI_ALLOW_RUN_AS_ROOT{suffix}="1"' for suffix in ("", "_CONFIRM")]
    settings = [word for key in root for word in ("--set", key)]
    submitted(call, out, recipe, "--scheduler", "pbs", "--chain", "3", *settings)
    for link in (1, 2):
        wait_for(lambda starts=link: evaluated(out, starts))
        os.kill(ranks_of(out)[0], signal.SIGUSR1)  # as `timeout` does, through mpirun, ahead of the walltime
        wait_for(lambda link=link: said(out).count("stopped by a signal after step") == link, 60)
    wait_for(lambda: finished(out))
    assert runlog.read(out)[0]["nodes"] == 2
    assert "run 3 of at most 3" in said(out)
    same_as_a_local_run(out, recipe)


@pytest.mark.parametrize("launcher", ["srun", "mpirun"])
def test_a_killed_rank_ends_the_job_within_30_seconds_and_is_named(launcher: str, call: Call, tmp_path: Path) -> None:
    recipe, out = ["mnist-lstm-sample", "batch=256", "epochs=400"], tmp_path / "r"
    job = submitted(call, out, recipe, "--set", f"slurm.launcher={launcher}")
    wait_for(lambda: evaluated(out))
    os.kill(ranks_of(out)[1], signal.SIGKILL)
    struck = time.monotonic()
    wait_for(lambda: "JobState=FAILED" in call("scontrol", "show", "job", job).stdout, 60)
    assert time.monotonic() - struck < 30
    assert not ranks_of(out)
    named = {"srun": r"n\d+: task 1: Killed", "mpirun": r"rank 1 .*on node n\d+ exited on signal 9"}[launcher]
    assert re.search(named, " ".join(said(out).split())), said(out)


@pytest.mark.parametrize("scheduler", ["slurm", pytest.param("pbs", marks=needs_qsub)])
def test_a_script_by_hand_stages_trains_and_leaves_its_output_in_logs(scheduler: str, call: Call, tmp_path: Path) -> None:
    recipe, out = ["mnist-lstm-sample", "batch=256", "epochs=2"], tmp_path / "r"
    words, script = [*recipe, "out=r"], str(ROOT / f"jobs/{scheduler}/localhost.{'sbatch' if scheduler == 'slurm' else 'pbs'}")
    variables = {"LEGW_BIN": BIN, "STAGE": str(ROOT / "legw_hpc/data/sample/mnist"), "ARGS": " ".join(words)}
    submit = {
        "slurm": ["sbatch", "-N", "2", script, *words],
        "pbs": ["qsub", "-V", "-l", "select=2:ncpus=2:mpiprocs=1", script],  # SLURM's -v splits ARGS at its blanks
    }[scheduler]
    done = call("env", *(f"{key}={value}" for key, value in variables.items()), *submit)
    assert done.returncode == 0, done.stderr
    job = done.stdout.split()[-1]
    wait_for(lambda: finished(out))
    wait_for(lambda: job not in call("squeue", "-h", "-o", "%i").stdout.split(), 60)
    assert runlog.read(out)[0]["nodes"] == 2
    (log,) = [path for path in (tmp_path / "logs").iterdir() if ".e" not in path.name]
    assert "done: accuracy" in log.read_text()
    assert not list(Path("/tmp").glob(f"legw-{job}-*"))  # the copies; the nodes' /tmp is this one where they are emulated
    same_as_a_local_run(out, recipe)


def test_a_failure_is_not_repeated(call: Call, tmp_path: Path) -> None:
    out = tmp_path / "r"
    job = submitted(call, out, ["mnist-lstm-sample", "batch=256", "solver=sgd", "lr=1e30"], "--chain", "3")
    wait_for(lambda: "diverged at step" in said(out), 90)
    state = wait_for(lambda: "JobState=FAILED" in (shown := call("scontrol", "show", "job", job).stdout) and shown, 60)
    assert "ExitCode=3:0" in state
    assert "Restarts=0" in state
    assert "diverged" in status(call, out)


def test_an_array_is_a_sweep(call: Call, tmp_path: Path) -> None:
    words = ["mnist-lstm-sample", "batch=128,256", "epochs=1", "--array", "--at-once=1", "--to", "runs/grid"]
    done = call("legw-hpc", "submit", *words, *machine())
    assert done.returncode == 0, done.stderr
    wait_for(lambda: [finished(path.parent) for path in tmp_path.glob("runs/grid/*/log.jsonl")] == [True, True])
    logs = [runlog.read(path.parent) for path in tmp_path.glob("runs/grid/*/log.jsonl")]
    first, second = sorted((log[0]["time"], log[-1]["time"]) for log in logs)
    assert first[1] <= second[0]  # one at a time


def test_scripts_are_accepted_and_what_cannot_work_is_refused_before(call: Call, tmp_path: Path) -> None:
    done = call("legw-hpc", "submit", "mnist-lstm-sample", "batch=256", *machine(), "--dry-run")
    (tmp_path / "job.sbatch").write_text(done.stdout)
    assert call("sbatch", "--test-only", "job.sbatch").returncode == 0
    refused = call("legw-hpc", "submit", "mnist-lstm-sample", "batch=255", *machine())
    assert (refused.returncode, "255" in refused.stderr) == (2, True)
    assert not (tmp_path / "runs").exists()
