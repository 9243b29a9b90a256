"""LARS as its equations, slow and plain: what `lars.LARS` is tested against."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def lars_step(
    weights: list[Tensor],
    gradients: list[Tensor],
    buffers: list[Tensor],
    lr: float,
    momentum: float,
    weight_decay: float,
    eta: float,
    eps: float = 0.0,
    variant: str = "paper",
    denominator: str = "sum",
    clip: bool = False,
    adapt: bool = True,
) -> None:
    """Update weights and momentum buffers in place; the arguments are those of `lars.LARS`."""
    for w, g, v in zip(weights, gradients, buffers, strict=True):
        d = g + weight_decay * w
        q: Any = 1.0
        if adapt:
            norm_w, norm_g = torch.linalg.vector_norm(w), torch.linalg.vector_norm(g)
            below = norm_g + weight_decay * norm_w if denominator == "sum" else torch.linalg.vector_norm(d)
            if norm_w > 0 and (norm_g > 0 if denominator == "sum" else below > 0):
                q = eta * norm_w / (below + eps)
            if clip:
                q = min(q / lr, 1.0) if lr > 0 else 1.0
        if variant == "paper":
            v.copy_(momentum * v + lr * q * d)
            w.copy_(w - v)
        elif variant == "timm":
            v.copy_(momentum * v + q * d)
            w.copy_(w - lr * v)
        else:  # nus
            v.copy_(momentum * v + d)
            w.copy_(w - lr * q * v)
