"""legw-hpc submit: what it writes, hands over, and refuses before that."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from legw_hpc.submit import send
from legw_hpc.submit.job import Options, make
from legw_hpc.submit.machine import load
from tests.conftest import Cli
from tests.stubs import Stubs


@pytest.fixture
def login(stubs: Stubs, monkeypatch: pytest.MonkeyPatch, shards: Path) -> list[str]:
    """A login node: sbatch and qsub record what they are given; the words of a submission that works."""
    stubs.says("sbatch", "echo '41;cluster'")
    stubs.says("qsub", "echo 42.pbs")
    stubs.says("sacct", "exit 1")  # this machine may have a real one
    stubs.says("squeue", "exit 1")
    monkeypatch.setenv("PATH", f"{stubs.bin}:/usr/bin:/bin")
    recipe = ["submit", "mnist-lstm", f"data.dir={shards}", "data.train_samples=300", "batch=96", "out=runs/x"]
    return [*recipe, "--machine", "localhost", "--nodes", "2", "--time", "00:30:00"]


@pytest.mark.parametrize(("scheduler", "name", "words"), [("slurm", "41", ["--parsable"]), ("pbs", "42.pbs", [])])
def test_submit(scheduler: str, name: str, words: list[str], login: list[str], cli: Cli, stubs: Stubs) -> None:
    submit = [*login, "--scheduler", scheduler]
    dry = cli(*submit, "--dry-run")
    assert (dry.returncode, dry.stderr) == (0, "")
    assert not (stubs.folder / "runs").exists()
    done = cli(*submit)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"job {name}: 2 nodes, 2 ranks, at most 1.0 node-hours; {script_of(scheduler)}\n"
    assert (stubs.folder / script_of(scheduler)).read_text() == dry.stdout
    assert stubs.calls({"slurm": "sbatch", "pbs": "qsub"}[scheduler]) == [[*words, script_of(scheduler)]]
    (line,) = map(json.loads, (stubs.folder / "runs/x/jobs/submitted.jsonl").read_text().splitlines())
    assert (line["scheduler"], line["id"], line["nodes"]) == (scheduler, name, 2)
    assert (stubs.folder / cli(*submit).stdout.split("; ")[1].strip()).stem == "2"  # the first script stays


def script_of(scheduler: str) -> str:
    return f"runs/x/jobs/1.{'sbatch' if scheduler == 'slurm' else 'pbs'}"


@pytest.mark.usefixtures("login")
def test_two_that_are_submitted_at_once_have_scripts_of_their_own(stubs: Stubs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have looked for a number before either has taken it."""
    monkeypatch.chdir(stubs.folder)
    made = make("mnist-lstm", ["out=runs/x"], load("localhost"), Options(nodes=1, time="00:30:00"))
    scripts = [send.send(made)[1] for _ in range(2)]
    assert scripts == [Path("runs/x/jobs/1.sbatch"), Path("runs/x/jobs/2.sbatch")]
    assert [words[-1] for words in stubs.calls("sbatch")] == [str(script) for script in scripts]
    lines = map(json.loads, (stubs.folder / "runs/x/jobs/submitted.jsonl").read_text().splitlines())
    assert [line["script"] for line in lines] == [str(script) for script in scripts]


def test_submit_ahead(login: list[str], cli: Cli, stubs: Stubs) -> None:
    assert cli(*login, "--chain", "3", "--set", "slurm.chain=ahead").returncode == 0
    assert stubs.calls("sbatch") == [
        ["--parsable", "runs/x/jobs/1.sbatch"], *[["--parsable", "--dependency=afterany:41", "runs/x/jobs/1.sbatch"]] * 2
    ]  # fmt: skip


def test_a_chain_that_is_refused_halfway_names_its_jobs(login: list[str], cli: Cli, stubs: Stubs) -> None:
    stubs.says(
        "sbatch",
        f"[ $(grep -c sbatch {stubs.folder}/calls) -lt 3 ] || {{ echo QOSMaxSubmitJobPerUserLimit >&2; exit 1; }}; echo 41",
    )
    done = cli(*login, "--chain", "3", "--set", "slurm.chain=ahead")
    assert done.returncode == 2
    assert done.stderr.endswith("QOSMaxSubmitJobPerUserLimit; of the chain 41 is queued\n")


def test_a_run_that_has_a_job_is_not_submitted_again(login: list[str], cli: Cli, stubs: Stubs) -> None:
    stubs.says("sacct", "echo '41|RUNNING'")
    assert cli(*login).returncode == 0
    again = cli(*login)
    assert (again.returncode, "runs/x: this run is being trained, or queued: job 41: RUNNING" in again.stderr) == (2, True)
    stubs.says("sacct", "echo '41|COMPLETED'")
    assert cli(*login).returncode == 0


