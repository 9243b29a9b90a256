"""A linear layer and its cross-entropy in one, without the logits of the whole batch.

For a vocabulary of 10,000 the logits of a window are 40 kB a word: written and read several times
they cost more than the multiplications.  Here they live for CHUNK words at a time, in the cache,
and become the gradient in place; the backward pass only scales what is already there.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Words whose logits are held at once: 64 to 512 are within 10 % of each other (measured, one core, V = 10,000).
CHUNK = 256


def linear_cross_entropy(states: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    """The cross-entropy of `states @ weight.T + bias`, summed over rows: a scalar.

    Args:
        states: [N, H].
        weight, bias: [V, H] and [V].
        targets: int64 [N], 0 ... V-1.
    """
    if torch.is_grad_enabled():
        return _LinearCrossEntropy.apply(states, weight, bias, targets)
    return plain(states, weight, bias, targets)


def plain(states: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    """The same, as it is written; in float64 sums. The reference."""
    total = torch.zeros((), dtype=torch.float64, device=states.device)
    for h, t in zip(states.split(CHUNK), targets.split(CHUNK), strict=True):
        total += F.cross_entropy(F.linear(h, weight, bias), t, reduction="none").double().sum()
    return total


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
        d_states, d_weight, d_bias = torch.empty_like(states), torch.zeros_like(weight), torch.zeros_like(bias)
        loss = weight.new_zeros(())
        # The products are in the precision of the states (bf16 under autocast), everything between in fp32 or more.
        low, wide = states.dtype, torch.promote_types(states.dtype, torch.float32)
        low_weight, low_bias = weight.to(low), bias.to(low)
        # One buffer for all chunks: a fresh one costs half as much again as the product that fills it.
        shape = min(CHUNK, len(states)), len(weight)
        low_buffer = states.new_empty(shape)
        buffer = low_buffer if low == wide else states.new_empty(shape, dtype=wide)
        for i in range(0, len(states), CHUNK):
            h, t = states[i : i + CHUNK], targets[i : i + CHUNK, None]
            low_p, p = low_buffer[: len(h)], buffer[: len(h)]
            torch.addmm(low_bias, h, low_weight.t(), out=low_p)
            if low != wide:
                p.copy_(low_p)
            top, right = p.amax(1), p.gather(1, t)[:, 0]
            torch.softmax(p, 1, out=p)
            # The largest probability is 1 / sum(exp(logit - top)), and never 0, as that of the target can be.
            loss += (top - p.amax(1).log() - right).sum()
            p.scatter_add_(1, t, p.new_full(t.shape, -1.0))
            d_bias += p.sum(0)
            if low != wide:
                low_p.copy_(p)
            torch.mm(low_p, low_weight, out=d_states[i : i + CHUNK])
            if low == d_weight.dtype:
                d_weight.addmm_(low_p.t(), h)
            else:
                d_weight += low_p.t() @ h
        ctx.save_for_backward(d_states, d_weight, d_bias)
        return loss

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        d_states, d_weight, d_bias = ctx.saved_tensors
        return d_states.mul_(d_loss), d_weight.mul_(d_loss), d_bias.mul_(d_loss), None
