"""The seven solvers of the paper's § 5.2, LARS (§ 6), and what runs it builds on had, by the names that recipes use."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from legw_hpc.optim.eager import eager, mark_methods
from legw_hpc.optim.lars import LARS
from legw_hpc.optim.rmsprop_warmup import RMSpropWarmup


def _sgd(params: Any, lr: float, weight_decay: float = 0.0) -> Optimizer:
    return eager(torch.optim.SGD)(params, lr, weight_decay=weight_decay, fused=True)


def _momentum(params: Any, lr: float, momentum: float = 0.9, weight_decay: float = 0.0) -> Optimizer:
    return eager(torch.optim.SGD)(params, lr, momentum, weight_decay=weight_decay, fused=True)


def _nesterov(params: Any, lr: float, momentum: float = 0.9, weight_decay: float = 0.0) -> Optimizer:
    return eager(torch.optim.SGD)(params, lr, momentum, weight_decay=weight_decay, nesterov=True, fused=True)


def _adagrad(params: Any, lr: float, weight_decay: float = 0.0, eps: float = 1e-10) -> Optimizer:
    return eager(torch.optim.Adagrad)(params, lr, weight_decay=weight_decay, eps=eps)


def _rmsprop(
    params: Any, lr: float, alpha: float = 0.99, momentum: float = 0.0, weight_decay: float = 0.0, eps: float = 1e-8
) -> Optimizer:
    return eager(torch.optim.RMSprop)(params, lr, alpha, eps, weight_decay, momentum)


def _adam(
    params: Any, lr: float, beta1: float = 0.9, beta2: float = 0.999, weight_decay: float = 0.0, eps: float = 1e-8
) -> Optimizer:
    return eager(torch.optim.Adam)(params, lr, (beta1, beta2), eps, weight_decay, fused=True)


def _adadelta(params: Any, lr: float, rho: float = 0.9, weight_decay: float = 0.0, eps: float = 1e-6) -> Optimizer:
    return eager(torch.optim.Adadelta)(params, lr, rho, eps, weight_decay)


SOLVERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": _sgd,
    "momentum": _momentum,
    "nesterov": _nesterov,
    "adagrad": _adagrad,
    "rmsprop": _rmsprop,
    "adam": _adam,
    "adadelta": _adadelta,
    "lars": LARS,
    "rmsprop-warmup": RMSpropWarmup,
}


MOST = 1e30  # of any number, beyond all use (assumed)
# What is kept of a mean or a velocity from one step to the next.
SHARES = ("momentum", "alpha", "beta1", "beta2", "rho")


def solver(name: str, params: Any, lr: float, **options: Any) -> Optimizer:
    """An optimizer by name.

    Args:
        name: a key of SOLVERS.
        params: tensors or groups of them, as for any `torch.optim.Optimizer`.
        lr: the initial learning rate.
        options: what that solver takes besides (momentum, weight_decay, eta ...).

    Raises:
        ValueError: an unknown solver, an option that it does not take, or a value that is none of it.
    """
    if name not in SOLVERS:
        raise ValueError(f"unknown solver {name!r}: one of {', '.join(SOLVERS)}")
    known = list(inspect.signature(SOLVERS[name]).parameters)[2:]
    for option in options:
        if option not in known:
            raise ValueError(f"solver {name} has no option {option!r}: it takes {', '.join(known)}")
        _check(name, option, options[option], inspect.signature(SOLVERS[name]).parameters[option].default)
    mark_methods()
    return SOLVERS[name](params, lr, **options)


def _check(name: str, option: str, value: Any, default: Any) -> None:
    """A value of the default's kind; a share of what was before is below 1."""
    if isinstance(default, float):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value < MOST or (option in SHARES and value >= 1):
            below = " and below 1" if option in SHARES else ""
            raise ValueError(f"solver {name}: {option} must be a number of at least 0{below}, not {value!r}")
    elif not isinstance(value, type(default)):
        raise ValueError(f"solver {name}: {option} must be a {type(default).__name__}, not {value!r}")


def parameter_groups(model: nn.Module, exempt: bool = True) -> list[dict[str, Any]]:
    """The model's parameters in two groups: those that decay and adapt, and those that do not.

    Biases and normalisation parameters, that is every tensor of at most one dimension, take no
    weight decay and a trust ratio of 1, as in MLPerf's and Goyal's recipes.

    Args:
        model: its trainable parameters are taken.
        exempt: False puts all of them in one group.
    """
    weights = [p for p in model.parameters() if p.requires_grad]
    if not exempt:
        return [{"params": weights}]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in weights if p.dim() > 1]},
        {"params": [p for p in weights if p.dim() <= 1], "weight_decay": 0.0, "adapt": False},
    ]
    return [group for group in groups if group["params"]]
