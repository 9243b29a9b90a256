"""Job scripts that run, with stubs in the place of the cluster: layout, quoting, chains, warnings, staging."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from legw_hpc.grid import cells
from legw_hpc.submit import record, script, send, slurm
from legw_hpc.submit.__main__ import scripts
from legw_hpc.submit.job import Job, Options, make
from legw_hpc.submit.machine import load
from tests.stubs import RIGHT, WRONG, Stubs, run

NASTY = ["it's", "a b", '"q"', "$(touch hacked)", "`touch hacked`", "x;touch hacked", "*", "\\"]


def small(
    scheduler: str,
    overrides: list[str] | None = None,
    chain_by: str = "",
    bin: str = "",
    launcher: str = "mpirun",
    **options: object,
) -> Job:
    """A job of two nodes with two ranks each."""
    changes = [f"scheduler={scheduler}", f"{scheduler}.launcher={launcher}"]
    changes += [f"{scheduler}.chain={chain_by}"] if chain_by else []
    wanted = {"nodes": 2, "time": "01:00:00", "bin": bin} | options
    return make("mnist-lstm", overrides or ["batch=1024"], load("skylake", changes), Options(**wanted))  # type: ignore[arg-type]


@pytest.mark.parametrize("scheduler", ["slurm", "pbs"])
@pytest.mark.parametrize("value", NASTY)
def test_values_arrive_as_they_are(scheduler: str, value: str, stubs: Stubs) -> None:
    stubs.says("mpirun", RIGHT)
    made = small(scheduler, ["batch=1024", f"data.dir={value}", "out=runs/x"], bin=str(stubs.bin))
    done = run(send.text(made), stubs)
    assert done.returncode == 0, done.stderr
    assert stubs.calls("legw-hpc") == [["train", "mnist-lstm", "batch=1024", f"data.dir={value}", "out=runs/x"]]
    assert not (stubs.folder / "hacked").exists()


@pytest.mark.parametrize("scheduler", ["slurm", "pbs"])
def test_ranks_all_on_one_host_are_refused(scheduler: str, stubs: Stubs) -> None:
    stubs.says("mpirun", WRONG)
    done = run(send.text(small(scheduler, bin=str(stubs.bin))), stubs)
    assert done.returncode == 2
    assert "expected 2 ranks on each of 2 nodes; nothing trained" in done.stderr
    assert "4 n1" in done.stdout
    assert stubs.calls("legw-hpc") == []


@pytest.mark.parametrize("scheduler", ["slurm", "pbs"])
def test_a_launcher_that_fails_is_named(scheduler: str, stubs: Stubs) -> None:
    stubs.says("mpirun", "exit 85")
    done = run(send.text(small(scheduler, bin=str(stubs.bin), chain=3)), stubs)
    assert done.returncode == 2
    assert "the launcher cannot start ranks" in done.stderr
    assert stubs.calls("qsub") == stubs.calls("scontrol") == stubs.calls("legw-hpc") == []


@pytest.mark.parametrize("domain", ["", ".site.org"])
@pytest.mark.parametrize(("tm", "by_hand"), [("MCA plm: tm (MCA v2.1.0)", False), ("MCA plm: rsh (MCA v2.1.0)", True)])
def test_hosts_of_an_open_mpi_without_pbs(tm: str, by_hand: bool, domain: str, stubs: Stubs) -> None:
    """Slots and an agent as schedulers.md has them; an Open MPI that knows PBS is left alone."""
    stubs.says("ompi_info", f'echo "{tm}"')
    stubs.says("pbs_tmrsh", 'echo "tmrsh: $*"')
    look = 'for w in "$@"; do case $w in */hosts) cat "$w" >>hosts ;; esac; done; [ -z "$OMPI_MCA_plm_rsh_agent" ] || '
    stubs.says("mpirun", f'{look} "$OMPI_MCA_plm_rsh_agent" n2 orted -mca x "y z" >agent\n{RIGHT}')
    done = run(send.text(small("pbs", bin=str(stubs.bin))), stubs, domain=domain)
    assert done.returncode == 0, done.stderr
    words = stubs.calls("mpirun")[-1]
    assert words[:6] == ["-np", "4", "--map-by", "ppr:2:node:PE=24", "--bind-to", "core"]
    assert ("--hostfile" in words) == by_hand
    assert {words[i + 1] for i, word in enumerate(words) if word == "-x"} >= {"PATH", "OMP_NUM_THREADS", "KMP_BLOCKTIME"}
    if by_hand:
        assert (stubs.folder / "hosts").read_text().splitlines()[:2] == [f"n1{domain} slots=2", f"n2{domain} slots=2"]
        assert (stubs.folder / "agent").read_text() == f"tmrsh: n2{domain} /bin/sh -c orted -mca x y z\n"


def test_hosts_of_a_hydra_without_ssh(stubs: Stubs) -> None:
    stubs.says("pbs_tmrsh", 'echo "tmrsh: $*"')
    look = 'for w in "$@"; do case $w in */hosts) cat "$w" >hosts ;; esac; done; [ "$HYDRA_LAUNCHER_EXEC" = '
    look += '"$I_MPI_HYDRA_BOOTSTRAP_EXEC" ]; "$HYDRA_LAUNCHER_EXEC" n2 proxy --x "y z" >agent\n'
    stubs.says("mpiexec.hydra", look + RIGHT)
    done = run(send.text(small("pbs", launcher="hydra", bin=str(stubs.bin))), stubs)
    assert done.returncode == 0, done.stderr
    assert stubs.calls("mpiexec.hydra")[-1][:5] == ["-n", "4", "-ppn", "2", "-genvall"]
    assert (stubs.folder / "hosts").read_text().splitlines() == ["n1:2", "n2:2"]
    assert (stubs.folder / "agent").read_text() == "tmrsh: n2 /bin/sh -c proxy --x y z\n"


# exit code of the training, run of the chain, goes on
ENDS = [(85, 1, True), (85, 2, True), (85, 3, False), (0, 1, False), (1, 1, False), (2, 1, False), (3, 1, False), (4, 1, False),
        (137, 1, False), (143, 1, False), (138, 1, True)]  # fmt: skip


@pytest.mark.parametrize("scheduler", ["slurm", "pbs"])
@pytest.mark.parametrize(("code", "link", "goes_on"), ENDS)
def test_a_chain_goes_on_after_a_checkpoint_only(scheduler: str, code: int, link: int, goes_on: bool, stubs: Stubs) -> None:
    stubs.says("mpirun", RIGHT)
    stubs.says("legw-hpc", f"exit {code}")
    stubs.says("qsub", "echo 8.pbs")
    made = small(scheduler, ["batch=1024", "out=runs/x"], chain=3, bin=str(stubs.bin))
    (stubs.folder / made.file.parent).mkdir(parents=True)
    done = run(send.text(made), stubs, SLURM_RESTART_COUNT=str(link - 1), LEGW_LINK=str(link))
    assert done.returncode == (85 if code == 138 else code)  # 138: the warning came before a rank could take it
    if scheduler == "slurm":
        assert stubs.calls("scontrol") == ([["requeue", "7"]] if goes_on else [])
    else:
        assert stubs.calls("qsub") == ([["-v", f"LEGW_LINK={link + 1}", str(made.file)]] if goes_on else [])
        assert [job.id for job in record.jobs(stubs.folder / "runs/x")] == (["8.pbs"] if goes_on else [])


@pytest.mark.parametrize(("code", "waits"), [(1, True), (14, True), (137, True), (0, False), (3, False), (85, False)])
def test_a_lost_node_is_left_to_slurm(code: int, waits: bool, stubs: Stubs) -> None:
    """The ranks end before SLURM notices; it then starts the job again by itself."""
    stubs.says("mpirun", RIGHT)
    stubs.says("srun", "exit 1")
    stubs.says("sleep")
    stubs.says("legw-hpc", f"exit {code}")
    done = run(send.text(small("slurm", ["batch=1024"], chain=3, bin=str(stubs.bin))), stubs, SLURM_RESTART_COUNT="2")
    assert done.returncode == code
    assert stubs.calls("sleep") == ([[str(slurm.LOST_SECONDS)]] if waits else [])
    assert ("a node does not answer" in done.stderr) == waits


def test_a_lost_node_leaves_the_rest_of_a_chain_queued_ahead(stubs: Stubs) -> None:
    stubs.says("mpirun", RIGHT)
    stubs.says("srun", "exit 1")
    stubs.says("legw-hpc", "exit 14")
    made = small("slurm", ["batch=1024", "out=runs/x"], "ahead", bin=str(stubs.bin), chain=3)
    (stubs.folder / "runs/x/jobs").mkdir(parents=True)
    done = run(send.text(made), stubs)
    assert done.returncode == script.KILLED
    assert "a node does not answer; the next job of the chain goes on" in done.stderr
    assert not (stubs.folder / "runs/x/jobs/1.code").exists()


@pytest.mark.parametrize("scheduler", ["slurm", "pbs"])
def test_a_killed_job_leaves_the_rest_of_a_chain_queued_ahead(scheduler: str, stubs: Stubs) -> None:
    """By TERM, as of the walltime or a preemption; a shell's EXIT trap would tell 0."""
    stubs.says("mpirun", RIGHT)
    stubs.says("legw-hpc", 'kill -TERM "$(cat pid)"; sleep 1')
    made = small(scheduler, ["batch=1024", "out=runs/x"], "ahead", bin=str(stubs.bin), chain=3)
    (stubs.folder / "runs/x/jobs").mkdir(parents=True)
    done = run(send.text(made).replace("set -eo pipefail", "set -eo pipefail; echo $$ >pid"), stubs)
    assert done.returncode == script.KILLED, done.stderr
    assert not (stubs.folder / "runs/x/jobs/1.code").exists()


