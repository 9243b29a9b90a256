"""Image classification: ResNet-50 on JPEG shards (paper § 6), ResNet-20 on small decoded images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from legw_hpc.apps.base import Application, check_options
from legw_hpc.data import augment
from legw_hpc.data.format import Field
from legw_hpc.data.loader import Decode, Draw
from legw_hpc.errors import InputError
from legw_hpc.models import resnet

# Mean and deviation of each channel, of 255: ImageNet's as torchvision has them; CIFAR-10's measured, over its 50,000
# training images (as JPEGs).
IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
CROPS = ("random", "fixed")
CIFAR10 = ((125.3, 122.9, 113.9), (62.5, 61.9, 66.5))


def resnet50(
    classes: int = 1000,
    size: int = 224,
    resize: int = 256,
    crops: str = "random",
    label_smoothing: float = 0.0,
    batch_norm: str = "micro-batch",
    batch_norm_momentum: float = 0.1,
) -> Application:
    """ResNet-50 on JPEGs: a crop and a flip in training, the centre at evaluation.

    Args:
        classes: the most that the shards may have.
        size: pixels of the square that the network sees.
        resize: pixels of the shorter side before the centre is cut out.
        crops: in training, "random" in size, shape and place, or "fixed": in place alone, of the shorter side resized.
        label_smoothing: share of the target spread over all classes.
        batch_norm: see models/batch_norm.py.
        batch_norm_momentum: share of a step's statistics in the running ones; 1 is those of the last step alone (Akiba et al.
            2017, arXiv:1711.04325).

    Raises:
        ValueError: a value out of range.
    """
    check_options(size=(size, int, 32, 4096), resize=(resize, int, size, 8192))
    if crops not in CROPS:
        raise ValueError(f"crops must be one of {', '.join(CROPS)}, not {crops!r}")

    def decode(data: Any, samples: NDArray[np.int64], draw: Draw | None) -> tuple[Tensor, ...]:
        """Images uint8 [B, size, size, 3] and labels [B] int64."""
        draws = None if draw is None else augment.uniforms(*draw, samples, augment.TRAIN_UNIFORMS)

        def one(place: int) -> augment.Image:
            try:
                if draws is None:
                    return augment.eval_image(jpegs[place], resize, size)
                if crops == "fixed":
                    return augment.fixed_scale_image(jpegs[place], draws[place], resize, size)
                return augment.train_image(jpegs[place], draws[place], size)
            except ValueError as error:
                name = data.take("name", samples[place : place + 1])[0].decode(errors="replace")
                where = f"{data.split} sample {samples[place]} ({name}) in {data.file_of(samples[place]).name}"
                raise InputError(f"{data.folder}: {where}: {error}") from None

        jpegs = data.take("image", samples)
        images = np.empty((len(samples), size, size, 3), np.uint8)
        for place, image in enumerate(augment.map_images(one, range(len(samples)))):
            images[place] = image
        return torch.from_numpy(images), torch.from_numpy(data.take("label", samples))

    fields = {"image": Field("uint8", None), "name": Field("uint8", None)}
    model = lambda: resnet.resnet50(classes, batch_norm, batch_norm_momentum)  # noqa: E731
    return _classifier("resnet50", model, fields, decode, classes, label_smoothing, IMAGENET, "val", batch_norm_momentum)


def resnet20(
    classes: int = 10, label_smoothing: float = 0.0, batch_norm: str = "micro-batch", batch_norm_momentum: float = 0.1
) -> Application:
    """ResNet-20 on 32x32 images: pad-4 crop and flip in training.  Arguments as `resnet50`."""

    def decode(data: Any, samples: NDArray[np.int64], draw: Draw | None) -> tuple[Tensor, ...]:
        """Images uint8 [B, 32, 32, 3] and labels [B] int64."""
        images = data.take("image", samples)
        if draw is not None:
            images = augment.crops32(images, augment.uniforms(*draw, samples, augment.CROPS32_UNIFORMS))
        return torch.from_numpy(images), torch.from_numpy(data.take("label", samples))

    fields = {"image": Field("uint8", (32, 32, 3))}
    model = lambda: resnet.resnet20(classes, batch_norm, batch_norm_momentum)  # noqa: E731
    return _classifier("resnet20", model, fields, decode, classes, label_smoothing, CIFAR10, "test", batch_norm_momentum)


def normalised(images: Tensor, mean: tuple[float, ...], deviation: tuple[float, ...]) -> Tensor:
    """Images [B, H, W, 3] uint8, less the mean and over the deviation: [B, 3, H, W] float32, channels last in memory.

    The three numbers are repeated along a row of pixels, so that a processor works on whole rows.
    """
    batch, height, width, channels = images.shape
    centre, factor = (torch.tensor(values, device=images.device).repeat(width) for values in (mean, deviation))
    rows = images.reshape(batch, height, width * channels).float()
    torch.addcmul(-centre / factor, rows, 1 / factor, out=rows)
    return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)


def _classifier(
    name: str,
    model: Callable[[], nn.Module],
    fields: dict[str, Field],
    decode: Decode,
    classes: int,
    label_smoothing: float,
    scale: tuple[tuple[float, ...], tuple[float, ...]],
    split: str,
    batch_norm_momentum: float,
) -> Application:
    check_options(classes=(classes, int, 1, 2**31), label_smoothing=(label_smoothing, (int, float), 0, 1))
    number = isinstance(batch_norm_momentum, int | float) and not isinstance(batch_norm_momentum, bool)
    if not number or not 0 < batch_norm_momentum <= 1:
        raise ValueError(f"batch_norm_momentum must be above 0 and at most 1, not {batch_norm_momentum!r}")

    def network(model: nn.Module, images: Tensor) -> Tensor:
        """Logits of images [B, H, W, 3] uint8."""
        return model(normalised(images, *scale)).float()

    def loss(model: nn.Module, carried: None, images: Tensor, labels: Tensor) -> tuple[Tensor, None]:
        return F.cross_entropy(network(model, images), labels, reduction="sum", label_smoothing=label_smoothing), None

    def evaluate(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = network(model, images)
        best = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
        return {
            "count": torch.tensor(len(labels)),
            "top1": best[:, 0].sum(),
            "top5": best.sum(),
            "loss": F.cross_entropy(logits.double(), labels, reduction="sum"),
        }

    def metrics(sums: dict[str, float]) -> dict[str, float]:
        count = sums["count"]
        return {"top1": 100 * sums["top1"] / count, "top5": 100 * sums["top5"] / count, "loss": sums["loss"] / count}

    return Application(
        name, model, fields | {"label": Field("int64", (), classes=classes)}, decode, loss, evaluate, metrics, splits=(split,)
    )
