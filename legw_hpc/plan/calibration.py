"""The numbers of a machine that the model takes: a TOML file in jobs/machines/performance/, one for each machine.

Every number is three, `best`, `likely` and `worst`, with the `source` that it comes from and, where it
was measured, what it was `measured_on`.  "Assumed" and "derived" are sources too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from legw_hpc import recipe as recipes
from legw_hpc import sizes, strict
from legw_hpc.errors import InputError
from legw_hpc.plan.allreduce import Link
from legw_hpc.plan.model import Speeds
from legw_hpc.recipe import Recipe
from legw_hpc.submit.machine import MACHINES, Machine

FOLDER = "performance"
CASES = ("best", "likely", "worst")
# No quantity in its unit is beyond (assumed); what is would only overflow elsewhere.
LARGEST = 1e15
MEASURE = "in a checkout, python -m benchmarks.calibrate {recipe} --machine {machine}"
COPY = "my-site/{name}.toml, your copy of its file"


@dataclass(frozen=True)
class Number:
    """One quantity, and how far it is known.

    Attributes:
        best, likely, worst: in the unit that the field's name ends with.
        source: a publication, "measured", "derived from ..." or "assumed".
        measured_on: hardware, software and date.
    """

    best: float
    likely: float
    worst: float
    source: str
    measured_on: str = ""


@dataclass(frozen=True)
class Network:
    """Between nodes.

    Attributes:
        alpha_us: a message.
        gb_per_s: each way, of one node, as an allreduce attains it.
    """

    alpha_us: Number
    gb_per_s: Number


@dataclass(frozen=True)
class Memory:
    """Of a node.

    Attributes:
        alpha_us: a message between two ranks of a node.
        gb_per_s: that a rank passes on to another while all ranks of the node do.
        add_gb_per_s: of two buffers that a rank adds up.
        copy_gb_per_s: that a rank copies.
    """

    alpha_us: Number
    gb_per_s: Number
    add_gb_per_s: Number
    copy_gb_per_s: Number


@dataclass(frozen=True)
class Compute:
    """A recipe in one precision: a network with its options and data.  Samples are rows, for a text.

    Attributes:
        samples_per_s: of a node, in micro-batches without end.
        node_half_batch: at which the node has half of that, samples over all its ranks: each micro-batch costs as many seconds on
            a part of the node, which does fewer samples in them.
        input_per_s: samples that a node's ranks read and decode, all at once, with nothing else to do.
    """

    samples_per_s: Number
    node_half_batch: Number
    input_per_s: Number


@dataclass(frozen=True)
class Performance:
    """A machine's numbers.

    Attributes:
        jitter: standard deviation over ranks of the time to compute a step, as a share of it.
        cycle_ms: between two looks of Horovod's thread (HOROVOD_CYCLE_TIME).
        start_s, start_s_per_node: from the start of a job to its first step; what each node adds to it, since MPI_Init takes
            longer on more nodes (TACC saw it grow with them on Stampede2).
        overlap: share of the exchange that goes on behind the backward pass, where exchange_pieces lets it.
        compute: RECIPE.PRECISION -> `Compute`.
    """

    network: Network
    memory: Memory
    jitter: Number
    cycle_ms: Number
    start_s: Number
    compute: Mapping[str, Any]
    overlap: Number = Number(1.0, 0.5, 0.0, "assumed")
    start_s_per_node: Number = Number(0.0, 0.05, 0.5, "assumed")

    def speeds(self, recipe: Recipe, machine: Machine) -> dict[str, Speeds]:
        """For the model, in SI units: the best, the likely and the worst case.

        Raises:
            InputError: the recipe has not been measured on this machine.
        """
        where = f"machine {machine.name}"
        measured = self.rate_of(recipe)
        if not measured:
            options = ", ".join(f"options.{key}={value}" for key, value in recipe.options.items())
            what = f"recipe {recipe.name} in {recipe.precision}{options and f' with {options}'}"
            there = ", ".join(f"{name} in {precision}" for name, by in self.compute.items() for precision in by)
            raise InputError(
                f"{where}: no rate for {what}, but for {there or 'none'}: "
                f"measure it there: {MEASURE.format(recipe=recipe.name, machine=COPY.format(name=machine.name))}"
            )
        compute = compute_of(self, measured, recipe.precision)
        speeds = {case: self._speeds(compute, machine.ranks, case) for case in CASES}
        return {case: replace(one, cycle=0.0) for case, one in speeds.items()} if recipe.comm == "mpi" else speeds

    def rate_of(self, recipe: Recipe) -> str:
        """The recipe whose rate is this one's too: itself, or one of the same network; "" where there is none."""
        known = [name for name, by in self.compute.items() if recipe.precision in by]
        return next((name for name in sorted(known, key=lambda name: name != recipe.name) if _alike(name, recipe)), "")

    def assumed(self, recipe: Recipe) -> list[str]:
        """The numbers of the recipe for which there is no better source, by their fields' names."""
        named = {
            f"{table}.{key}": number for table in ("network", "memory") for key, number in vars(getattr(self, table)).items()
        }
        named |= {key: getattr(self, key) for key in ("jitter", "cycle_ms", "start_s", "start_s_per_node")}
        if recipe.exchange_pieces > 1:
            named["overlap"] = self.overlap
        named |= vars(compute_of(self, self.rate_of(recipe), recipe.precision))
        return [key for key, number in named.items() if number.source.startswith("assumed")]

    def _speeds(self, compute: Compute, ranks: int, case: str) -> Speeds:
        def of(number: Number) -> float:
            return float(getattr(number, case))

        network, memory = self.network, self.memory
        gamma = 1e-9 / of(memory.add_gb_per_s)
        return Speeds(
            samples_per_s=of(compute.samples_per_s) / ranks,
            half_batch=of(compute.node_half_batch) / ranks,
            jitter=of(self.jitter),
            network=Link(1e-6 * of(network.alpha_us), 1e-9 / of(network.gb_per_s), gamma),
            memory=Link(1e-6 * of(memory.alpha_us), 1e-9 / of(memory.gb_per_s), gamma),
            cycle=1e-3 * of(self.cycle_ms),
            memory_per_s=1e9 * of(memory.copy_gb_per_s),
            input_per_s=of(compute.input_per_s) / ranks,
        )