def test_a_copy_that_takes_all_of_the_walltime_goes_on_in_the_next_job(stubs: Stubs) -> None:
    stubs.says("mpirun", RIGHT)
    stubs.says("legw-hpc", '[ "$1" != data ] || sleep 3')
    made = dataclasses.replace(small("pbs", chain=2, stage=True, bin=str(stubs.bin)), seconds=182)
    (stubs.folder / made.file.parent).mkdir(parents=True)
    done = run(send.text(made), stubs)
    assert done.returncode == 85, done.stderr
    assert [words[0] for words in stubs.calls("legw-hpc")] == ["data"]
    assert stubs.calls("mpirun")[-1][-3:-1] == ["rm", "-rf"]
    assert len(stubs.calls("qsub")) == 1


@pytest.mark.parametrize("scheduler", ["slurm", "pbs"])
def test_a_chain_ends(scheduler: str, stubs: Stubs) -> None:
    """A node that is lost again and again requeues the job without asking the script."""
    stubs.says("mpirun", RIGHT)
    done = run(send.text(small(scheduler, chain=3, bin=str(stubs.bin))), stubs, SLURM_RESTART_COUNT="3", LEGW_LINK="4")
    assert done.returncode == 85
    assert stubs.calls("mpirun") == []


@pytest.mark.parametrize("scheduler", ["slurm", "pbs"])
@pytest.mark.parametrize(("before", "trains"), [(None, True), ("85", True), ("0", False), ("3", False)])
def test_a_chain_queued_ahead(scheduler: str, before: str | None, trains: bool, stubs: Stubs) -> None:
    stubs.says("mpirun", RIGHT)
    made = small(scheduler, ["batch=1024", "out=runs/x"], "ahead", bin=str(stubs.bin), chain=3)
    code = stubs.folder / "runs/x/jobs/1.code"
    code.parent.mkdir(parents=True)
    if before:
        code.write_text(f"{before}\n")
    done = run(send.text(made), stubs)
    assert done.returncode == 0, done.stderr
    assert bool(stubs.calls("legw-hpc")) == trains
    assert code.read_text() == ("0\n" if trains else f"{before}\n")
    assert stubs.calls("scontrol") == stubs.calls("qsub") == []


