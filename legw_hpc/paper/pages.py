"""The page of a figure: tables as markdown, drawings beside it, from the logs of what has been run."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from legw_hpc.data.files import written_whole
from legw_hpc.figures import curvature, quality, schedules
from legw_hpc.grid import cells
from legw_hpc.paper import distance
from legw_hpc.paper.studies import FIGURES, QUICK, RECIPES, TABLE_1, Study
from legw_hpc.paper.tables import markdown
from legw_hpc.peak import FEWEST
from legw_hpc.places import GUESS, Place, first_metric, learnt, places
from legw_hpc.recipe import load
from legw_hpc.records import Record, Records

# Batch -> log2 of the learning rate, warmup epochs and top-5 accuracy, the paper's Table 1.
PAPERS_TABLE_1 = {
    1024: (2.5, 0.3125, 93.36), 2048: (3.0, 0.625, 93.25), 4096: (3.5, 1.25, 93.34),
    8192: (4.0, 2.5, 93.55), 16384: (4.5, 5.0, 93.43), 32768: (5.0, 10.0, 93.18),
}  # fmt: skip
UNTRAINED = ("figure2", "table1")  # that have something to show before anything is trained
EPOCHS = (15.0, 45.0, 70.0, 85.0)  # at which Figure 2's rates are told
DECAYS = {"multi-step": "x 0.1 at epochs 30, 60, 80", "poly": "poly, power 2"}

Found = Mapping[str, Sequence[Place]]  # the places of each series, with the runs that are finished


def studies(name: str, quick: bool) -> dict[str, Study]:
    """Of a figure, by application."""
    return {application: study for application, study in FIGURES[name].studies.items() if (application == QUICK) == quick}


def page(name: str, records: Records, to: Path, quick: bool = False) -> str:
    """The markdown of a figure; its drawings are written to TO/NAME-APPLICATION.png.

    Args:
        name: a key of FIGURES.
        records: where the runs' logs are.
        to: the folder of the page.
        quick: of the sample alone.
    """
    text = [f"# {FIGURES[name].title}"]
    if name == "figure2":
        text += _schedules(to)
    if name == "table1":
        text += _plan(records)
    for application, study in studies(name, quick).items():
        lines = found(study, application, records)
        done, of = count(lines)
        text += ["", f"## {application}", ""]
        if not done:
            which = "--quick" if quick else application
            text.append(f"Not run: 0 of {of}; `legw-hpc figures {name} {which} --commands` prints the commands.")
            continue
        drawing = to / f"{name}-{application}.png"
        show = _curvature if FIGURES[name].kind == "curvature" else _quality
        with written_whole(drawing) as path:
            text += show(f"{FIGURES[name].title.partition(':')[0]}, {application}", study, lines, path)
        text += ["", f"![{name}, {application}]({drawing.name})", ""]
        text += [f"{done} of {of} places have been run, each with one or more seeds:", "", *_runs(lines, to)]
    return "\n".join(text) + "\n"


def found(study: Study, application: str, records: Records) -> Found:
    """The finished runs of a study, whatever their seeds."""
    return {label: places(grid, records, every_seed=True) for label, grid in study.grid(application).items()}


def count(found: Found) -> tuple[int, int]:
    """How many places have a finished run, of how many."""
    every = [place for line in found.values() for place in line]
    return sum(bool(place.records) for place in every), len(every)


def state(name: str, records: Records, quick: bool = False) -> str:
    """How much of a figure there is, such as "mnist 14 of 14, ptb 2 of 12"."""
    counts = {app: count(found(study, app, records)) for app, study in studies(name, quick).items()}
    return ", ".join(f"{application} {done} of {of}" for application, (done, of) in counts.items()) or "nothing to train"


def index(records: Records, to: Path, quick: bool = False) -> str:
    """The page of all pages.

    Args:
        records: as for `page`.
        to: the folder of the pages.
        quick: of the sample alone.
    """
    rows = []
    for name, figure in FIGURES.items():
        link = f"[{name}]({name}.md)" if (to / f"{name}.md").exists() else name
        rows.append([link, figure.title.partition(": ")[2], state(name, records, quick)])
    head = "How many places of each figure have a finished run; commands and logs are in the pages."
    title = "# The paper's figures, and what other papers do"
    return "\n".join([title, "", head, "", *markdown(["page", "what", "finished"], rows)]) + "\n"


def _quality(title: str, study: Study, found: Found, path: Path) -> list[str]:
    metric = first_metric(place for line in found.values() for place in line)
    points = {
        label: {_along(place, study.along): learnt(place.spread(metric), metric) for place in line}
        for label, line in found.items()
    }
    lines = [quality.Line(label, list(line.items())) for label, line in points.items()]
    quality.draw(lines, study.along, metric, path, title, study.paper)
    text = markdown([study.along, *points], [
        [f"{x:,g}", *(str(line[x]) if x in line else "" for line in points.values())]
        for x in sorted({x for line in points.values() for x in line})
    ])  # fmt: skip
    told = f"; {study.paper[0]}: {study.paper[1]:g}" if study.paper else ""
    missed = any(spread.values and spread.mean < GUESS for line in points.values() for spread in line.values())
    guess = " Near 10, which is chance, a run has not learnt." if metric == "accuracy" and missed else ""
    text = [f"{metric.capitalize()}, mean ± sample standard deviation (n seeds){told}.{guess}", "", *text]
    if study.distance and (rows := distance.rows(found["LEGW"], metric)):
        text += ["", "LEGW beside its baseline, seen when the rates of its steps had added up to as much"]
        if found["LEGW"][0].derived.recipe.decay != "constant":
            text[-1] += " (and had not fallen yet, which LEGW's have at its end)"
        text[-1] += ":"
        text += ["", *markdown(distance.HEAD, rows)]
    return text


def _along(place: Place, along: str) -> float:
    return place.derived.scaled.batch if along == "batch" else place.derived.scaled.lr


def _curvature(title: str, study: Study, found: Found, path: Path) -> list[str]:
    run = {label: [record for place in line for record in place.records] for label, line in found.items()}
    curves = {label: [curvature.curve(record) for record in records] for label, records in run.items() if records}
    curvature.draw(curves, path, title)
    head = [
        "scheme",
        "batch",
        "seed",
        "peak of L",
        "median of",
        "step",
        "epoch",
        "sum of lr",
        "half of it from epoch",
        "LEGW's warmup, epochs",
    ]
    rows, fits = [], [f"{label}: not run." for label, records in run.items() if not records]
    for label, line in curves.items():
        for curve in line:
            peak, told = curve.peak, ["none", "", "", "", "", ""]
            if peak is not None:
                half = "not seen" if peak.until is None else f"{curve.epoch(peak.until):.3g}"
                told = [
                    f"{peak.value:.3g}",
                    f"{peak.of}",
                    f"{peak.step:,}",
                    f"{curve.epoch(peak.step):.3g}",
                    f"{curve.lr_sum:.3g}",
                    half,
                ]
            rows.append([label, f"{curve.batch:,}", f"{curve.seed}", *told, f"{curve.warmup_epochs:g}"])
        if (fit := curvature.shift(line)) is not None:
            fits.append(f"{label}: the epoch of the peak goes as batch to the power {fit}, {_peaks(line)}.")
    lengths = {record.steps for records in run.values() for record in records}
    alike = (
        [
            f"Every run was measured for {lengths.pop():,} steps: peaks at random steps would have a power of 1 too, with a wide",
            "interval. A power of 1 says that the step of the peak is not seen to move with the batch.",
            "",
        ]
        if len(lengths) == 1
        else []
    )
    return [
        *markdown(head, rows),
        "",
        *(fits or ["Too few peaks to fit a power."]),
        "",
        *alike,
        "The paper's claim, a shift to the right about in proportion to the batch, is a power of 1. L is of each step's own",
        "batch, the peak that of a running median (`legw_hpc/peak.py`). The power depends on the rates: if the peak comes when",
        "those of the steps so far add up to a constant (sum of lr), it is 0.75 for legw, whose warmup has as many steps at",
        "every batch, 0.5 for sqrt, the same without a warmup, and 1 for none, one rate for all batches: what the batch",
        "alone does.",
    ]


def _peaks(curves: Sequence[curvature.Curve]) -> str:
    """How many a fit is of, and how many of those tell little."""
    peaks = [curve.peak for curve in curves if curve.peak is not None]
    few, endless = sum(peak.of < FEWEST for peak in peaks), sum(peak.until is None for peak in peaks)
    told = [f"of {len(peaks)} peaks"]
    told += [f"{few} of them hardly smoothed (medians of fewer than {FEWEST})"] if few else []
    told += [f"{endless} of which no end was seen"] if endless else []
    return ", ".join(told)


def _runs(found: Found, to: Path) -> list[str]:
    """Each run with what it takes to repeat it."""
    rows = []
    for label, line in found.items():
        for place in line:
            for record in place.records:
                row, one = record.row(place.derived), Place(place.derived, (record,))
                log = record.path.relative_to(to) if record.path.is_relative_to(to) else record.path.name
                trained = [label, f"{row['batch']:,}", f"{row['lr']:.4g}", f"{row['warmup_epochs']:.4g}", f"{row['seed']}"]
                minutes = f"{row['seconds'] / 60:.1f}" if "seconds" in row else ""
                origin = [minutes, f"{row['ranks']}", f"`{row['commit']}`", row["started"], f"[log]({log})"]
                rows.append([*trained, str(one.spread(first_metric([one]))), *origin, f"`{_command(record)}`"])
    head = ["series", "batch", "lr", "warmup epochs", "seed", "result", "minutes", "ranks", "commit", "started", "log", "command"]
    return [*markdown(head, rows), "", "Minutes are those of the steps, without evaluations and measurements of L."]


def _command(record: Record) -> str:
    """What was typed, but for the run folder; of a log that does not tell, the recipe's name and what is not its own today."""
    if typed := record.command:
        return shlex.join(word for word in shlex.split(typed) if not word.startswith("out="))
    recipe = record.recipe
    own, words = load(recipe.name).identity(), [f"max_steps={recipe.max_steps}"] if recipe.max_steps else []
    for key, value in recipe.identity().items():
        if own.get(key) != value:
            whole = isinstance(value, float) and value.is_integer()
            words.append(f"{key}={int(value) if whole else value}")
    return " ".join(["legw-hpc train", recipe.name, *words])


