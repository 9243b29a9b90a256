"""What MNIST-LSTM's training costs as the work grows: with the global batch, the ranks, and the shards.

Each point is measured in processes of its own: the memory of one says nothing of the next.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from benchmarks import measure
from benchmarks.measure import Bench
from benchmarks.ours import Trained
from legw_hpc.comm import connect
from legw_hpc.data.files import make_folder, written_whole
from legw_hpc.data.sources import synthetic
from legw_hpc.figures.quality import COLOURS

SAMPLES = 65536  # every batch divides it: all steps are of one size
SECONDS = 600  # that a point may take
AXES = {"batch": "global batch (samples)", "ranks": "ranks", "shards": "shards"}
ABOUT = "what MNIST-LSTM's training costs as the work grows"


@dataclass(frozen=True)
class Point:
    """One measurement.

    Attributes:
        axis: what grows from point to point.
    """

    axis: str
    batch: int = 8192
    ranks: int = 2
    shards: int = 1
    steps: int = 7

    @property
    def along(self) -> int:
        return int(getattr(self, self.axis))


def points(quick: bool) -> list[Point]:
    """What is measured, in order; those that two axes share are measured for each."""
    many: dict[str, tuple[int, ...]] = {"batch": (1024, 16384), "ranks": (1, 2), "shards": (1, 100)}
    if not quick:
        many = {"batch": tuple(1024 << i for i in range(6)), "ranks": (1, 2, 4), "shards": (1, 10, 100)}
    base = Point("", batch=2048, steps=3) if quick else Point("")
    return [replace(base, axis=axis, **{axis: value}) for axis, values in many.items() for value in values]


def main() -> None:
    parser = argparse.ArgumentParser(description=ABOUT, allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="fewer points and steps")
    parser.add_argument("--to", type=Path, help=f"folder for the results (default: {measure.WHERE})")
    parser.add_argument("--point", nargs=2, metavar=("JSON", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.to = options.to or measure.results(options.quick)
    if options.point:
        measured(Point(**json.loads(options.point[0])), Path(options.point[1]))
        return
    with tempfile.TemporaryDirectory(prefix="legw-bench-") as folder:
        rows = [launched(point, Path(folder), options.quick) for point in points(options.quick)]
    make_folder(options.to)
    with written_whole(options.to / "growth.jsonl") as path:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = table(rows)
    with written_whole(options.to / "growth.md") as path:
        path.write_text(text)
    with written_whole(options.to / "growth.png") as path:
        draw(rows, path)
    print(text, flush=True)


def launched(point: Point, folder: Path, quick: bool) -> dict[str, Any]:
    """A point's row; its ranks have a core each where there are enough."""
    data = folder / f"{point.shards}"
    if not data.exists():
        synthetic.write(data, (28, 28), 10, SAMPLES, 100, samples_per_shard=-(-SAMPLES // point.shards))
    command, environment = measure.on_ranks(point.ranks)
    command += [sys.executable, "-m", "benchmarks.growth", "--point", json.dumps(asdict(point)), str(data)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=SECONDS, check=True)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{point.axis} {point.along:,}: {row['median']:,.0f} samples/s", file=sys.stderr)
    return row | {"quick": quick, "command": f"python -m benchmarks.growth {' '.join(sys.argv[1:])}".strip()}


def measured(point: Point, data: Path) -> None:
    """On every rank: some steps after one that warms up; rank 0 prints the row."""
    torch.set_num_threads(1)
    comm = connect()
    try:
        bench = Bench(comm, quick=False)
        words = [f"data.dir={data}", f"data.train_samples={SAMPLES}", f"batch={point.batch}", "epochs=1000"]
        trained = Trained(bench, "mnist-lstm", words)
        seconds = [bench.seconds(trained.step) for _ in range(point.steps + 1)][1:]
        memory = max(comm.gather(peak_memory()))
        if comm.rank == 0:
            case = measure.Case(f"{point.axis} {point.along}", lambda: None, point.batch, "samples")
            row = measure.row("growth", case, seconds, bench, threads=1) | asdict(point)
            print(json.dumps(row | {"step_s": statistics.median(seconds), "peak_mb": memory}), flush=True)
    finally:
        comm.close()


def peak_memory() -> float:
    """The most that this process has had in memory, MB; what it has touched of the shards counts."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024 / 1e6


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: a table an axis, and where it was measured."""
    lines = [f"# growth: {ABOUT}"]
    for axis, label in AXES.items():
        mine = [row for row in rows if row["axis"] == axis]
        others = [f"{name} {mine[0][name]:,}" for name in AXES if name != axis]
        lines += ["", f"| {label}; {', '.join(others)} | s a step | samples/s | quartiles | peak MB a rank |"]
        lines += ["|--:|--:|--:|--:|--:|"]
        for row in mine:
            low, high = row["quartiles"]
            name = f"{row[axis]:,}" + (" (oversubscribed)" if row["oversubscribed"] else "")
            rates = f"{row['median']:,.0f} | {low:,.0f} to {high:,.0f}"
            lines.append(f"| {name} | {row['step_s']:.3f} | {rates} | {row['peak_mb']:,.0f} |")
    row = rows[0]
    lines += [
        "",
        f"{SAMPLES:,} samples; medians of {row['n']} steps; the slowest rank's time, the largest rank's memory.  ",
        f"`{row['command']}`, {row['time']}, commit {row['commit']}; {row['hardware']}; {row['threads']} thread a rank; "
        f"torch {row['versions']['torch']}, Horovod {row['versions']['horovod']}.",
        "",
    ]
    return "\n".join(lines)


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write a PNG: samples/s above, memory below, a column an axis."""
    figure, grid = plt.subplots(2, len(AXES), figsize=(9.6, 5.0), dpi=150, layout="constrained", sharex="col", sharey="row")
    for column, (axis, label) in enumerate(AXES.items()):
        mine = [row for row in rows if row["axis"] == axis]
        along = [row[axis] for row in mine]
        for axes, value, colour in zip(grid[:, column], ("median", "peak_mb"), COLOURS, strict=False):
            axes.plot(along, [row[value] for row in mine], color=colour, marker="o", linewidth=1.8)
            for row in mine:
                if row["oversubscribed"]:
                    place = (row[axis], row[value])
                    axes.annotate("oversubscribed", place, textcoords="offset points", xytext=(0, -12), ha="right", fontsize=7)
            axes.set_ylim(0, 1.15 * max(row[value] for row in rows))
            axes.grid(alpha=0.3)
        grid[1, column].set_xscale("log", base=2)
        grid[1, column].xaxis.set_major_locator(FixedLocator(along))
        grid[1, column].xaxis.set_minor_locator(NullLocator())
        grid[1, column].xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        grid[1, column].tick_params(axis="x", labelrotation=45 if len(along) > 3 else 0)
        grid[1, column].set_xlabel(label)
    grid[0, 0].set_ylabel("samples/s")
    grid[1, 0].set_ylabel("peak memory of a rank (MB)")
    figure.suptitle("MNIST-LSTM: cost as the work grows")
    figure.savefig(path, format="png")
    plt.close(figure)


if __name__ == "__main__":
    main()
