"""Ranks and what they exchange.  Nothing outside this package imports horovod or mpi4py."""

from legw_hpc.comm.base import Comm, Serial, connect

__all__ = ["Comm", "Serial", "connect"]