@pytest.mark.parametrize("scheduler", ["slurm", "pbs"])
def test_a_chain_queued_ahead_ends_with_what_cannot_work(scheduler: str, stubs: Stubs) -> None:
    """All ranks on one host: the jobs behind would find the same."""
    stubs.says("mpirun", "echo here; echo here")
    made = small(scheduler, ["batch=1024", "out=runs/x"], "ahead", bin=str(stubs.bin), chain=3)
    (stubs.folder / "runs/x/jobs").mkdir(parents=True)
    assert run(send.text(made), stubs).returncode == 2
    assert (stubs.folder / "runs/x/jobs/1.code").read_text() == "2\n"
    again = run(send.text(made), stubs)
    assert (again.returncode, "the run has ended with exit code 2" in again.stdout) == (0, True)


@pytest.mark.parametrize("scheduler", ["slurm", "pbs"])
@pytest.mark.parametrize("code", [1, 137, 139])
def test_a_chain_queued_ahead_ends_with_ranks_that_die(code: int, scheduler: str, stubs: Stubs) -> None:
    """Of too much memory, or of a fault in a library: each job of the chain would train until there."""
    stubs.says("mpirun", RIGHT)
    stubs.says("legw-hpc", f"exit {code}")
    made = small(scheduler, ["batch=1024", "out=runs/x"], "ahead", bin=str(stubs.bin), chain=3)
    (stubs.folder / "runs/x/jobs").mkdir(parents=True)
    assert run(send.text(made), stubs).returncode == code
    again = run(send.text(made), stubs)
    assert (again.returncode, f"the run has ended with exit code {code}" in again.stdout) == (0, True)


