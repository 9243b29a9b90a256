"""The page of a scaling study, from the logs of its runs alone; see scaling_study.py."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from legw_hpc.allowed import TWINS
from legw_hpc.data.files import written_whole
from legw_hpc.errors import InputError
from legw_hpc.figures.quality import COLOURS
from legw_hpc.records import Record, read

DRAWS = 1000  # of a bootstrap: 25 lie beyond each end of its 95 %
WARM = 3  # steps of a run that are not counted: memory, oneDNN's primitives, Horovod's first cycles (assumed)
FEW = 5  # even all of so many steps have the median among them with less than 95 % (derived: 1 - 2 / 2**5)
PARTS = ("compute", "exchange", "update", "input")
PAGE, PICTURE = "scaling.md", "scaling.png"


@dataclass(frozen=True)
class Measured:
    """One point of the study and kind of run.

    Attributes:
        kind: "strong" or "weak".
        twin: "none" is the run itself.
        seconds: of every counted step of its runs.
        parts: mean seconds of a step, by what they went to.
        runs: whose steps these are.
        samples: of a step: the batch, or the words of its rows.
        lengths: how many of the seconds, in their order, are of each run; none: all of one.
    """

    kind: str
    nodes: int
    ranks: int
    batch: int
    twin: str
    seconds: tuple[float, ...]
    parts: dict[str, float]
    runs: int
    samples: int
    lengths: tuple[int, ...] = ()

    @property
    def rate(self) -> float:
        """Samples/s: the harmonic mean over steps, which is all samples over all the time."""
        return statistics.harmonic_mean([self.samples / s for s in self.seconds])

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % confidence of the median step, seconds: order statistics, whatever the distribution; None of few steps."""
        if len(self.seconds) <= FEW:
            return None
        ordered, n = sorted(self.seconds), len(self.seconds)
        off = 1.96 * math.sqrt(n) / 2  # binomial(n, 1/2), by its normal approximation
        low, high = math.floor(n / 2 - off), math.ceil(n / 2 + off)
        return ordered[max(0, low)], ordered[min(n - 1, high)]


def write(folder: Path) -> None:
    """FOLDER/scaling.md and scaling.png; prints the page.

    Raises:
        InputError: nothing is finished there, or runs that do not belong together.
    """
    found_runs = [record for path in sorted(folder.glob("*/*/log.jsonl")) if (record := read(path))]
    records = [record for record in found_runs if record.end and record.end["status"] == "done"]
    alike(records, folder)
    found = measured(records)
    kinds = {one.kind for one in found if one.twin == "none"}
    found = [one for one in found if one.kind in kinds]  # twins alone have nothing to be beside
    if not found:
        raise InputError(f"{folder}: no run of a scaling study is finished there")
    text = page(found, records)
    with written_whole(folder / PAGE) as path:
        path.write_text(text, encoding="utf-8")
    with written_whole(folder / PICTURE) as path:
        draw(found, path)
    print(f"{text}\npage: {folder / PAGE}\nplot: {folder / PICTURE}", flush=True)


def alike(records: Sequence[Record], folder: Path) -> None:
    """Refuse runs that one page would compare though they differ in more than their point.

    Raises:
        InputError: names what differs.
    """
    values: dict[str, set[Any]] = {}
    for record in records:
        start, kind = record.lines[0], _kind(record)
        identity = record.recipe.identity() | {"threads a rank": start["threads"]}
        if kind == "strong":
            identity["batch of strong points"] = record.recipe.batch
        else:
            identity["samples a rank of weak points"] = record.recipe.batch / start["ranks"]
        for key, value in identity.items():
            if key not in ("batch", "seed", "twin"):
                values.setdefault(key, set()).add(repr(value))
    if many := {key: sorted(found) for key, found in values.items() if len(found) > 1}:
        key, found = next(iter(many.items()))
        raise InputError(f"{folder}: the runs there differ in {key}: {', '.join(found)}; another study is another folder, --to")


def _kind(record: Record) -> str:
    return record.path.parents[1].name.partition("-")[0]


def measured(records: Sequence[Record]) -> list[Measured]:
    """Runs of one point and twin together, the smallest number of ranks first; those without a step that counts are left out."""
    points: dict[tuple[str, int, int, int, str], list[Record]] = {}
    for record in records:
        start = record.lines[0]
        point = (_kind(record), start["nodes"], start["ranks"], record.recipe.batch, record.recipe.twin)
        points.setdefault(point, []).append(record)
    found = []
    for (kind, nodes, ranks, batch, twin), runs in sorted(points.items()):
        # A step at the end of an epoch has fewer samples; its time belongs to another batch.
        derived = runs[0].lines[0]["derived"]
        even = derived["last_batch"] == derived["batch"]
        steps = [[line for line in run.lines if line["event"] == "step" and line["step"] > WARM] for run in runs]
        kept = [
            [line for line in own if line["samples_per_s"] and (even or line["step"] % derived["steps_per_epoch"])]
            for own in steps
        ]
        whole = list(itertools.chain(*kept))
        if not whole:
            continue
        samples = batch * (runs[0].recipe.data.window or 1)
        seconds = tuple(samples / line["samples_per_s"] for line in whole)
        parts = {part: statistics.fmean(s * line[part] for s, line in zip(seconds, whole, strict=True)) for part in PARTS}
        lengths = tuple(filter(None, map(len, kept)))
        found.append(Measured(kind, nodes, ranks, batch, twin, seconds, parts, len(runs), samples, lengths))
    return found


