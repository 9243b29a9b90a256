"""Job scripts: two dialects that ask for the same, quoting, refusals, chains, and where the ranks are."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from legw_hpc.errors import InputError
from legw_hpc.submit import machine as machines
from legw_hpc.submit import pbs, send, slurm
from legw_hpc.submit.__main__ import scripts
from legw_hpc.submit.job import Job, Options, job_name, make
from legw_hpc.submit.machine import Machine, available, load
from tests.stubs import Stubs

ROOT = Path(__file__).parents[1]
BATCHES = (1024, 2048, 4096, 8192, 16384, 32768)


def job(machine: str, batch: int = 1024, scheduler: str = "slurm", changes: tuple[str, ...] = (), **options: object) -> Job:
    """Of ResNet-50 with 32 images a rank, on as many nodes as that makes."""
    where = load(machine, [f"scheduler={scheduler}", "nodes=4096", *changes])
    chosen: dict[str, object] = {"nodes": batch // (32 * where.ranks), "time": "01:00:00"} | options
    return make("imagenet-resnet50", [f"batch={batch}"], where, Options(**chosen))  # type: ignore[arg-type]


def asked(text: str) -> dict[str, int | str]:
    """What a script of either dialect asks for."""

    def find(*patterns: str) -> str:
        found = next(match[1] for pattern in patterns if (match := re.search(pattern, text, re.M)))
        return str(found)

    return {
        "nodes": find(r"^#SBATCH --nodes=(\d+)$", r"^#PBS -l select=(\d+):"),
        "ranks": find(r"^#SBATCH --ntasks-per-node=(\d+)$", r"^#PBS .*:mpiprocs=(\d+)"),
        "walltime": find(r"^#SBATCH --time=(.*)$", r"^#PBS -l walltime=(.*)$"),
        "threads": find(r"^export OMP_NUM_THREADS=(\d+)$"),
        "exclusive": bool(re.search(r"^#SBATCH --exclusive$|^#PBS -l place=scatter:excl$", text, re.M)),
    }


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", available())
def test_both_dialects_ask_for_the_same(name: str, batch: int) -> None:
    texts = {s: send.text(job(name, batch, s, chain=3)) for s in ("slurm", "pbs")}
    assert asked(texts["slurm"]) == asked(texts["pbs"])
    where = load(name)
    assert asked(texts["slurm"])["ranks"] == str(where.ranks)
    assert asked(texts["slurm"])["nodes"] == str(batch // 32 // where.ranks)
    cpus = re.search(r"--cpus-per-task=(\d+)", texts["slurm"]), re.search(r"ncpus=(\d+)", texts["pbs"])
    assert cpus[0]
    assert cpus[1]
    assert int(cpus[0][1]) * where.ranks == int(cpus[1][1]) <= where.cores * where.hardware_threads
    assert re.search(rf"ompthreads={where.threads}[:\n]", texts["pbs"])


def test_slurm_directives() -> None:
    made = job("knl", 32768, chain=5, account="A1", partition="long", changes=("walltime=12:00:00",), time="12:00:00")
    assert slurm.directives(made) == [
        "--job-name=b32768-imagenet", "--nodes=512", "--ntasks-per-node=2", "--cpus-per-task=136", "--time=12:00:00",
        "--signal=B:USR1@180", "--requeue", "--open-mode=append",
        "--output=runs/imagenet-resnet50-lars-legw-b32768-s1/jobs/%j.out", "--exclusive", "--mem=0", "--account=A1",
        "--partition=long", "--constraint=knl,quad,cache",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "asked"),
    [("slurm.launcher=srun", ["--mem=0"]), ("slurm.exclusive=false", []), ("slurm.launcher=ibrun", []),
     ('slurm.options=["--mem-bind=local"]', ["--mem=0", "--mem-bind=local"]),
     ('slurm.options=["--mem-per-cpu=2G"]', ["--mem-per-cpu=2G"])],
)  # fmt: skip
def test_memory_of_whole_nodes(change: str, asked: list[str]) -> None:
    assert [line for line in slurm.directives(job("skylake", changes=(change,))) if line.startswith("--mem")] == asked


def test_pbs_directives() -> None:
    made = job("gpu4", 1024, "pbs", account="A1", partition="prod", changes=('pbs.options=["-l filesystems=home"]',))
    assert pbs.directives(made) == [
        "-N b1024-imagenet", "-l select=8:ncpus=64:mpiprocs=4:ompthreads=7:ngpus=4", "-l place=scatter:excl",
        "-l walltime=01:00:00", "-r n", "-j oe", "-k oed", "-o runs/imagenet-resnet50-lars-legw-b1024-s1/jobs/",
        "-A A1", "-q prod", "-l filesystems=home",
    ]  # fmt: skip


@pytest.mark.parametrize("path", sorted(scripts()), ids=str)
def test_scripts_in_jobs_are_our_output(path: Path) -> None:
    assert (ROOT / path).read_text() == scripts()[path], "python -m legw_hpc.submit writes them anew"
    assert os.access(ROOT / path, os.X_OK)
    assert {p.name for p in (ROOT / path.parent).iterdir()} == {p.name for p in scripts() if p.parent == path.parent}


LAUNCHERS = [
    ("slurm", "srun", 'srun --mpi=pmix --nodes="$nodes" --ntasks="$((nodes * ranks))" --ntasks-per-node="$ranks" -c 48'),
    ("slurm", "mpirun", 'mpirun -np "$((nodes * ranks))" --map-by "ppr:$ranks:node:PE=24" --bind-to core'),
    ("slurm", "hydra", 'mpiexec.hydra -n "$((nodes * ranks))" -ppn "$ranks" -genvall'),
    ("slurm", "ibrun", "ibrun"),
    ("pbs", "mpirun", 'mpirun -np "$((nodes * ranks))" --map-by "ppr:$ranks:node:PE=24" --bind-to core "${hosts[@]}"'),
    ("pbs", "hydra", 'mpiexec.hydra -n "$((nodes * ranks))" -ppn "$ranks" -genvall -f "$work/hosts"'),
    ("pbs", "pals", 'mpiexec -n "$((nodes * ranks))" --ppn "$ranks" --depth 24 --cpu-bind depth'),
    ("pbs", "aprun", 'aprun -n "$((nodes * ranks))" -N "$ranks" -d 24 -j 1 -cc depth'),
]


def variants() -> dict[str, str]:
    """A script of every kind, by what it shows."""
    made = {str(path): text for path, text in scripts().items()}
    for scheduler, launcher, _ in LAUNCHERS:
        made[f"{scheduler} {launcher}"] = send.text(job("skylake", 1024, scheduler, (f"{scheduler}.launcher={launcher}",)))
    for scheduler in ("slurm", "pbs"):
        for chain in ({"slurm": "requeue", "pbs": "inside"}[scheduler], "ahead"):
            changes = (f"{scheduler}.chain={chain}",)
            made[f"{scheduler} chain {chain}"] = send.text(job("skylake", 1024, scheduler, changes, chain=4, stage=True))
            where = load("skylake", [f"scheduler={scheduler}", *changes])
            array = make("mnist-lstm", ["batch=1024,2048", "lr=0.1,0.2"], where, Options(nodes=4, array=True, chain=2))
            made[f"{scheduler} array {chain}"] = send.text(array)
        made[f"{scheduler} set-up"] = send.text(job("knl", 1024, scheduler, ('setup=["module load x"]', "bind=true")))
    return made


@pytest.mark.parametrize(("scheduler", "launcher", "words"), LAUNCHERS)
def test_launchers(scheduler: str, launcher: str, words: str) -> None:
    text = variants()[f"{scheduler} {launcher}"]
    assert f"launch=({words}" in text
    assert ("export I_MPI_PIN_DOMAIN=48:compact" in text) == (launcher in ("hydra", "ibrun"))


def test_no_script_slows_mpi_down() -> None:
    for text in variants().values():
        assert not re.search(r"btl|openib|horovodrun", text)


@pytest.mark.parametrize("name", sorted(variants()))
def test_bash_reads_it(name: str, tmp_path: Path) -> None:
    file = tmp_path / "script"
    file.write_text(variants()[name])
    done = subprocess.run(["bash", "-n", str(file)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    lines = file.read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    assert not [line for line in lines[first:] if line.startswith(("#SBATCH", "#PBS"))]  # would be ignored in silence


SHELLCHECK = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


@pytest.mark.skipif(SHELLCHECK is None, reason="no shellcheck beside this Python or on the PATH")
def test_shellcheck(tmp_path: Path) -> None:
    files = []
    for name, text in variants().items():
        files.append(tmp_path / name.replace("/", " "))
        files[-1].write_text(text)
    others = [ROOT / ".ci/run", *(ROOT / "jobs").glob("*.sh")]
    done = subprocess.run([str(SHELLCHECK), *map(str, files + others)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# What cannot work: recipe, overrides, machine, its changes, options, and what the message says.
REFUSED = [
    ("imagenet-resnet50", ["batch=32768"], "skylake", [], {"nodes": 600}, "1200 ranks leaves 368 samples over; .*256, 512 nodes"),
    ("imagenet-resnet50", ["batch=1024"], "skylake", [], {"nodes": 32}, "16 samples a rank, less than micro_batch 32"),
    ("imagenet-resnet50", ["batch=1056"], "skylake", [], {"nodes": 11}, "48 samples a rank, not a multiple of micro_batch 32"),
    ("imagenet-resnet50", ["batch=1024"], "skylake", [], {"nodes": 900}, "900: machine skylake gives a job 1 to 868"),
    ("imagenet-resnet50", ["batch=1024"], "skylake", [], {"nodes": 0}, "--nodes 0"),
    ("imagenet-resnet50", [], "skylake", [], {"nodes": 1, "time": "49:00:00"}, "49:00:00.*48:00:00"),
    ("imagenet-resnet50", [], "skylake", [], {"nodes": 1, "time": "90:00"}, "expected HH:MM:SS, not '90:00'"),
    ("imagenet-resnet50", [], "skylake", [], {"nodes": 1, "time": "00:05:00"}, "the last 180 s"),
    ("imagenet-resnet50", [], "skylake", [], {"nodes": 1, "chain": 0}, "--chain 0"),
    ("imagenet-resnet50", ["batch=32768", "micro_batch=2048"], "skylake", [], {"nodes": 8}, r"2 x 177.\d GB .* 180 GB"),
    ("imagenet-resnet50", ["batch=4096", "micro_batch=512"], "gpu4", [], {"nodes": 2}, "44.4 GB a rank are more than the 40 GB"),
    ("mnist-lstm", ["threads=25"], "skylake", [], {"nodes": 1}, "threads=25: 2 ranks share the 48 cores"),
    ("mnist-lstm", [], "skylake", [], {"nodes": 1, "partition": "a;b"}, "--partition 'a;b'"),
    ("mnist-lstm", ["out=a b"], "skylake", [], {"nodes": 1}, "out 'a b/jobs'"),
    ("mnist-lstm", [], "skylake", [], {"nodes": 1, "array": True}, "--array needs a grid"),
    ("mnist-lstm", ["batch=1024,1027"], "skylake", [], {"nodes": 1, "array": True}, "batch 1027"),
    ("mnist-lstm", ["batch=99999"], "skylake", [], {"nodes": 1}, "99999 is larger than the training data"),
]  # fmt: skip


@pytest.mark.parametrize(("recipe", "overrides", "machine", "changes", "options", "words"), REFUSED)
def test_refused(
    recipe: str, overrides: list[str], machine: str, changes: list[str], options: dict[str, int], words: str
) -> None:
    with pytest.raises(InputError, match=words) as error:
        make(recipe, overrides, load(machine, changes), Options(**options))  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_a_measured_micro_batch_fits_every_even_share() -> None:
    for overrides in (["batch=8000", "micro_batch=0"], ["batch=8000", "micro_batch=100"]):
        assert make("mnist-lstm", overrides, load("skylake", []), Options(nodes=5))
    with pytest.raises(InputError, match="not a multiple of micro_batch 128"):
        make("mnist-lstm", ["batch=8000"], load("skylake", []), Options(nodes=5))


def test_nodes_are_named_that_the_ranks_would_take() -> None:
    with pytest.raises(InputError, match=r"1024 .* leaves 4 samples over; 16 nodes fit"):
        make("imagenet-resnet50", ["batch=1024", "options.batch_norm=rank"], load("skylake", []), Options(nodes=3))
    with pytest.raises(InputError, match="batch_norm=rank: a rank's 64 samples"):
        make("imagenet-resnet50", ["batch=1024", "options.batch_norm=rank"], load("skylake", []), Options(nodes=8))


WRONG_MACHINES = [
    (["corse=4"], "unknown key corse: did you mean cores"),
    (["slurm.plugin=pmix"], "unknown key slurm.plugin"),
    (["ranks=true"], "ranks must be a whole number"),
    (["memory_gb=nan"], "memory_gb must be a positive number, not nan"),
    (["gpu_memory_gb=nan"], "gpu_memory_gb must be finite"),
    (["scheduler=lsf"], "unknown scheduler 'lsf': one of slurm, pbs"),
    (["pbs.launcher=srun"], "unknown pbs.launcher 'srun'"),
    (["ranks=60"], "48 cores less 4 spare_cores are too few for 60 ranks"),
    (["gpus=4"], "one rank a GPU: ranks is 2, gpus is 4"),
    (["bind=false"], "KMP_AFFINITY needs bind"),
    (["walltime=2 days"], "walltime: expected HH:MM:SS"),
    (["environment.A=1.5"], "environment.A must be text, or a whole number"),
    (["environment.A=true"], "environment.A must be text, or a whole number"),
    (["local="], "local must be an absolute path, not ''"),
    (["local=scratch"], "local must be an absolute path, not 'scratch'"),
    (["slurm.mpi=pmix;rm"], "slurm.mpi has characters"),
    (["slurm.partition=a;b"], "slurm.partition has characters"),
    (["slurm.options=[1]"], "slurm.options must be of single lines"),
    (['description="a\\nb"'], "description must be of single lines"),
]


@pytest.mark.parametrize(("changes", "words"), WRONG_MACHINES)
def test_wrong_machine(changes: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        load("skylake", changes)


def test_a_variable_may_be_a_whole_number() -> None:
    assert "export KMP_BLOCKTIME=0\n" in send.text(job("skylake", changes=("environment.KMP_BLOCKTIME=0",)))


def test_unknown_machine() -> None:
    with pytest.raises(InputError, match="did you mean skylake"):
        load("skylark")


@pytest.mark.parametrize("kind", [Machine, machines.Slurm, machines.Pbs])
def test_every_field_is_documented(kind: type) -> None:
    told = re.findall(r"^        ([\w, ]+): ", inspect.getsource(kind), re.M)
    assert {name for names in told for name in names.split(", ")} >= {f.name for f in dataclasses.fields(kind)}


@pytest.mark.parametrize("name", available())
def test_every_value_says_where_it_is_from(name: str) -> None:
    for line in (machines.MACHINES / f"{name}.toml").read_text().splitlines():
        assert "=" not in line or re.search(r"# \w", line) or line.startswith("description = "), line


@pytest.mark.parametrize("dry", ["", "1"])
def test_a_ladder_that_a_machine_is_too_small_for_submits_none(dry: str, tmp_path: Path) -> None:
    (tmp_path / "sbatch").write_text(f"#!/bin/sh\ntouch {tmp_path}/called\n")
    (tmp_path / "sbatch").chmod(0o755)
    path = f"{tmp_path}:{Path(sys.executable).parent}:/usr/bin:/bin"
    words = ["bash", str(ROOT / "jobs/ladder.sh"), "knl-stampede2", "--set", "nodes=16"]
    environment = os.environ | {"PATH": path, "DRY_RUN": dry}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, (tmp_path / "called").exists()) == (2, "", False)
    assert done.stderr.rstrip().endswith("--nodes 32: machine knl-stampede2 gives a job 1 to 16 nodes")


@pytest.mark.parametrize(
    ("text", "name"),
    [("b1024-mnist", "b1024-mnist"), ("3 à b", "j3-b"), ("x" * 40, "x" * 15), ("a;rm -rf", "a-rm--rf"), ("", "j")],
)
def test_job_names(text: str, name: str) -> None:
    assert job_name(text) == name


@pytest.mark.parametrize(
    ("machine", "images", "said"),
    [
        ("skylak", "", "it knows the ranks of knl, knl-stampede2, skylake, gpu4 and gpu8, not of skylak: IMAGES="),
        ("mine.toml", "48", "IMAGES=48: a node's images do not go evenly into a batch of 1024"),
    ],
)
def test_a_ladder_of_nodes_that_are_not_known_is_refused(machine: str, images: str, said: str) -> None:
    environment = os.environ | {"DRY_RUN": "1", "IMAGES": images}
    done = subprocess.run(["bash", str(ROOT / "jobs/ladder.sh"), machine], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"jobs/ladder.sh: {said}")
    assert done.stderr.count("\n") == 1


def test_ladder(stubs: Stubs) -> None:
    """What it would submit; here `make` says that each can be."""
    for name in ("knl", "skylake", "gpu4", "gpu8"):
        done = subprocess.run(
            ["bash", str(ROOT / "jobs/ladder.sh"), name, "seed=2", "--chain", "2"],
            env=stubs.environment | {"DRY_RUN": "1"}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert [words[-1] for words in stubs.calls("legw-hpc")[-6:]] == ["--dry-run"] * 6
        lines = [shlex.split(line) for line in done.stdout.splitlines()]
        assert [int(line[3].removeprefix("batch=")) for line in lines] == list(BATCHES)
        for words, batch in zip(lines, BATCHES, strict=True):
            assert words[4:7] == ["seed=2", "--chain", "2"]
            nodes = int(words[-1])
            assert nodes * load(name).ranks * 32 == batch
            make("imagenet-resnet50", [f"batch={batch}", "seed=2"], load(name), Options(nodes=nodes))
