"""Learning rate as a function of the fractional epoch: closed form, no state.

A schedule is any callable `epoch -> lr`.  The leaves are below, `join` glues them, and `build`
puts the paper's together: warmup, then decay (§ 3.2).  The trainer, `plan`, plots and a resumed
run all ask the same function, at epoch = step / steps_per_epoch with the step counted from 0, so
the very first step of a gradual warmup has learning rate 0, as the paper writes it.

    >>> lr = build(peak=32.0, epochs=90, warmup="gradual", warmup_epochs=10, decay=Poly(power=2))
    >>> lr(5.0), lr(45.0), lr(90.0)
    (16.0, 8.0, 0.0)

Pure Python: no torch, no numpy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Schedule = Callable[[float], float]

ROUNDED = 1e-9  # epochs: what step / steps an epoch may lack of the epoch that it is (derived: far less than a step)


def join(first: Schedule, boundary: float, second: Schedule) -> Schedule:
    """`first` before the boundary (epochs), `second` from it on."""
    return lambda epoch: first(epoch) if epoch < boundary else second(epoch)


def constant(lr: float) -> Schedule:
    """The same rate for ever."""
    return lambda epoch: lr


def gradual(peak: float, length: float, start: float = 0.0) -> Schedule:
    """Linear to the peak over `length` epochs: from 0 (paper § 3.1), or from the baseline's rate (Goyal et al. 2017 § 2.2)."""
    return lambda epoch: start + (peak - start) * epoch / length


@dataclass(frozen=True)
class Constant:
    """No decay (MNIST, paper § 5.1.1)."""

    def schedule(self, peak: float, epochs: float, warmup_epochs: float) -> Schedule:
        return constant(peak)


@dataclass(frozen=True)
class MultiStep:
    """peak * factor**(number of milestones reached) (paper § 3.2: x 0.1 at epochs 30, 60, 80).

    Attributes:
        milestones: epochs.
        factor: from one to the next.
        factors: instead, of the peak from each milestone on.
    """

    milestones: tuple[float, ...] = (30.0, 60.0, 80.0)
    factor: float = 0.1
    factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.milestones, tuple):
            raise ValueError(f"decay milestones must be a list of epochs, not {self.milestones!r}")
        for milestone in self.milestones:
            _at_least_zero("milestones", milestone)
        _share("factor", self.factor)
        if not isinstance(self.factors, tuple) or (self.factors and len(self.factors) != len(self.milestones)):
            raise ValueError(f"decay factors must be a list, one a milestone ({len(self.milestones)}), not {self.factors!r}")
        if self.factors and list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"decay milestones must rise where each has a factor, not {list(self.milestones)}")
        for factor in self.factors:
            _at_least_zero("factors", factor)

    def schedule(self, peak: float, epochs: float, warmup_epochs: float) -> Schedule:
        factors = (1.0, *(self.factors or (self.factor**i for i in range(1, len(self.milestones) + 1))))
        return lambda epoch: peak * factors[sum(epoch + ROUNDED >= milestone for milestone in self.milestones)]


@dataclass(frozen=True)
class Exponential:
    """Constant for `hold_epochs`, then times `factor` after each epoch (PTB, paper § 5.1.2)."""

    hold_epochs: float = 7.0
    factor: float = 0.5

    def __post_init__(self) -> None:
        _at_least_zero("hold_epochs", self.hold_epochs)
        _share("factor", self.factor)

    def schedule(self, peak: float, epochs: float, warmup_epochs: float) -> Schedule:
        return lambda epoch: peak * self.factor ** max(0, math.floor(epoch - self.hold_epochs + ROUNDED) + 1)


@dataclass(frozen=True)
class Poly:
    """peak * (1 - i/I)**power (paper § 3.2); 0 from the last epoch on.

    The paper's text leaves open where i starts.  origin "start" counts from the first step of
    training, as the formula reads: the rate then drops when the warmup ends (at batch 32K from
    1.0 to 0.79 of the peak).  origin "warmup" counts from the end of the warmup, as the MLPerf
    reference does: the curve is continuous.
    """

    power: float = 2.0
    origin: str = "start"

    def __post_init__(self) -> None:
        if self.origin not in ("start", "warmup"):
            raise ValueError(f"decay origin must be start or warmup, not {self.origin!r}")
        _at_least_zero("power", self.power)
        if self.power == 0:
            raise ValueError("decay power must be a positive number, not 0")

    def schedule(self, peak: float, epochs: float, warmup_epochs: float) -> Schedule:
        begin = warmup_epochs if self.origin == "warmup" else 0.0
        span = epochs - begin
        return lambda epoch: peak * max(0.0, 1.0 - (epoch - begin) / span) ** self.power if span > 0 else 0.0