@pytest.mark.parametrize("scheduler", ["slurm", "pbs"])
def test_a_next_run_that_is_refused_leaves_the_code_and_is_told(scheduler: str, stubs: Stubs) -> None:
    stubs.says("mpirun", RIGHT)
    stubs.says("legw-hpc", "exit 85")
    for command in ("qsub", "scontrol"):
        stubs.says(command, "echo no such queue >&2; exit 38")
    made = small(scheduler, chain=2, bin=str(stubs.bin))
    (stubs.folder / made.file.parent).mkdir(parents=True)
    done = run(send.text(made), stubs)
    assert done.returncode == 85
    assert "legw-hpc: the next run could not be queued; the same command goes on" in done.stderr


@pytest.mark.parametrize("scheduler", ["slurm", "pbs"])
def test_an_array_of_which_one_cell_is_left(scheduler: str, stubs: Stubs) -> None:
    """PBS has no array of one: a plain job, which is that cell's in the record."""
    made = small(scheduler, ["batch=1024,2048"], array=True, to=Path("runs/g"), bin=str(stubs.bin))
    left = dataclasses.replace(made, tasks=made.tasks[1:])
    (name,) = left.runs
    assert send.command(left) == (["qsub", str(left.file)] if scheduler == "pbs" else ["sbatch", "--parsable", str(left.file)])
    stubs.says("mpirun", RIGHT)
    (stubs.folder / left.file.parent).mkdir(parents=True)
    done = run(send.text(left), stubs, SLURM_ARRAY_TASK_ID="0", SLURM_ARRAY_JOB_ID="5")
    assert done.returncode == 0, done.stderr
    assert stubs.calls("legw-hpc") == [["train", "mnist-lstm", "batch=2048", f"out=runs/g/{name}"]]


def test_ranks_have_the_scripts_environment_and_the_output_no_token(stubs: Stubs) -> None:
    stubs.says("mpirun", RIGHT)
    stubs.says("legw-hpc", 'echo "rank: $SLURM_EXPORT_ENV $OMP_NUM_THREADS"')
    done = run(send.text(small("slurm", bin=str(stubs.bin))), stubs, SLURM_EXPORT_ENV="NONE", SLURM_JWT="secret")
    assert done.returncode == 0, done.stderr
    assert "rank: ALL 22\n" in done.stdout
    assert "SLURM_JOB_ID=7\n" in done.stdout
    assert "secret" not in done.stdout


@pytest.mark.parametrize("scheduler", ["slurm", "pbs"])
def test_array(scheduler: str, stubs: Stubs) -> None:
    stubs.says("mpirun", RIGHT)
    stubs.says("legw-hpc", "exit 85")
    stubs.says("qsub", "echo 8.pbs")
    made = small(
        scheduler, ["batch=1024,2048", "lr=0.1,0.2"], array=True, at_once=2, chain=2, to=Path("runs/g"), bin=str(stubs.bin)
    )
    (stubs.folder / made.file.parent).mkdir(parents=True)
    done = run(send.text(made), stubs, SLURM_ARRAY_TASK_ID="2", SLURM_ARRAY_JOB_ID="5", PBS_ARRAY_INDEX="2")
    assert done.returncode == 85, done.stderr
    out = f"out=runs/g/{cells('mnist-lstm', ['batch=2048', 'lr=0.1'])[0].name}"
    assert stubs.calls("legw-hpc") == [["train", "mnist-lstm", "batch=2048", "lr=0.1", out]]
    if scheduler == "slurm":
        assert "--array=0-3%2" in slurm.directives(made)
        assert stubs.calls("scontrol") == [["requeue", "5_2"]]
    else:
        # PBS: "cannot submit non-rerunable Array Job".
        assert send.command(made) == ["qsub", "-r", "y", "-J", "0-3%2", "runs/g/jobs/1.pbs"]
        assert stubs.calls("qsub") == [["-v", "LEGW_LINK=2,LEGW_TASK=2", "runs/g/jobs/1.pbs"]]
        assert [job.id for job in record.jobs(stubs.folder / out.removeprefix("out="))] == ["8.pbs"]


