"""Samples on their way into a shard: seen to fit its fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from legw_hpc.data.format import Field, check_labels
from legw_hpc.errors import InputError


@dataclass(frozen=True)
class Packed:
    """A variable-size field as the file has it: sample i is data[offsets[i]:offsets[i+1]].

    What `write_shard` takes beside a list of bytes, so that a large shard is in memory once.
    """

    data: NDArray[np.uint8]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1


def fitting(where: str, fields: Mapping[str, Field], samples: Mapping[str, Any]) -> dict[str, Any]:
    """Samples as they are written, once they are seen to fit their fields.

    Args:
        where: for a message.
        fields: name -> Field; one at least.
        samples: name -> an array [n, *shape] for a fixed-size field; for a variable one n of bytes, bytearrays or 1-d arrays of
            uint8, or Packed.

    Returns:
        The arrays and Packed themselves, and lists of bytes, which nobody can change any more; in the order of the fields.

    Raises:
        InputError: other fields; counts, shapes or types that do not fit; a label out of range.
    """
    if samples.keys() != fields.keys():
        raise InputError(f"{where}: samples with the fields {', '.join(samples)}; declared are {', '.join(fields)}")
    whole: dict[str, Any] = {}
    for name, field in fields.items():
        whole[name] = _bytes(where, name, samples[name]) if field.shape is None else _array(where, name, field, samples[name])
        count, first = len(whole[name]), len(next(iter(whole.values())))
        if count != first:
            raise InputError(f"{where}: {name} has {count} samples, the first field {first}")
    return whole


def _array(where: str, name: str, field: Field, values: Any) -> NDArray[Any]:
    if not isinstance(values, np.ndarray) or values.ndim == 0:
        raise InputError(f"{where}: {name} is {_kind(values)}; give an array of samples, each {field.shape} {field.dtype}")
    if values.shape[1:] != field.shape or values.dtype != np.dtype(field.dtype):
        raise InputError(
            f"{where}: {name} has samples of {values.shape[1:]} {values.dtype}, declared {field.shape} {field.dtype}"
        )
    check_labels(where, name, field, values)
    return values


def _bytes(where: str, name: str, values: Any) -> list[bytes] | Packed:
    if isinstance(values, Packed):
        return values
    try:
        values = list(values)
    except TypeError:
        raise InputError(f"{where}: {name} is {_kind(values)}; give a list of bytes, one for each sample") from None
    for sample, value in enumerate(values):
        if not _is_bytes(value):
            raise InputError(f"{where}: {name} of sample {sample} is {_kind(value)}; give bytes, or a 1-d array of uint8")
    return [bytes(value) for value in values]


def _is_bytes(value: Any) -> bool:
    """One after another: what has rows, or elements of several bytes, would be cut by the number of those."""
    try:
        view = memoryview(value)
    except (TypeError, ValueError):  # no numbers in memory, or of a type that only NumPy knows
        return False
    return view.ndim == 1 and view.format == "B"


def _kind(value: Any) -> str:
    return f"an array {value.shape} of {value.dtype}" if isinstance(value, np.ndarray) else f"of type {type(value).__name__}"