@dataclass(frozen=True)
class Cyclic:
    """Triangles from low * peak up to the peak and down again (Smith 2015, arXiv:1506.01186, § 3.1).

    Attributes:
        step_epochs: from the bottom to the top, half a cycle; there 2 to 10 epochs.
        low: the bottom, as a share of the peak; there a quarter to a third.
    """

    step_epochs: float = 4.0
    low: float = 0.25

    def __post_init__(self) -> None:
        _at_least_zero("step_epochs", self.step_epochs)
        _at_least_zero("low", self.low)
        if not self.step_epochs or self.low > 1:
            raise ValueError(f"decay cyclic wants step_epochs above 0 and low of at most 1, not {self.step_epochs}, {self.low}")

    def schedule(self, peak: float, epochs: float, warmup_epochs: float) -> Schedule:
        return lambda epoch: peak * (self.low + (1.0 - self.low) * (1.0 - abs(epoch / self.step_epochs % 2.0 - 1.0)))


Decay = Constant | MultiStep | Exponential | Poly | Cyclic
DECAYS: dict[str, type[Decay]] = {
    "constant": Constant,
    "multi-step": MultiStep,
    "exponential": Exponential,
    "poly": Poly,
    "cyclic": Cyclic,
}


def decay_from(kind: str, **values: Any) -> Decay:
    """A decay by its name in a recipe; values that it does not know are refused.

    Raises:
        ValueError: an unknown kind or value.
    """
    if kind not in DECAYS:
        raise ValueError(f"unknown decay {kind!r}: one of {', '.join(DECAYS)}")
    known = DECAYS[kind].__dataclass_fields__
    if unknown := [value for value in values if value not in known]:
        raise ValueError(f"decay {kind} takes {', '.join(known) or 'nothing'}, not {', '.join(unknown)}")
    return DECAYS[kind](**values)


def _at_least_zero(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value >= 0):
        raise ValueError(f"decay {name} must be a number of at least 0, not {value!r}")


def _share(name: str, value: Any) -> None:
    _at_least_zero(name, value)
    if value > 1:
        raise ValueError(f"decay {name} must be a number of at most 1, not {value!r}")


def build(
    peak: float,
    epochs: float,
    warmup: str = "none",
    warmup_epochs: float = 0.0,
    decay: Decay = Constant(),
    warmup_lr: float | None = None,
) -> Schedule:
    """Warmup joined to decay: the learning rate at every fractional epoch of a run.

    Args:
        peak: the learning rate that the warmup reaches, scaled for the batch.
        epochs: the length of the run.
        warmup: "none", "constant" (`warmup_lr` until `warmup_epochs`), "gradual" (from 0) or "from-baseline" (from `warmup_lr`).
        warmup_epochs: its length.
        decay: what follows; it counts epochs from the start of training, as its baseline did.
        warmup_lr: the baseline's own rate, of a warmup that keeps it or begins there (Goyal et al. 2017 § 2.2); by default the
            peak.

    Raises:
        ValueError: values that make no schedule, such as a warmup longer than the run.
    """
    if not (math.isfinite(peak) and peak > 0):
        raise ValueError(f"lr must be a positive number, not {peak}")
    if not (math.isfinite(epochs) and epochs > 0):
        raise ValueError(f"epochs must be a positive number, not {epochs}")
    if not (math.isfinite(warmup_epochs) and warmup_epochs >= 0):
        raise ValueError(f"warmup_epochs must be a number of at least 0, not {warmup_epochs}")
    if warmup != "none" and warmup_epochs > epochs:
        raise ValueError(f"the warmup of {warmup_epochs:g} epochs is longer than the training of {epochs:g} epochs")
    after = decay.schedule(peak, epochs, 0.0 if warmup == "none" else warmup_epochs)
    if warmup == "none" or warmup_epochs == 0:
        return after
    if warmup == "gradual":
        return join(gradual(peak, warmup_epochs), warmup_epochs, after)
    base = peak if warmup_lr is None else warmup_lr
    if warmup == "from-baseline":
        return join(gradual(peak, warmup_epochs, base), warmup_epochs, after)
    if warmup == "constant":
        return join(constant(base), warmup_epochs, after)
    raise ValueError(f"unknown warmup {warmup!r}: none, constant, gradual or from-baseline")
