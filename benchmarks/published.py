"""The performance model against published runs: fitted with each of them held out in turn, and what it then says of it.

`python -m benchmarks.published` reads published.toml and prints results/plan.md; `--write` puts it there.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass
from pathlib import Path

from benchmarks.published_runs import GUESSES, Fit, Model, Published, Run, fit
from legw_hpc.data.files import written_whole

RESULT = Path(__file__).parents[1] / "results" / "plan.md"

PAIRS = (
    ("You 2018, 512 KNL", "You 2018, 2,048 KNL"),
    ("Nurion, 512 KNL", "Nurion, 2,048 KNL"),
    ("SURFsara, 64 Skylake nodes", "SURFsara, 448 Skylake nodes"),
    ("Goyal 2017, 8 P100", "Goyal 2017, 256 P100"),
)

NAMES = {
    "half_batch": "half batch, samples of a rank",
    "share": "bandwidth of an allreduce, share of the link's",
    "jitter": "jitter, standard deviation over ranks",
    "overlap": "overlap, share of what could be hidden",
}

HEAD = """# The performance model against published runs

Made by `python -m benchmarks.published --write` from `benchmarks/published.toml`, which has the source of each run; a test holds
this page to it.  ResNet-50 on ImageNet, but for CosmoFlow.  Errors are predicted over published less 1.

* **fitted**: the fit of all runs, this one included.
* **out**: this run held out, with all others of its hardware, nodes, ranks and batch.
* **far**: all runs of its hardware held out but the smallest, which sets the rate: what measuring on few nodes says of many.
* **bound**: b/r and the alpha-beta bound of the sum, no more; its rates are fitted to the same runs in the same way.
"""

SPEEDUPS = "Speedups, neither run of a pair in the fit:"

PARAMETERS = """Fitted: a rate for each hardware, in samples/s of a node or GPU with micro-batches without end, and four numbers
that all runs share.  Jitter stands for all that grows slowly with the number of ranks."""

ASSUMED = "What the publications, as far as they could be read, do not say, and is assumed:"


@dataclass(frozen=True)
class Row:
    """A run, and the errors of what is said of it, in shares of what was published.

    Attributes:
        fitted: by the fit of all runs, this one too.
        out: of all but those of this hardware, nodes, ranks and batch; None for a run that sets the rate of its hardware.
        far: of other hardware, and of this one the smallest run alone, to set its rate; None for that run
            and where the smallest is no smaller.
    """

    name: str
    fitted: float
    out: float | None
    far: float | None


def rows(data: Published, model: Model, whole: Fit) -> list[Row]:
    """A row a run with a published figure."""
    found = []
    for name, run in data.runs.items():
        if not run.published:
            continue

        def error(runs: list[Run] | None, run: Run = run) -> float:
            values = whole.values if runs is None else fit(model, runs, whole.values).values
            return model.predicted(run, values) / run.published - 1

        if not run.scored:
            found.append(Row(name, error(None), None, None))
            continue
        others = [other for other in data.runs.values() if other.configuration != run.configuration]
        kind = data.kind(run)
        smallest = min((r for r in data.runs.values() if data.kind(r) == kind and r.seconds), key=lambda r: r.nodes)
        apart = [other for other in data.runs.values() if data.kind(other) != kind]
        far = error([*apart, smallest]) if smallest.nodes < run.nodes else None
        found.append(Row(name, error(None), error(others), far))
    return found


def text(data: Published) -> str:
    """results/plan.md."""
    model, bound = Model(data, full=True), Model(data, full=False)
    whole, alone = fit(model, data.runs.values()), fit(bound, data.runs.values())
    ours, theirs = rows(data, model, whole), rows(data, bound, alone)
    lines = [HEAD, "| run | nodes x ranks | batch | published | | fitted | out | far | bound, out | bound, far |"]
    lines += ["|---|--:|--:|--:|---|--:|--:|--:|--:|--:|"]
    for row, other in zip(ours, theirs, strict=True):
        run = data.runs[row.name]
        name = row.name if run.scored else f"{row.name} (sets a rate)"
        figure = f"{run.efficiency:.0%} | efficiency" if run.efficiency else f"{run.published:,.0f} | samples/s"
        errors = " | ".join(percent(error) for error in (row.fitted, row.out, row.far, other.out, other.far))
        lines.append(f"| {name} | {run.nodes:,} x {run.ranks} | {run.batch:,} | {figure} | {errors} |")
    columns: list[list[float | None]] = [[row.fitted for row in ours if row.out is not None]]
    columns += [[getattr(row, name) for row in side] for side in (ours, theirs) for name in ("out", "far")]
    sizes = [[abs(error) for error in column if error is not None] for column in columns]
    for word, of in (("median", statistics.median), ("largest", max)):
        shown = " | ".join(f"**{of(column):.0%}**" for column in sizes)
        lines.append(f"| {word}, without sign and those that set a rate | | | | | {shown} |")
    lines += ["", SPEEDUPS, "", *speedups(data, model, bound, whole, alone), "", PARAMETERS, ""]
    lines += ["| | fitted | one standard deviation | first guess |", "|---|--:|--:|--:|"]
    for name, value in whole.values.items():
        low, high = number(value / whole.factors[name]), number(value * whole.factors[name])
        guess = f"{GUESSES[name][0]:g}, within a factor of {GUESSES[name][1]:g}" if name in GUESSES else "none"
        lines.append(f"| {NAMES.get(name, name)} | {number(value)} | {low} to {high} | {guess} |")
    lines += ["", ASSUMED, "", *(f"* {name}: {run.assumed}" for name, run in data.runs.items() if run.assumed), ""]
    return "\n".join(lines)


def speedups(data: Published, model: Model, bound: Model, whole: Fit, alone: Fit) -> list[str]:
    """How much faster the second of two runs is; neither takes part in the fit."""
    lines = ["| from | to | published | model | bound |", "|---|---|--:|--:|--:|"]
    for first, second in PAIRS:
        pair = data.runs[first], data.runs[second]
        others = [run for run in data.runs.values() if run.configuration not in [r.configuration for r in pair]]
        said = []
        for kind, start in ((model, whole), (bound, alone)):
            values = fit(kind, others, start.values).values
            one, two = (kind.predicted(run, values) for run in pair)
            said.append(two / one)
        published = pair[1].published / pair[0].published
        lines.append(f"| {first} | {second} | {published:.2f} | {said[0]:.2f} | {said[1]:.2f} |")
    return lines


def percent(error: float | None) -> str:
    return "" if error is None else f"{error:+.0%}"


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.published", description=__doc__, allow_abbrev=False)
    parser.add_argument("--write", action="store_true", help="results/plan.md anew")
    write = parser.parse_args().write
    made = text(Published.read())
    if write:
        with written_whole(RESULT) as path:
            path.write_text(made)
    print(made)


if __name__ == "__main__":
    main()
