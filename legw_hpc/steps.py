"""How many optimizer steps an epoch has, and which step of which epoch a step of the run is.

Pure Python: `plan` asks it as well as the loader.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# Of a multiple that a quotient misses by rounding: more than that, and less than a step (assumed: no epoch has 1e8).
_ROUNDED = 1e-9


def shuffled(samples: int, batch: int) -> int:
    """Of samples drawn one by one; the last step is smaller where the batch does not divide them."""
    return -(-samples // batch)


def windows(tokens: int, rows: int, window: int) -> int:
    """Of a text cut into `rows` rows, read `window` words at a time; the last word is a target only."""
    return (tokens // rows - 1) // window


@dataclass(frozen=True)
class Stage:
    """Epochs of one global batch.

    Attributes:
        batch: samples of a step, or rows of a text.
        epoch, step: of the run, the first ones.
        per_epoch: steps of an epoch.
    """

    batch: int
    epoch: int
    step: int
    per_epoch: int


@dataclass(frozen=True)
class Course:
    """The stages of a run in their order; one, unless its batch grows."""

    stages: tuple[Stage, ...]

    def stage(self, step: int) -> Stage:
        """That a step belongs to; steps are counted from 0."""
        return next(stage for stage in reversed(self.stages) if step >= stage.step)

    def place(self, step: int) -> tuple[int, int]:
        """(epoch, step of that epoch)."""
        stage = self.stage(step)
        epochs, within = divmod(step - stage.step, stage.per_epoch)
        return stage.epoch + epochs, within

    def epoch(self, step: int) -> float:
        """The fractional epoch after so many steps."""
        stage = self.stage(step)
        return stage.epoch + (step - stage.step) / stage.per_epoch

    def until(self, epoch: float) -> float:
        """Steps, not rounded, to a fractional epoch."""
        stage = next(stage for stage in reversed(self.stages) if epoch >= stage.epoch)
        return stage.step + (epoch - stage.epoch) * stage.per_epoch

    def multiples(self, every: float, step: int) -> int:
        """How many multiples of so many epochs there are up to a step."""
        return math.floor(self.epoch(step) / every + _ROUNDED)

    def steps(self, epochs: float) -> int:
        """Of a run of so many epochs, which end in the last stage."""
        return round(self.until(epochs))


def course(batches: Sequence[int], begins: Sequence[int], per_epoch: Callable[[int], int]) -> Course:
    """The stages of batches that each begin with an epoch.

    Args:
        batches: of each stage.
        begins: the first epoch of each; 0 is the first of all.
        per_epoch: batch -> steps.
    """
    stages: list[Stage] = []
    for batch, epoch in zip(batches, begins, strict=True):
        before = stages[-1] if stages else Stage(batch, 0, 0, 0)
        stages.append(Stage(batch, epoch, before.step + (epoch - before.epoch) * before.per_epoch, per_epoch(batch)))
    return Course(tuple(stages))
