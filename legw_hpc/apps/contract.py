"""What an application of another package has to give: what it does not, it is told in its own terms, and early."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from legw_hpc.apps.base import Application
from legw_hpc.data.loader import Draw
from legw_hpc.data.shards import Shards
from legw_hpc.errors import InputError

# What a log's line of an evaluation has besides metrics.
TAKEN = ("event", "time", "step", "epoch", "train_loss")


def kept(app: Application) -> Application:
    """The application, whose functions raise an InputError where they give what no run can go on with."""

    def decode(data: Any, items: NDArray[np.int64], draw: Draw | None) -> tuple[Tensor, ...]:
        got = app.decode(data, items, draw)
        if not (isinstance(got, tuple) and got and all(isinstance(part, Tensor) for part in got)):
            _refuse(app, "decode", got, "a tuple of tensors")
        return got

    def loss(model: nn.Module, carried: Tensor | None, *tensors: Tensor) -> tuple[Tensor, Tensor | None]:
        got = app.loss(model, carried, *tensors)
        if not (isinstance(got, tuple) and len(got) == 2 and (got[1] is None or isinstance(got[1], Tensor))):
            _refuse(app, "loss", got, "a pair: the loss, summed over the samples, and what is carried (None: nothing)")
        if not (isinstance(got[0], Tensor) and got[0].dim() == 0 and got[0].requires_grad):
            _refuse(app, "loss", got[0], "a scalar with a gradient")
        return got

    def evaluate(model: nn.Module, *tensors: Tensor) -> dict[str, Tensor]:
        got = app.evaluate(model, *tensors)
        if not (isinstance(got, dict) and all(map(_is_number, got.values()))):
            _refuse(app, "evaluate", got, "sums by name, each a number")
        return got

    def metrics(sums: dict[str, float]) -> dict[str, float]:
        got = app.metrics(sums)
        if not (isinstance(got, dict) and got and all(map(_is_number, got.values()))):
            _refuse(app, "metrics", got, "metrics by name, each a number")
        if taken := [name for name in got if name in TAKEN]:
            raise InputError(f"application {app.name}: metrics may not be called {taken[0]}, as a log calls other things")
        return {name: float(value) for name, value in got.items()}

    return dataclasses.replace(app, decode=decode, loss=loss, evaluate=evaluate, metrics=metrics)


def check_model(app: Application, model: nn.Module) -> None:
    """Refuse a model that the trainer cannot train: its gradients lie in one float32 buffer (gradients.py).

    Raises:
        InputError: no weights to train, or some of another type.
    """
    weights = {name: p.dtype for name, p in model.named_parameters() if p.requires_grad}
    if not weights:
        raise InputError(f"application {app.name}: its model has no weights to train")
    if other := {name: dtype for name, dtype in weights.items() if dtype != torch.float32}:
        name, dtype = next(iter(other.items()))
        raise InputError(
            f"application {app.name}: weights are to be float32, {name} is {str(dtype).removeprefix('torch.')}; "
            "precision=bf16 and fp16 keep them so"
        )


def try_evaluation(app: Application, model: nn.Module, splits: Sequence[Shards], device: torch.device) -> None:
    """Score the first item of each split: what the first evaluation would stumble over, an epoch later.

    Raises:
        InputError: see `kept`.
    """
    model.eval()
    with torch.inference_mode():
        for data in splits:
            tensors = app.decode(data, np.arange(1), None)
            sums = app.evaluate(model, *(tensor.to(device) for tensor in tensors))
            with contextlib.suppress(ArithmeticError):  # a ratio may not be there of one item
                app.metrics({name: float(value) for name, value in sums.items()})
    model.train()


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.number) or (isinstance(value, Tensor) and value.numel() == 1)


def _refuse(app: Application, what: str, got: object, wanted: str) -> NoReturn:
    raise InputError(f"application {app.name}: {what} gives {_told(got)}, not {wanted}")


def _told(got: object) -> str:
    if isinstance(got, Tensor):
        return f"a tensor of shape {list(got.shape)}"
    if isinstance(got, tuple):
        return f"({', '.join(map(_told, got))})"
    if isinstance(got, dict):
        return "{" + ", ".join(f"{name}: {_told(value)}" for name, value in got.items()) + "}"
    return "None" if got is None else type(got).__name__
