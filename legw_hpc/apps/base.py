"""What the trainer needs to know of a task."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from legw_hpc.data.format import Field
from legw_hpc.data.loader import Decode
from legw_hpc.data.shards import Shards
from legw_hpc.errors import InputError


@dataclasses.dataclass(frozen=True)
class Application:
    """A task.

    Attributes:
        name: as recipes call it.
        model: makes a freshly initialised network.
        fields: what the shards must hold; a label may have fewer classes.
        decode: (shards, items, draw) -> the tensors of a micro-batch; see loader.py.
        loss: (model, carried, *tensors) -> the loss summed over the micro-batch's samples, a scalar, and what
            its rows carry to the next step, [rows, ...]; None in an application that carries nothing, and
            at the start of an epoch.
        evaluate: (model, *tensors) -> sums over the micro-batch, by name.
        metrics: sums over all samples -> the metrics, by name; the first is the one that tables show.
        splits: what is evaluated; the metrics of the first are the result's, the others' carry its name.
        items: samples of an evaluated split -> items that `decode` takes.
        least: samples that each split must have.
    """

    name: str
    model: Callable[[], nn.Module]
    fields: dict[str, Field]
    decode: Decode
    loss: Callable[..., tuple[Tensor, Tensor | None]]
    evaluate: Callable[..., dict[str, Tensor]]
    metrics: Callable[[dict[str, float]], dict[str, float]]
    splits: tuple[str, ...] = ("test",)
    items: Callable[[int], int] = int
    least: int = 1

    def check(self, data: Shards) -> None:
        """Refuse shards of another task.

        Raises:
            InputError: a field is missing, of another type or shape, or may hold labels that the task does not have; too few
                samples.
        """
        for name, want in self.fields.items():
            have = data.fields.get(name)
            if have is None:
                raise InputError(f"{data.folder}: {data.split} has no field {name!r}, which {self.name} reads")
            if (have.dtype, have.shape) != (want.dtype, want.shape) or (have.classes or 0) > (want.classes or 0):
                raise InputError(f"{data.folder}: {data.split} field {name!r} is {have}, {self.name} reads {want}")
            if want.classes is not None and have.classes is None:  # nothing has checked its values
                raise InputError(
                    f"{data.folder}: {data.split} field {name!r} declares no number of classes, {self.name} wants {want.classes}"
                )
        if len(data) < self.least:
            raise InputError(f"{data.folder}: split {data.split} has {len(data)} samples, {self.name} wants {self.least} or more")


def check_options(**ranges: tuple[Any, Any, float, float]) -> None:
    """Refuse an option of the wrong type or out of range: name=(value, type, least, below).

    Raises:
        ValueError: names the option, its value and the range.
    """
    for name, (value, kind, least, below) in ranges.items():
        if isinstance(value, bool) or not isinstance(value, kind) or not least <= value < below:
            number = "whole number" if kind is int else "number"
            raise ValueError(f"{name} must be a {number} from {least:g} to below {below:g}, not {value!r}")
