"""The command that starts the ranks, for each launcher, as words of a bash array.

`nodes` and `ranks` (per node) are variables of the script.  No `btl tcp` and no `^openib`: on a CPU
cluster MPI is the data path.  No horovodrun: it wants ssh and sets those.
"""

from __future__ import annotations

from legw_hpc.submit.machine import Machine


def command(machine: Machine) -> str:
    """Start all ranks of the job; the program follows."""
    cores, bind, total = machine.cores_per_rank, machine.bind, '"$((nodes * ranks))"'
    match machine.launcher:
        case "srun":
            # -c again: since 22.05 srun does not take it from sbatch.
            return (
                f'srun --mpi={machine.slurm.mpi} --nodes="$nodes" --ntasks={total} --ntasks-per-node="$ranks" '
                f"-c {machine.cpus_per_rank} --cpu-bind={'cores' if bind else 'none'}"
            )
        case "mpirun":
            binding = f'"ppr:$ranks:node:PE={cores}" --bind-to core' if bind else '"ppr:$ranks:node" --bind-to none'
            return f"mpirun -np {total} --map-by {binding}"
        case "hydra":
            return f'mpiexec.hydra -n {total} -ppn "$ranks" -genvall'
        case "ibrun":
            return "ibrun"  # takes nodes and ranks from SLURM
        case "pals":
            return f'mpiexec -n {total} --ppn "$ranks" --depth {cores} --cpu-bind {"depth" if bind else "none"}'
        case "aprun":
            return f'aprun -n {total} -N "$ranks" -d {cores} -j 1 -cc {"depth" if bind else "none"}'
    raise AssertionError(machine.launcher)


def environment(machine: Machine) -> dict[str, str]:
    """What a launcher is told by variables: the binding of Intel MPI's ranks, and of MPICH's."""
    if machine.launcher not in ("hydra", "ibrun"):
        return {}
    if not machine.bind:
        return {"I_MPI_PIN": "0"}  # MPICH does not bind by itself
    return {"I_MPI_PIN_DOMAIN": f"{machine.cpus_per_rank}:compact", "HYDRA_BINDING": f"core:{machine.cores_per_rank}"}
