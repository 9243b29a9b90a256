"""MNIST with an LSTM (paper § 5.1.1): test accuracy."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from legw_hpc.apps.base import Application, check_options
from legw_hpc.data.format import Field
from legw_hpc.data.loader import Draw
from legw_hpc.models.mnist_lstm import CLASSES, INITS, PIXELS, MnistLSTM
from legw_hpc.models.stateless import row_keys


def mnist_lstm(init: str = INITS[0], dropout: float = 0.0) -> Application:
    """The application.

    Args:
        init, dropout: see `MnistLSTM`.

    Raises:
        ValueError: no such initialisation; a share out of range.
    """
    if init not in INITS:
        raise ValueError(f"init must be one of {', '.join(INITS)}, not {init!r}")
    check_options(dropout=(dropout, (int, float), 0, 1))

    def decode(data: Any, samples: NDArray[np.int64], draw: Draw | None) -> tuple[Tensor, ...]:
        """Images [B, 28, 28] float32 in 0 ... 1, labels [B] int64, and where something is dropped, keys [B]."""
        images = torch.from_numpy(data.take("image", samples)).to(torch.float32).div_(255)
        keys = (row_keys(samples, draw),) if dropout and draw is not None else ()
        return images, torch.from_numpy(data.take("label", samples)), *keys

    return Application(
        name="mnist-lstm",
        model=lambda: MnistLSTM(init, dropout),
        fields={"image": Field("uint8", (PIXELS, PIXELS)), "label": Field("int64", (), classes=CLASSES)},
        decode=decode,
        loss=_loss,
        evaluate=_evaluate,
        metrics=_metrics,
    )


def _loss(model: nn.Module, carried: None, images: Tensor, labels: Tensor, *keys: Tensor) -> tuple[Tensor, None]:
    return F.cross_entropy(model(images, *keys), labels, reduction="sum"), None


def _evaluate(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    logits = model(images)
    return {
        "count": torch.tensor(len(labels)),
        "correct": (logits.argmax(1) == labels).sum(),
        "loss": F.cross_entropy(logits.double(), labels, reduction="sum"),
    }


def _metrics(sums: dict[str, float]) -> dict[str, float]:
    return {"accuracy": 100 * sums["correct"] / sums["count"], "loss": sums["loss"] / sums["count"]}
