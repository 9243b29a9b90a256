"""A forecast as people read it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields

from legw_hpc.noise import Noise, fewest_samples, fewest_steps
from legw_hpc.plan.forecast import Forecast, Range, Row
from legw_hpc.plan.model import Split

PARTS = tuple(field.name for field in fields(Split))
STEP = ("nodes", "a rank", "s a step", *PARTS)
COST = ("nodes", "samples/s", "efficiency", "hours", "node-hours", "units")


def lines(forecast: Forecast, numbers: str) -> list[str]:
    """Machine, table, reasons and advice.

    Args:
        numbers: where the machine's come from.
    """
    machine, recipe = forecast.machine, forecast.derived.recipe
    made = [f"machine  {machine.name}: {machine.ranks} ranks a node, {recipe.threads or machine.threads} threads each; {numbers}"]
    shown = [row for row in forecast.rows if row.runs]
    if shown:
        unit = "rows" if recipe.data.window else "samples"
        cost = [word.replace("samples", unit) for word in COST][: None if machine.charge not in (0, 1) else -1]
        made += ["", *_table(STEP, map(_step, shown)), "", *_table(cost, (_cost(row)[: len(cost)] for row in shown)), ""]
        made.append(
            f"Likely (best to worst).  Efficiency: samples/s a node beside those of {_nodes(forecast.base)}, also a forecast."
        )
        if grown := recipe.growth.epochs:
            made.append(f"Steps and samples/s are of the first batch, until epoch {grown[0]}; hours are of the whole run.")
        made.append("Left out: evaluations, checkpoints, waiting in the queue.")
        if recipe.options.get("batch_norm") == "sync":
            made.append("Left out too: with batch_norm=sync the ranks meet twice in every layer and micro-batch.")
    made += [f"not on {_nodes(row.nodes)}: {'; '.join(row.against)}" for row in forecast.rows if row.against]
    return [*made, *_advice(forecast)]


def noise_lines(batch: int, found: Noise, run: str) -> list[str]:
    """What this batch and twice as large a one take, by the noise scale of a run."""
    if found.scale is None:
        return [f"noise    the gradient is not told from its noise in {run}: log more steps"]
    scale = max(found.scale, 0.0)
    fewer = 1 - fewest_steps(2 * batch, scale) / fewest_steps(batch, scale)
    more = fewest_samples(2 * batch, scale) / fewest_samples(batch, scale) - 1 if scale else 1.0
    pays = "pays" if batch < scale else "no longer pays, this one being past the noise scale"
    return [
        f"noise    scale {scale:,.0f} samples, over the second half of {run}",
        f"         a batch of {2 * batch:,} would save {fewer:.0%} of the steps to the same loss for {more:.0%} more samples: "
        f"it {pays}",
    ]


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    cells = [heads, *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]


def _step(row: Row) -> tuple[str, ...]:
    likely = row.splits[1]
    parts = (f"{getattr(likely, part) / likely.step:.0%}" for part in PARTS)
    return f"{row.nodes:,}", f"{row.share:g}", _range(Range.of([split.step for split in row.splits])), *parts


def _cost(row: Row) -> tuple[str, ...]:
    ranges = map(_range, (row.hours, row.node_hours, row.units))
    return f"{row.nodes:,}", _range(row.samples_per_s), f"{row.efficiency:.0%}", *ranges


def _advice(forecast: Forecast) -> list[str]:
    sensible = [row for row in forecast.rows if row.runs and not row.against]
    if not sensible:
        return ["sensible: none of these"]
    cheap = min(sensible, key=lambda row: row.node_hours.likely)
    quick = min(sensible, key=lambda row: row.hours.likely)
    made = [f"sensible: {', '.join(f'{row.nodes:,}' for row in sensible)} nodes"]
    for word, row in (("cheapest", cheap), ("quickest", quick)):
        chain = f", --chain {row.jobs} of {forecast.machine.walltime}" if row.jobs > 1 else ""
        made.append(
            f"{word}: {_nodes(row.nodes)}, {_number(row.hours.likely)} h, {_number(row.node_hours.likely)} node-hours{chain}"
        )
    return made


def _nodes(count: int) -> str:
    return f"{count:,} {'node' if count == 1 else 'nodes'}"


def _range(values: Range) -> str:
    return f"{_number(values.likely)} ({_number(values.best)} to {_number(values.worst)})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
