"""How fast the ranks at hand compute, read, copy and exchange: what calibrate.py writes down."""

from __future__ import annotations

import itertools
import math
import os
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.exchange import without_horovod
from benchmarks.measure import Bench
from benchmarks.ours import Trained
from legw_hpc.comm import Comm, Serial
from legw_hpc.data.shards import Shards
from legw_hpc.errors import InputError
from legw_hpc.plan.allreduce import Link, best, rabenseifner, recursive_doubling
from legw_hpc.recipe import load

SMALL, LARGE = 2, 8 << 20  # elements of an exchange: nothing but messages, and little but bytes
BUFFER = 16 << 20  # elements that are copied and added: out of the caches
STEPS = 5  # of each size in a round
GROWTH = 0.05  # from micro-batch 0 to the largest that is measured, below which it is noise (assumed)
ATTEMPTS = 3  # rounds that are measured at most for one that counts (assumed)
LEAST = 0.1  # of the time of a large sum that is its bytes, whatever else was measured (assumed)


def line(points: dict[int, float]) -> tuple[float, float] | None:
    """(r, h) of t = (m + h) / r, by least squares of relative errors; h at least 0.  None where t hardly grows.

    Args:
        points: micro-batch m -> seconds t.
    """
    sizes, seconds = np.array(list(points)), np.array(list(points.values()))
    slope, start = np.polyfit(sizes, seconds, 1, w=1 / seconds)
    if start < 0:  # a line through 0
        slope, start = 1 / np.mean(sizes / seconds), 0.0
    if slope * sizes.max() < GROWTH * start:
        return None
    return float(1 / slope), float(start / slope)


