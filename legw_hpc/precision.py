"""Reduced precision: autocast to bf16 or fp16, and the loss scale that fp16's narrow range needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from legw_hpc.device import in_hardware

# A scale that starts high, halves at each overflow and doubles after so many steps without one
# (Micikevicius et al. 2017 § 3.2; the numbers are PyTorch's).
FIRST_SCALE = 2.0**16
GROW_AFTER = 2000
# An overflow at this scale is not the scale's fault.
LEAST_SCALE = 1.0


class Precision:
    """What the arithmetic of forward and backward is done in; weights and sums stay float32.

    Args:
        name: "fp32", "bf16" or "fp16".
        device: where.

    Attributes:
        scale: what the loss is multiplied by before backward; 1 but for fp16.
    """

    def __init__(self, name: str, device: torch.device):
        self._dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
        self._device, self._scaled = device.type, name == "fp16"
        self.scale = FIRST_SCALE if self._scaled else 1.0
        self._good = 0

    @property
    def emulated(self) -> bool:
        """Whether float32 would be the faster choice here."""
        return self._dtype is not None and self._device == "cpu" and not in_hardware(self._dtype)

    def autocast(self) -> torch.autocast:
        """The context of forward."""
        return torch.autocast(self._device, self._dtype or torch.bfloat16, enabled=self._dtype is not None)

    def keep(self, finite: bool) -> bool:
        """After the exchange: True to take the step or to fail, False to skip it at a smaller scale.

        The same on every rank, since all have the same sums.
        """
        if not self._scaled:
            return True
        if not finite:
            self._good = 0
            self.scale /= 2
            return self.scale < LEAST_SCALE
        self._good += 1
        if self._good % GROW_AFTER == 0:
            self.scale *= 2
        return True

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"scale": self.scale, "good": self._good}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint."""
        self.scale, self._good = float(state["scale"]), int(state["good"])
