"""A machine: what a job script must know of a cluster.  A TOML file in jobs/machines/, or the user's own."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from legw_hpc import strict
from legw_hpc.errors import InputError

MACHINES = Path(__file__).parents[1] / "machines"  # a link to jobs/machines; a wheel has a copy

SLURM_LAUNCHERS = ("srun", "mpirun", "hydra", "ibrun")
PBS_LAUNCHERS = ("mpirun", "hydra", "pals", "aprun")


@dataclass(frozen=True)
class Slurm:
    """The machine under SLURM.

    Attributes:
        launcher: "srun", "mpirun" (Open MPI), "hydra" (Intel MPI, MPICH) or "ibrun" (TACC).
        mpi: srun's MPI plug-in (`srun --mpi=list`).
        partition: --partition wins.
        chain: how a stopped job goes on: "requeue" (the same job), or "ahead" where owners may not
            requeue: all jobs of the chain are submitted at once, each waits for the one before.
        exclusive: whole nodes, with all of their memory.
        options: more directives, verbatim, such as "--constraint=knl".
    """

    launcher: str = "srun"
    mpi: str = "pmix"
    partition: str = ""
    chain: str = "requeue"
    exclusive: bool = True
    options: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Pbs:
    """The machine under PBS.

    Attributes:
        launcher: "mpirun" (Open MPI), "hydra" (Intel MPI, MPICH), "pals" (HPE's mpiexec) or "aprun" (Cray).
        queue: --partition wins.
        select: more of a chunk, such as "ngpus=4".
        chain: how a stopped job goes on: "inside" (it submits its successor), or "ahead" where hosts
            of a job may not submit.
        exclusive: whole hosts.
        options: more directives, verbatim, such as "-l filesystems=home:eagle".
    """

    launcher: str = "mpirun"
    queue: str = ""
    select: str = ""
    chain: str = "inside"
    exclusive: bool = True
    options: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Machine:
    """One class of nodes of one cluster.

    Attributes:
        name: the file's, without .toml.
        description: for people.
        scheduler: "slurm" or "pbs"; --scheduler wins.
        nodes: the most that a job may have.
        walltime: the longest that a job may run, HH:MM:SS.
        cores: physical ones of a node.
        ranks: per node.
        memory_gb: of a node, that jobs may use.
        hardware_threads: per core, as the scheduler counts CPUs: 1 where it counts cores.
        spare_cores: of a node, left to communication (Horovod's thread, MPI) and the system.
        bind: are ranks pinned to their cores.
        gpus: of a node; one rank each.
        gpu_memory_gb: of one.
        local: node-local storage, the same path on every node, for --stage.
        local_gb: its size.
        charge: units for a node-hour.
        like: another machine, whose numbers `plan` takes while nobody has measured this one.
        warning_seconds: before the end of the walltime, when the ranks are told to write a checkpoint and stop.
        setup: shell lines before anything else, verbatim, such as "module load intel".
        environment: exported to every rank.
        container: the words that run a program in it, such as ["apptainer", "exec", "legw.sif"]; none: no container.
        slurm, pbs: what differs between schedulers.
    """

    name: str
    description: str
    scheduler: str
    nodes: int
    walltime: str
    cores: int
    ranks: int
    memory_gb: float
    hardware_threads: int = 1
    spare_cores: int = 0
    bind: bool = False
    gpus: int = 0
    gpu_memory_gb: float = 0.0
    local: str = "/tmp"
    local_gb: float = 0.0
    charge: float = 1.0
    like: str = ""
    # Assumed: a step, a checkpoint and the exit of all ranks; SLURM's warning comes up to 60 s early.
    warning_seconds: int = 180
    setup: list[str] = field(default_factory=list)
    environment: Mapping[str, Any] = field(default_factory=dict)
    container: list[str] = field(default_factory=list)
    slurm: Slurm = Slurm()
    pbs: Pbs = Pbs()

    @property
    def threads(self) -> int:
        """Per rank, to compute with."""
        return (self.cores - self.spare_cores) // self.ranks

    @property
    def cores_per_rank(self) -> int:
        """Its threads' and its share of the spare ones."""
        return self.cores // self.ranks

    @property
    def cpus_per_rank(self) -> int:
        """As the scheduler counts."""
        return self.cores_per_rank * self.hardware_threads

    @property
    def launcher(self) -> str:
        return self.slurm.launcher if self.scheduler == "slurm" else self.pbs.launcher

    @property
    def chain(self) -> str:
        return self.slurm.chain if self.scheduler == "slurm" else self.pbs.chain


def load(name: str, overrides: Sequence[str] = ()) -> Machine:
    """A machine by name or path.

    Args:
        name: of a file in jobs/machines/, or a path that ends in .toml.
        overrides: key=value of its fields, dotted for tables; see `strict.read`.

    Raises:
        InputError: an unknown machine or field, a wrong type, or numbers that do not go together.
    """
    path = Path(name) if name.endswith(".toml") else MACHINES / f"{name}.toml"
    try:
        values = strict.read(path, overrides)
    except FileNotFoundError:
        near = difflib.get_close_matches(name, available(), 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(available())}, or give the path of a .toml file"
        raise InputError(f"unknown machine {name!r}: {hint}") from None
    values.setdefault("name", path.stem)
    machine: Machine = strict.build(Machine, values, f"machine {name}")
    _check(machine)
    return machine


def available() -> list[str]:
    """The names of the packaged machines."""
    return sorted(path.stem for path in MACHINES.glob("*.toml"))


def seconds(text: str, what: str) -> int:
    """HH:MM:SS as seconds.

    Raises:
        InputError: anything else.  Schedulers read 90:00 as minutes or as hours: not accepted.
    """
    found = re.fullmatch(r"(\d{1,4}):([0-5]\d):([0-5]\d)", text)
    if not found or not any(map(int, found.groups())):
        raise InputError(f"{what}: expected HH:MM:SS, not {text!r}")
    hours, minutes, rest = map(int, found.groups())
    return 3600 * hours + 60 * minutes + rest


def clock(total: int) -> str:
    """Seconds as HH:MM:SS."""
    return f"{total // 3600:02}:{total // 60 % 60:02}:{total % 60:02}"


def _check(machine: Machine) -> None:
    where = f"machine {machine.name}"
    least = {
        "nodes": 1,
        "cores": 1,
        "ranks": 1,
        "hardware_threads": 1,
        "spare_cores": 0,
        "warning_seconds": 1,
        "gpus": 0,
        "charge": 0,
        "local_gb": 0,
        "gpu_memory_gb": 0,
    }
    for key, value in least.items():
        if not value <= getattr(machine, key) < math.inf:
            raise InputError(f"{where}: {key} must be finite and at least {value}, not {getattr(machine, key)}")
    if not 0 < machine.memory_gb < math.inf:
        raise InputError(f"{where}: memory_gb must be a positive number, not {machine.memory_gb:g}")
    if machine.threads < 1:
        raise InputError(
            f"{where}: {machine.cores} cores less {machine.spare_cores} spare_cores are too few for {machine.ranks} ranks"
        )
    if machine.gpus and machine.ranks != machine.gpus:
        raise InputError(f"{where}: one rank a GPU: ranks is {machine.ranks}, gpus is {machine.gpus}")
    seconds(machine.walltime, f"{where}: walltime")
    choices = {
        "scheduler": (machine.scheduler, ("slurm", "pbs")),
        "slurm.launcher": (machine.slurm.launcher, SLURM_LAUNCHERS),
        "slurm.chain": (machine.slurm.chain, ("requeue", "ahead")),
        "pbs.launcher": (machine.pbs.launcher, PBS_LAUNCHERS),
        "pbs.chain": (machine.pbs.chain, ("inside", "ahead")),
    }
    for key, (chosen, known) in choices.items():
        if chosen not in known:
            raise InputError(f"{where}: unknown {key} {chosen!r}: one of {', '.join(known)}")
    if not re.fullmatch(r"[\w.-]+", machine.name):  # it is written into the script
        raise InputError(f"{where}: the file's name has characters that do not belong into a script: {machine.name!r}")
    for key, lines in {
        "description": (machine.description,),
        "setup": machine.setup,
        "container": machine.container,
        "slurm.options": machine.slurm.options,
        "pbs.options": machine.pbs.options,
    }.items():
        if not all(isinstance(line, str) and line and "\n" not in line for line in lines):
            raise InputError(f"{where}: {key} must be of single lines of text, not {lines!r}")
    for key, setting in machine.environment.items():
        if not re.fullmatch(r"[A-Za-z_]\w*", key) or type(setting) not in (str, int):
            raise InputError(
                f"{where}: environment.{key} must be text, or a whole number, under the name of a variable, not {setting!r}"
            )
    if "KMP_AFFINITY" in machine.environment and not machine.bind:
        # Unpinned, every rank's first thread is bound to core 0 (tensorflow#29354).
        raise InputError(f"{where}: environment.KMP_AFFINITY needs bind = true")
    if not machine.local.startswith("/"):
        raise InputError(f"{where}: local must be an absolute path, not {machine.local!r}")
    words = {
        "slurm.mpi": machine.slurm.mpi, "slurm.partition": machine.slurm.partition, "pbs.queue": machine.pbs.queue,
        "pbs.select": machine.pbs.select, "local": machine.local,
    }  # fmt: skip
    for key, word in words.items():
        if not re.fullmatch(r"[\w./+=:-]*", word):
            raise InputError(f"{where}: {key} has characters that do not belong there: {word!r}")