def compute(bench: Bench, recipe: str, words: list[str], rounds: int) -> tuple[list[float], list[float], list[float]]:
    """A rank's rate and half-batch with all ranks at work and none waiting for another; and the ranks' jitter, of each round.

    Args:
        recipe, words: as for `legw-hpc train`.
    """
    full = load(recipe, words).micro_batch
    sizes = sorted({max(1, full // 8), max(1, full // 2), full} if bench.quick else {max(1, full >> i) for i in range(8)})
    if len(sizes) < 2:
        raise InputError(f"micro_batch={full}: the rate against the micro-batch needs two sizes at least")
    alone = Bench(Serial(), bench.quick)
    training = {m: Trained(alone, recipe, [*words, f"batch={m}", f"micro_batch={m}"]) for m in sizes}

    def seconds(m: int) -> float:
        before = training[m].timing.compute
        training[m].step()
        return training[m].timing.compute - before

    rates: list[float] = []
    halves, deviations = [], []
    for number in range(ATTEMPTS * rounds + 1):
        points = {}
        for m in sizes:
            bench.comm.barrier()
            everyone = bench.comm.gather([seconds(m) for _ in range(STEPS)])
            points[m] = statistics.mean(map(statistics.median, everyone))
        found = line(points)
        if number and found:  # the first warms up; a round that something else disturbed is repeated
            rates.append(found[0])
            halves.append(found[1])
            deviations.append(deviation(everyone))  # of the full micro-batch, the last
        if len(rates) == rounds:
            return rates, halves, deviations
    raise InputError(
        f"steps of {full} samples were measured to take no longer than those of {sizes[0]}, again and again: "
        "a larger micro_batch=..., or a machine on which nothing else runs"
    )


def deviation(everyone: Sequence[Sequence[float]]) -> float:
    """The standard deviation over ranks of the time of a single step, as a share of it: of all steps together.

    Args:
        everyone: seconds of each step of each rank.
    """
    variances = [statistics.variance(ranks) for ranks in zip(*everyone, strict=True)]
    return math.sqrt(statistics.mean(variances)) / statistics.mean(itertools.chain(*everyone))


@dataclass(frozen=True)
class Reading:
    """Samples a second that a rank reads from its shards and decodes, all ranks at once.

    Attributes:
        memory: that are in the memory of its node.
        storage: that are not, by what this node can tell: a file server may still have them in its own.
        fits: whether all training shards fit into the node's memory, where a run has them after its first epoch.
    """

    memory: list[float]
    storage: list[float]
    fits: bool


def reading(bench: Bench, recipe: str, words: list[str], rounds: int) -> Reading:
    """Call it first of all: what another has mapped is not forgotten.  See `compute`."""
    comm, count = bench.comm, load(recipe, words).micro_batch
    work = Trained(Bench(Serial(), bench.quick), recipe, [*words, f"batch={count}", "data.verify=false"]).work
    files = [file.path for file in work.training.files]

    def decode(data: Shards, step: int) -> None:
        work.app.decode(data, work.order.items(0, step % work.derived.steps_per_epoch), (1, 0))

    def from_storage(step: int) -> float:
        data = Shards(work.training.folder, "train")  # anew: what is mapped is not forgotten
        comm.barrier()
        forget(files)
        return bench.seconds(partial(decode, data, step * comm.size + comm.rank))

    storage = [from_storage(step) for step in range(rounds + 1)][1:]
    step = itertools.count(comm.rank, comm.size)  # of other samples each time: the same ones are in the processor's cache
    memory = repeated(bench, lambda: decode(work.training, next(step)), rounds)
    fits = sum(path.stat().st_size for path in files) < available()
    return Reading([count / s for s in memory], [count / s for s in storage], comm.broadcast(fits))


def forget(files: Sequence[Path]) -> None:
    """Let the system drop what it has of files in memory; it keeps what is mapped, or not yet written."""
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def available() -> int:
    """Bytes of memory that this node has left for files."""
    found = re.search(r"MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text())
    return 1024 * int(found[1]) if found else 0


def memory(bench: Bench, rounds: int) -> dict[str, list[float]]:
    """GB a second that a rank copies, and that it adds up, all ranks at once."""
    a, b = torch.ones(BUFFER), torch.ones(BUFFER)
    seconds = {name: repeated(bench, partial(work, b), rounds) for name, work in (("copy", a.copy_), ("add", a.add_))}
    return {name: [1e-9 * a.nbytes / s for s in took] for name, took in seconds.items()}


def repeated(bench: Bench, work: Callable[[], object], rounds: int) -> list[float]:
    """Seconds of the slowest rank, after one round that does not count."""

    def once() -> None:
        work()

    return [bench.seconds(once) for _ in range(rounds + 1)][1:]


def links(comm: Comm, add: float, rounds: int) -> dict[str, tuple[list[float], list[float]]]:
    """(us a message, GB/s) in the memory of a node and in the network, as far as the ranks have them between them.

    Small sums go by recursive doubling, large ones as the model has it; the equations are solved for alpha and beta.

    Args:
        add: GB/s that a rank adds up.
    """
    from mpi4py import MPI  # here, since it starts MPI: not in the process that launches the ranks

    world, found = MPI.COMM_WORLD, {}
    node = world.Split_type(MPI.COMM_TYPE_SHARED)
    leaders = world.Split(0 if node.rank == 0 else MPI.UNDEFINED)
    levels = {"memory": (node, rabenseifner), "network": (leaders, lambda n, p, link: best(n, p, link)[0])}
    with without_horovod(comm):
        for name, (group, cost) in levels.items():
            if group != MPI.COMM_NULL and group.size > 1:
                small, large = ([allreduce(group, size) for _ in range(rounds)] for size in (SMALL, LARGE))
                alphas = [s / recursive_doubling(4 * SMALL, group.size, Link(1.0, 0.0)) for s in small]
                # The cost is linear in beta: what a second a byte would cost, divides.
                rest = cost(4 * LARGE, group.size, Link(statistics.median(alphas), 0.0, 1e-9 / add))
                unit = cost(4 * LARGE, group.size, Link(0.0, 1.0))
                betas = [max(s - rest, LEAST * s) / unit for s in large]
                found[name] = [1e6 * alpha for alpha in alphas], [1e-9 / beta for beta in betas]
            world.Barrier()
    return found


def allreduce(group: Any, elements: int) -> float:
    """Seconds of one sum of fp32 over an MPI group, the slowest rank's."""
    from mpi4py import MPI

    buffer, times = torch.zeros(elements).numpy(), 200 if elements == SMALL else 3
    group.Allreduce(MPI.IN_PLACE, buffer, op=MPI.SUM)
    group.Barrier()
    start = time.perf_counter()
    for _ in range(times):
        group.Allreduce(MPI.IN_PLACE, buffer, op=MPI.SUM)
    return float(group.allreduce((time.perf_counter() - start) / times, op=MPI.MAX))
