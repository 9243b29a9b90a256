"""Where a noisy curve has its peak."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from legw_hpc.curvature_run import lines
from legw_hpc.derived import derive
from legw_hpc.peak import peak, power, smoothed
from legw_hpc.recipe import load
from legw_hpc.records import Record


def bump(steps: list[int], centre: float, width: float = 0.6, noise: float = 0.0, seed: int = 0) -> list[float]:
    """1, and 10 at the centre; `width` in units of the logarithm of the step."""
    rng = random.Random(seed)
    return [(1 + 9 * math.exp(-((math.log(s / centre) / width) ** 2))) * math.exp(rng.gauss(0, noise)) for s in steps]


@given(st.floats(40, 900), st.floats(0.4, 0.6), st.integers(0, 10**6))
def test_a_peak_is_found_through_noise(centre: float, width: float, seed: int) -> None:
    """Each step a factor of 1.2 off."""
    steps = list(range(1, 4001))
    found = peak(steps, bump(steps, centre, width, 0.2, seed))
    assert found is not None
    assert 0.6 * centre < found.step < 1.5 * centre
    assert found.until is not None
    assert found.until > found.step


@pytest.mark.parametrize(("every", "of"), [(1, 41), (7, 6)])
def test_where_it_is_down_to_half(every: int, of: int) -> None:
    steps = list(range(1, 4001, every))
    found = peak(steps, bump(steps, 100))
    assert found is not None
    assert found.of == pytest.approx(of, abs=4)
    half = 100 * math.exp(0.6 * math.sqrt(math.log(9 / 4)))  # 1 + 9 exp(-u^2) = 5
    assert found.step == pytest.approx(100, rel=0.1)
    assert found.until == pytest.approx(half, rel=0.1)


# values -> there is no peak within them
NONE = {
    "nothing": [], "one": [3.0], "rising": list(range(1, 60)), "falling": list(range(60, 1, -1)), "flat": [2.0] * 50,
    "a wiggle before it rises": [0.2, 0.3, 0.45, 0.3, 0.2, 0.2, 0.25, 0.3, 0.25, 0.3, 0.3, 0.25],
}  # fmt: skip


@pytest.mark.parametrize("name", NONE)
def test_no_peak(name: str) -> None:
    values = [float(value) for value in NONE[name]]
    assert peak(list(range(1, len(values) + 1)), values) is None


def test_a_peak_whose_end_was_not_measured() -> None:
    steps = list(range(1, 111))
    found = peak(steps, bump(steps, 90))
    assert found is not None
    assert found.until is None


def test_the_smoothed_curve_does_not_shift() -> None:
    steps = list(range(1, 2001))
    for step, value in smoothed(steps, [s**0.5 for s in steps]):
        assert value == pytest.approx(step**0.5, rel=0.12)


def test_the_power_of_a_law() -> None:
    exact = power([128, 512, 8192], [3 * x**0.75 for x in (128, 512, 8192)])
    assert exact is not None
    assert (exact.p, exact.c, exact.points) == (pytest.approx(0.75), pytest.approx(3), 3)
    assert exact.error == pytest.approx(0, abs=1e-9)
    xs, ys = [1.0, 2.0, 4.0, 8.0, 8.0], [1.1, 1.9, 4.4, 7.2, 8.3]
    found = power(xs, ys)
    assert found is not None
    across, up = np.log(xs), np.log(ys)
    (slope, _), covariance = np.polyfit(across, up, 1, cov="unscaled")
    left = np.sum((up - np.polyval(np.polyfit(across, up, 1), across)) ** 2) / 3
    assert (found.p, found.error) == (pytest.approx(slope), pytest.approx(np.sqrt(covariance[0, 0] * left)))
    assert power([1, 2, 2], [1, 2, 3]) is None
    assert power([1, 2], [1, 2]) is None


# Overrides of mnist-lstm, whose L here peaks at step 55 and is down to half of that at 85, 0.181 epochs; and the note.
NOTES = {
    "the warmup it was measured under": ([], None),
    "a shorter one": (["baseline.warmup_epochs=0.1"], "measured under a warmup of 0.1 epochs, which moves the peak"),
    "none, as was asked": (["scheme=none"], None),
}


@pytest.mark.parametrize("name", NOTES)
def test_what_is_said_of_a_peak(name: str) -> None:
    words, note = NOTES[name]
    recipe = load("mnist-lstm", words)
    steps = list(range(1, 400))
    curve = {"event": "curvature", "step": steps, "L": bump(steps, 60, 0.38)}
    text = "\n".join(lines(Record(Path(), recipe, ({"event": "start"}, curve))))
    peaked = peak(steps, bump(steps, 60, 0.38))
    assert peaked is not None
    assert f"at step {peaked.step}, " in text
    assert f"(running median of {peaked.of})" in text
    total = sum(derive(recipe).lr(step) for step in range(peaked.step - 1))  # L is that before the peak's own step
    assert f"the sum of rates until then {total:.3g}" in text
    assert (note in text) if note else ("note" not in text)


# every -> what else would tell more; a peak at step 55 has 9 measurements around it at --every 2, one at step 8 never
SPARSE = {(60, 1): None, (60, 2): None, (60, 10): "--every 2 out=... would", (8, 1): "other seeds would"}


@pytest.mark.parametrize(("centre", "every"), SPARSE)
def test_a_median_of_few_is_told(centre: int, every: int) -> None:
    recipe = load("mnist-lstm", [f"curvature_every={every}"])
    steps = list(range(1, 400, every))
    curve = {"event": "curvature", "step": steps, "L": bump(steps, centre, 0.38)}
    text = "\n".join(lines(Record(Path(), recipe, ({"event": "start"}, curve))))
    more = SPARSE[centre, every]
    assert (f"hardly smoothed, and L of one batch jumps tenfold: {more}" in text) if more else ("hardly smoothed" not in text)