def test_submit_refuses_before_it_writes(login: list[str], cli: Cli, stubs: Stubs, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = cli(*[word if not word.startswith("data.dir") else "data.dir=nowhere" for word in login])
    assert missing.returncode == 2
    assert "nowhere/index.json: not found (no such folder)" in missing.stderr
    for wrong, named in {
        "options.init=foo": "foo", "options.foo=1": "foo", "solvers.momentum.momentm=0.9": "momentm",
        "solvers.momentum.momentum=2": "momentum must be a number", "start=runs/gone": "start=runs/gone: no run there",
        "curvature_every=1 precision=bf16": "needs precision=fp32", "device=cuda": "machine localhost has no GPUs",
        "data.train_samples=299": "300 training samples, recipe mnist-lstm declares data.train_samples 299",
        "--nodes=1 noise_scale=true": "one rank has no gradient beside the average",
        "--to=elsewhere": "holds the runs of an --array", "--at-once=2": "--at-once 2 is of the tasks of an --array",
    }.items():  # fmt: skip
        refused = cli(*login, *wrong.split())  # hours later the ranks would
        assert refused.returncode == 2
        assert named in refused.stderr
    assert "--stage: " in cli(*login, "--stage", "--set", "local_gb=0.00001").stderr
    (stubs.bin / "sbatch").unlink()
    monkeypatch.setenv("PATH", str(stubs.bin))  # this machine may have a real one
    absent = cli(*login)
    assert (absent.returncode, absent.stdout) == (2, "")
    assert "no sbatch on the PATH" in absent.stderr
    assert not (stubs.folder / "runs").exists()
    stubs.says("sbatch", "echo 'Batch job submission failed: Invalid account' >&2; exit 1")
    assert "Invalid account" in cli(*login).stderr
    assert not (stubs.folder / "runs").exists()


def test_the_script_names_the_folder_that_has_legw_hpc(
    login: list[str], cli: Cli, stubs: Stubs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`pip install --user` puts it elsewhere than where Python is."""
    monkeypatch.setattr(sys, "prefix", "/nowhere")
    assert f"\nexport PATH={stubs.bin}:$PATH\n" in cli(*login, "--dry-run").stdout
    (stubs.folder / "own").mkdir()
    (stubs.bin / "legw-hpc").rename(stubs.folder / "own/legw-hpc")
    refused = cli(*login, "--dry-run")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "no legw-hpc in /nowhere/bin or on the PATH" in refused.stderr
    assert cli(*login, "--dry-run", "--set", 'container=["apptainer", "exec", "x.sif"]').returncode == 0
    monkeypatch.setattr(sys, "argv", ["own/legw-hpc"])
    assert f"\nexport PATH={stubs.folder}/own:$PATH\n" in cli(*login, "--dry-run").stdout


@pytest.mark.parametrize("command", [["submit", "--array"], ["sweep"]], ids=" ".join)
def test_a_tilde_is_the_home(command: list[str], cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    done = cli(*command, "mnist-lstm", "batch=256,512", "--to=~/grid", "--machine", "skylake", "--nodes", "1", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" out=/home/me/grid/") == 2


def test_a_login_node_without_torch_submits_with_a_note(
    login: list[str], cli: Cli, stubs: Stubs, monkeypatch: pytest.MonkeyPatch
) -> None:
    stubs.says("sbatch", "echo 41")
    monkeypatch.setitem(sys.modules, "legw_hpc.work", None)
    done = cli(*login)
    assert done.returncode == 0
    assert "options of solver and application are not checked here" in done.stderr


def test_submit_refuses_a_finished_run_and_a_strangers_folder(login: list[str], cli: Cli, stubs: Stubs) -> None:
    folder = stubs.folder / "runs/x"
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text('{"event": "end", "status": "diverged", "message": "m"}\n')
    assert "this run has ended (diverged)" in cli(*login).stderr
    (folder / "log.jsonl").unlink()
    (folder / "recipe.json").write_text('{"batch": 7}')
    assert "runs/x: holds a run with " in cli(*login).stderr
    (folder / "recipe.json").write_text("[1]")
    assert "not a run's recipe" in cli(*login).stderr
    (folder / "recipe.json").unlink()
    (folder / "notes.txt").touch()
    assert "not empty (notes.txt) and not a run's folder" in cli(*login).stderr
    assert stubs.calls("sbatch") == []


def test_a_run_starts_in_the_folder_that_submit_made(arguments: list[str], cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "r/jobs").mkdir(parents=True)
    done = cli("train", *arguments, "max_steps=1", "out=r", "comm=serial")
    assert done.returncode == 0, done.stderr
