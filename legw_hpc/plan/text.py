"""A forecast as people read it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace

from legw_hpc.noise import Noise, fewest_samples, fewest_steps
from legw_hpc.plan.forecast import Forecast, Range, Row
from legw_hpc.plan.model import Split
from legw_hpc.recipe import Recipe
from legw_hpc.sizes import gradient_bytes

PARTS = tuple(field.name for field in fields(Split))
STEP = ("nodes", "a rank", "s a step", *PARTS)
COST = ("nodes", "samples/s", "efficiency", "hours", "node-hours", "units")


def lines(forecast: Forecast, numbers: str, notes: Sequence[str] = ()) -> list[str]:
    """Machine, table, reasons and advice.

    Args:
        numbers: where the machine's come from.
        notes: more about them.
    """
    machine, recipe = forecast.machine, forecast.derived.recipe
    made = [f"machine  {machine.name}: {machine.ranks} ranks a node, {recipe.threads or machine.threads} threads each; {numbers}"]
    made += notes
    shown = [row for row in forecast.rows if row.runs]
    if shown:
        unit = "rows" if recipe.data.window else "samples"
        cost = [word.replace("samples", unit) for word in COST][: None if machine.charge not in (0, 1) else -1]
        made += [_exchange(forecast, shown), "", *_table(STEP, map(_step, shown)), ""]
        made += [*_table(cost, (_cost(row)[: len(cost)] for row in shown)), ""]
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


def assumed(keys: Sequence[str]) -> list[str]:
    """A line of what has no better source, the fields of a table together."""
    by: dict[str, list[str]] = {}
    for key in keys:
        table, dot, field = key.rpartition(".")
        by.setdefault(table if dot else key, []).extend([field] if dot else [])
    told = [f"{table} ({', '.join(fields)})" if fields else table for table, fields in by.items()]
    return [f"assumed  {', '.join(told)}"] if told else []


def compared(forecasts: Mapping[str, Forecast], noise: Noise | None = None) -> list[str]:
    """Several batches, or other cells of a grid, beside one another.

    Args:
        forecasts: by the words that tell them apart.
        noise: of a run; by it, what each batch takes to the loss that the smallest one here reaches in its epochs.
    """
    more = _more_samples(forecasts, noise.scale if noise else None)
    rows = {label: {row.nodes: row for row in made.rows} for label, made in forecasts.items()}
    nodes = sorted({row.nodes for by in rows.values() for row in by.values() if row.runs})
    if not nodes:
        return ["sensible: none of these"]
    rows = {label: {count: _longer(row, more[label]) for count, row in by.items()} for label, by in rows.items()}
    table = ([f"{count:,}", *(_short(by.get(count)) for by in rows.values())] for count in nodes)
    made = ["hours / node-hours, likely; *: something speaks against it, above; -: it cannot run"]
    if any(factor > 1 for factor in more.values()):
        told = ", ".join(f"{label} {factor:.3g}" for label, factor in more.items())
        made.append(f"to one loss, by the noise scale, as many epochs as it has, times: {told}; hours are with that")
    elif len({made.derived.recipe.batch for made in forecasts.values()}) > 1:
        made.append("each for the epochs it has; to the same loss a larger batch may take more: --noise RUN")
    made += [line.rstrip() for line in _table(["nodes", *(f"{label} " for label in rows)], table)]
    sensible = [(label, row) for label, by in rows.items() for row in by.values() if row.runs and not row.against]
    if not sensible:
        return [*made, "sensible: none of these"]
    for word, (label, row) in _ends(sensible).items():
        made.append(f"{word}: {label} on {_nodes(row.nodes)}, {_hours(row)}")
    return made


def _more_samples(forecasts: Mapping[str, Forecast], scale: float | None) -> dict[str, float]:
    """Samples to the same loss, beside the smallest batch here; all 1 where nothing is known."""
    batches = {label: made.derived.recipe.batch for label, made in forecasts.items()}
    if scale is None or scale <= 0:
        return dict.fromkeys(batches, 1.0)
    least = fewest_samples(min(batches.values()), scale)
    return {label: fewest_samples(batch, scale) / least for label, batch in batches.items()}


def _longer(row: Row, factor: float) -> Row:
    return replace(row, hours=row.hours.times(factor), node_hours=row.node_hours.times(factor)) if row.runs else row


def noise_lines(recipe: Recipe, found: Noise, run: str) -> list[str]:
    """What this batch and twice as large a one take, by the noise scale of a run."""
    if found.scale is None:
        return [f"noise    the gradient is not told from its noise in {run}: log more steps"]
    batch, scale, unit = recipe.batch, max(found.scale, 0.0), "rows" if recipe.data.window else "samples"
    fewer = 1 - fewest_steps(2 * batch, scale) / fewest_steps(batch, scale)
    more = fewest_samples(2 * batch, scale) / fewest_samples(batch, scale) - 1 if scale else 1.0
    pays = "pays" if batch < scale else "no longer pays, this one being past the noise scale"
    return [
        f"noise    scale {scale:,.0f} {unit}, over the second half of the lines that {run} has of it",
        f"         a batch of {2 * batch:,} would save {fewer:.0%} of the steps to the same loss for {more:.0%} more {unit}: "
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


def _exchange(forecast: Forecast, rows: Sequence[Row]) -> str:
    """What goes over the network, and how."""
    by: dict[str, list[str]] = {}
    for row in rows:
        if row.nodes > 1:
            by.setdefault(row.allreduce, []).append(f"{row.nodes:,}")
    how = [f"{name} on {', '.join(nodes)} nodes" for name, nodes in by.items()] if len(by) > 1 else list(by)
    said = f"exchange {gradient_bytes(forecast.derived.recipe) / 1e6:.3g} MB a step"
    return f"{said}, between nodes by {' and '.join(how)} (the quickest by the model)" if how else said


def _advice(forecast: Forecast) -> list[str]:
    sensible = [("", row) for row in forecast.rows if row.runs and not row.against]
    if not sensible:
        return ["sensible: none of these"]
    counts = ", ".join(f"{row.nodes:,}" for _, row in sensible)
    made = [f"sensible: {counts} {'node' if counts == '1' else 'nodes'}"]
    for word, (_, row) in _ends(sensible).items():
        chain = f", --chain {row.jobs} of {forecast.machine.walltime}" if row.jobs > 1 else ""
        made.append(f"{word}: {_nodes(row.nodes)}, {_hours(row)}{chain}")
    return made


def _ends(rows: Sequence[tuple[str, Row]]) -> dict[str, tuple[str, Row]]:
    return {
        "cheapest": min(rows, key=lambda pair: pair[1].node_hours.likely),
        "quickest": min(rows, key=lambda pair: pair[1].hours.likely),
    }


def _hours(row: Row) -> str:
    return f"{_number(row.hours.likely)} h, {_number(row.node_hours.likely)} node-hours"


def _short(row: Row | None) -> str:
    if row is None or not row.runs:
        return "- "
    return f"{_number(row.hours.likely)} / {_number(row.node_hours.likely)}{'*' if row.against else ' '}"


def _nodes(count: int) -> str:
    return f"{count:,} {'node' if count == 1 else 'nodes'}"


def _range(values: Range) -> str:
    return f"{_number(values.likely)} ({_number(values.best)} to {_number(values.worst)})"


def _number(value: float) -> str:
    if math.isinf(value):
        return "no end"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