def _schedules(to: Path) -> list[str]:
    """Figure 2: nothing is trained for it."""
    recipe = RECIPES["imagenet"]
    panels = {told: [cell.derived for cell in cells(recipe, [TABLE_1, f"decay={decay}"])] for decay, told in DECAYS.items()}
    with written_whole(to / "figure2-imagenet.png") as path:
        schedules.draw(panels, path, "ImageNet, ResNet-50")
    rows = []
    for runs in zip(*panels.values(), strict=True):
        now = runs[0].scaled
        rates = [f"{run.schedule(epoch):.4g}" for run in runs for epoch in EPOCHS]
        rows.append([f"{now.batch:,}", f"{now.lr:.4g}", f"{now.warmup_epochs:g}", *rates])
    head = ["batch", "peak", "warmup epochs", *(f"{decay}, epoch {epoch:g}" for decay in DECAYS for epoch in EPOCHS)]
    return [
        "",
        f"Nothing is trained for it; recipe `{recipe}`, 90 epochs: `legw-hpc plan {recipe} batch=32768 decay=multi-step`.",
        "",
        *markdown(head, rows),
        "",
        "![figure2, imagenet](figure2-imagenet.png)",
        "",
        "poly counts from the start of training, as the paper's formula reads, so the rate drops where the warmup ends.",
    ]


def _plan(records: Records) -> list[str]:
    """Table 1 as it is in the paper."""
    recipe, rows = RECIPES["imagenet"], []
    for place in places(cells(recipe, [TABLE_1]), records, every_seed=True):
        now, planned = place.derived.scaled, place.derived
        lr, warmup, top5 = PAPERS_TABLE_1[now.batch]
        ours = [f"2^{math.log2(now.lr):g}", f"2^{lr:g}", f"{now.warmup_epochs:g}", f"{warmup:g}"]
        length = [f"{planned.steps_per_epoch:,}", f"{planned.steps:,}"]
        rows.append([f"{now.batch:,}", *ours, *length, f"{top5:.2f}", str(place.spread("top5"))])
    head = ["batch", "lr", "paper's", "warmup epochs", "paper's", "steps an epoch", "steps", "paper's top-5", "top-5"]
    return [
        "",
        "## ImageNet, ResNet-50",
        "",
        f"Recipe `{recipe}`: LARS, poly of power 2, 90 epochs; tuned at batch 1,024, the others are derived.",
        "",
        *markdown(head, rows),
    ]
