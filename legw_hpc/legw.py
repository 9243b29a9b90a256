"""The rule of the paper: what a batch k times as large does to the learning rate and the warmup.

The user tunes one baseline: batch B0, learning rate lr0, w0 epochs of warmup.  For batch B, with
k = B / B0, LEGW (paper §§ 3, 3.1) takes

    lr = sqrt(k) * lr0          warmup = k * w0 epochs

and changes nothing else.  It holds for k < 1 too (§ 3.3).  Two things follow, and are tested:
lr**2 / B is the same for every B, and so is the length of the warmup in iterations.

    >>> scale(Baseline(batch=128, lr=0.25, warmup_epochs=0.5), 512)
    Scaled(batch=512, k=4.0, lr=0.5, warmup='gradual', warmup_epochs=2.0)

The earlier rules (§ 2.3) are here too, to compare with.  Pure Python: no torch, no numpy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

SCALINGS = ("none", "linear", "sqrt")
WARMUPS = ("none", "constant", "gradual", "from-baseline", "legw")

# Goyal et al. 2017 § 2.2, and the paper's "previous tuning" (Figure 1): five epochs, whatever the batch.
FIXED_WARMUP_EPOCHS = 5.0

# (scaling, warmup) pairs with a name; any other pair is written "scaling+warmup".
SCHEMES = {
    "legw": ("sqrt", "legw"),
    "linear": ("linear", "gradual"),  # Goyal et al. 2017
    "sqrt": ("sqrt", "none"),  # Krizhevsky 2014
    "none": ("none", "none"),
    # Published points that follow no rule, and so no other batch.
    "fixed": ("none", "legw"),
}


@dataclass(frozen=True)
class Baseline:
    """The tuned point.

    Args:
        batch: B0, samples per step over all ranks.
        lr: lr0, the peak learning rate tuned at B0.
        warmup_epochs: w0, epochs of gradual warmup at B0.

    Raises:
        ValueError: a batch below 1, a learning rate that is not a positive finite number, or a
            warmup that is not a finite number of at least 0.
    """

    batch: int
    lr: float
    warmup_epochs: float = 0.0

    def __post_init__(self) -> None:
        if not (self.batch >= 1 and self.batch == int(self.batch)):
            raise ValueError(f"baseline batch must be a whole number of at least 1, not {self.batch}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"baseline lr must be a positive number, not {self.lr}")
        if not (math.isfinite(self.warmup_epochs) and self.warmup_epochs >= 0):
            raise ValueError(f"baseline warmup_epochs must be a number of at least 0, not {self.warmup_epochs}")


@dataclass(frozen=True)
class Scaled:
    """What a batch trains with.

    Attributes:
        batch: B.
        k: B / B0.
        lr: the peak learning rate.
        warmup: the shape of the warmup: "none", "constant" (the baseline's rate, then the peak at
            once), "gradual" (linear from 0 to the peak) or "from-baseline" (linear from the baseline's rate).
        warmup_epochs: its length.
    """

    batch: int
    k: float
    lr: float
    warmup: str
    warmup_epochs: float


def scale_lr(lr: float, k: float, scaling: str) -> float:
    """The peak learning rate for a batch k times the baseline's (paper § 2.3)."""
    factors = {"none": 1.0, "linear": k, "sqrt": math.sqrt(k)}
    if scaling not in factors:
        raise ValueError(f"unknown scaling {scaling!r}: one of {', '.join(SCALINGS)}")
    return lr * factors[scaling]


def scale(
    baseline: Baseline,
    batch: int,
    scheme: str = "legw",
    fixed_warmup_epochs: float = FIXED_WARMUP_EPOCHS,
) -> Scaled:
    """Derive the learning rate and warmup of a batch from the tuned baseline.

    Args:
        baseline: the tuned point.
        batch: B, samples per step over all ranks.
        scheme: a name in SCHEMES, or "scaling+warmup" with names from SCALINGS and WARMUPS.
        fixed_warmup_epochs: the length of the warmups that do not depend on the batch
            ("constant", "gradual", "from-baseline").

    Raises:
        ValueError: a batch below 1, an unknown scheme, or another batch than the baseline's of one without a rule.
    """
    if not (math.isfinite(batch) and batch >= 1 and batch == int(batch)):
        raise ValueError(f"batch must be a whole number of at least 1, not {batch}")
    scaling, warmup = split_scheme(scheme)
    k = batch / baseline.batch
    if scheme == "fixed" and k != 1:
        raise ValueError(f"the rates follow no rule: batch {batch} wants lr=... and warmup_epochs=..., or a scheme=...")
    epochs = {
        "none": 0.0,
        "constant": fixed_warmup_epochs,
        "gradual": fixed_warmup_epochs,
        "from-baseline": fixed_warmup_epochs,
        "legw": k * baseline.warmup_epochs,
    }[warmup]
    shape = "gradual" if warmup == "legw" else warmup
    return Scaled(int(batch), k, scale_lr(baseline.lr, k, scaling), shape, epochs)


def split_scheme(scheme: str) -> tuple[str, str]:
    """("sqrt", "legw") for "legw" or "sqrt+legw".

    Raises:
        ValueError: neither a known name nor a pair of known rules.
    """
    if scheme in SCHEMES:
        return SCHEMES[scheme]
    scaling, _, warmup = scheme.partition("+")
    if scaling in SCALINGS and warmup in WARMUPS:
        return scaling, warmup
    raise ValueError(
        f"unknown scheme {scheme!r}: one of {', '.join(SCHEMES)}, or SCALING+WARMUP with "
        f"SCALING of {', '.join(SCALINGS)} and WARMUP of {', '.join(WARMUPS)}"
    )
