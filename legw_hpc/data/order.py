"""Who reads what, when.  Pure functions of (data, seed, epoch, batch); ranks only cut the result.

The global batch of a step is a slice of the epoch's permutation.  Rank r of R takes the r-th of R
nearly equal parts of it, and cuts that into micro-batches.  So the samples of step i do not depend
on the number of ranks, and a batch that R or the micro-batch does not divide needs no padding.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def steps_per_epoch(samples: int, batch: int) -> int:
    """Steps in an epoch; the last one is smaller where the batch does not divide the data."""
    return -(-samples // batch)


def epoch_order(samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The permutation of an epoch, int64 [samples]."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch]))).permutation(samples)


def global_batch(order: NDArray[np.int64], step: int, batch: int) -> NDArray[np.int64]:
    """The samples of a step of the epoch, over all ranks; the last step may have fewer."""
    return order[step * batch : (step + 1) * batch]


def part(count: int, rank: int, size: int) -> range:
    """The r-th of `size` nearly equal contiguous parts of 0 ... count-1; sizes differ by at most 1."""
    return range(count * rank // size, count * (rank + 1) // size)


def pieces(samples: NDArray[np.int64], micro_batch: int) -> list[NDArray[np.int64]]:
    """Cut into micro-batches of at most `micro_batch` samples; the last may have fewer."""
    return [samples[i : i + micro_batch] for i in range(0, len(samples), micro_batch)]
