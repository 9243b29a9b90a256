"""Forecasts drawn: samples/s against nodes with its range, and what a step goes to, or node-hours of several cells of a grid."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from legw_hpc.data.files import written_whole
from legw_hpc.errors import InputError
from legw_hpc.figures.quality import COLOURS
from legw_hpc.plan.forecast import Forecast, Row
from legw_hpc.plan.text import PARTS

Rows = Mapping[str, list[Row]]


def draw(forecasts: Mapping[str, Forecast], path: Path) -> None:
    """Write a PNG.

    Args:
        forecasts: one, or several of one machine by what tells them apart.

    Raises:
        InputError: nothing can run, or the file cannot be written.
    """
    rows = {label: [row for row in forecast.rows if row.runs] for label, forecast in forecasts.items()}
    rows = {label: running for label, running in rows.items() if running}
    if not rows:
        raise InputError("--plot: none of these numbers of nodes can train it")
    figure, (above, below) = plt.subplots(2, 1, figsize=(6.4, 6.4), dpi=150, layout="constrained")
    first = next(iter(forecasts.values()))
    recipe, title = first.derived.recipe, first.derived.recipe.name
    _rates(above, rows)
    if len(forecasts) == 1:
        title += f", batch {recipe.batch:,}"
        _shares(below, *rows.values())
    else:
        _cost(below, rows)
    for axes in (above, below):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="lower left" if axes is below else "upper left")
    figure.suptitle(f"{title}, on {first.machine.name}: a forecast")
    with written_whole(path) as whole:
        figure.savefig(whole, format="png")
    plt.close(figure)


def _rates(axes: Axes, rows: Rows) -> None:
    """Likely samples/s with their range, and what the smallest number of nodes would come to without a loss."""
    for i, (label, line) in enumerate(rows.items()):
        nodes, rates, colour = [row.nodes for row in line], [row.samples_per_s for row in line], _colour(i)
        worst, best = ([getattr(rate, case) for rate in rates] for case in ("worst", "best"))
        axes.fill_between(nodes, worst, best, color=colour, alpha=0.2, label="best to worst" if len(rows) == 1 else None)
        axes.plot(nodes, [rate.likely for rate in rates], color=colour, marker="o", label="likely" if len(rows) == 1 else label)
    base = min((line[0] for line in rows.values()), key=lambda row: row.nodes)
    nodes = _nodes(rows)
    ideal = [base.samples_per_s.likely * n / base.nodes for n in nodes]
    axes.plot(nodes, ideal, color=COLOURS[-1], linestyle=":", label=f"efficiency 1, beside {base.nodes:,} nodes")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set(ylabel="samples/s")
    _along(axes, nodes)


def _cost(axes: Axes, rows: Rows) -> None:
    """Likely node-hours; hollow where something speaks against a choice."""
    for i, (label, line) in enumerate(rows.items()):
        hours = [row.node_hours.likely for row in line]
        axes.plot([row.nodes for row in line], hours, color=_colour(i), label=f"{label} (hollow: not sensible)")
        for row, height in zip(line, hours, strict=True):
            axes.plot(row.nodes, height, "o", color=_colour(i), markerfacecolor="none" if row.against else None)
    axes.set(xlabel="nodes", ylabel="node-hours, likely")
    axes.set_ylim(bottom=0)
    _along(axes, _nodes(rows))


def _shares(axes: Axes, line: list[Row]) -> None:
    """What a likely step goes to."""
    floor = [0.0] * len(line)
    for part, colour in zip(PARTS, COLOURS, strict=False):
        height = [getattr(row.splits[1], part) / row.splits[1].step for row in line]
        axes.bar(range(len(line)), height, bottom=floor, color=colour, label=part)
        floor = [low + high for low, high in zip(floor, height, strict=True)]
    axes.set_xticks(range(len(line)), [f"{row.nodes:,}" for row in line])
    axes.set(xlabel="nodes", ylabel="share of a step, likely")


def _nodes(rows: Rows) -> list[int]:
    return sorted({row.nodes for line in rows.values() for row in line})


def _along(axes: Axes, nodes: list[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(nodes, [f"{n:,}" for n in nodes])
    axes.xaxis.set_minor_locator(NullLocator())


def _colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]
