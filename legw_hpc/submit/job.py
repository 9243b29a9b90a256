"""A job: recipe, machine and options checked against each other, with the numbers where they do not fit."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from legw_hpc import grid, sweep
from legw_hpc.allowed import check_ranks
from legw_hpc.derived import derive
from legw_hpc.errors import InputError
from legw_hpc.recipe import Recipe, load
from legw_hpc.runlog import JOBS
from legw_hpc.submit.machine import Machine, seconds
from legw_hpc.submit.memory import rank_gb
from legw_hpc.submit.record import holders

TOLD = 3  # cells that a message names


@dataclass(frozen=True)
class Options:
    """What `legw-hpc submit` takes besides recipe and machine.

    Attributes:
        nodes: of the job.
        time: walltime, HH:MM:SS; the machine's longest by default.
        chain: how often the job may run, the first time included.
        array: values with commas are a grid: a task of a job array for every cell that is not finished.
        at_once: tasks of an array that may run at the same time; 0 is as many as there is room for.
        to: TO/CELL are the run folders of an array; the recipe's grid folder by default.
        account, partition: charged, and queued in.
        stage: copy the shards to node-local storage.
        unpack: a file of jobs/pack.sh: the environment, unpacked on every node.
        bin: folder of `legw-hpc`; put on the PATH.
    """

    nodes: int
    time: str = ""
    chain: int = 1
    array: bool = False
    at_once: int = 0
    to: Path | None = None
    account: str = ""
    partition: str = ""
    stage: bool = False
    unpack: str = ""
    bin: str = ""


@dataclass(frozen=True)
class Job:
    """What a script is made of.

    Attributes:
        name: of the job.
        machine: where.
        nodes, seconds: of walltime, asked for.
        threads: per rank.
        tasks: arguments of `legw-hpc train`, one line a task of an array, which ends with out=; none: those the
            script is given.
        chain, at_once, account, partition, unpack, bin: see `Options`.
        stage: the data folder that is copied to node-local storage.
        array: the tasks are those of a grid; one may be left of it.
        file: the script, in the folder that also takes the job's output; relative to where it is submitted.
    """

    name: str
    machine: Machine
    nodes: int
    seconds: int
    threads: int
    tasks: tuple[tuple[str, ...], ...]
    chain: int
    file: Path
    account: str = ""
    partition: str = ""
    bin: str = ""
    stage: str = ""
    unpack: str = ""
    array: bool = False
    at_once: int = 0

    @property
    def ranks(self) -> int:
        """Of the whole job."""
        return self.nodes * self.machine.ranks

    @property
    def runs(self) -> list[str]:
        """Names of the run folders of an array's tasks; empty for one run."""
        return [Path(words[-1].removeprefix("out=")).name for words in self.tasks] if self.array else []

    @property
    def numbers(self) -> str:
        """Of an array's tasks, as schedulers are told: 0-5, or 0-5%2 where two may run at the same time."""
        return f"0-{len(self.tasks) - 1}" + (f"%{self.at_once}" if self.at_once else "")

    @property
    def node_hours(self) -> float:
        """The most that it can take, over chain and array."""
        return self.nodes * self.seconds / 3600 * self.chain * max(1, len(self.tasks))


