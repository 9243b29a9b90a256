"""The local Lipschitz constant along the gradient, measured while a run trains (paper § 4, Figure 3).

    L(x, g) = |g' H g| / ||g||^2        H the Hessian of the loss at the weights x, g its gradient

is the curvature in the direction that the step takes; along it the best step size is 1 / L.  As the
paper does, H g is taken by a finite difference, and both it and g on one batch; here that is the
step's own global batch, over all ranks:

    H v = (gradient(x + EPSILON v) - g) / EPSILON,  v = g / ||g||        L = |v' H v|

So a measurement costs one more gradient and one more exchange.  Everything that it touches is put
back to the bit: a run that is measured trains as one that is not (tested).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from legw_hpc.apps import Application
from legw_hpc.comm import Comm
from legw_hpc.data.loader import Step
from legw_hpc.gradients import FlatGradients
from legw_hpc.recipe import Recipe
from legw_hpc.trainer import seed

# The length of the displacement, in the weights' own unit.  The difference's own error grows with it, that of
# float32 falls.  Measured against the exact product in float64, over the first 400 steps of mnist-lstm at batch 128
# and 160 of ptb-lstm at 20: at 1e-3 at most 1 % off, at 1e-2 up to 10 %, at 1e-4 up to 2 % where L is 0.002.
EPSILON = 1e-3


class Probe:
    """Measures L(x, g) at every so many steps; `trainer.train` calls it before the update.

    Args:
        app: gives the loss.
        model: its weights are moved and put back.
        recipe: its `curvature_every` and seed.
        comm: sums over ranks; all ranks measure at the same steps.
        carried: the trainer's.
    """

    def __init__(self, app: Application, model: nn.Module, recipe: Recipe, comm: Comm, carried: list[Tensor]):
        self._app, self._model, self._recipe, self._comm, self._carried = app, model, recipe, comm, carried
        self._step: Step | None = None
        self._batches: list[tuple[Tensor, ...]] = []
        self._before: list[Tensor] = []

    def watch(self, steps: Iterator[Step]) -> Iterator[Step]:
        """The steps, with what a measurement needs of each kept until the next one."""
        for step in steps:
            self._step = None
            if step.number % self._recipe.curvature_every == 0:
                self._step, self._batches = step, []
                self._before = [] if step.first else list(self._carried)
                step = dataclasses.replace(step, micro_batches=self._kept(step.micro_batches))
            yield step

    def _kept(self, batches: Iterator[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
        for tensors in batches:
            self._batches.append(tensors)
            yield tensors

    def __call__(self, flat: FlatGradients) -> float | None:
        """L(x, g), the same on every rank; None at a step that is not measured, or where the gradient is 0.

        Args:
            flat: holds the gradient over all ranks.
        """
        norm = torch.linalg.vector_norm(flat.gradients)
        if self._step is None or not norm > 0:
            return None
        direction = flat.gradients / norm
        here, there = [p.detach().clone() for p in flat.parameters], flat.buffer.clone()
        kept = [(buffer, buffer.clone()) for buffer in self._model.buffers()]
        with torch.no_grad():
            for p, v in zip(flat.parameters, flat.views(direction), strict=True):
                p.add_(v, alpha=EPSILON)
        self._gradient(flat, self._step)
        change = flat.gradients.double() - there[: len(direction)].double()
        with torch.no_grad():
            for p, old in zip(flat.parameters, here, strict=True):
                p.copy_(old)
            for buffer, old in kept:  # what a layer such as torch's batch norm has seen
                buffer.copy_(old)
        flat.buffer.copy_(there)
        return abs(torch.dot(direction.double(), change).item()) / EPSILON

    def _gradient(self, flat: FlatGradients, step: Step) -> None:
        """As the trainer takes it, of the same samples with the same draws, at the weights as they are."""
        seed(flat.buffer.device, self._recipe.seed, step.number, self._comm.rank)
        flat.buffer.zero_()
        for number, tensors in enumerate(self._batches):
            carried: Any = self._before[number] if number < len(self._before) else None
            loss, _ = self._app.loss(self._model, carried, *tensors)
            (loss / step.samples).backward()
            self._comm.beats += 1
        self._comm.sum_(flat.buffer)
