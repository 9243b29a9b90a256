"""torch's optimizers without torch's compiler.

`torch.optim` imports `torch._dynamo` to exclude its methods from compilation.  Nothing is compiled here, and the import
costs every rank 1.3 s and about 900 files of a file system that all ranks share (measured, torch 2.13).
"""

from __future__ import annotations

from functools import cache
from typing import Any, TypeVar, cast

import torch
from torch.optim import Optimizer

Kind = TypeVar("Kind", bound=type[Optimizer])


@cache
def eager(kind: Kind) -> Kind:
    """An optimizer class that computes the same and imports no compiler; where torch has no such wrappers, the class itself.

    Args:
        kind: of torch.optim, not to be made differentiable.
    """
    step: Any = kind.step
    plain = step
    while hasattr(plain, "__wrapped__"):
        plain = plain.__wrapped__
    return kind if plain is step else cast(Kind, type(kind.__name__, (kind,), {"step": torch.no_grad()(plain)}))


def mark_methods() -> None:
    """Leave the marks on `Optimizer` that its methods look for before they import the compiler."""
    for method in vars(Optimizer).values():
        plain = getattr(method, "__wrapped__", None)
        if plain is not None:
            plain.__dynamo_disable = plain
