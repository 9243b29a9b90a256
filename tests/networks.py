"""What the tests of networks share: weights that hide nothing, and how close float64 must come."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-10}  # float64


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """No vector at 0 or 1, so that nothing hides behind its initial value."""
    torch.manual_seed(seed)
    for name, value in model.state_dict().items():
        if value.ndim == 1:
            value.uniform_(0.5, 1.5) if name.endswith(("weight", "var")) else value.normal_(std=0.3)
    return model
