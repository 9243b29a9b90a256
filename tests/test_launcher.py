"""What each launcher tells a rank by its environment."""

from __future__ import annotations

import pytest

from legw_hpc.comm.base import check_counts, connect
from legw_hpc.errors import InputError
from legw_hpc.launcher import Launch, alone, launched

SLURM = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}  # fmt: skip
HYDRA = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2", "PMI_FD": "9"}
MVAPICH2 = {name.replace("OMPI", "MV2"): value for name, value in OPEN_MPI.items()}
PALS = {"PALS_RANKID": "3", "PALS_LOCAL_RANKID": "1", "PALS_NODEID": "1", "PALS_DEPTH": "8"}

# what started it, its environment (measured, but where noted in launcher.py), the launch
LAUNCHES = {
    "nothing": ({}, Launch("none", 0, 1, 0, 1)),
    "a batch script of SLURM": ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, Launch("none", 0, 1, 0, 1)),
    "srun": (SLURM, Launch("srun", 1, 2, 0, 0)),
    "mpirun": (OPEN_MPI, Launch("Open MPI", 3, 4, 1, 2)),
    "mpirun within SLURM": (SLURM | OPEN_MPI, Launch("Open MPI", 3, 4, 1, 2)),
    "mpiexec.hydra": (HYDRA, Launch("hydra", 3, 4, 1, 2)),
    "mpiexec.hydra within SLURM": (SLURM | HYDRA, Launch("hydra", 3, 4, 1, 2)),
    "srun --mpi=pmi2": (SLURM | {"PMI_RANK": "1", "PMI_SIZE": "2"}, Launch("hydra", 1, 2, 0, 0)),
    "ibrun of Intel MPI": (SLURM | HYDRA, Launch("hydra", 3, 4, 1, 2)),
    "ibrun of MVAPICH2": (SLURM | MVAPICH2, Launch("MVAPICH2", 3, 4, 1, 2)),
    "PALS": (PALS, Launch("PALS", 3, 0, 1, 0)),
    "PALS with PMI": (PALS | {"PMI_RANK": "3", "PMI_SIZE": "4", "PALS_LOCAL_SIZE": "2"}, Launch("PALS", 3, 4, 1, 2)),
    "aprun": ({"ALPS_APP_PE": "3", "ALPS_APP_DEPTH": "32"}, Launch("aprun", 3, 0, 0, 0)),
    "a size that is no number": ({"PMI_RANK": "3", "PMI_SIZE": ""}, Launch("none", 0, 1, 0, 1)),
}


@pytest.mark.parametrize("name", LAUNCHES)
def test_launchers(name: str) -> None:
    environment, launch = LAUNCHES[name]
    assert launched(environment) == launch


# launch, what Horovod counts, is that right
COUNTS = [
    (Launch("srun", 1, 2, 0, 0), 2, True),
    (Launch("srun", 1, 2, 0, 0), 1, False),
    (Launch("aprun", 3, 0, 0, 0), 4, True),
    (Launch("aprun", 3, 0, 0, 0), 1, False),
    (Launch("aprun", 0, 0, 0, 0), 1, True),  # perhaps aprun -n 1; if not, the other ranks stop
]


@pytest.mark.parametrize(("launch", "count", "right"), COUNTS)
def test_counts_are_compared(launch: Launch, count: int, right: bool) -> None:
    if right:
        check_counts(launch, Horovod=count)
        return
    with pytest.raises(InputError, match=f"{launch.launcher}.* started {launch.ranks}, Horovod {count}"):
        check_counts(launch, Horovod=count)


def test_a_launcher_that_tells_no_size_is_no_reason_to_train_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"comm=serial, but the launcher \(aprun\) started several ranks"):
        connect("serial", Launch("aprun", 0, 0, 0, 0))
    monkeypatch.setenv("ALPS_APP_PE", "0")
    with pytest.raises(InputError, match="legw-hpc submit is one process's work; aprun started several ranks"):
        alone("submit")
