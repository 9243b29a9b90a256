"""A recipe on a machine, for every number of nodes asked for: time, cost, and what speaks against it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from legw_hpc.derived import Derived
from legw_hpc.errors import InputError
from legw_hpc.plan.allreduce import best
from legw_hpc.plan.calibration import CASES, Performance
from legw_hpc.plan.model import Split, Work, step
from legw_hpc.recipe import Recipe
from legw_hpc.sizes import gradient_bytes, parameters, update_passes
from legw_hpc.submit.job import check, counts
from legw_hpc.submit.machine import Machine, seconds

# What a choice is advised against for (assumed).
LEAST_COMPUTE = 0.7  # of the rate that micro-batches without end would have
MOST_EXCHANGE = 0.25  # of a step
LEAST_EFFICIENCY = 0.5  # beside the base
MOST_JOBS = 5  # of the machine's longest walltime, one after another


@dataclass(frozen=True)
class Range:
    """A figure in the best, the likely and the worst case that the machine's numbers leave open."""

    best: float
    likely: float
    worst: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Range:
        return cls(*values)

    def times(self, factor: float) -> Range:
        return Range(*(factor * getattr(self, case) for case in CASES))


UNKNOWN = Range(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Row:
    """One number of nodes.

    Attributes:
        share: samples of a rank.
        splits: of a step, best, likely, worst; none where it cannot run.
        samples_per_s: over all nodes.
        efficiency: samples/s a node beside those of the base; both likely.
        hours: from the start of the job to the last step.
        node_hours, units: as the machine charges them.
        allreduce: the algorithm that is quickest between its nodes.
        jobs: of the machine's longest walltime that it takes, at worst; 0 if none comes to train.
        against: reasons, with their numbers; none is a sensible choice.
    """

    nodes: int
    ranks: int
    share: float
    against: tuple[str, ...]
    splits: tuple[Split, ...] = ()
    samples_per_s: Range = UNKNOWN
    efficiency: float = math.nan
    hours: Range = UNKNOWN
    node_hours: Range = UNKNOWN
    units: Range = UNKNOWN
    jobs: int = 0
    allreduce: str = ""

    @property
    def runs(self) -> bool:
        return bool(self.splits)


@dataclass(frozen=True)
class Forecast:
    """A recipe and its batch on a machine.

    Attributes:
        base: nodes of the row that efficiencies are beside: the smallest that can run; 0 where none can.
    """

    derived: Derived
    machine: Machine
    base: int
    rows: tuple[Row, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for `plan --json`."""
        about = {"machine": self.machine.name, "ranks_per_node": self.machine.ranks, "efficiency_base_nodes": self.base}
        return self.derived.as_dict() | about | {"nodes": [_plain(row) for row in self.rows]}


def forecast(derived: Derived, machine: Machine, performance: Performance, nodes: Sequence[int] = ()) -> Forecast:
    """What the run costs on so many nodes.

    Args:
        nodes: those asked for; by default those of `usual_nodes`.

    Raises:
        InputError: the recipe has not been measured on the machine, or it has no such number of nodes.
    """
    recipe = derived.recipe
    if recipe.twin != "none":
        raise InputError(f"recipe {recipe.name}: twin={recipe.twin} is a measurement, there is nothing to forecast")
    if wrong := [n for n in nodes if not 1 <= n <= machine.nodes]:
        raise InputError(f"--nodes {wrong[0]}: machine {machine.name} gives a job 1 to {machine.nodes} nodes")
    parameters(recipe)  # options that are none are told before a rate is looked for
    speeds = performance.speeds(recipe, machine)
    steps_by_batch = derived.steps_by_batch()
    # By case: its share of overlap.
    works = {
        case: [(steps, _work(recipe, batch, getattr(performance.overlap, case))) for steps, batch in steps_by_batch]
        for case in CASES
    }
    wanted = sorted(set(nodes)) or usual_nodes(recipe, machine)
    rows: list[Row] = []
    for count in wanted:
        ranks = count * machine.ranks
        refused = _refused(derived, machine, count)
        if refused and not nodes and rows and not rows[-1].runs:
            continue
        row = Row(count, ranks, recipe.batch / ranks, (refused,) if refused else ())
        if not refused:
            splits = tuple(step(works[case][0][1], count, machine.ranks, speeds[case]) for case in CASES)
            start = [getattr(performance.start_s, case) + count * getattr(performance.start_s_per_node, case) for case in CASES]
            training = [sum(n * step(work, count, machine.ranks, speeds[case]).step for n, work in works[case]) for case in CASES]
            each = list(zip(start, training, strict=True))
            # Without end in a case of which no job comes to train.
            hours = Range.of([(n * s + t) / 3600 if (n := _jobs(machine, s, t)) else math.inf for s, t in each])
            row = replace(
                row, splits=splits, samples_per_s=Range.of([recipe.batch / split.step for split in splits]),
                hours=hours, node_hours=hours.times(count), units=hours.times(count * machine.charge),
                jobs=_jobs(machine, max(start), max(training)),
                allreduce=best(gradient_bytes(recipe) / recipe.exchange_pieces, count, speeds["likely"].network)[1],
            )  # fmt: skip
        rows.append(row)
    base = next((row for row in rows if row.runs), None)
    if base is None:
        return Forecast(derived, machine, 0, tuple(rows))
    judged = [_judged(row, base, recipe, machine, speeds["likely"].half_batch) for row in rows]
    if any(key.startswith("network.") for key in performance.assumed(recipe)):
        why = "the network's numbers are assumed: calibrate on two nodes or more"
        judged = [replace(row, against=(*row.against, why)) if row.runs and row.nodes > 1 else row for row in judged]
    return Forecast(derived, machine, base.nodes, tuple(judged))


def usual_nodes(recipe: Recipe, machine: Machine) -> list[int]:
    """Those that can share the batch: powers of two, and the largest number between two of them.

    Besides, what `forecast` shows as refused: the powers below the least of those, and the first power above the largest.
    """
    fit = counts(recipe, machine)
    powers = [1 << i for i in range(machine.nodes.bit_length())]
    between = [max(within) for power in powers if (within := [n for n in fit if power < n < 2 * power])]
    ends = next((power for power in powers if power > max(fit, default=0)), machine.nodes)
    return sorted(n for n in {*powers, *between} if n <= ends and (n in fit or n == ends or not fit or n < min(fit)))


def _jobs(machine: Machine, start: float, training: float) -> int:
    """Each starts anew, and stops when it is warned; in seconds."""
    trains = seconds(machine.walltime, "walltime") - machine.warning_seconds - start
    return math.ceil(training / trains) if trains > 0 else 0


def _work(recipe: Recipe, batch: int, overlap: float) -> Work:
    """Of a step.

    Args:
        overlap: of the machine, where the exchange is in several pieces.
    """
    pieces = recipe.exchange_pieces
    # A recurrent layer's gradient is complete when the pass ends: nothing goes on behind it (but PTB's head, left out here).
    behind = pieces > 1 and recipe.comm != "mpi" and "lstm" not in recipe.application
    return Work(
        batch, recipe.most_at_once, gradient_bytes(recipe), update_passes(recipe),
        overlap=overlap if behind else 0.0, pieces=pieces,
    )  # fmt: skip


def _refused(derived: Derived, machine: Machine, nodes: int) -> str:
    """Why `submit` would refuse it; nothing if it would not."""
    try:
        check(derived.recipe, machine, nodes)
    except InputError as error:
        return str(error)
    return ""


def _judged(row: Row, base: Row, recipe: Recipe, machine: Machine, half_batch: float) -> Row:
    """With its efficiency, and what speaks against it."""
    if not row.runs:
        return row
    efficiency = row.samples_per_s.likely / row.nodes / (base.samples_per_s.likely / base.nodes)
    split, against = row.splits[1], []
    pieces = math.ceil(row.share / recipe.most_at_once)
    computing = row.share / (row.share + pieces * half_batch)
    if computing < LEAST_COMPUTE:
        against.append(f"{row.share / pieces:g} samples at once are computed at {computing:.0%} of the full rate")
    if split.exchange > MOST_EXCHANGE * split.step:
        against.append(f"the exchange is {split.exchange / split.step:.0%} of a step, {1e3 * split.exchange:.3g} ms")
    if split.input > MOST_EXCHANGE * split.step:
        against.append(f"waiting for input is {split.input / split.step:.0%} of a step")
    if efficiency < LEAST_EFFICIENCY:
        against.append(f"{1 / efficiency:.1f} times the node-hours of {base.nodes:,} nodes")
    if recipe.threads not in (0, machine.threads):
        against.append(f"the rate is that of {machine.threads} threads a rank, not of threads={recipe.threads}")
    if not row.jobs:
        against.append(f"a job of {machine.walltime} may be over before it has started to train")
    if row.jobs > MOST_JOBS:
        against.append(f"{row.hours.likely:,.0f} hours are up to {row.jobs} jobs of {machine.walltime}")
    return replace(row, efficiency=efficiency, against=tuple(against))


def _plain(row: Row) -> dict[str, Any]:
    values = dataclasses.asdict(row)
    if not row.runs:
        return {key: values[key] for key in ("nodes", "ranks", "share", "against")}
    values["step"] = {case: values["splits"][i] | {"step": row.splits[i].step} for i, case in enumerate(CASES)}
    del values["splits"]
    for key in ("hours", "node_hours", "units"):  # JSON has no number without end
        values[key] = {case: value if math.isfinite(value) else None for case, value in values[key].items()}
    return values
