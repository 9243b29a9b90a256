"""mpi4py alone: the oracle for Horovod, and the way out where Horovod cannot be built.  CPU tensors."""

from __future__ import annotations

import numpy as np
from mpi4py import MPI
from torch import Tensor

from legw_hpc.comm.base import Comm, check_counts, split
from legw_hpc.errors import InputError
from legw_hpc.launcher import Launch


class Mpi(Comm):
    """`MPI_Allreduce` in place on one flat buffer."""

    name = "mpi"
    gpu = False

    def __init__(self, launch: Launch):
        super().__init__()
        self._world = MPI.COMM_WORLD
        self.rank, self.size = self._world.rank, self._world.size
        check_counts(launch, MPI=self.size)
        node = self._world.Split_type(MPI.COMM_TYPE_SHARED)
        self.local_rank, self.local_size = node.rank, node.size
        node.Free()

    def sum_(self, tensor: Tensor) -> None:
        if tensor.device.type != "cpu":
            raise InputError(f"comm=mpi exchanges CPU tensors, not {tensor.device}: use comm=horovod")
        self._world.Allreduce(MPI.IN_PLACE, tensor.numpy(), op=MPI.SUM)

    def broadcast_(self, tensor: Tensor) -> None:
        self._world.Bcast(tensor.numpy(), root=0)

    def gather_bytes(self, data: bytes) -> list[bytes]:
        mine, theirs = np.array([len(data)]), np.empty(self.size, np.int64)
        self._world.Allgather(mine, theirs)  # the lower-case methods would unpickle what another rank sends
        counts = theirs.tolist()
        out = bytearray(sum(counts))
        self._world.Allgatherv([data, MPI.BYTE], [out, counts, MPI.BYTE])
        return split(bytes(out), counts)

    def abort(self, code: int) -> None:
        self._world.Abort(code)
