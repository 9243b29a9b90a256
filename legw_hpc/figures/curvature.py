"""L(x, g) along training, and where its peak lies against the batch (the paper's Figure 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display on a compute node
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator, StrMethodFormatter

from legw_hpc.derived import derive
from legw_hpc.figures.quality import COLOURS, MARKERS
from legw_hpc.legw import scale
from legw_hpc.peak import Peak, Power, peak, power, smoothed
from legw_hpc.records import Record


@dataclass(frozen=True)
class Curve:
    """One run.

    Attributes:
        steps, values: L before these steps, counted from 1.
        steps_per_epoch: of the batch.
        warmup_epochs: what LEGW takes for the batch.
        peak: of the smoothed curve, where there is one.
        lr_sum: of the steps before it.
    """

    batch: int
    seed: int
    steps: Sequence[int]
    values: Sequence[float]
    steps_per_epoch: int
    warmup_epochs: float
    peak: Peak | None
    lr_sum: float

    def epoch(self, step: int) -> float:
        """At which L before a step is."""
        return (step - 1) / self.steps_per_epoch


def curve(record: Record) -> Curve:
    """Of a run that measured L(x, g)."""
    steps, values = record.curvature()
    recipe, derived, found = record.recipe, derive(record.recipe), peak(steps, values)
    warmup = scale(recipe.baseline, recipe.batch).warmup_epochs
    total = derived.lr_sum(found.step - 1) if found else 0.0  # L is that before the step
    return Curve(recipe.batch, recipe.seed, steps, values, derived.steps_per_epoch, warmup, found, total)


def shift(curves: Sequence[Curve]) -> Power | None:
    """How the epoch of the peak goes with the batch; None where fewer than three batches have a peak."""
    return power(*_peak_epochs(curves))


def _peak_epochs(curves: Sequence[Curve]) -> tuple[list[int], list[float]]:
    """Batches, rising, and the epoch at which L peaks with each."""
    found = sorted((curve.batch, curve.epoch(curve.peak.step)) for curve in curves if curve.peak is not None)
    return [batch for batch, _ in found], [epoch for _, epoch in found]


def draw_run(curve: Curve, path: Path, title: str) -> None:
    """Write a PNG of one run; its steps as dots, the running median as a line."""
    figure, axes = plt.subplots(figsize=(6.4, 4.0), dpi=150, layout="constrained")
    axes.plot(list(map(curve.epoch, curve.steps)), curve.values, ".", color="0.75", markersize=2, label="each step")
    _curve(axes, curve, COLOURS[0], "running median")
    axes.axvline(curve.warmup_epochs, color=COLOURS[1], linestyle="--", linewidth=1.2, label="end of LEGW's warmup")
    _finish(axes, title)
    figure.savefig(path, format="png")
    plt.close(figure)


def draw(series: Mapping[str, Sequence[Curve]], path: Path, title: str) -> None:
    """Write a PNG: the curves of each series, then where their peaks lie.

    Args:
        series: its curves, by label.
        path: where to.
        title: above all.
    """
    columns = len(series) + 1
    figure, grid = plt.subplots(1, columns, figsize=(4.2 * columns, 4.0), dpi=150, layout="constrained", squeeze=False)
    for axes, (scheme, curves) in zip(grid[0], series.items(), strict=False):
        batches = sorted({curve.batch for curve in curves})
        for i, batch in enumerate(batches):
            label = f"{batch:,}"
            for curve in curves:
                if curve.batch == batch:
                    _curve(axes, curve, plt.get_cmap("viridis")(i / len(batches)), label)
                    label = ""  # one entry of the legend for all seeds
        _finish(axes, scheme, "batch")
    _peaks(grid[0, -1], series)
    figure.suptitle(title)
    figure.savefig(path, format="png")
    plt.close(figure)


def _curve(axes: Axes, curve: Curve, colour: object, label: str) -> None:
    places = smoothed(curve.steps, curve.values)
    axes.plot([curve.epoch(step) for step, _ in places], [value for _, value in places], color=colour, linewidth=1.8, label=label)
    if curve.peak is not None:
        axes.plot(curve.epoch(curve.peak.step), curve.peak.value, marker="v", color=colour, markersize=8)


def _finish(axes: Axes, title: str, legend: str = "") -> None:
    axes.set(xscale="log", yscale="log", xlabel="epoch", ylabel="L(x, g)", title=title)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.grid(alpha=0.3)
    axes.legend(title=legend or None, fontsize=8)


def _peaks(axes: Axes, series: Mapping[str, Sequence[Curve]]) -> None:
    for i, (label, curves) in enumerate(series.items()):
        batches, epochs = _peak_epochs(curves)
        fit = shift(curves)
        axes.plot(batches, epochs, color=COLOURS[i], marker=MARKERS[i], label=label, linestyle="none")
        if fit is not None:
            fitted = [fit.c * batch**fit.p for batch in batches]
            axes.plot(batches, fitted, color=COLOURS[i], label=f"{label}: batch^({fit})", linewidth=1.8)
    every = {curve.batch: curve.warmup_epochs for curves in series.values() for curve in curves}
    axes.plot(sorted(every), [every[batch] for batch in sorted(every)], "--", color="0.4", label="LEGW's warmup")
    axes.set(xlabel="global batch (samples)", ylabel="epoch of the peak", title="the peak against the batch")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator(sorted(every)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    axes.tick_params(axis="x", labelrotation=45)
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