def _alike(name: str, recipe: Recipe) -> bool:
    """Does a recipe's sample take the same work: the network, its size, and the words of a row."""
    try:
        return sizes.network(recipes.load(name)) == sizes.network(recipe)
    except InputError:  # a recipe that is not packaged, or an application of another package
        return name == recipe.name


def path_of(name: str, like: str = "") -> Path:
    """The numbers of a machine, by its name or the path of its .toml file: in the folder beside it.

    Args:
        like: the packaged machine whose numbers they are where it has none itself.
    """
    machine = Path(name) if name.endswith(".toml") else MACHINES / f"{name}.toml"
    own = machine.parent / FOLDER / machine.name
    return path_of(like) if like and not own.exists() else own


def load(name: str, overrides: Sequence[str] = (), like: str = "") -> Performance:
    """A machine's numbers.

    Args:
        name, like: see `path_of`.
        overrides: key=value of the fields; see `strict.read`.

    Raises:
        InputError: no such file, or see `read`.
    """
    try:
        return read(path_of(name, like), overrides)
    except FileNotFoundError as error:
        measure = MEASURE.format(recipe="RECIPE", machine=name if name.endswith(".toml") else COPY.format(name=name))
        raise InputError(
            f'{error}: nobody has measured machine {name} yet: {measure}; or like = "skylake" in it takes another\'s numbers'
        ) from None


def read(path: Path, overrides: Sequence[str] = ()) -> Performance:
    """A file of numbers.

    Raises:
        FileNotFoundError: for the caller to say what is missing.
        InputError: an unknown field, or numbers that do not go together.
    """
    values = strict.read(path, overrides)
    where = f"{path}"
    made: Performance = strict.build(Performance, values, where)
    for field in ("network", "memory"):
        for inner in fields(getattr(made, field)):
            _check(getattr(getattr(made, field), inner.name), where, f"{field}.{inner.name}")
    for field in ("jitter", "cycle_ms", "start_s", "start_s_per_node", "overlap"):
        _check(getattr(made, field), where, field)
    for recipe, by_precision in made.compute.items():
        if not isinstance(by_precision, Mapping):
            raise InputError(f"{where}: compute.{recipe} must be a table of precisions, not {by_precision!r}")
        for precision, table in by_precision.items():
            _compute(table, where, f"compute.{recipe}.{precision}")
    return made


def compute_of(performance: Performance, recipe: str, precision: str) -> Compute:
    """Of a recipe that is in the file."""
    return _compute(performance.compute[recipe][precision], "performance", f"compute.{recipe}.{precision}")


def _compute(table: Any, where: str, key: str) -> Compute:
    made: Compute = strict.build(Compute, table, where, key + ".")
    for field in fields(made):
        _check(getattr(made, field.name), where, f"{key}.{field.name}")
    return made


def _check(number: Number, where: str, key: str) -> None:
    """More is better of what is counted by the second, less of all else."""
    values = [number.best, number.likely, number.worst]
    more = key.endswith("_per_s") or key == "overlap"
    if not all(map(math.isfinite, values)):
        raise InputError(f"{where}: {key} must be finite, not {values[0]:g}, {values[1]:g}, {values[2]:g}")
    if sorted(values, reverse=more) != values:
        order = "best >= likely >= worst" if more else "best <= likely <= worst"
        raise InputError(f"{where}: {key} must be {order}, not {values[0]:g}, {values[1]:g}, {values[2]:g}")
    if min(values) < 0 or (key.endswith("_per_s") and not min(values)):
        raise InputError(f"{where}: {key} must be {'positive' if more else 'at least 0'}, not {min(values):g}")
    if key == "overlap" and max(values) > 1:
        raise InputError(f"{where}: overlap is a share, not {max(values):g}")
    if max(values) > LARGEST or 0 < min(values) < 1 / LARGEST:
        raise InputError(f"{where}: {key} must be between 1e-15 and 1e15, not {values[0]:g}, {values[1]:g}, {values[2]:g}")
    if not number.source:
        raise InputError(f"{where}: {key}.source is empty: a publication, measured, derived or assumed")
