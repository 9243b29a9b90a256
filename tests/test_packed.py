"""The environment on the nodes: packed into a file that unpacks itself, or in a container."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from legw_hpc import runlog
from legw_hpc.errors import InputError
from legw_hpc.submit import send
from legw_hpc.submit.job import Options, make
from legw_hpc.submit.machine import load
from tests.conftest import Cli
from tests.stubs import RIGHT, Stubs, run

ROOT = Path(__file__).parents[1]
PACKAGES = sysconfig.get_path("purelib")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small environment, packed: an interpreter, legw-hpc as pip installs it, and this package."""
    folder = tmp_path_factory.mktemp("packed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "v"], check=True)
    script = folder / "v/bin/legw-hpc"
    script.write_text(f"#!{folder}/v/bin/python\nimport sys, legw_hpc\nprint(sys.prefix, legw_hpc.__file__, *sys.argv[1:])\n")
    script.chmod(0o755)
    shutil.copytree(ROOT / "legw_hpc", folder / "a path/legw_hpc", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "a path/legw_hpc/COMMIT").write_text(str(runlog.commit()))
    environment = os.environ | {"VENV": str(folder / "v"), "PYTHONPATH": f"{folder / 'a path'}:{PACKAGES}"}
    words = [ROOT / "jobs/pack.sh", folder / "env.run"]
    done = subprocess.run(words, env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("v", "a path"):  # nothing may be read there any more
        shutil.rmtree(folder / name)
    assert [path.name for path in folder.iterdir()] == ["env.run"]
    return folder / "env.run"


def unpack(file: Path, folder: Path, processes: int = 3) -> list[tuple[int, str]]:
    """As the ranks of a node do, all at once; exit code and stderr of each."""
    many = [subprocess.Popen(["bash", file, folder], stderr=subprocess.PIPE, text=True) for _ in range(processes)]
    said = [process.communicate(timeout=60)[1] for process in many]
    return [(process.returncode, text) for process, text in zip(many, said, strict=True)]


def test_one_process_unpacks_what_all_use(packed: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert unpack(packed, home) == [(0, "")] * 3
    environment = {"PATH": f"{home}/bin:/usr/bin:/bin", "PYTHONPATH": str(home)}
    done = subprocess.run(["legw-hpc", "plan"], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [str(home), str(home / "legw_hpc/__init__.py"), "plan"], done.stderr
    environment["PYTHONPATH"] += f":{PACKAGES}"
    ask = "from legw_hpc import runlog; print(runlog.commit())"
    done = subprocess.run(["python", "-c", ask], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == str(runlog.commit())
    assert not (home / ".tar").exists()


def test_a_damaged_file_is_refused_by_all(packed: Path, tmp_path: Path) -> None:
    content = bytearray(packed.read_bytes())
    content[-5000] ^= 1
    (tmp_path / "env.run").write_bytes(content)
    ends = unpack(tmp_path / "env.run", tmp_path / "home")
    assert [code for code, _ in ends] == [2, 2, 2]
    (said,) = [text for _, text in ends if text]
    assert re.fullmatch(rf"legw-hpc: {tmp_path}/env.run: has checksum \w+, and had \w+, on .*\n", said)


def test_a_process_that_is_killed_is_not_waited_for(packed: Path, tmp_path: Path) -> None:
    """While it copies; or before it wrote its number, and then there is a limit."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/tail").write_text("#!/bin/sh\nkill -KILL $PPID\n")
    (tmp_path / "bin/tail").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    killed = subprocess.run(["bash", packed, tmp_path / "home"], env=environment)
    assert killed.returncode == -9
    for code, said in unpack(packed, tmp_path / "home"):
        assert (code, bool(re.search(rf"process \d+, which unpacked it in {tmp_path}/home, is gone, on ", said))) == (2, True)
    (tmp_path / "env.run").write_bytes(packed.read_bytes().replace(b" limit=1200 ", b" limit=1 ", 1))
    (tmp_path / "other").mkdir()
    ((code, said),) = unpack(tmp_path / "env.run", tmp_path / "other", 1)
    assert (code, f"is not unpacked in {tmp_path}/other after 1 s, on " in said) == (2, True)


def test_a_folder_that_cannot_be_made_is_named(packed: Path) -> None:
    for code, said in unpack(packed, Path("/proc/home")):
        assert (code, "cannot make the folder /proc/home" in said) == (2, True)


@pytest.mark.parametrize("scheduler", ["slurm", "pbs"])
def test_ranks_run_from_the_copy(scheduler: str, packed: Path, tmp_path: Path, stubs: Stubs) -> None:
    stubs.says("mpirun", RIGHT.replace("legw-hpc ]", 'bash ] && [ "$1" != env ]'))
    changes = [f"scheduler={scheduler}", f"{scheduler}.launcher=mpirun", f"local={tmp_path / 'local'}"]
    (tmp_path / "local").mkdir()
    job = make("mnist-lstm", ["batch=1024"], load("skylake", changes), Options(nodes=2, bin=str(stubs.bin), unpack=str(packed)))
    done = run(send.text(job), stubs)
    assert done.returncode == 0, done.stderr
    home = f"{tmp_path}/local/legw-env-7{'-pbs' * (scheduler == 'pbs')}-1"
    assert f"{home} {home}/legw_hpc/__init__.py train mnist-lstm batch=1024" in done.stdout
    assert stubs.calls("legw-hpc") == []  # not the shared one
    assert stubs.calls("mpirun")[-1][-3:] == ["rm", "-rf", home]


@pytest.mark.parametrize("scheduler", ["slurm", "pbs"])
def test_ranks_run_in_a_container(scheduler: str, stubs: Stubs) -> None:
    stubs.says("mpirun", RIGHT.replace("legw-hpc ]", "apptainer ]"))
    stubs.says("apptainer")
    (stubs.bin / "legw-hpc").unlink()
    changes = [f"scheduler={scheduler}", f"{scheduler}.launcher=mpirun", 'container=["apptainer", "exec", "my image.sif"]']
    job = make("mnist-lstm", ["batch=1024"], load("skylake", changes), Options(nodes=2, stage=True))
    done = run(send.text(job), stubs)
    assert done.returncode == 0, done.stderr
    first, versions, stage, train = stubs.calls("apptainer")
    assert first == ["exec", "my image.sif", "legw-hpc", "--help"]
    assert versions[2] == "python"
    assert stage[2:5] == ["legw-hpc", "data", "stage"]
    assert train[:5] == ["exec", "my image.sif", "legw-hpc", "train", "mnist-lstm"]


def test_refused(cli: Cli, shards: Path) -> None:
    words = ["submit", "mnist-lstm", f"data.dir={shards}", "--machine", "skylake", "--nodes", "1", "--unpack", "nowhere.run"]
    done = cli(*words)
    assert (done.returncode, done.stderr) == (2, "legw-hpc: --unpack nowhere.run: no such file; jobs/pack.sh makes it\n")
    with pytest.raises(InputError, match=r"--unpack e\.run: machine skylake runs a container"):
        make("mnist-lstm", [], load("skylake", ['container=["shifter"]']), Options(nodes=1, unpack="e.run"))


def test_the_container_has_what_the_set_up_needs() -> None:
    """There is no apptainer here: what the definition names, is there."""
    text = (ROOT / "jobs/apptainer.def").read_text()
    sections = dict(re.findall(r"^%(\w+)\n(.*?)(?=^%|\Z)", text, re.M | re.S))
    copied = dict(line.split() for line in sections["files"].strip().splitlines())
    assert all((ROOT / source).exists() and to == f"/opt/legw/{source}" for source, to in copied.items())
    assert {"Makefile", "README.md", "setup.py", ".setup", "legw_hpc", "jobs"} == set(copied)  # legw_hpc/machines leads to jobs
    assert {"g++", "make", "libopenmpi-dev", "openmpi-bin", "python3-dev", "python3-venv"} <= set(sections["post"].split())
    (place,) = re.findall(r"make setup VENV=(\S+)$", sections["post"], re.M)
    assert f"PATH={place}/bin:" in sections["environment"]
    assert f"{place}/bin/legw-hpc" in sections["test"]
    for body in (sections["setup"], sections["post"], sections["test"], sections["runscript"]):
        done = subprocess.run(["bash", "-n"], input=body, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
