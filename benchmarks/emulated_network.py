"""Steps on two to four emulated hosts, by Open MPI and Horovod, beside what the performance model says of them.

    python -m benchmarks.emulated_network [--quick]         needs root; about 24 minutes on 2 cores, 2 quick

Latency, bandwidth, network and ranks vary.  The model is given what a rank computes, with all ranks at work but no
exchange, the set latency and bandwidth, and, from hosts without either, what the hosts themselves take.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarks import made, measure, on_hosts, speeds
from benchmarks.measure import Bench
from benchmarks.ours import Trained
from legw_hpc.comm import Serial, connect
from legw_hpc.plan.allreduce import Link, bound
from legw_hpc.plan.model import Speeds, Work, requests, step
from legw_hpc.recipe import load
from legw_hpc.sizes import gradient_bytes

NAME, ABOUT = "emulated_network", "steps on emulated hosts, measured and as the performance model has them"
GOAL = 0.15  # of the measured step, that the forecast may be off
STEPS, QUICK_STEPS = 12, 5
EAGER = 65536  # bytes (btl_tcp_eager_limit of Open MPI)
# Recipe -> samples of a rank and made-up data.
TASKS = {"mnist-lstm": (128, made.mnist, 4096), "cifar10-resnet20": (16, made.cifar, 2048), "ptb-lstm": (2, made.text, 50000)}


@dataclass(frozen=True)
class Point:
    """One measurement.

    Attributes:
        alpha: seconds from host to host.
        rate: bytes a second that leave a host; 0 is as many as can.
    """

    recipe: str
    ranks: int
    alpha: float
    rate: float
    steps: int


def points(quick: bool) -> list[Point]:
    """What is measured, in order."""
    if quick:
        return [Point("mnist-lstm", 2, 5e-3, 100e6, QUICK_STEPS), Point("ptb-lstm", 2, 0.5e-3, 20e6, QUICK_STEPS)]
    grid = itertools.product(TASKS, (2, 3, 4), ((0.5e-3, 20e6), (5e-3, 20e6), (5e-3, 100e6)))
    return [Point(recipe, ranks, alpha, rate, STEPS) for recipe, ranks, (alpha, rate) in grid]


def main() -> None:
    on_hosts.command(NAME, ABOUT, "two points", Point, measured, rows, table)


def rows(quick: bool) -> list[dict[str, Any]]:
    """Of all points, with their forecasts."""
    wanted = points(quick)
    bare = {ranks: run(Point("mnist-lstm", ranks, 0.0, 0.0, 1)) for ranks in sorted({point.ranks for point in wanted})}
    return [forecast(run(point), bare[point.ranks]) for point in wanted]


def run(point: Point) -> dict[str, Any]:
    """A point's row, told as it is found."""
    row = on_hosts.measure_on(point.ranks, point.alpha, point.rate, NAME, point)
    print(f"{point}: {row['step_s']:.3f} s", file=sys.stderr, flush=True)
    return row


def measured(point: Point) -> None:
    """On every rank: steps alone, steps together, and messages; rank 0 prints the row."""
    torch.set_num_threads(1)
    comm = connect()
    try:
        bench = Bench(comm, quick=True)
        share, make, samples = TASKS[point.recipe]
        words = [*make(bench, samples), f"micro_batch={share}"]
        alone = Trained(Bench(Serial(), quick=True), point.recipe, [*words, f"batch={share}"])
        together = Trained(bench, point.recipe, [*words, f"batch={share * comm.size}"])
        own, steps = list[float](), list[float]()
        for _ in range(point.steps + 1):  # in turn, so that both are of the same minute
            own.append(bench.seconds(alone.step))
            steps.append(bench.seconds(together.step))
        own, steps = own[1:], steps[1:]  # the first warms up
        add = statistics.median(speeds.memory(bench, 3)["add"])
        links = speeds.links(comm, add, 3)["network"]
        if comm.rank == 0:
            case = measure.Case(point.recipe, lambda: None)
            row = measure.row(NAME, case, steps, bench, threads=1) | asdict(point)
            row |= {"step_s": statistics.median(steps), "own_s": statistics.median(own), "add_gb_per_s": add}
            row |= {"alpha_us": statistics.median(links[0]), "gb_per_s": statistics.median(links[1])}
            print(json.dumps(row), flush=True)
    finally:
        comm.close()


def forecast(row: dict[str, Any], bare: dict[str, Any]) -> dict[str, Any]:
    """With what `plan`'s model says: own + Horovod's requests + a ring, the algorithm that MPI is told to take.

    Args:
        bare: the row of as many hosts without latency and limit, for what they take themselves.
    """
    share = TASKS[row["recipe"]][0]
    ranks, n = row["ranks"], gradient_bytes(load(row["recipe"]))
    alpha, gamma = row["alpha"] + 1e-6 * bare["alpha_us"], 1e-9 / bare["add_gb_per_s"]
    beta = max(1 / row["rate"], 1e-9 / bare["gb_per_s"])
    link = Link(alpha, beta, gamma, EAGER)
    machine = Speeds(
        share / row["own_s"], half_batch=0.0, jitter=0.0, network=link, memory=link, cycle=1e-3, memory_per_s=math.inf,
        input_per_s=math.inf, algorithm="ring",
    )  # fmt: skip
    split, told = step(Work(share * ranks, share, n), ranks, 1, machine), requests(ranks, 1, machine)
    least = row["own_s"] + bound(n, ranks, Link(row["alpha"], 1 / row["rate"]))
    said = {
        "requests_s": told,
        "ring_s": split.exchange - told,
        "predicted_s": split.step,
        "error": split.step / row["step_s"] - 1,
    }
    return row | said | {"bound_s": least}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [f"# {NAME}: {ABOUT}", ""]
    lines += ["| recipe | ranks | latency | bandwidth | alone | + requests | + ring | forecast | measured | error | bound |"]
    lines += ["|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"]
    for row in rows:
        times = " | ".join(f"{row[key]:.3f} s" for key in ("own_s", "requests_s", "ring_s", "predicted_s", "step_s"))
        set_ = f"{1e3 * row['alpha']:g} ms | {row['rate'] / 1e6:g} MB/s"
        lines.append(f"| {row['recipe']} | {row['ranks']} | {set_} | {times} | {row['error']:+.0%} | {row['bound_s']:.3f} s |")
    errors = [abs(row["error"]) for row in rows]
    within = sum(error <= GOAL for error in errors)
    bounded = sum(abs(row["bound_s"] / row["step_s"] - 1) <= GOAL for row in rows)
    real = [row for row in rows if row["step_s"] > row["own_s"]]
    parts = [(row["requests_s"] + row["ring_s"]) / (row["step_s"] - row["own_s"]) for row in real]
    exchanges = sum(abs(part - 1) <= GOAL for part in parts)
    where = rows[0]
    lines += [
        "",
        "Bound: alone, and the alpha-beta bound of the sum by the set latency and bandwidth, no more.",
        "",
        f"{within} of {len(rows)} within {GOAL:.0%}; median error {statistics.median(errors):.0%}, largest {max(errors):.0%}. "
        f"Of the bound {bounded} are.  ",
        f"The exchange by itself, requests and ring beside what a step takes more than alone: {exchanges} of {len(rows)} within "
        f"{GOAL:.0%}; {len(rows) - len(real)} took less together than alone, which no model has.  ",
        f"`{where['command']}`, {where['time']}, commit {where['commit']}; {where['hardware']}; medians of {where['n']} steps, 1 "
        f"thread a rank; torch {where['versions']['torch']}, Horovod {where['versions']['horovod']}.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
