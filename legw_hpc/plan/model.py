"""Seconds of one optimizer step on any number of nodes, part by part.  Pure functions of plain numbers, in SI units.

    step = compute + jitter + exchange + update + input

Each part's equation and its source are in the docstring of its function.  Nothing here is measured:
the numbers come with the machine (calibration.py), and published runs say how far the result can be
trusted (benchmarks/published.py, results/plan.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from statistics import NormalDist

from legw_hpc.plan.allreduce import Link, bound, recursive_doubling, two_levels

# The bit vector of cached requests: a bit each, and three for the state, in words of 8 bytes (horovod/common/response_cache.cc).
CONTROL_BYTES = 16
# A gradient is handed out in no more buckets than this (assumed; ResNet-50 has 161 tensors).
BUCKETS = 128
PASSES_OF_A_COPY = 2  # each byte is read once and written once (derived)
# A backward pass costs twice the forward: one product each for the gradients of weights and of inputs (derived).
BACKWARD = 2 / 3


@dataclass(frozen=True)
class Speeds:
    """A machine, as the model sees it.

    Attributes:
        samples_per_s: of a rank, in micro-batches without end.
        half_batch: the micro-batch at which a rank has half of that.
        jitter: standard deviation over ranks of the time to compute a step, as a share of it.
        network, memory: between nodes, and between the ranks of one.
        cycle: seconds between two looks of Horovod's thread for requests; 0 is an exchange without Horovod.
        memory_per_s: bytes a second that a rank copies; each is read once and written once.
        input_per_s: samples a second that a rank reads and decodes.
        algorithm: of the sum between nodes, where MPI is told which; else the quickest.
    """

    samples_per_s: float
    half_batch: float
    jitter: float
    network: Link
    memory: Link
    cycle: float
    memory_per_s: float
    input_per_s: float
    algorithm: str = ""


@dataclass(frozen=True)
class Work:
    """A step's work, whatever the machine.

    Attributes:
        batch: global; a rank's share need not be whole.
        micro_batch: largest number of samples that a rank computes at once.
        gradient: bytes that are summed.
        passes: of the update, reads and writes, each over as many bytes as the gradient has.
        overlap: share of the exchange that goes on behind the backward pass where it can; 0 is one exchange
            after it.
        pieces: in which the gradient is summed then (gradients.py); 0 is tensor by tensor, as Horovod puts them together.
        fusion: bytes that Horovod puts together at most.
    """

    batch: int
    micro_batch: int
    gradient: float
    passes: float = 0.0
    overlap: float = 0.0
    pieces: int = 0
    fusion: float = 128 * 2**20


@dataclass(frozen=True)
class Split:
    """Seconds of a step, by what they go to.

    Attributes:
        compute: forward and backward.
        jitter: waiting for the slowest rank.
        exchange: of the gradient, as far as it is not behind the backward pass.
        update: of the weights.
        input: waiting for samples.
    """

    compute: float
    jitter: float
    exchange: float
    update: float
    input: float

    @property
    def step(self) -> float:
        """Seconds in all."""
        return sum(getattr(self, field.name) for field in fields(self))


def step(work: Work, nodes: int, local: int, speeds: Speeds) -> Split:
    """One step on `nodes` nodes of `local` ranks."""
    ranks = nodes * local
    share = work.batch / ranks
    computed = compute(share, work.micro_batch, speeds)
    rest = Split(
        compute=computed,
        jitter=jitter(computed, ranks, speeds.jitter),
        exchange=exchange(work, nodes, local, speeds),
        update=work.passes / PASSES_OF_A_COPY * work.gradient / speeds.memory_per_s,
        input=0.0,
    )
    return replace(rest, input=max(0.0, share / speeds.input_per_s - rest.step))  # it is read during the step before


def compute(samples: float, micro_batch: int, speeds: Speeds) -> float:
    """(b + m h) / r for b samples in m micro-batches, rate r and half-batch h.

    Each micro-batch costs a start of its own: Hockney's law of vector pipelines, with h his n_1/2
    (Hockney and Jesshope 1981, "Parallel Computers", § 1.3).
    """
    pieces = -(-samples // micro_batch)
    return (samples + pieces * speeds.half_batch) / speeds.samples_per_s


def jitter(seconds: float, ranks: int, deviation: float) -> float:
    """What the slowest of P ranks takes longer than the mean one: s t F(P), for a standard deviation of s t.

    F(P) is the expected largest of P draws of a standard normal distribution, the quantile at
    (P - 3/8) / (P + 1/4) (Blom 1958, "Statistical Estimates and Transformed Beta-Variables").  It is 0 for
    one rank and grows as the square root of 2 ln P.
    """
    return seconds * deviation * (NormalDist().inv_cdf((ranks - 0.375) / (ranks + 0.25)) if ranks > 1 else 0.0)


def exchange(work: Work, nodes: int, local: int, speeds: Speeds) -> float:
    """Seconds by which the sum of the gradient makes a step longer; 0 on one rank.

    Between "after the backward pass", all of it, and "behind it", what is left when the pass ends, at
    the share `overlap`: the thread that exchanges takes time from those that compute, so that neither
    is what happens (to be calibrated, not assumed to be 1).
    """
    if nodes * local == 1:
        return 0.0

    def seconds(n: float) -> float:
        return two_levels(n, nodes, local, speeds.network, speeds.memory, speeds.algorithm)

    told = requests(nodes, local, speeds)
    after = told + seconds(work.gradient)
    if not work.overlap:
        return after
    last = min(work.micro_batch, work.batch / (nodes * local))  # the gradient is complete in the last micro-batch
    backward = BACKWARD * compute(last, work.micro_batch, speeds)
    if work.pieces:
        many, copied = [work.pieces], 0.0
    else:  # it is copied into Horovod's buffer and back
        powers = [1 << i for i in range(BUCKETS.bit_length())]
        many = [m for m in powers if work.gradient / m <= work.fusion] or [math.ceil(work.gradient / work.fusion)]
        copied = 2 / speeds.memory_per_s
    behind = left(work.gradient, many, backward, lambda n: told + seconds(n) + copied * n)
    return work.overlap * min(after, behind) + (1 - work.overlap) * after


def requests(nodes: int, local: int, speeds: Speeds) -> float:
    """What Horovod adds to an exchange: half a cycle of waiting, and agreement on what is ready.

    Its threads combine a bit vector of cached requests by AND in every cycle, over all ranks
    (horovod/common/response_cache.cc); so small a message goes by recursive doubling.  A cycle is no
    shorter than that takes.
    """
    if not speeds.cycle:
        return 0.0
    between = recursive_doubling(CONTROL_BYTES, nodes, speeds.network)
    vector = between + recursive_doubling(CONTROL_BYTES, local, speeds.memory)
    return max(speeds.cycle, vector) / 2 + vector


def left(n: float, many: Sequence[int], backward: float, seconds: Callable[[float], float]) -> float:
    """What is left of the exchange when the backward pass ends, in m buckets that are ready at an even pace.

    One thread sums one bucket after another, bucket i when it is ready and the one before is done:

        done_i = max(i/m backward, done_(i-1)) + T(n/m)
        left = done_m - backward = max(T(n/m), m T(n/m) - (1 - 1/m) backward)

    the second by induction, since the maximum over i is at one of its ends.

    Args:
        n: bytes of the gradient.
        many: numbers of buckets, of which the best counts: what Horovod's cycle and threshold are tuned for.
        backward: seconds of the pass.
        seconds: T, of a sum of so many bytes.
    """
    return min(max(seconds(n / m), m * seconds(n / m) - (1 - 1 / m) * backward) for m in many)


def alpha_beta(work: Work, nodes: int, local: int, speeds: Speeds) -> float:
    """Seconds of a step that no machine beats: b/r, and the bound of a sum over nodes.  What the model is measured against."""
    return work.batch / (nodes * local) / speeds.samples_per_s + bound(work.gradient, nodes, speeds.network)
