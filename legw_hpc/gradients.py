"""The gradients of a model in one buffer, and their sum over ranks, which may go on behind the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from legw_hpc.comm import Comm
from legw_hpc.models.batch_norm import StepStatistics


class FlatGradients:
    """The gradients of all parameters as views of one buffer, so that one exchange takes them all.

    They lie from the last parameter to the first, about as a backward pass fills them.  Behind them travel the sums of layers
    that learn from the whole batch (batch norm), and four numbers: the loss, how many ranks ask to stop and to save, and what
    the noise scale is made of.

    Args:
        model: its trainable parameters are float32, dense, on one device.

    Attributes:
        buffer: gradients, statistics and numbers, one after the other.
        parameters: in the order of their gradients.
    """

    def __init__(self, model: nn.Module):
        parameters = [p for p in model.parameters() if p.requires_grad][::-1]
        self.learners = [module for module in model.modules() if isinstance(module, StepStatistics)]
        size = sum(p.numel() for p in parameters)
        sums = [module.sums.numel() for module in self.learners]
        self.buffer = torch.zeros(size + sum(sums) + 4, device=parameters[0].device)
        self.gradients, statistics, tail = self.buffer.split([size, sum(sums), 4])
        self.loss, self.asked, self.spread, self.tail = tail[0], tail[1:3], tail[3], tail
        for module, values in zip(self.learners, statistics.split(sums), strict=True):
            module.sums = values.view_as(module.sums)
        self.parameters = parameters
        for p, view in zip(parameters, self.views(self.gradients), strict=True):
            p.grad = view

    def views(self, flat: Tensor) -> Iterator[Tensor]:
        """Each parameter's part of a tensor that is laid out as `gradients`, in its shape.

        It has the parameter's own strides: a channels_last weight keeps a channels_last gradient.
        """
        start = flat.storage_offset()
        for p in self.parameters:
            yield torch.as_strided(flat, p.size(), p.stride(), start)
            start += p.numel()


class Exchange:
    """Sums a flat buffer over ranks, once a step: `begin`, `arm` before the last backward pass, `start`, `finish`; a context.

    If there are several pieces, each is summed as soon as that pass has filled it, while the pass goes on.  What is a piece
    depends on the model and their number alone, and Horovod puts none together with another (comm/horovod.py): whenever a piece
    came to be ready, its sums are the same to the bit.

    Args:
        flat: the buffer.  What is behind the gradients travels with the last piece.
        comm: sums.
        pieces: of about the same size, see `cut`.
        measures: also this rank's own gradient.

    Attributes:
        squares: of this rank's own gradient, summed; from `start` on, if it is measured.
    """

    def __init__(self, flat: FlatGradients, comm: Comm, pieces: int = 1, measures: bool = False):
        self._flat, self._comm, self._measures = flat, comm, measures
        self.squares = torch.zeros((), device=flat.buffer.device)
        self._parts = cut(flat.parameters, pieces)
        sizes = [sum(p.numel() for p in part) for part in self._parts]
        self._gradients = flat.gradients.split(sizes)
        self._pieces = [*self._gradients[:-1], flat.buffer[sum(sizes[:-1]) :]]
        # By piece: parameters whose gradients are to come (nothing is armed while the list is empty), and what ends its sum.
        self._missing: list[int] = []
        self._ends: list[Callable[[], None] | None] = []
        self._hooks = [
            p.register_post_accumulate_grad_hook(partial(self._filled, number))
            for number, part in enumerate(self._parts[:-1])
            for p in part
        ]

    def __enter__(self) -> Exchange:
        return self

    def __exit__(self, *error: object) -> None:
        self._missing = []  # a backward pass may have ended in an error
        for hook in self._hooks:
            hook.remove()

    def begin(self) -> None:
        """A new step: all zero."""
        self._flat.buffer.zero_()
        self.squares.zero_()
        self._missing, self._ends = [], [None] * len(self._pieces)

    def arm(self) -> None:
        """The next backward pass is the last of this step."""
        self._missing = [len(part) for part in self._parts[:-1]]

    def _filled(self, number: int, parameter: Tensor) -> None:
        if self._missing:
            self._missing[number] -= 1
            if self._missing[number] < 0:  # it would be added to what is being summed
                raise RuntimeError("a parameter had two gradients in one backward pass: exchange_pieces=1")
            if self._missing[number] == 0:
                self._sum(number)

    def _sum(self, number: int) -> None:
        if self._measures:
            self.squares += torch.linalg.vector_norm(self._gradients[number]).square()
        if number + 1 < len(self._pieces):
            self._ends[number] = self._comm.start_sum_(self._pieces[number])

    def start(self) -> None:
        """After the last backward pass: sum what it has not filled too, but for the last piece."""
        self._missing = []
        for number, end in enumerate(self._ends):
            if end is None:
                self._sum(number)

    def finish(self) -> None:
        """Sum the last piece, and wait for all."""
        self._ends[-1] = self._comm.start_sum_(self._pieces[-1])
        for end in self._ends:
            if end is not None:
                end()


def cut(parameters: Sequence[Tensor], pieces: int) -> list[list[Tensor]]:
    """Parameters in their order, in parts of at least a share of their elements each, but for the last one.

    A parameter is not cut, so there are fewer parts where some are larger than a share.
    """
    total, sizes = sum(p.numel() for p in parameters), [0]
    parts: list[list[Tensor]] = [[]]
    for p in parameters:
        if sizes[-1] * pieces >= total:
            parts.append([])
            sizes.append(0)
        parts[-1].append(p)
        sizes[-1] += p.numel()
    return parts
