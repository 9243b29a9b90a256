"""The LSTM kernel that both recurrent models run on: PyTorch's, or one that emulates a narrow type."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from legw_hpc.device import in_hardware


def lstm(x: Tensor, outputs: Tensor, memories: Tensor, weights: Sequence[Tensor], layers: int) -> tuple[Tensor, Tensor, Tensor]:
    """Layers of LSTM cells over T steps.

    Under autocast on a processor without the arithmetic of its precision, the cells are emulated (`rounded_lstm`): torch hands
    them to a kernel of oneDNN that is not there then, and its own is eleven times as slow as in float32 (measured: bf16, AVX2).

    Args:
        x: [T, B, I].
        outputs, memories: before the first step, [layers, B, H].
        weights: of each layer in turn: input kernel [4H, I], state kernel [4H, H], two biases [4H].
        layers: that they are for.

    Returns:
        The last layer's outputs [T, B, H]; the outputs and memories after the last step.
    """
    if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        if not in_hardware(dtype):
            with torch.autocast("cpu", enabled=False):
                wide = [part.float() for part in (x, outputs, memories, *weights)]
                return rounded_lstm(wide[0], wide[1], wide[2], wide[3:], layers, dtype)
    # (input, (h0, c0), weights, has biases, layers, dropout, train, bidirectional, batch first)
    return torch._VF.lstm(x, (outputs, memories), list(weights), True, layers, 0.0, True, False, False)


def rounded_lstm(
    x: Tensor, outputs: Tensor, memories: Tensor, weights: Sequence[Tensor], layers: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """`lstm` of a narrow type, by float32 arithmetic on values that `dtype` holds.

    What a kernel of that type keeps is rounded (operands of products, gates, outputs, memories, and their gradients); what it
    sums is not.  1.6 times the time of float32's kernel (measured: AVX2, 128 cells, 128 samples).
    """
    last = []
    for layer in range(layers):
        input_kernel, state_kernel, *biases = weights[4 * layer : 4 * layer + 4]
        h, c = (_rounded(start[layer], dtype) for start in (outputs, memories))
        kernel = _rounded(state_kernel, dtype).t()
        steps = []
        for step in F.linear(_rounded(x, dtype), _rounded(input_kernel, dtype), biases[0] + biases[1]):
            i, f, g, o = _rounded(torch.addmm(step, h, kernel), dtype).chunk(4, dim=1)
            c = _rounded(f.sigmoid() * c + i.sigmoid() * g.tanh(), dtype)
            h = _rounded(o.sigmoid() * c.tanh(), dtype)
            steps.append(h)
        x = torch.stack(steps)
        last.append((h, c))
    h, c = (torch.stack(parts) for parts in zip(*last, strict=True))
    return x, h, c


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x, and in the backward pass its gradient, as `dtype` holds them."""
    return x.to(dtype).float()
