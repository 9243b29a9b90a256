"""The interface to the other ranks, the serial one, and the choice between them."""

from __future__ import annotations

import itertools
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from legw_hpc.errors import InputError
from legw_hpc.launcher import Launch, launched

BACKENDS = ("auto", "serial", "horovod", "mpi")
_PIECE = 1 << 28  # bytes
STALL_SECONDS = 1800.0  # after which Horovod ends ranks that wait in vain, where nobody says otherwise (assumed)
# Seconds that Open MPI's ranks wait before they abort (assumed: daemons tell of a death at once).  A rank whose peer was
# killed may notice it before the launcher does, and its own abort would be all that is reported: no word of who died.
ABORT_DELAY = "1"


class Comm:
    """One rank among `size`.

    A backend gives `sum_`, `gather_bytes` and `broadcast_`; the rest is built on them here, once.
    Every method but `abort` is a collective: all ranks call it, in the same order.

    Attributes:
        name: the backend.
        rank, size: this rank of all.
        local_rank, local_size: the same among the ranks of this node.
        node: the host name.
        gpu: whether it can sum tensors that are on a GPU.
        beats: micro-batches that this rank has done, by which the watchdog sees that it goes on.
        worked: looks at which this rank waited, and the watchdog saw another that goes on.
    """

    name = "none"
    beats = 0
    worked = 0
    gpu = True
    rank = 0
    size = 1
    local_rank = 0
    local_size = 1

    def __init__(self) -> None:
        self.node = socket.gethostname()

    def sum_(self, tensor: Tensor) -> None:
        """Replace a contiguous tensor by its sum over all ranks, in place."""
        raise TypeError("a backend defines sum_")

    def start_sum_(self, tensor: Tensor) -> Callable[[], None]:
        """Begin a `sum_`, of which several may go on; what is returned ends it, and nobody touches the tensor until then.

        Ranks may begin their sums in any order, and end them in the same one; a tensor lies at the same place of its storage
        on all ranks, by which sums are told apart.  A backend that cannot sum while its caller computes sums at the end.
        """
        return partial(self.sum_, tensor)

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """Every rank's bytes, in the order of the ranks, on every rank."""
        raise TypeError("a backend defines gather_bytes")

    def broadcast_(self, tensor: Tensor) -> None:
        """Replace a contiguous tensor by rank 0's, in place."""
        raise TypeError("a backend defines broadcast_")

    def close(self) -> None:
        """Leave the job in an orderly way."""

    def abort(self, code: int) -> None:
        """End this rank and with it the job, without waiting for the others."""
        os._exit(code)

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value (anything that JSON holds), in the order of the ranks."""
        return [json.loads(data) for data in self.gather_bytes(json.dumps(value).encode())]

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value (anything that JSON holds)."""
        return self.gather(value if self.rank == 0 else None)[0]

    def broadcast_bytes(self, data: bytes) -> bytes:
        """Rank 0's bytes; in pieces, since MPI counts in 32 bits."""
        size = self.broadcast(len(data))
        buffer = as_bytes(data) if self.rank == 0 else torch.empty(size, dtype=torch.uint8)
        for piece in buffer.split(_PIECE):
            self.broadcast_(piece)
        return buffer.numpy().tobytes()

    def barrier(self) -> None:
        """Return once every rank is here."""
        self.gather_bytes(b"")

    @contextmanager
    def together(self) -> Iterator[None]:
        """If an InputError ends the block on any rank, every rank raises it.

        Without this, one rank that cannot open its files leaves the others waiting in the next
        collective.  The block itself must not contain a collective.

        Raises:
            InputError: the error of the lowest rank that has one; it names rank and node if not all
                ranks have the same.
        """
        error = None
        try:
            yield
        except InputError as caught:
            error = str(caught)
        errors = self.gather([error, self.node])
        failed = [(rank, text, node) for rank, (text, node) in enumerate(errors) if text is not None]
        if failed:
            rank, text, node = failed[0]
            alone = len({text for text, _ in errors}) > 1
            raise InputError(f"{text} (rank {rank} on {node})" if alone else text, agreed=True)


class Serial(Comm):
    """One rank alone."""

    name = "serial"

    def sum_(self, tensor: Tensor) -> None:
        """The sum over one rank: nothing to do."""

    def gather_bytes(self, data: bytes) -> list[bytes]:
        return [data]

    def broadcast_(self, tensor: Tensor) -> None:
        """Rank 0 has it already."""


def connect(backend: str = "auto", launch: Launch | None = None, stall_seconds: float = STALL_SECONDS) -> Comm:
    """Join the other ranks.

    "auto" is Horovod where the launcher says that there are several ranks, and serial where there
    is one.  Serial is never a fallback: where the launcher says N ranks and Horovod is not there,
    or says another number, this stops rather than train N lonely copies.

    Args:
        backend: "auto", "serial", "horovod" or "mpi" (mpi4py alone; CPU tensors).
        launch: what the launcher says; read from the environment by default.
        stall_seconds: after which Horovod ends ranks that wait in vain; 0 is never.

    Raises:
        InputError: the backend is missing, or the counts of ranks differ.
    """
    launch = launch or launched()
    if backend not in BACKENDS:
        raise InputError(f"unknown comm {backend!r}: one of {', '.join(BACKENDS)}")
    if backend == "serial" or (backend == "auto" and launch.size == 1):
        if launch.size != 1:
            raise InputError(f"comm=serial, but the launcher ({launch.launcher}) started {launch.ranks}")
        return Serial()
    os.environ.setdefault("OMPI_MCA_mpi_abort_delay", ABORT_DELAY)
    kind: Callable[[Launch], Comm]
    try:
        if backend == "mpi":
            from legw_hpc.comm.mpi import Mpi as kind
        else:
            from legw_hpc.comm.horovod import Horovod

            kind = partial(Horovod, stall_seconds=stall_seconds)
    except (ImportError, RuntimeError, OSError) as error:  # mpi4py without an MPI library raises a RuntimeError
        wanted = "mpi4py" if backend == "mpi" else "Horovod"
        way_out = "" if backend == "mpi" else ", or choose comm=mpi to exchange by mpi4py alone"
        raise InputError(
            f"the launcher ({launch.launcher}) started {launch.ranks}, but {wanted} cannot be imported "
            f"({error}): run `make setup`{way_out}"
        ) from None
    return kind(launch)


def check_counts(launch: Launch, **counts: int) -> None:
    """Stop unless every party counts the same ranks; a launcher that tells no count has started at least this one.

    Raises:
        InputError: the counts differ; all of them are named.
    """
    if len({launch.size or max(launch.rank + 1, *counts.values()), *counts.values()}) > 1:
        others = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise InputError(
            f"the ranks do not see each other: the launcher ({launch.launcher}) started {launch.ranks}, {others}. "
            "Horovod and mpi4py must be built with the MPI whose mpirun or srun starts them"
        )


def as_bytes(data: bytes) -> Tensor:
    """uint8 [len(data)], writable."""
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def split(data: bytes, counts: list[int]) -> list[bytes]:
    """Gathered bytes, cut into those of each rank; `counts` in the order of the ranks."""
    ends = itertools.accumulate(counts)
    return [data[end - count : end] for end, count in zip(ends, counts, strict=True)]
