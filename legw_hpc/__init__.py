"""legw_hpc: large-batch data-parallel training with LEGW and LARS on Horovod over MPI.

The public names are loaded when first used, so that `plan` needs no torch and `LEGW` and `LARS`
need no Horovod.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from legw_hpc.derived import derive
    from legw_hpc.legw import Baseline, Scaled, scale
    from legw_hpc.optim import LARS, LEGW, parameter_groups
    from legw_hpc.recipe import Recipe, load
    from legw_hpc.single_run import run

_HOME = {
    "Baseline": "legw", "Scaled": "legw", "scale": "legw", "Recipe": "recipe", "load": "recipe", "derive": "derived",
    "LARS": "optim", "LEGW": "optim", "parameter_groups": "optim", "run": "single_run",
}  # fmt: skip

__all__ = ["LARS", "LEGW", "Baseline", "Recipe", "Scaled", "derive", "load", "parameter_groups", "run", "scale"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
