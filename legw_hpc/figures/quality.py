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


def draw(rows: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Write a PNG.

    Args:
        rows: with scheme, batch, metric and value; a value of None is a run that diverged, drawn as a
            cross at the bottom.
        path: where to.
        title: above the axes.
    """
    figure, axes = plt.subplots(figsize=(6.4, 4.0), dpi=150, layout="constrained")
    finished = [row["value"] for row in rows if row["value"] is not None]
    floor = min(finished, default=0.0)
    schemes = list(dict.fromkeys(row["scheme"] for row in rows))
    for i, scheme in enumerate(schemes):
        mine = sorted((row for row in rows if row["scheme"] == scheme), key=lambda row: row["batch"])
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        drawn = [row for row in mine if row["value"] is not None]
        batches = [row["batch"] for row in drawn]
        axes.plot(batches, [row["value"] for row in drawn], color=colour, marker=marker, label=scheme, linewidth=1.8)
        for row in mine:
            if row["value"] is None:
                axes.plot(row["batch"], floor, color=colour, marker="x", markersize=9, markeredgewidth=2)
                axes.annotate(
                    "diverged", (row["batch"], floor), textcoords="offset points", xytext=(0, 7), ha="center", fontsize=7
                )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sorted({row["batch"] for row in rows})))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set(xlabel="global batch (samples)", ylabel=rows[0]["metric"], title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, format="png")
    plt.close(figure)
