"""A forecast drawn: samples/s against nodes with its range, and what a step goes to."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from legw_hpc.data.files import written_whole
from legw_hpc.errors import InputError
from legw_hpc.figures.quality import COLOURS
from legw_hpc.plan.forecast import Forecast
from legw_hpc.plan.text import PARTS


def draw(forecast: Forecast, path: Path) -> None:
    """Write a PNG.

    Raises:
        InputError: nothing can run, or the file cannot be written.
    """
    rows = [row for row in forecast.rows if row.runs]
    if not rows:
        raise InputError("--plot: none of these numbers of nodes can train it")
    nodes = [row.nodes for row in rows]
    figure, (above, below) = plt.subplots(2, 1, figsize=(6.4, 6.4), dpi=150, layout="constrained")
    rates = [row.samples_per_s for row in rows]
    above.fill_between(
        nodes, [r.worst for r in rates], [r.best for r in rates], color=COLOURS[0], alpha=0.2, label="best to worst"
    )
    above.plot(nodes, [r.likely for r in rates], color=COLOURS[0], marker="o", label="likely")
    ideal = [rates[0].likely * n / nodes[0] for n in nodes]
    above.plot(nodes, ideal, color=COLOURS[-1], linestyle=":", label=f"efficiency 1, beside {nodes[0]:,} nodes")
    above.set_xscale("log", base=2)
    above.set_yscale("log")
    above.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    above.yaxis.set_minor_locator(NullLocator())
    above.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    above.set_xticks(nodes, [f"{n:,}" for n in nodes])
    above.xaxis.set_minor_locator(NullLocator())
    above.set(ylabel="samples/s")
    floor = [0.0] * len(rows)
    for part, colour in zip(PARTS, COLOURS, strict=False):
        height = [getattr(row.splits[1], part) / row.splits[1].step for row in rows]
        below.bar(range(len(rows)), height, bottom=floor, color=colour, label=part)
        floor = [low + high for low, high in zip(floor, height, strict=True)]
    below.set_xticks(range(len(rows)), [f"{n:,}" for n in nodes])
    below.set(xlabel="nodes", ylabel="share of a step, likely")
    for axes in (above, below):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="upper left" if axes is above else "lower left")
    recipe = forecast.derived.recipe
    figure.suptitle(f"{recipe.name}, batch {recipe.batch:,}, on {forecast.machine.name}: a forecast")
    with written_whole(path) as whole:
        figure.savefig(whole, format="png")
    plt.close(figure)
