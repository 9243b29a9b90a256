"""The gradient noise scale: how large a batch pays, from gradients that data-parallel training has anyway.

McCandlish et al. 2018, "An Empirical Model of Large-Batch Training" (arXiv:1812.06162): with G the true
gradient and tr(C) the sum of the variances of a single sample's gradient, B_simple = tr(C) / |G|^2 (§ 2.2).  A
batch of B takes 1 + B_simple/B times the fewest steps, and 1 + B/B_simple times the fewest samples, to the
same loss (§§ 2.2, 2.3): below B_simple a larger batch saves steps, above it hardly any.

Their estimate from two batch sizes (appendix A.1) is here that of any number of ranks with any shares.
Rank r has the mean gradient g_r of b_r samples, all ranks have g of B, and P of them have samples:

    E sum_r b_r |g_r|^2 = B |G|^2 + P tr(C)            E B |g|^2 = B |G|^2 + tr(C)
    tr(C) ~ (sum_r b_r |g_r|^2 - B |g|^2) / (P - 1)    |G|^2 ~ |g|^2 - tr(C) / B

Both are unbiased for samples drawn independently; their ratio is taken of sums over many steps, not
averaged.  A sample is a row, for a text.  With ghost batch norm a sample's gradient depends on its micro-batch.
Pure Python: no torch.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import mul
from typing import Any

from legw_hpc.errors import InputError


@dataclass(frozen=True)
class Noise:
    """Estimates, of one step or the mean of several.

    Attributes:
        variance: tr(C).
        square: |G|^2; an estimate may be negative.
    """

    variance: float
    square: float

    @property
    def scale(self) -> float | None:
        """B_simple, samples; None where the gradient cannot be told from its noise."""
        scale = self.variance / self.square if self.square > 0 else math.inf
        return scale if math.isfinite(scale) else None


def weight(batch: int, share: int) -> float:
    """B^2 / b_r, by which |(b_r / B) g_r|^2, of a rank's part of the mean gradient, is b_r |g_r|^2.

    Args:
        batch: B.
        share: b_r; a rank that has no samples left has no gradient either.
    """
    return batch**2 / share if share else 0.0


def estimate(total: float, square: float, batch: int, ranks: int) -> Noise | None:
    """Of one step; None where a single rank has samples.

    Args:
        total: the sum over ranks of b_r |g_r|^2.
        square: |g|^2.
        batch: B.
        ranks: P, those with samples.
    """
    if ranks < 2:
        return None
    variance = (total - batch * square) / (ranks - 1)
    return Noise(variance, square - variance / batch)


def mean(estimates: Sequence[Noise], weights: Sequence[int] = ()) -> Noise:
    """Of at least one step.

    Args:
        weights: how many steps each stands for; none is one.
    """
    steps = list(weights) or [1] * len(estimates)
    variances, squares = ([getattr(one, name) for one in estimates] for name in ("variance", "square"))
    return Noise(*(sum(map(mul, steps, values)) / sum(steps) for values in (variances, squares)))


def as_line(found: Noise) -> dict[str, float | None]:
    """For the run log."""
    return {"gradient_variance": found.variance, "gradient_square": found.square, "noise_scale": found.scale}


def from_log(lines: Sequence[Mapping[str, Any]]) -> Noise | None:
    """The mean over the second half of a run's steps that were logged; None where it has none.

    The noise scale grows as the loss falls (§ 4), so that the first steps say little of the rest.

    Raises:
        InputError: a line whose estimates are no numbers.
    """
    found, steps, before = list[Noise](), list[int](), 0
    for line in lines:
        if "gradient_variance" in line:
            variance, square, step = (_number(line, key) for key in ("gradient_variance", "gradient_square", "step"))
            found.append(Noise(variance, square))
            steps.append(max(1, int(step) - before))  # a line is of the steps since the one before
            before = int(step)
    if not found:
        return None
    before_each = itertools.accumulate(steps, initial=0)
    half = next(i for i, done in enumerate(before_each) if done >= sum(steps) / 2 or i == len(steps) - 1)
    return mean(found[half:], steps[half:])


def _number(line: Mapping[str, Any], key: str) -> float:
    value = line.get(key)
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"its log has a noise scale that is no number: {key} {json.dumps(value)}")
    return value


def fewest_steps(batch: int, scale: float) -> float:
    """1 + B_simple/B: steps to the same loss, beside those of a batch without end."""
    return 1 + scale / batch


def fewest_samples(batch: int, scale: float) -> float:
    """1 + B/B_simple: samples to the same loss, beside those of the smallest batch."""
    return 1 + batch / scale if scale > 0 else float("inf")
