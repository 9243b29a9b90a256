"""One rank alone beside all ranks, with the same work for each: what the exchange and the shared machine cost."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from functools import partial

import torch

from benchmarks import made
from benchmarks.exchange import without_horovod
from benchmarks.measure import Bench, Case, Goal, Outcome, run
from legw_hpc.comm import Comm, Serial
from legw_hpc.recipe import load
from legw_hpc.trainer import Done, Timing
from legw_hpc.work import prepare

STEPS = 2
APART = "all at once without exchange"


def cases(bench: Bench) -> Outcome:
    comm = bench.comm
    share, size = (1024, ["options.size=64", "options.resize=72"]) if bench.quick else (4096, [])
    tasks = {
        "mnist-lstm": ("mnist-lstm", made.mnist(bench), share, 0.90),
        "resnet50": ("imagenet-resnet50", [*made.jpegs(bench), "micro_batch=8", *size], 8, 0.95),
    }
    measured, goals = [], []
    for task, (recipe, words, samples, goal) in tasks.items():
        one, all_ranks, apart = (f"{task}, {how}" for how in ("1 rank", f"{comm.size} ranks", APART))
        alone, together = (steps(recipe, [*words, f"batch={samples * c.size}"], c) for c in (Serial(), comm))
        runs = {
            one: partial(without_exchange, comm, alone if comm.rank == 0 else None),
            all_ranks: partial(timed, together),
            apart: partial(without_exchange, comm, alone),
        }
        measured += [Case(name, run, samples * STEPS, "samples a rank") for name, run in runs.items()]
        goals.append(Goal(all_ranks, one, goal, "efficiency"))

    def after(seconds: dict[str, list[float]]) -> list[str]:
        lines = []
        for goal in goals:
            apart = goal.case.replace(f"{comm.size} ranks", APART)
            ratio = statistics.median(a / b for a, b in zip(seconds[goal.beside], seconds[apart], strict=True))
            lines.append(f"{apart}: {ratio:.3f} of 1 rank, which is what sharing caches, memory and clock leaves.")
        return lines

    return Outcome(measured, goals, [f"A step is {share:,} samples a rank for mnist-lstm, 8 for resnet50."], after)


def steps(recipe: str, words: list[str], comm: Comm) -> Iterator[Done]:
    """A recipe's training on the ranks of `comm`."""
    return prepare(load(recipe, [*words, f"threads={torch.get_num_threads()}"]), comm).train(0, Timing(), [])


def timed(training: Iterator[Done]) -> float:
    start = time.perf_counter()
    for _ in range(STEPS):
        next(training)
    return time.perf_counter() - start


def without_exchange(comm: Comm, training: Iterator[Done] | None) -> float:
    """This rank's training, or its waiting for the others."""
    with without_horovod(comm):
        return 0.0 if training is None else timed(training)


if __name__ == "__main__":
    run("weak_scaling", "all ranks beside one, with the same work for each", cases, ranks=2)