def make(recipe: str, overrides: Sequence[str], machine: Machine, options: Options) -> Job:
    """A job of one recipe, or an array of its grid.

    Raises:
        InputError: what cannot work, with the numbers.
    """
    if options.array:
        cells = grid.cells(recipe, overrides)
        if len(cells) < 2:
            raise InputError("--array needs a grid: a value with commas, such as batch=1024,2048")
        if options.at_once < 0:
            raise InputError(f"--at-once {options.at_once}: at least 1 task")
        to = options.to or grid.folder(recipe)
        left = sweep.missing(cells, to)
        if not left:
            raise InputError(f"{to}: all {len(cells)} cells of the grid are finished; see legw-hpc sweep --draw")
        left = _nobodys(left, to)
        tasks = tuple((recipe, *cell.overrides, cell.out(to)) for cell in left)
        recipes = [load(name, words) for name, *words in tasks]
        folder = to / JOBS
    else:
        if options.to is not None:
            raise InputError(f"--to {options.to} holds the runs of an --array; one run has out=...")
        if options.at_once:
            raise InputError(f"--at-once {options.at_once} is of the tasks of an --array; there is one run")
        recipes = [load(recipe, overrides)]
        derive(recipes[0])
        tasks = ((recipe, *overrides),)
        folder = recipes[0].out_folder() / JOBS
    first = recipes[0]
    threads = first.threads or machine.threads
    if len({r.threads for r in recipes}) > 1:
        raise InputError("the tasks of an array ask for the same threads; threads differs in the grid")
    if len({r.data.dir for r in recipes}) > 1 and options.stage:
        raise InputError("--stage copies one data folder; data.dir differs in the grid")
    time = _checked_time(machine, options)
    for each in recipes:
        check(each, machine, options.nodes)
    for option, word in (("--account", options.account), ("--partition", options.partition), ("out", str(folder))):
        if word and not re.fullmatch(r"[\w./+=,@~-]+", word):
            raise InputError(f"{option} {word!r}: a job script's directives take no such characters")
    if options.unpack and machine.container:
        raise InputError(
            f"--unpack {options.unpack}: machine {machine.name} runs a container, which has an environment of its own"
        )
    suffix = "sbatch" if machine.scheduler == "slurm" else "pbs"
    return Job(
        name=job_name(first.name if options.array else f"b{first.batch}-{first.name}"),
        machine=machine, nodes=options.nodes, seconds=time, threads=threads, tasks=tasks, chain=options.chain,
        file=folder / f"{next_number(folder)}.{suffix}", account=options.account, partition=options.partition,
        bin=options.bin, stage=str(first.data.folder()) if options.stage else "", unpack=options.unpack,
        array=options.array, at_once=options.at_once,
    )  # fmt: skip


def _nobodys(cells: Sequence[grid.Cell], to: Path) -> list[grid.Cell]:
    """Those that nobody trains or is about to: a task would hold its nodes only to be refused the folder."""
    held = {folder.name: who for folder, who in holders(to / cell.name for cell in cells).items()}
    about = ", ".join(f"{name} ({who})" for name, who in list(held.items())[:TOLD])
    if len(held) == len(cells):
        raise InputError(f"{to}: every cell that is not finished is being trained, or queued: {about}; see legw-hpc status {to}")
    if held:
        print(f"note: {len(held)} of {len(cells)} are left out, being trained or queued: {about}", file=sys.stderr)
    return [cell for cell in cells if cell.name not in held]


def next_number(folder: Path) -> int:
    """Of the next script in a jobs folder."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return 1
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror}") from None
    return max((int(found[1]) for name in names if (found := re.fullmatch(r"(\d+)\.(?:sbatch|pbs)", name))), default=0) + 1


def generic(machine: Machine, file: Path) -> Job:
    """The job of a script in jobs/: recipe and overrides are its arguments, nodes and time the command line's."""
    time = min(seconds(machine.walltime, "walltime"), 24 * 3600)
    return Job(machine.name, machine, 1, time, machine.threads, (), chain=3, file=file)


