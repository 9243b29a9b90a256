"""Steps on two emulated hosts, with the gradient summed after the backward pass and, in pieces, behind it.

    python -m benchmarks.overlap [--quick]         needs root; about 3 minutes on 2 cores, 1 quick

The two ranks have a core each, so the threads that exchange take their time from the computing, as they do on a node
without spare cores.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarks import made, measure, on_hosts
from benchmarks.measure import Bench
from benchmarks.ours import Trained
from legw_hpc.comm import Serial, connect

NAME, ABOUT = "overlap", "the exchange after the backward pass and behind it, on two emulated hosts"
RECIPE, SHARE, SAMPLES = "cifar10-resnet20", 64, 4096
PIECES = (1, 2, 4, 8)
RANKS, ALPHA = 2, 1e-4
RATES = (10e6, 20e6, 40e6)  # bytes a second: the exchange of 1.1 MB takes from half of the backward pass to an eighth
STEPS, QUICK_STEPS = 15, 5


@dataclass(frozen=True)
class Point:
    """One network.

    Attributes:
        rate: bytes a second that leave a host.
    """

    rate: float
    steps: int


def main() -> None:
    on_hosts.command(NAME, ABOUT, "one network", Point, measured, rows, table)


def rows(quick: bool) -> list[dict[str, Any]]:
    """Of all networks."""
    wanted = [Point(rate, QUICK_STEPS if quick else STEPS) for rate in (RATES[1:2] if quick else RATES)]
    return [on_hosts.measure_on(RANKS, ALPHA, point.rate, NAME, point) for point in wanted]


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
