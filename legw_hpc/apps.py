"""An application is data + model + loss + metric.  Three of them are the paper's; one is here so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from legw_hpc.data.format import Field
from legw_hpc.data.shards import Shards
from legw_hpc.errors import InputError
from legw_hpc.models.mnist_lstm import CLASSES, PIXELS, MnistLSTM


@dataclass(frozen=True)
class Application:
    """What the trainer needs to know of a task.

    Attributes:
        name: as recipes call it.
        model: makes a freshly initialised network.
        fields: what the shards must hold.
        decode: (shards, sample numbers) -> the tensors of a micro-batch.
        loss: (model, *tensors) -> the loss summed over the micro-batch, a scalar.
        evaluate: (model, *tensors) -> sums over the micro-batch, by name; "count" among them.
        metrics: sums over all samples -> the metrics, by name; the first is the one that tables show.
    """

    name: str
    model: Callable[[], nn.Module]
    fields: dict[str, Field]
    decode: Callable[[Any, NDArray[np.int64]], tuple[Tensor, ...]]
    loss: Callable[..., Tensor]
    evaluate: Callable[..., dict[str, Tensor]]
    metrics: Callable[[dict[str, float]], dict[str, float]]

    def check(self, data: Shards) -> None:
        """Refuse shards of another task.

        Raises:
            InputError: a field is missing or of another type or shape.
        """
        for name, want in self.fields.items():
            have = data.fields.get(name)
            if have is None:
                raise InputError(f"{data.folder}: {data.split} has no field {name!r}, which {self.name} reads")
            if (have.dtype, have.shape) != (want.dtype, want.shape) or (have.classes or 0) > (want.classes or 0):
                raise InputError(f"{data.folder}: {data.split} field {name!r} is {have}, {self.name} reads {want}")
        if not len(data):
            raise InputError(f"{data.folder}: split {data.split} has no samples")


def _decode_mnist(data: Shards, samples: NDArray[np.int64]) -> tuple[Tensor, ...]:
    """Images [B, 28, 28] float32 in 0 ... 1 and labels [B] int64."""
    images = torch.from_numpy(data.take("image", samples))
    return images.to(torch.float32).div_(255), torch.from_numpy(data.take("label", samples))


def _cross_entropy(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(model(images), labels, reduction="sum")


def _classify(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    logits = model(images)
    return {
        "count": torch.tensor(len(labels)),
        "correct": (logits.argmax(1) == labels).sum(),
        "loss": F.cross_entropy(logits.double(), labels, reduction="sum"),
    }


def _accuracy(sums: dict[str, float]) -> dict[str, float]:
    return {"accuracy": 100 * sums["correct"] / sums["count"], "loss": sums["loss"] / sums["count"]}


APPLICATIONS = {
    app.name: app
    for app in (
        Application(
            name="mnist-lstm",
            model=MnistLSTM,
            fields={"image": Field("uint8", (PIXELS, PIXELS)), "label": Field("int64", (), classes=CLASSES)},
            decode=_decode_mnist,
            loss=_cross_entropy,
            evaluate=_classify,
            metrics=_accuracy,
        ),
    )
}


def application(name: str) -> Application:
    """The application that a recipe names.

    Raises:
        InputError: there is none of that name.
    """
    if name not in APPLICATIONS:
        raise InputError(f"unknown application {name!r}: one of {', '.join(APPLICATIONS)}")
    return APPLICATIONS[name]
