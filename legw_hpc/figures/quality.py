"""Final quality against batch size or learning rate, one line a scheme (the paper's Figures 1 and 4 to 7)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display on a compute node
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from legw_hpc.places import Spread

# Colour-blind safe (Okabe and Ito), LEGW first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^Dv<>"
STYLES = ("-", "--", ":")  # of the first seven lines, the next ...
FEW, SHORT = 4, 45  # lines, and letters of each, whose legend has its place within the axes (assumed)
AXES = {"batch": "global batch (samples)", "lr": "learning rate"}
# A value is far off that is so many median deviations and this share of the median away from it: it is drawn at the
# edge, with its number, so that differences among the others can be seen (assumed).
FAR_DEVIATIONS, FAR_SHARE = 10.0, 0.2
CLOSE = 1.6  # times: numbers below the axis that are so near one another would touch (assumed)
AROUND = 1.25  # left and right of the first and the last place

Point = tuple[float, Spread]


@dataclass(frozen=True)
class Line:
    """One line: its places along the axis, and what the runs of each came to."""

    label: str
    points: Sequence[Point]


def draw(lines: Sequence[Line], x: str, metric: str, path: Path, title: str, reference: tuple[str, float] | None = None) -> None:
    """Write a PNG: means, with bars of one sample standard deviation where there are several seeds.

    Args:
        lines: a place of which runs diverged has a cross at the bottom that says how many, one whose mean is far off an arrow
            at the edge with its number.  One without runs breaks the line; of a line without any the legend says so.
        x: what is along the axis, a key of AXES.
        metric: what the values are.
        path: where to.
        title: above the axes.
        reference: label and height of a dashed line.
    """
    told = [*(_told(line) for line in lines), *([reference[0]] if reference else [])]
    inside = len(told) <= FEW and max(map(len, told)) <= SHORT
    figure, axes = plt.subplots(figsize=(6.4, 4.0 if inside else 4.0 + 0.2 * len(told)), dpi=150, layout="constrained")
    means = [spread.mean for line in lines for _, spread in line.points if spread.values]
    edges: dict[tuple[float, bool], int] = {}
    near = _near(means + ([reference[1]] if reference else []))
    for i, line in enumerate(lines):
        style = STYLES[i // len(COLOURS) % len(STYLES)]
        _line(axes, line, COLOURS[i % len(COLOURS)], MARKERS[(i + i // len(COLOURS)) % len(MARKERS)], style, near, edges)
    if reference:
        axes.axhline(reference[1], color="0.4", linestyle="--", linewidth=1.0, label=reference[0])
    axes.set_xscale("log", base=2)
    everywhere = sorted({place for line in lines for place, _ in line.points})
    axes.set_xlim(everywhere[0] / AROUND, everywhere[-1] * AROUND)  # also where nothing has been run
    axes.xaxis.set_major_locator(FixedLocator(everywhere))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}" if x == "batch" else "{x:.3g}"))
    axes.set(xlabel=AXES[x], ylabel=metric, title=title)
    axes.grid(alpha=0.3)
    if any(later / place < CLOSE for place, later in pairwise(everywhere)):
        axes.tick_params("x", rotation=45)
    if inside:
        axes.legend()
    else:
        figure.legend(loc="outside lower center", fontsize=7, frameon=False)
    figure.savefig(path, format="png")
    plt.close(figure)


def _near(means: Sequence[float]) -> tuple[float, float]:
    """The least and the largest value that is not far off."""
    if not means:
        return 0.0, 0.0
    middle = statistics.median(means)
    reach = max(FAR_DEVIATIONS * statistics.median(abs(value - middle) for value in means), FAR_SHARE * abs(middle))
    inside = [value for value in means if abs(value - middle) <= reach]
    return min(inside), max(inside)


def _line(
    axes: Axes, line: Line, colour: str, marker: str, style: str, near: tuple[float, float], edges: dict[tuple[float, bool], int]
) -> None:  # fmt: skip
    """Args: edges: how many numbers stand at the edge of each place already, at its top or not."""
    low, high = near
    points = sorted(((x, spread) for x, spread in line.points), key=lambda point: point[0])
    if not any(spread.values or spread.diverged for _, spread in points):
        axes.plot([], [], color=colour, marker=marker, linestyle="none", label=_told(line))
        return
    drawn = [spread.values and low <= spread.mean <= high for _, spread in points]
    means = [spread.mean if shown else math.nan for shown, (_, spread) in zip(drawn, points, strict=True)]
    deviations = [spread.deviation if shown else math.nan for shown, (_, spread) in zip(drawn, points, strict=True)]
    xs = [x for x, _ in points]
    axes.errorbar(
        xs, means, deviations, color=colour, marker=marker, linestyle=style, label=_told(line), linewidth=1.8, capsize=3
    )

    def at_the_edge(x: float, top: bool, text: str, marker: str = "") -> None:
        above = edges[x, top] = edges.get((x, top), -1) + 1
        _at_the_edge(axes, x, top, text, colour, above, marker)

    for x, spread in points:
        if spread.values and not low <= spread.mean <= high:
            at_the_edge(x, spread.mean > high, f"{spread.mean:.4g}")
        if spread.lost:
            at_the_edge(x, False, spread.lost, "x")


def _told(line: Line) -> str:
    """With how many seeds a place of it has."""
    seeds = sorted({spread.runs - spread.unscored for _, spread in line.points} - {0})
    if not seeds:
        return f"{line.label}: {'not evaluated' if any(spread.unscored for _, spread in line.points) else 'not run'}"
    many = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"{seeds[0]}"
    return f"{line.label} ({many} {'seed' if many == '1' else 'seeds'})"


def _at_the_edge(axes: Axes, x: float, top: bool, text: str, colour: str, above: int, marker: str) -> None:
    """Args: above: how many others stand there already."""
    y, across = 0.97 if top else 0.03, axes.get_xaxis_transform()
    axes.plot(
        x, y, color=colour, marker=marker or ("^" if top else "v"), markersize=8, markeredgewidth=2, linestyle="none",
        transform=across, clip_on=False,
    )  # fmt: skip
    offset = (0, (-13 if top else 8) + (-8 if top else 8) * above)
    axes.annotate(
        text, (x, y), xycoords=across, textcoords="offset points", xytext=offset, ha="center", fontsize=7, color=colour
    )  # fmt: skip
