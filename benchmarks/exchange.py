"""The sum of one flat fp32 buffer over the ranks: ours beside raw MPI and torch.distributed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import distributed

from benchmarks.measure import Bench, Case, Goal, Limit, Outcome, run
from legw_hpc.comm import Comm
from legw_hpc.launcher import launched

# Name -> elements, and how often in a round: the gradients of MNIST-LSTM, PTB-LSTM and ResNet-50.
SIZES = {"0.56 MB": (140_000, 100), "18 MB": (4_500_000, 12), "102 MB": (25_500_000, 4)}
OURS, OURS_MPI, RAW, GLOO = "ours, Horovod", "ours, comm=mpi", "raw MPI_Allreduce", "torch.distributed, gloo"


def cases(bench: Bench) -> Outcome:
    if bench.comm.size == 1:
        raise SystemExit("one rank has nothing to exchange: --ranks 2")
    from mpi4py import MPI  # here, since it starts MPI: not in the process that launches the ranks

    from legw_hpc.comm.mpi import Mpi

    bench.torch_distributed()
    mpi, world = Mpi(launched()), MPI.COMM_WORLD
    measured, goals = [], []
    for size, (elements, often) in SIZES.items():
        buffer = torch.empty(elements)
        ways: dict[str, Callable[[], object]] = {
            OURS: partial(bench.comm.sum_, buffer),
            OURS_MPI: partial(mpi.sum_, buffer),
            RAW: partial(world.Allreduce, MPI.IN_PLACE, buffer.numpy(), op=MPI.SUM),
            GLOO: partial(distributed.all_reduce, buffer),
        }
        for way, exchange in ways.items():
            check(bench, buffer, exchange, f"{way}, {size}")
            times = max(1, often // 10) if bench.quick else often
            measured.append(Case(f"{way}, {size}", timed(exchange, times, None if way == OURS else bench.comm)))
        goals.append(Goal(f"{OURS}, {size}", f"{GLOO}, {size}", 1.0))
    goals += [Goal(f"{ours}, 102 MB", f"{RAW}, 102 MB", 0.9) for ours in (OURS, OURS_MPI)]

    def after(seconds: dict[str, list[float]]) -> list[Limit]:
        small = "0.56 MB"
        raw = statistics.median(seconds[f"{RAW}, {small}"])
        more = {way: 1e3 * (statistics.median(seconds[f"{way}, {small}"]) - raw) for way in (OURS, OURS_MPI)}
        return [Limit(f"{way}, {small}: ms more than raw MPI", ms, 1.0) for way, ms in more.items()]

    notes = ["Seconds of one exchange.  Horovod is shut down while the other ways are timed: its thread shares their core."]
    return Outcome(measured, goals, notes, after)


def check(bench: Bench, buffer: torch.Tensor, exchange: Callable[[], object], name: str) -> None:
    """It sums; the buffer is zero afterwards, so that any number of sums stays finite."""
    buffer.fill_(bench.comm.rank + 1)
    exchange()
    if not (buffer == sum(range(1, bench.comm.size + 1))).all():
        raise AssertionError(f"{name} is not the sum")
    buffer.zero_()


@contextmanager
def without_horovod(comm: Comm) -> Iterator[None]:
    """Horovod's thread, which meets the other ranks every millisecond, ends meanwhile; on all ranks."""
    if comm.name != "horovod":
        yield
        return
    import horovod.torch as hvd

    hvd.shutdown()
    try:
        yield
    finally:
        hvd.init()


def timed(exchange: Callable[[], object], times: int, comm: Comm | None) -> Callable[[], float]:
    """Seconds of one exchange, the first left out.

    Args:
        times: in a row.
        comm: whose Horovod is in the way.
    """

    def run() -> float:
        with without_horovod(comm) if comm is not None else nullcontext():
            exchange()
            start = time.perf_counter()
            for _ in range(times):
                exchange()
            return (time.perf_counter() - start) / times

    return run


if __name__ == "__main__":
    run("exchange", "the sum of a flat buffer over the ranks", cases, ranks=2)
