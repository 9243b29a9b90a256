"""legw-hpc doctor where something is broken: a line and a remedy, no traceback."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

HERE = "import sys; from legw_hpc import cli, doctor; {before}; cli.main(['doctor'])"


def doctor(before: str, **environment: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", HERE.format(before=before)]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, env={**os.environ, **environment})


@pytest.mark.parametrize(("module", "check"), [("torch", "device"), ("h5py", "HDF5")])
def test_a_library_that_cannot_be_imported_is_a_fault_with_a_remedy(module: str, check: str) -> None:
    done = doctor(f"sys.modules['{module}'] = None")
    assert done.returncode == 2, done.stderr
    assert re.search(rf"^FAULT  {check}: ModuleNotFoundError: .*{module}.*\n       remedy: run `make setup`", done.stdout, re.M)
    assert re.search(r"^ok     free space: ", done.stdout, re.M)  # what comes after it is looked at too
    assert re.fullmatch(r"legw-hpc: doctor: \d of 8 checks failed\n", done.stderr)


def test_a_launcher_that_is_not_there_is_named() -> None:
    done = doctor("pass", MPIRUN="/nowhere/mpirun")
    assert re.search(r"^FAULT  MPI: no mpirun or mpiexec; MPIRUN is /nowhere/mpirun$", done.stdout, re.M), done.stdout


def test_a_fault_of_another_rank_is_told_with_its_host() -> None:
    before = "doctor.FREE_BYTES, doctor._agree = 1 << 80, lambda: 'x'; cli.GRACE_SECONDS = 0"
    done = doctor(
        before, OMPI_COMM_WORLD_RANK="1", OMPI_COMM_WORLD_SIZE="2", OMPI_COMM_WORLD_LOCAL_RANK="1", OMPI_COMM_WORLD_LOCAL_SIZE="2"
    )
    assert done.returncode == 2
    assert re.fullmatch(r"(rank 1 on \S+: (FAULT  .* GiB free in .*|       remedy: make room.*)\n){2}", done.stdout), done.stdout
