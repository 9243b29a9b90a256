"""This package's own training, a step at a time, with everything that a run has but the log and checkpoints."""

from __future__ import annotations

import torch

from benchmarks.measure import Bench
from legw_hpc.recipe import load
from legw_hpc.trainer import Timing
from legw_hpc.work import prepare


class Trained:
    """A recipe's training; input, exchange and update included, on as many threads as the benchmark has.

    Args:
        bench: its ranks.
        recipe, words: as for `legw-hpc train`.
    """

    def __init__(self, bench: Bench, recipe: str, words: list[str]):
        self.work = prepare(load(recipe, [*words, f"threads={torch.get_num_threads()}"]), bench.comm)
        self.timing = Timing()
        self._steps = self.work.train(0, self.timing, [])

    def step(self) -> None:
        """One optimizer step."""
        next(self._steps)
