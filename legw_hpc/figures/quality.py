"""Final quality against batch size, one line a scheme (the paper's Figure 1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display on a compute node
import matplotlib.pyplot as plt
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

# Colour-blind safe (Okabe and Ito), LEGW first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^Dv<>"


def draw(rows: Sequence[dict[str, Any]], metric: str, path: Path, title: str) -> None:
    """Write a PNG.

    Args:
        rows: with scheme, batch, status and, where that is "done", metrics; a run that diverged is a
            cross at the bottom.
        metric: which of the metrics.
        path: where to.
        title: above the axes.
    """
    figure, axes = plt.subplots(figsize=(6.4, 4.0), dpi=150, layout="constrained")
    floor = min((row["metrics"][metric] for row in rows if row["status"] == "done"), default=0.0)
    schemes = list(dict.fromkeys(row["scheme"] for row in rows))
    for i, scheme in enumerate(schemes):
        mine = sorted((row for row in rows if row["scheme"] == scheme), key=lambda row: row["batch"])
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        drawn = [(row["batch"], row["metrics"][metric]) for row in mine if row["status"] == "done"]
        axes.plot(*zip(*drawn, strict=True) if drawn else ([], []), color=colour, marker=marker, label=scheme, linewidth=1.8)
        for row in mine:
            if row["status"] != "done":
                axes.plot(row["batch"], floor, color=colour, marker="x", markersize=9, markeredgewidth=2)
                axes.annotate(
                    "diverged", (row["batch"], floor), textcoords="offset points", xytext=(0, 7), ha="center", fontsize=7
                )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sorted({row["batch"] for row in rows})))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set(xlabel="global batch (samples)", ylabel=metric, title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, format="png")
    plt.close(figure)
