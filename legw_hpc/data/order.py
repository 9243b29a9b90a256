"""Who reads what, when.  Pure functions of (data, seed, epoch, batch); ranks only cut the result.

The global batch of a step is a list of items: sample numbers, a slice of the epoch's permutation
(`Shuffled`), or for a text the positions at which each row's window begins (`Windows`).  Rank r of
R takes the r-th of R nearly equal parts of it, and cuts that into micro-batches.  So the items of
step i do not depend on the number of ranks, and a batch that R or the micro-batch does not divide
needs no padding.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from legw_hpc import steps


class Order(Protocol):
    """The global batches of a run.

    Attributes:
        seed: of the run.
        per_item: samples that an item counts for.
    """

    @property
    def seed(self) -> int: ...

    @property
    def per_item(self) -> int: ...

    def place(self, number: int) -> tuple[int, int]:
        """Epoch and step of it, of a step of the run."""

    def items(self, epoch: int, step: int) -> NDArray[np.int64]:
        """The items of a step of an epoch, over all ranks."""


@dataclass(frozen=True)
class Shuffled:
    """Samples in a new random order every epoch; the last step of an epoch may have fewer."""

    samples: int
    batch: int
    seed: int
    per_item = 1

    @property
    def steps_per_epoch(self) -> int:
        return steps.shuffled(self.samples, self.batch)

    def place(self, number: int) -> tuple[int, int]:
        return divmod(number, self.steps_per_epoch)

    def items(self, epoch: int, step: int) -> NDArray[np.int64]:
        return epoch_order(self.samples, self.seed, epoch)[step * self.batch : (step + 1) * self.batch]


@dataclass(frozen=True)
class Windows:
    """A text cut into `rows` contiguous rows, read side by side, `window` words at a time (paper § 5.1.2).

    Row i goes on in step n + 1 where it was in step n, so what the model carries belongs to the row.
    """

    tokens: int
    rows: int
    window: int
    seed: int

    @property
    def per_item(self) -> int:
        return self.window

    @property
    def steps_per_epoch(self) -> int:
        return steps.windows(self.tokens, self.rows, self.window)

    def place(self, number: int) -> tuple[int, int]:
        return divmod(number, self.steps_per_epoch)

    def items(self, epoch: int, step: int) -> NDArray[np.int64]:
        return np.arange(self.rows) * (self.tokens // self.rows) + step * self.window


@dataclass(frozen=True)
class Growing:
    """Batches that grow between epochs.

    Args:
        course: the stages.
        orders: of each stage, of the same data and seed.
    """

    course: steps.Course
    orders: tuple[Shuffled | Windows, ...]

    @property
    def seed(self) -> int:
        return self.orders[0].seed

    @property
    def per_item(self) -> int:
        return self.orders[0].per_item

    def place(self, number: int) -> tuple[int, int]:
        return self.course.place(number)

    def items(self, epoch: int, step: int) -> NDArray[np.int64]:
        stage = sum(epoch >= stage.epoch for stage in self.course.stages) - 1
        return self.orders[stage].items(epoch, step)


@functools.lru_cache(maxsize=2)
def epoch_order(samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The permutation of an epoch, int64 [samples], read-only."""
    order = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch]))).permutation(samples)
    order.setflags(write=False)
    return order


def part(count: int, rank: int, size: int) -> range:
    """The r-th of `size` nearly equal contiguous parts of 0 ... count-1; sizes differ by at most 1."""
    return range(count * rank // size, count * (rank + 1) // size)


def pieces(items: NDArray[np.int64], micro_batch: int) -> list[NDArray[np.int64]]:
    """Cut into micro-batches of at most `micro_batch` items; the last may have fewer."""
    return [items[i : i + micro_batch] for i in range(0, len(items), micro_batch)]


def micro_batches(
    items: NDArray[np.int64], micro_batch: int, rank: int, size: int, even: bool = False
) -> list[NDArray[np.int64]]:
    """Those of a rank, of the items of a global batch.

    Args:
        items: over all ranks.
        micro_batch: items at once, at most.
        rank, size: whose part this is.
        even: give every rank as many micro-batches, if need be one of no items: the ranks meet in each.

    Returns:
        The items of each, int64, in their order; together this rank's part.
    """
    mine = part(len(items), rank, size)
    here = items[mine.start : mine.stop]
    if not even:
        return pieces(here, micro_batch)
    largest = max(len(part(len(items), r, size)) for r in (0, size - 1))
    return np.array_split(here, -(-largest // micro_batch))
