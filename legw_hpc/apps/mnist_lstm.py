"""MNIST with an LSTM (paper § 5.1.1): test accuracy."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from legw_hpc.apps.base import Application
from legw_hpc.data.format import Field
from legw_hpc.models.mnist_lstm import CLASSES, INITS, PIXELS, MnistLSTM


def mnist_lstm(init: str = INITS[0]) -> Application:
    """The application.

    Args:
        init: see `MnistLSTM`.

    Raises:
        ValueError: no such initialisation.
    """
    if init not in INITS:
        raise ValueError(f"init must be one of {', '.join(INITS)}, not {init!r}")
    return Application(
        name="mnist-lstm",
        model=lambda: MnistLSTM(init),
        fields={"image": Field("uint8", (PIXELS, PIXELS)), "label": Field("int64", (), classes=CLASSES)},
        decode=_decode,
        loss=_loss,
        evaluate=_evaluate,
        metrics=_metrics,
    )


def _decode(data: Any, samples: NDArray[np.int64], draw: object) -> tuple[Tensor, ...]:
    """Images [B, 28, 28] float32 in 0 ... 1 and labels [B] int64."""
    images = torch.from_numpy(data.take("image", samples))
    return images.to(torch.float32).div_(255), torch.from_numpy(data.take("label", samples))


def _loss(model: nn.Module, carried: None, images: Tensor, labels: Tensor) -> tuple[Tensor, None]:
    return F.cross_entropy(model(images), labels, reduction="sum"), None


def _evaluate(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    logits = model(images)
    return {
        "count": torch.tensor(len(labels)),
        "correct": (logits.argmax(1) == labels).sum(),
        "loss": F.cross_entropy(logits.double(), labels, reduction="sum"),
    }


def _metrics(sums: dict[str, float]) -> dict[str, float]:
    return {"accuracy": 100 * sums["correct"] / sums["count"], "loss": sums["loss"] / sums["count"]}
