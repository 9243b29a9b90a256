"""Horovod over MPI (CPU) or NCCL (GPU): the engine."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

# Requests that are ready at the same moment would be summed as one buffer, and how a ring adds up an element depends on its
# place in that: the bits of a sum would depend on time.  A value of the user's is for many small requests; there are none here.
os.environ["HOROVOD_FUSION_THRESHOLD"] = "0"

import horovod
import horovod.torch as hvd

# Imported after Horovod, which starts nothing yet, and before hvd.init(): mpi4py starts MPI with
# MPI_THREAD_MULTIPLE, which Horovod's background thread needs, and its count of ranks is the second
# opinion.  Horovod alone works too.
try:
    from mpi4py import MPI
except (ImportError, RuntimeError):
    MPI = None  # type: ignore[assignment]

import torch
from torch import Tensor

from legw_hpc.comm.base import Comm, as_bytes, check_counts, split
from legw_hpc.launcher import Launch


class Horovod(Comm):
    """One allreduce a call; rank and size are Horovod's own."""

    name = "horovod"

    def __init__(self, launch: Launch, stall_seconds: float):
        super().__init__()
        # Horovod warns of a stall after 60 s and by default never ends.  Read by `init`; a value of the user's wins.
        os.environ.setdefault("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", f"{stall_seconds:.0f}")
        hvd.init()
        self.rank, self.size = hvd.rank(), hvd.size()
        self.local_rank, self.local_size = hvd.local_rank(), hvd.local_size()
        self.gpu = bool(hvd.nccl_built())
        counts = {"Horovod": self.size} | ({} if MPI is None else {"MPI": MPI.COMM_WORLD.size})
        check_counts(launch, **counts)

    def sum_(self, tensor: Tensor) -> None:
        self.start_sum_(tensor)()

    def start_sum_(self, tensor: Tensor) -> Callable[[], None]:
        # The name makes it the same cached request every time, whatever the order of other calls.
        name = f"sum.{tensor.storage_offset()}.{tuple(tensor.shape)}.{tensor.dtype}"
        handle = hvd.allreduce_async_(tensor, op=hvd.Sum, name=name)

        def end() -> None:  # a frame in this package, by which the watchdog knows a rank that waits
            hvd.synchronize(handle)

        return end

    def broadcast_(self, tensor: Tensor) -> None:
        hvd.broadcast_(tensor, root_rank=0, name=f"broadcast.{tuple(tensor.shape)}.{tensor.dtype}")

    def gather_bytes(self, data: bytes) -> list[bytes]:
        counts = hvd.allgather(torch.tensor([len(data)]), name="gather.counts").tolist()
        out = hvd.allgather(as_bytes(data), name="gather.data").numpy().tobytes() if any(counts) else b""
        return split(out, counts)

    def close(self) -> None:
        hvd.shutdown()

    def abort(self, code: int) -> None:
        if MPI is not None:
            MPI.COMM_WORLD.Abort(code)
        os._exit(code)


def facts() -> dict[str, Any]:
    """How this Horovod was built, for `doctor`."""
    return {"version": horovod.__version__, "mpi": bool(hvd.mpi_built()), "nccl": bool(hvd.nccl_built())}