def job_name(text: str) -> str:
    """What both schedulers take: PBS wants a letter first and, in older releases, at most 15 characters."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-")
    return (name if name[:1].isalpha() else f"j{name}")[:15].rstrip("-")


def _checked_time(machine: Machine, options: Options) -> int:
    if not 1 <= options.nodes <= machine.nodes:
        raise InputError(f"--nodes {options.nodes}: machine {machine.name} gives a job 1 to {machine.nodes} nodes")
    if options.chain < 1:
        raise InputError(f"--chain {options.chain}: a job runs at least once")
    limit = seconds(machine.walltime, f"machine {machine.name}: walltime")
    time = seconds(options.time, "--time") if options.time else limit
    if time > limit:
        raise InputError(
            f"--time {options.time}: machine {machine.name} lets a job run {machine.walltime}; --chain K goes on after it"
        )
    warning = machine.warning_seconds
    if time < 2 * warning:
        # The warning would come before the ranks have started and can take it.
        asked = f"--time {options.time}" if options.time else f"machine {machine.name}: walltime {machine.walltime}"
        raise InputError(f"{asked}: the last {warning} s are for the checkpoint; ask for {2 * warning} s or more")
    return time


def check(recipe: Recipe, machine: Machine, nodes: int) -> None:
    """Refuse nodes that cannot train the recipe: what the ranks cannot share evenly, or what does not fit in memory."""
    ranks, batch, micro = nodes * machine.ranks, recipe.batch, recipe.most_at_once
    layout = f"{nodes} nodes x {machine.ranks} ranks = {ranks} ranks"
    if recipe.threads > machine.cores_per_rank:
        raise InputError(
            f"threads={recipe.threads}: {machine.ranks} ranks share the {machine.cores} cores of a node, "
            f"{machine.cores_per_rank} each"
        )
    if recipe.comm == "serial" and ranks > 1:
        raise InputError(f"comm=serial is one rank alone, not {layout}")
    if batch % ranks:
        # It would train, but at every step all ranks would wait for those with one sample more.
        raise InputError(f"batch {batch} over {layout} leaves {batch % ranks} samples over; {_nodes_that_fit(recipe, machine)}")
    check_ranks(recipe, ranks)
    if recipe.device == "cuda" and not machine.gpus:
        raise InputError(f"device=cuda: machine {machine.name} has no GPUs")
    samples = batch // ranks
    if not _fits(recipe, samples):
        want = f"micro_batch {micro}: {_nodes_that_fit(recipe, machine)}"
        if samples < micro:  # and batch norm would be over another group than the recipe's
            raise InputError(
                f"batch {batch} over {layout} is {samples} samples a rank, less than {want}, or micro_batch={samples}"
            )
        raise InputError(f"batch {batch} over {layout} is {samples} samples a rank, not a multiple of {want}")
    samples = recipe.batches[-1] // ranks  # memory is wanted for the largest
    need = machine.ranks * rank_gb(recipe, samples)
    if need > machine.memory_gb:
        raise InputError(
            f"{layout}: {machine.ranks} x {rank_gb(recipe, samples):.1f} GB a node are more than the {machine.memory_gb:g} GB of "
            f"machine {machine.name}: {_more_nodes(recipe, machine, nodes)}"
            f"a smaller micro_batch (here {min(samples, micro)} samples)"
        )
    gpu = rank_gb(recipe, samples, gpu=True)
    if machine.gpus and machine.gpu_memory_gb and gpu > machine.gpu_memory_gb:
        raise InputError(
            f"{layout}: {gpu:.1f} GB a rank are more than the {machine.gpu_memory_gb:g} GB of a GPU of machine {machine.name}: "
            f"{_more_nodes(recipe, machine, nodes)}a smaller micro_batch (here {min(samples, micro)} samples)"
        )


def _more_nodes(recipe: Recipe, machine: Machine, nodes: int) -> str:
    """For the message: an advice to take more of them, where such a number would be accepted."""
    return "more nodes, or " if any(n > nodes for n in counts(recipe, machine)) else ""


def _fits(recipe: Recipe, samples: int) -> bool:
    """Does a rank's part of the batch go into micro-batches, all of them full?"""
    if not recipe.micro_batch:  # measured, from equal pieces of the part
        return True
    together = recipe.normalised and recipe.options.get("batch_norm") != "sync"
    return samples % recipe.micro_batch == 0 or (samples < recipe.micro_batch and not together)


def counts(recipe: Recipe, machine: Machine) -> list[int]:
    """The numbers of nodes over which the batch goes evenly, in full micro-batches."""
    most = min(machine.nodes, recipe.batch // machine.ranks)
    whole = [n for n in range(1, most + 1) if recipe.batch % (n * machine.ranks) == 0]
    return [n for n in whole if _fits(recipe, recipe.batch // (n * machine.ranks)) and _trains(recipe, n * machine.ranks)]


def _trains(recipe: Recipe, ranks: int) -> bool:
    try:
        check_ranks(recipe, ranks)
    except InputError:
        return False
    return True


def _nodes_that_fit(recipe: Recipe, machine: Machine) -> str:
    """For the message: the node counts that work."""
    fit = counts(recipe, machine)
    if not fit:
        return f"no number of nodes with {machine.ranks} ranks fits"
    return f"{', '.join(map(str, fit[-6:]))} {'node fits' if fit == [1] else 'nodes fit'}"
