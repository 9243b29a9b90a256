"""Steps on two emulated hosts, with the gradient summed after the backward pass and, in pieces, behind it.

    python -m benchmarks.overlap [--quick]         needs root; about 3 minutes on 2 cores, 1 quick

The two ranks have a core each, so the threads that exchange take their time from the computing, as they do on a node
without spare cores.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import made, measure
from benchmarks.measure import Bench
from benchmarks.namespaces import hosts
from benchmarks.ours import Trained
from legw_hpc.comm import Serial, connect
from legw_hpc.errors import InputError

NAME, ABOUT = "overlap", "the exchange after the backward pass and behind it, on two emulated hosts"
RECIPE, SHARE, SAMPLES = "cifar10-resnet20", 64, 4096
PIECES = (1, 2, 4, 8)
RANKS, ALPHA = 2, 1e-4
RATES = (10e6, 20e6, 40e6)  # bytes a second: the exchange of 1.1 MB takes from half of the backward pass to an eighth
STEPS, QUICK_STEPS = 15, 5
SECONDS = 300  # that a point may take


@dataclass(frozen=True)
class Point:
    """One network.

    Attributes:
        rate: bytes a second that leave a host.
    """

    rate: float
    steps: int


def main() -> None:
    parser = argparse.ArgumentParser(description=ABOUT, allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="one network")
    parser.add_argument("--to", type=Path, help=f"folder for the results (default: {measure.WHERE})")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.point:
        measured(Point(**json.loads(options.point)))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the hosts go first
    to, rows = options.to or measure.results(options.quick), []
    try:
        for rate in RATES[1:2] if options.quick else RATES:
            point = Point(rate, QUICK_STEPS if options.quick else STEPS)
            with hosts(RANKS, ALPHA, 1 / rate) as up:
                words = [sys.executable, "-m", f"benchmarks.{NAME}", "--point", json.dumps(asdict(point))]
                row = json.loads(up.run(words, SECONDS).splitlines()[-1])
            rows.append(row | {"command": f"python -m benchmarks.{NAME} {' '.join(sys.argv[1:])}".strip()})
    except (InputError, RuntimeError) as error:
        sys.exit(f"{NAME}: {error}")
    measure.keep(to, NAME, rows, table(rows))


def measured(point: Point) -> None:
    """On every rank: a step alone, and together with each number of pieces in turn; rank 0 prints the row."""
    torch.set_num_threads(1)
    comm = connect()
    try:
        bench = Bench(comm, quick=True)
        words = [*made.cifar(bench, SAMPLES), f"micro_batch={SHARE}"]
        alone = Trained(Bench(Serial(), quick=True), RECIPE, [*words, f"batch={SHARE}"])
        batch = f"batch={SHARE * comm.size}"
        together = {pieces: Trained(bench, RECIPE, [*words, batch, f"exchange_pieces={pieces}"]) for pieces in PIECES}
        own: list[float] = []
        steps: dict[int, list[float]] = {pieces: [] for pieces in PIECES}
        for _ in range(point.steps + 1):  # the first warms up
            own.append(bench.seconds(alone.step))
            for pieces, training in together.items():
                steps[pieces].append(bench.seconds(training.step))
        if comm.rank == 0:
            row = measure.row(NAME, measure.Case(RECIPE, lambda: None), own[1:], bench, threads=1) | asdict(point)
            row |= {"own_s": statistics.median(own[1:])}
            row |= {"step_s": {str(pieces): statistics.median(seconds[1:]) for pieces, seconds in steps.items()}}
            print(json.dumps(row), flush=True)
    finally:
        comm.close()


def share(row: dict[str, Any], pieces: int) -> float:
    """Of what the exchange makes a step longer in one piece: what it no longer does in so many."""
    steps = row["step_s"]
    return float((steps["1"] - steps[str(pieces)]) / (steps["1"] - row["own_s"]))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [f"# {NAME}: {ABOUT}", "", f"{RECIPE}, {SHARE} images a rank, {1e3 * ALPHA:g} ms from host to host.", ""]
    more = [f"{pieces} pieces, share hidden" for pieces in PIECES[1:]]
    lines += ["| " + " | ".join(["bandwidth", "alone", "1 piece", *more]) + " |", "|--:" * (3 + len(more)) + "|"]
    for row in rows:
        steps = [f"{row['step_s'][str(pieces)]:.3f} s, {share(row, pieces):.0%}" for pieces in PIECES[1:]]
        cells = [f"{row['rate'] / 1e6:g} MB/s", f"{row['own_s']:.3f} s", f"{row['step_s']['1']:.3f} s", *steps]
        lines.append("| " + " | ".join(cells) + " |")
    where = rows[0]
    lines += [
        "",
        "Share hidden: of what one piece takes beside a step alone; above 100% where the steps alone came out slower.",
        "",
        f"`{where['command']}`, {where['time']}, commit {where['commit']}; {where['hardware']}; medians of {where['n']} steps, "
        f"in turn, 1 thread a rank; torch {where['versions']['torch']}, Horovod {where['versions']['horovod']}.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