def page(found: Sequence[Measured], records: Sequence[Record]) -> str:
    """Markdown: a table for strong and one for weak scaling, and how they were measured."""
    start = records[0].lines[0]
    lines = [f"# How {records[0].recipe.name} scales", ""]
    for kind in sorted({one.kind for one in found}):
        runs = {(one.ranks, one.nodes, one.twin): one for one in found if one.kind == kind}
        places = sorted((ranks, nodes) for ranks, nodes, twin in runs if twin == "none")
        base = runs[(*places[0], "none")]
        lines += [
            f"{kind.capitalize()} scaling; efficiency beside {_where(base)}:",
            "",
            "| nodes | ranks | batch | runs, steps | ms a step (median, 95 %) | samples/s | efficiency | without exchange "
            "| without input | "
            + " | ".join(f"{part} ms" for part in PARTS) + " |",
            "|--:|--:|--:|--:|--:|--:|--:|--:|--:|" + "--:|" * len(PARTS),
        ]  # fmt: skip
        for ranks, nodes in places:
            one = runs[ranks, nodes, "none"]
            between = "" if one.interval is None else " ({:.1f} to {:.1f})".format(*(1e3 * s for s in one.interval))
            others = [runs.get((ranks, nodes, twin)) for twin in TWINS[1:]]
            twins = [_efficiency(other, base) if other else "" for other in others]
            lines.append(
                f"| {one.nodes} | {one.ranks} | {one.batch:,} | {one.runs}, {len(one.seconds)} | "
                f"{1e3 * statistics.median(one.seconds):.1f}{between} | {one.rate:,.0f} | {_efficiency(one, base)} | "
                f"{' | '.join(twins)} | " + " | ".join(f"{1e3 * one.parts[part]:.2f}" for part in PARTS) + " |"
            )
        lines.append("")
    starts = [record.lines[0] for record in records]
    of = sorted({start.get("hardware", "hardware not recorded") for start in starts})
    if len(of) > 1:
        lines += [f"**Not all on the same hardware**: {', '.join(of)}.", ""]
    how = ", ".join(f"{start['comm']} on {start['ranks']}" for start in {start["ranks"]: start for start in starts}.values())
    lines += [
        "Efficiency: samples/s a rank beside those of the base (95 % by a bootstrap over runs and steps). *Without exchange* and",
        "*without input* are the same for twins of the run that leave that out: what is lost without exchange is lost to the",
        "shared machine, to the slowest rank or to the files, what is lost without input to the machine or to the exchange;",
        "where intervals overlap nothing is told apart. *Exchange ms* has the wait for the slowest rank in it. One rank alone",
        "exchanges nothing in any case. Rates are harmonic means; the first",
        f"{WARM} steps of a run are not counted.",
        "",
        f"Precision {records[0].recipe.precision}, {start['threads']} threads a rank; {of[0]}; ranks: {how}; commits "
        f"{', '.join(sorted({str(start['commit']) for start in starts}))}; torch {start['versions']['torch']}, "
        f"Horovod {start['versions'].get('horovod')}.",
        "",
        f"![Efficiency against ranks]({PICTURE})",
        "",
    ]
    return "\n".join(lines)


def _where(one: Measured) -> str:
    return f"{one.ranks} {'rank' if one.ranks == 1 else 'ranks'} on {one.nodes} {'node' if one.nodes == 1 else 'nodes'}"


def _efficiency(one: Measured, base: Measured) -> str:
    if one is base:
        return "1"
    low, high = likely(one, base)
    return f"{efficiency(one, base):.2f} ({low:.2f} to {high:.2f})"


def likely(one: Measured, base: Measured) -> tuple[float, float]:
    """95 % of the efficiencies of runs, and of steps of each, drawn anew with replacement (bootstrap; always the same)."""
    draw = random.Random(0)

    def mean(measured: Measured) -> float:
        ends = list(itertools.accumulate(measured.lengths or (len(measured.seconds),)))
        runs = [measured.seconds[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        steps = itertools.chain.from_iterable(draw.choices(run, k=len(run)) for run in draw.choices(runs, k=len(runs)))
        return statistics.fmean(steps) / measured.samples * measured.ranks

    found = sorted(mean(base) / mean(one) for _ in range(DRAWS))
    return found[int(0.025 * DRAWS)], found[int(0.975 * DRAWS)]


def efficiency(one: Measured, base: Measured) -> float:
    """Samples/s a rank, beside the base's."""
    return one.rate / one.ranks / (base.rate / base.ranks)


def draw(found: Sequence[Measured], path: Path) -> None:
    """Write a PNG: efficiency against ranks, a column a kind, a line for the run and each twin."""
    kinds = sorted({one.kind for one in found})
    figure, grid = plt.subplots(1, len(kinds), figsize=(4.8 * len(kinds), 3.6), dpi=150, layout="constrained", squeeze=False)
    labels = dict(zip(TWINS, ("as it trains", "without exchange", "without input"), strict=True))
    for axes, kind in zip(grid[0], kinds, strict=True):
        mine = [one for one in found if one.kind == kind]
        base = next(one for one in mine if one.twin == "none")
        for twin, colour, style in zip(TWINS, COLOURS, ("-", "--", ":"), strict=False):
            line = [one for one in mine if one.twin == twin]
            axes.plot(
                [one.ranks for one in line],
                [efficiency(one, base) for one in line],
                style,
                color=colour,
                marker="o",
                label=labels[twin],
            )
        axes.axhline(1.0, color="0.6", linewidth=0.8)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(sorted({one.ranks for one in mine})))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.set_ylim(0, 1.15 * max(1.0, *(efficiency(one, base) for one in mine)))
        axes.set_xlabel("ranks")
        axes.set_ylabel(f"efficiency beside {_where(base)}")
        axes.set_title(f"{kind} scaling")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, format="png")
    plt.close(figure)
