"""Dropout whose mask is a function of keys, not of a generator's state.

A row of the global batch has a key of its own (seed, epoch, position), so its mask is the same
whichever rank and micro-batch it is in, and a resumed run needs no saved state.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# The constants of SplitMix64 (Steele, Lea, Flood 2014), as signed 64-bit numbers.
_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
_SECOND = 0x94D049BB133111EB - (1 << 64)


def row_keys(items: NDArray[np.int64], draw: tuple[int, int]) -> Tensor:
    """A number for each row in an epoch, int64 [B]; `dropout` mixes it further.

    Args:
        items: which rows, [B].
        draw: (seed, epoch), see data/loader.py.
    """
    first = np.random.SeedSequence(draw).generate_state(1, np.uint64).view(np.int64)
    return torch.from_numpy(items + first)


def dropout(x: Tensor, rate: float, keys: Tensor, layer: int) -> Tensor:
    """Zero a share of the activations and scale up the others.

    Args:
        x: [T, B, H].
        rate: the share that is dropped, 0 <= rate < 1.
        keys: int64 [B], one a row.
        layer: tells the masks of one pass apart.
    """
    time, _, width = x.shape
    place = torch.arange(time * width, device=x.device).view(time, 1, width)
    bits = _mixed(_mixed(keys ^ (layer << 48))[None, :, None] + place * _GAMMA)
    uniform = bits & ((1 << 24) - 1)  # 24 bits: as fine as a float32
    return x * (uniform >= int(rate * (1 << 24))).to(x.dtype).div_(1 - rate)


def _mixed(z: Tensor) -> Tensor:
    z = (z ^ _shifted(z, 30)) * _FIRST
    z = (z ^ _shifted(z, 27)) * _SECOND
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Right, filling with zeros: torch's shift of a negative number fills with ones."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
