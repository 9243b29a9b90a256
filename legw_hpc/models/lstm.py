"""PyTorch's LSTM kernel, that both recurrent models run on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from legw_hpc.device import in_hardware


def lstm(x: Tensor, outputs: Tensor, memories: Tensor, weights: Sequence[Tensor], layers: int) -> tuple[Tensor, Tensor, Tensor]:
    """Layers of LSTM cells over T steps.

    Under autocast on a processor without the arithmetic of its precision, the cells stay in float32: torch hands them to
    a kernel of oneDNN that is not there then, and its own is ten times as slow as in float32 (measured: bf16, AVX2).

    Args:
        x: [T, B, I].
        outputs, memories: before the first step, [layers, B, H].
        weights: of each layer in turn: input kernel [4H, I], state kernel [4H, H], two biases [4H].
        layers: that they are for.

    Returns:
        The last layer's outputs [T, B, H]; the outputs and memories after the last step.
    """
    if x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and not in_hardware(torch.get_autocast_dtype("cpu")):
        with torch.autocast("cpu", enabled=False):
            return _lstm(x.float(), outputs.float(), memories.float(), [weight.float() for weight in weights], layers)
    return _lstm(x, outputs, memories, weights, layers)


def _lstm(x: Tensor, outputs: Tensor, memories: Tensor, weights: Sequence[Tensor], layers: int) -> tuple[Tensor, Tensor, Tensor]:
    # (input, (h0, c0), weights, has biases, layers, dropout, train, bidirectional, batch first)
    return torch._VF.lstm(x, (outputs, memories), list(weights), True, layers, 0.0, True, False, False)
