"""Twins of a run that leave one cost out, so that a scaling study can tell what it is: `twin=no-exchange`, `twin=synthetic`.

Their time is a measurement, their weights are worthless: each rank of a twin without exchange trains alone, and one with
synthetic input sees the samples of its first step for ever.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from torch import Tensor

from legw_hpc.comm import Comm
from legw_hpc.data.loader import Step
from legw_hpc.derived import Derived


class Apart(Comm):
    """One rank among many that meets the others where gradients are summed, and keeps its own.

    So each step takes as long as on the slowest rank, and what the run itself takes longer is the sum alone.
    With them go the requests to stop or to save, so such a run heeds none: it is short, and a second Ctrl-C or SIGKILL
    ends it.  A rank that diverges leaves the others waiting until the watchdog ends them.
    """

    def __init__(self, comm: Comm):
        vars(self).update(vars(comm))
        self._comm, self.name = comm, comm.name

    @property
    def beats(self) -> int:
        """Of the ranks that the watchdog sees."""
        return self._comm.beats

    @beats.setter
    def beats(self, count: int) -> None:
        self._comm.beats = count

    def sum_(self, tensor: Tensor) -> None:
        """The gradients stay this rank's; one number is summed."""
        self._comm.sum_(tensor.new_zeros(1))

    def gather_bytes(self, data: bytes) -> list[bytes]:
        return self._comm.gather_bytes(data)

    def broadcast_(self, tensor: Tensor) -> None:
        self._comm.broadcast_(tensor)


def repeated(steps: Iterator[Step], derived: Derived) -> Iterator[Step]:
    """The first step's samples, kept in memory, for every step: no reading, no decoding.

    A run that goes on at the last step of an epoch, which may have fewer samples than the others, takes those after it.
    """
    first = next(steps, None)
    if first is None:
        return
    begin = first.number
    if (begin + 1) % derived.steps_per_epoch == 0 and begin + 1 < derived.last:
        first = next(steps)
    kept = list(first.micro_batches)
    for number in range(begin, derived.last):
        starts = number % derived.steps_per_epoch == 0
        yield dataclasses.replace(first, number=number, first=starts, micro_batches=iter(kept))