def test_staging(stubs: Stubs) -> None:
    stubs.says("mpirun", RIGHT)
    done = run(send.text(small("pbs", stage=True, bin=str(stubs.bin))), stubs)
    assert done.returncode == 0, done.stderr
    assert stubs.calls("legw-hpc") == [
        ["data", "stage", "data/mnist", "/tmp/legw-7-pbs-1"],
        ["train", "mnist-lstm", "batch=1024", "data.dir=/tmp/legw-7-pbs-1"],
    ]
    assert stubs.calls("mpirun")[-1][-3:] == ["rm", "-rf", "/tmp/legw-7-pbs-1"]


@pytest.mark.parametrize("scheduler", ["slurm", "pbs"])
def test_a_failed_copy_leaves_nothing_on_the_nodes(scheduler: str, stubs: Stubs) -> None:
    stubs.says("mpirun", RIGHT)
    stubs.says("legw-hpc", '[ "$1 $2" != "data stage" ] || exit 7')
    done = run(send.text(small(scheduler, stage=True, bin=str(stubs.bin))), stubs)
    assert done.returncode == 7, done.stderr
    assert [words[0] for words in stubs.calls("legw-hpc")] == ["data"]  # nothing trained
    staged = stubs.calls("legw-hpc")[0][-1]
    assert stubs.calls("mpirun")[-1][-3:] == ["rm", "-rf", staged]


@pytest.mark.parametrize("scheduler", ["slurm", "pbs"])
def test_scripts_in_jobs_take_arguments(scheduler: str, stubs: Stubs) -> None:
    for launcher in ("srun", "mpiexec.hydra"):
        stubs.says(launcher, RIGHT)
    text = next(t for p, t in scripts().items() if p.stem == "skylake" and p.parent.name == scheduler)
    if scheduler == "slurm":
        text = text.replace("set -eo pipefail", 'set -eo pipefail; [ $# -gt 0 ] || exec "$0" mnist-lstm batch=512')
    done = run(text, stubs, ARGS="mnist-lstm batch=512", STAGE="d", CHAIN="2")
    assert done.returncode == 0, done.stderr
    assert stubs.calls("legw-hpc")[-1] == [
        "train",
        "mnist-lstm",
        "batch=512",
        f"data.dir=/tmp/legw-7{'-pbs' * (scheduler == 'pbs')}-1",
    ]


@pytest.mark.parametrize("own", ["", "my.pbs"])
def test_a_chain_by_hand_goes_on_with_the_script_that_was_submitted(own: str, stubs: Stubs) -> None:
    """A copy of one in jobs/ has lines of its own, such as #PBS -A; PBS does not tell a script its name."""
    stubs.says("mpiexec.hydra", RIGHT)
    stubs.says("legw-hpc", '[ "$1" = data ] || exit 85')
    text = next(t for p, t in scripts().items() if (p.stem, p.parent.name) == ("skylake", "pbs"))
    done = run(text, stubs, ARGS="mnist-lstm batch=512", STAGE="d", **({"LEGW_SCRIPT": own} if own else {}))
    assert done.returncode == 85, done.stderr
    (words,) = stubs.calls("qsub")
    assert words[-1] == (own or "jobs/pbs/skylake.pbs")
    assert record._BEGUN.search(done.stdout)  # from there on `status` looks for errors
    assert words[-2].split(",") == ["LEGW_LINK=2", "CHAIN=3", "ARGS", "STAGE", "LEGW_BIN", *(["LEGW_SCRIPT"] if own else [])]
