"""This package's own training, a step at a time, with everything that a run has but the log and checkpoints."""

from __future__ import annotations

import torch

from benchmarks.measure import Bench, Case, Goal
from legw_hpc.device import in_hardware
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


FP32, BF16 = "ours, fp32", "ours, bf16"


def steps(bench: Bench, recipe: str, words: list[str], work: int, unit: str) -> list[Case]:
    """Our step in float32, and in bf16 where the processor has it: an emulation is no measurement.

    Args:
        bench, recipe, words: as for `Trained`.
        work, unit: of one step.
    """
    cases = [Case(FP32, Trained(bench, recipe, words).step, work, unit)]
    if in_hardware(torch.bfloat16):
        cases.append(Case(BF16, Trained(bench, recipe, [*words, "precision=bf16"]).step, work, unit))
    return cases


def asked_here(goals: list[Goal]) -> list[Goal]:
    """Those that this processor can be asked for; see `steps`."""
    return [goal for goal in goals if goal.case != BF16 or in_hardware(torch.bfloat16)]
