"""How much of a step waits for input, by the clock that every run logs."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from contextlib import closing

import torch

from benchmarks import made
from benchmarks.measure import Bench, Case, Limit, Outcome, run
from legw_hpc.recipe import load
from legw_hpc.trainer import Timing
from legw_hpc.work import prepare

GOAL = 2.0  # %


class Waiting:
    """A recipe's training in rounds that begin with nothing read ahead.

    A loader that went on between the rounds would have its next batches ready, however slow it is.
    The first step of a round, whose input nobody could have read ahead, does not count.

    Args:
        recipe, words: as for `legw-hpc train`.
        steps: that count in a round.
    """

    def __init__(self, bench: Bench, recipe: str, words: list[str], steps: int):
        self.comm, self.steps = bench.comm, max(2, steps // 10) if bench.quick else steps
        self.work = prepare(load(recipe, [*words, f"threads={torch.get_num_threads()}"]), bench.comm)
        self.shares: list[float] = []
        self.samples = self.steps * self.work.recipe.batch * self.work.order.per_item

    def round(self) -> float:
        """Its seconds."""
        timing = Timing()
        with closing(self.work.train(0, timing, [])) as steps:
            next(steps)
            since, start = dataclasses.replace(timing), time.perf_counter()
            for _ in range(self.steps):
                next(steps)
            seconds = time.perf_counter() - start
        self.shares.append(timing.line(since)["input"])
        return seconds

    def cost(self) -> float:
        """Reading a round's input, as a share of a round's seconds: what the loader's thread takes of the processor."""
        work, recipe = self.work, self.work.recipe
        count = min(recipe.micro_batch, -(-recipe.batch // self.comm.size))
        # Other samples each time: the same ones would be in the processor's cache.
        items = [work.order.items(0, step % work.derived.steps_per_epoch)[:count] for step in range(5)]
        start = time.perf_counter()
        for some in items:
            work.app.decode(work.training, some, (recipe.seed, 0))
        return (time.perf_counter() - start) * recipe.batch / sum(map(len, items)) / self.comm.size * self.steps

    def limit(self, name: str, seconds: list[float]) -> Limit:
        """The share of the rank that waits most, over the rounds that count."""
        share = max(self.comm.gather(statistics.median(self.shares[1:])))
        reading = self.cost() / statistics.median(seconds)
        return Limit(f"{name}: % of a step that waits", 100 * share, GOAL, f"reading alone takes {100 * reading:.2f} %")


def cases(bench: Bench) -> Outcome:
    ranks = bench.comm.size
    images = ["options.size=64", "options.resize=72"] if bench.quick else []
    mnist, text, cifar, jpegs = (make(bench) for make in MAKERS)
    waiting = {
        "mnist-lstm, batch 8,192": Waiting(bench, "mnist-lstm", [*mnist, "batch=8192"], 4),
        "ptb-lstm, batch 20": Waiting(bench, "ptb-lstm", [*text, "batch=20"], 100),
        "ptb-lstm, batch 640": Waiting(bench, "ptb-lstm", [*text, "batch=640"], 6),
        "resnet20, batch 512": Waiting(bench, "cifar10-resnet20", [*cifar, "batch=512"], 6),
        "resnet50, batch 8 a rank": Waiting(
            bench, "imagenet-resnet50", [*jpegs, f"batch={8 * ranks}", "micro_batch=8", *images], 3
        ),
    }

    def after(seconds: dict[str, list[float]]) -> list[Limit]:
        return [one.limit(name, seconds[name]) for name, one in waiting.items()]

    unit = {"ptb-lstm": "words"}
    measured = [Case(name, one.round, one.samples, unit.get(name.split(",")[0], "samples")) for name, one in waiting.items()]
    return Outcome(measured, after=after)


MAKERS: tuple[Callable[[Bench], list[str]], ...] = (made.mnist, made.text, made.cifar, made.jpegs)

if __name__ == "__main__":
    run("input_wait", "the share of a step that waits for input", cases, ranks=2, rounds=3)
