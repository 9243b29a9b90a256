"""Ranks and what they exchange.  Nothing outside this package imports horovod or mpi4py."""

from legw_hpc.comm.base import Comm, Serial, connect
from legw_hpc.comm.launcher import Launch, launched

__all__ = ["Comm", "Launch", "Serial", "connect", "launched"]
