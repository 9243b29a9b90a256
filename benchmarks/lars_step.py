"""One LARS step on ResNet-50's 161 tensors, beside LARS from PyPI and torch's fused SGD."""

from __future__ import annotations

import importlib
import statistics
import sys
import time
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from benchmarks.measure import Bench, Case, Goal, Outcome, nothing, run
from legw_hpc.gradients import FlatGradients
from legw_hpc.models.resnet import resnet50
from legw_hpc.optim import parameter_groups
from legw_hpc.optim.lars import LARS

OURS, SGD, COPY, ADD = "ours", "torch SGD(fused), momentum", "copy of 102 MB", "102 MB added to as many, in place"
LR, MOMENTUM, DECAY = 0.01, 0.9, 1e-4


def cases(bench: Bench) -> Outcome:
    steps = 1 if bench.quick else 5
    torch.manual_seed(1)
    size = sum(p.numel() for p in resnet50().parameters())
    fresh, target = torch.randn(size) * 1e-3, torch.zeros(size)

    def case(name: str, make: Callable[[nn.Module], Optimizer]) -> Case:
        model = resnet50()
        flat, optimizer = FlatGradients(model), make(model)

        def step() -> float:
            seconds = 0.0
            for _ in range(steps):
                flat.gradients.copy_(fresh)  # some of them write to the gradient
                start = time.perf_counter()
                optimizer.step()
                seconds += time.perf_counter() - start
            return seconds / steps

        return Case(name, step)

    found, notes = [], []
    for name, make in PEERS.items():
        try:
            found.append(case(name, make))
        except ImportError as error:
            notes.append(f"{name}: not measured, it cannot be imported: {error}.")

    def after(seconds: dict[str, list[float]]) -> list[str]:
        rates = {name: passes * 4 * size / statistics.median(seconds[name]) for name, passes in ((COPY, 2), (ADD, 3))}
        bound = max(rates.values())  # a copy fetches what it overwrites too, an update in place does not
        lines = [f"Memory: {rates[COPY] / 1e9:.1f} GB/s by the copy, {rates[ADD] / 1e9:.1f} GB/s by the addition."]
        for name, passes in ((SGD, 5), (OURS, 7)):
            took = 1e3 * statistics.median(seconds[name])
            lines.append(
                f"{name}: {took:.1f} ms; {passes} x 102 MB at the faster rate are {1e3 * passes * 4 * size / bound:.1f} ms."
            )
        return lines

    return Outcome(
        [
            case(OURS, lambda model: LARS(parameter_groups(model), LR, MOMENTUM, DECAY)),
            *found,
            case(SGD, lambda model: torch.optim.SGD(model.parameters(), LR, MOMENTUM, weight_decay=DECAY, fused=True)),
            Case(COPY, lambda: nothing(target.copy_(fresh))),
            Case(ADD, lambda: nothing(target.add_(fresh))),
        ],
        [
            *(Goal(OURS, peer.name, 2.2) for peer in found),
            Goal(OURS, SGD, 1 / 1.5, "by the bytes moved, 7 tensors beside 5, 0.71 is possible"),
        ],
        notes,
        after,
    )


def _pytorch_optimizer(foreach: bool) -> Callable[[nn.Module], Optimizer]:
    def make(model: nn.Module) -> Optimizer:
        from pytorch_optimizer import LARS as theirs

        return theirs(parameter_groups(model), LR, DECAY, MOMENTUM, foreach=foreach)

    return make


@cache
def _timm_lars() -> Any:
    """timm as a whole wants torchvision, this file of it torch alone: the packages around it are left empty."""
    spec = find_spec("timm")
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError("pip install --no-deps timm")
    folder = Path(spec.submodule_search_locations[0])
    for name, path in (("timm", folder), ("timm.optim", folder / "optim")):
        package: Any = sys.modules.setdefault(name, ModuleType(name))
        package.__path__ = [str(path)]
    return importlib.import_module("timm.optim.lars").Lars


def _timm(foreach: bool) -> Callable[[nn.Module], Optimizer]:
    return lambda model: _timm_lars()(parameter_groups(model), LR, MOMENTUM, weight_decay=DECAY, foreach=foreach)


# Both ways that each has; the first is its default on a CPU.
PEERS = {
    "pytorch_optimizer": _pytorch_optimizer(True),
    "pytorch_optimizer, foreach=False": _pytorch_optimizer(False),
    "timm": _timm(False),
    "timm, foreach=True": _timm(True),
}


if __name__ == "__main__":
    run("lars_step", "a step of LARS on the weights of ResNet-50", cases)
