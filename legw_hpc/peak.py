"""Where L(x, g) has its early peak, and what warmup covers it (paper § 4, Figure 3).  Pure Python.

L of a single batch jumps by a factor of ten from step to step, so its curve is smoothed first: the
median over all steps that are at most HALF times the step away.  So the window is as wide as the step
is late, and a peak at step 20 and one at step 2,000 are treated alike.
"""

from __future__ import annotations

import bisect
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# Assumed: 9 steps at step 20, and narrow beside the peaks seen (mnist-lstm: from half to half a factor of 3).
HALF = 0.2
# A median of fewer measurements is hardly smoothed (measured, mnist-lstm: of every 2nd step, 7 to 9 at the peak, the warmup
# found is that of all steps within a factor of 2; of every 10th, 1 at the peak, within 3).
FEWEST = 9
# That a peak is above the beginning (assumed: those seen are 15 times it and more, what goes before them mostly within 3).
RISE = 4.0
# The smoothed curve is wanted at steps so far apart, not at each.
APART = 1.02


@dataclass(frozen=True)
class Peak:
    """The largest value of the smoothed curve.

    Attributes:
        step: where, counted from 1.
        value: L there.
        until: the first step after it at which L is down to half, where the warmup may end; None if it is
            not within what was measured.
        of: how many measurements it is the median of.
    """

    step: int
    value: float
    until: int | None
    of: int


def smoothed(steps: Sequence[int], values: Sequence[float]) -> list[tuple[int, float]]:
    """The curve as described above, at some of the steps.

    Args:
        steps: rising, from 1.
        values: L at each.
    """
    curve: list[tuple[int, float]] = []
    for step in steps:
        if not curve or step >= curve[-1][0] * APART:
            curve.append((step, statistics.median(values[_around(steps, step)])))
    return curve


def _around(steps: Sequence[int], step: int) -> slice:
    """The measurements whose median a step gets."""
    return slice(bisect.bisect_left(steps, step * (1 - HALF)), bisect.bisect_right(steps, step * (1 + HALF)))


def denser(step: int) -> int:
    """Steps between measurements of which FEWEST lie around a step; 1 if there are never so many."""
    return max(1, int(2 * HALF * step / FEWEST))


def peak(steps: Sequence[int], values: Sequence[float]) -> Peak | None:
    """The peak of the smoothed curve; None if it rises or falls to the end, or hardly rises: none is within what was measured."""
    curve = smoothed(steps, values)
    if not curve:
        return None
    step, value = max(curve, key=lambda place: place[1])
    if step in (curve[0][0], curve[-1][0]) or value < RISE * curve[0][1]:
        return None
    until = next((later for later, low in curve if later > step and low <= value / 2), None)
    return Peak(step, value, until, len(steps[_around(steps, step)]))


# 97.5 % quantiles of Student's t by degrees of freedom; of more, 1.96 + 2.9 / n is within 1 %.
T95 = {1: 12.71, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571}


@dataclass(frozen=True)
class Power:
    """A fitted law y = c x**p.

    Attributes:
        p, error: the exponent and its standard error.
        c: the factor.
        points: how many it was fitted to.
    """

    p: float
    error: float
    c: float
    points: int

    @property
    def within(self) -> float:
        """Half of the 95 % confidence interval of p: Student's t with points - 2 degrees of freedom."""
        free = self.points - 2
        return self.error * T95.get(free, 1.96 + 2.9 / free)

    def __str__(self) -> str:
        return f"{self.p:.2f} (95 %: {self.p - self.within:.2f} to {self.p + self.within:.2f})"


def power(xs: Sequence[float], ys: Sequence[float]) -> Power | None:
    """The best fit, by least squares of the logarithms; None of fewer than three different x."""
    if len(set(xs)) < 3:
        return None
    across, up = [math.log(x) for x in xs], [math.log(y) for y in ys]
    slope, intercept = statistics.linear_regression(across, up)
    left = sum((y - intercept - slope * x) ** 2 for x, y in zip(across, up, strict=True)) / (len(xs) - 2)
    middle = statistics.fmean(across)
    return Power(slope, math.sqrt(left / sum((x - middle) ** 2 for x in across)), math.exp(intercept), len(xs))
