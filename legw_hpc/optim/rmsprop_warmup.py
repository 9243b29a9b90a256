"""RMSprop that turns into momentum SGD in the course of a few epochs, after Akiba, Suzuki and Fukuda 2017 (arXiv:1711.04325).

    d = g + wd w
    s = rho s + (1 - rho) d**2
    v = m v + (a lr + (1 - a) lr_rmsprop / (sqrt(s) + eps)) d
    w = w - v

with the share of SGD, `a`, rising from about 0 to 1: half at the epoch `center`, 1 from half a `period` after it.  They
multiply by the rate after the momentum, here it is in it: the same while the rate is constant, as theirs is then.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer


def share_of_sgd(epoch: float, center: float, period: float) -> float:
    """`a` at a fractional epoch: an exponential, then a line that goes on with its slope, then 1."""
    if epoch < center:
        return 0.5 * math.exp(2 * (epoch - center) / period)
    return min(1.0, 0.5 + (epoch - center) / period)


class RMSpropWarmup(Optimizer):
    """See the module's text; whoever trains sets the `epoch` of each group, as the rate, before a step.

    Args:
        params: tensors or groups of them.
        lr: of SGD; its default as in `LARS`.
        momentum: m.
        weight_decay: wd.
        lr_rmsprop: of RMSprop.
        alpha: rho, of the mean of squares.
        eps: beside the root of that mean.
        center: epoch at which both have half.
        period: epochs, twice those from there to SGD alone.

    Raises:
        ValueError: a negative or not finite number, or a period of 0.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        lr_rmsprop: float = 3e-4,
        alpha: float = 0.99,
        eps: float = 1e-8,
        center: float = 10.0,
        period: float = 5.0,
    ):
        numbers = {
            "lr": lr, "momentum": momentum, "weight_decay": weight_decay, "lr_rmsprop": lr_rmsprop, "alpha": alpha,
            "eps": eps, "center": center, "period": period,
        }  # fmt: skip
        for name, value in numbers.items():
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a number of at least 0, not {value}")
        if not period:
            raise ValueError("period must be a positive number of epochs, not 0")
        super().__init__(params, numbers | {"epoch": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; `closure`, as in torch.optim, evaluates the loss again and is optional."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            sgd = share_of_sgd(group["epoch"], group["center"], group["period"])
            for w in group["params"]:
                if w.grad is None:
                    continue
                state = self.state[w]
                if not state:
                    for name in ("momentum_buffer", "square_avg"):
                        state[name] = torch.zeros_like(w, memory_format=torch.preserve_format)
                v, s = state["momentum_buffer"], state["square_avg"]
                d = w.grad.add(w, alpha=group["weight_decay"])
                s.mul_(group["alpha"]).addcmul_(d, d, value=1 - group["alpha"])
                v.mul_(group["momentum"]).add_(d, alpha=sgd * group["lr"])
                v.addcdiv_(d, s.sqrt().add_(group["eps"]), value=(1 - sgd) * group["lr_rmsprop"])
                w.sub_(v)
        return loss
