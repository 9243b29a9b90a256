"""The performance model: its equations beside the papers', and what must hold whatever the numbers."""

from __future__ import annotations

import dataclasses
import heapq
import math
import random
import statistics
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legw_hpc.plan.allreduce import ALGORITHMS, Link, best, bound, rabenseifner, recursive_doubling, ring, two_levels
from legw_hpc.plan.model import Speeds, Work, alpha_beta, compute, exchange, jitter, left, requests, step

LINK = Link(alpha=2e-6, beta=1e-10, gamma=3e-11)
N = 1e8


def messages(n: float, p: int, link: Link, schedule: Callable[[int, float], list[tuple[float, bool]]]) -> float:
    """An independent count: (bytes, is it added) of each round on the longest path."""
    return sum(link.alpha + size * link.beta + (size * link.gamma if added else 0) for size, added in schedule(p, n))


def doubling(p: int, n: float) -> list[tuple[float, bool]]:
    power = 1 << int(math.log2(p))
    rounds = [(n, True)] * int(math.log2(power))
    return rounds if p == power else [(n, True), *rounds, (n, False)]


def halving(p: int, n: float) -> list[tuple[float, bool]]:
    power = 1 << int(math.log2(p))
    halves = [n / (2 << i) for i in range(int(math.log2(power)))]
    rounds = [*((size, True) for size in halves), *((size, False) for size in reversed(halves))]
    return rounds if p == power else [(n, True), *rounds, (n, False)]


def around(p: int, n: float) -> list[tuple[float, bool]]:
    return [(n / p, True)] * (p - 1) + [(n / p, False)] * (p - 1)


@pytest.mark.parametrize("p", [1, 2, 3, 4, 5, 7, 8, 100, 1024, 2048])
@pytest.mark.parametrize(
    ("cost", "schedule"), [(recursive_doubling, doubling), (rabenseifner, halving), (ring, around)], ids=ALGORITHMS
)
def test_the_equations_count_the_messages(
    cost: Callable[[float, int, Link], float], schedule: Callable[[int, float], list[tuple[float, bool]]], p: int
) -> None:
    assert cost(N, p, LINK) == pytest.approx(messages(N, p, LINK, schedule), rel=1e-12)


# Seconds on Omni-Path, 11 GB/s and 3 us, 102.2 MB, without additions.
OMNI_PATH = Link(3e-6, 1 / 11e9)


@pytest.mark.parametrize(
    ("cost", "p", "seconds"),
    [(rabenseifner, 2048, 18.6e-3), (rabenseifner, 512, 18.6e-3), (ring, 2048, 30.9e-3), (recursive_doubling, 2048, 102e-3)],
)
def test_resnet_on_omni_path(cost: Callable[[float, int, Link], float], p: int, seconds: float) -> None:
    assert cost(102.2e6, p, OMNI_PATH) == pytest.approx(seconds, rel=0.01)


@pytest.mark.parametrize(
    ("n", "p", "name"), [(8, 1024, "recursive doubling"), (1e8, 1024, "Rabenseifner"), (1e9, 6, "ring"), (1e9, 1, "Rabenseifner")]
)
def test_the_best_algorithm(n: float, p: int, name: str) -> None:
    assert best(n, p, LINK)[1] == name


links = st.builds(Link, st.floats(1e-7, 1e-3), st.floats(1e-12, 1e-7), st.floats(0, 1e-8))
sizes = st.floats(1, 1e10)
ranks = st.integers(1, 1 << 16)


@given(sizes, ranks, links)
def test_no_algorithm_beats_the_bound(n: float, p: int, link: Link) -> None:
    assert best(n, p, link)[0] >= bound(n, p, link) * (1 - 1e-12)
    assert all(cost(n, 1, link) == 0 for cost in ALGORITHMS.values())


@given(st.floats(1e6, 1e10), st.integers(0, 12))
def test_large_sums_reach_the_bound(n: float, power: int) -> None:
    """Without latency and additions: Rabenseifner on powers of two, the ring on any number."""
    link = Link(0.0, 1e-10)
    assert rabenseifner(n, 1 << power, link) == pytest.approx(bound(n, 1 << power, link), rel=1e-12)
    assert ring(n, 3 * (1 << power), link) == pytest.approx(bound(n, 3 * (1 << power), link), rel=1e-12)


@given(sizes, st.integers(0, 10), st.integers(1, 8), links, links)
def test_two_levels_grow_with_doubled_nodes(n: float, power: int, local: int, network: Link, memory: Link) -> None:
    few, many = (two_levels(n, 1 << p, local, network, memory) for p in (power, power + 1))
    assert few <= many * (1 + 1e-12)
    assert two_levels(n, 1 << power, 1, network, memory) == best(n, 1 << power, network)[0]


speeds = st.builds(
    Speeds, st.floats(1, 1e5), st.floats(0, 64), st.floats(0, 0.2), links, links, st.floats(0, 0.01), st.floats(1e8, 1e12),
    st.floats(1, 1e6),
)  # fmt: skip
works = st.builds(
    Work, st.integers(1, 1 << 16), st.integers(1, 256), st.floats(1e3, 1e9), st.integers(0, 12), st.floats(0, 1),
    st.floats(1e5, 1e9),
)  # fmt: skip


@given(works, speeds)
def test_one_rank_has_no_exchange_and_waits_for_nobody(work: Work, machine: Speeds) -> None:
    split = step(work, 1, 1, machine)
    assert (split.exchange, split.jitter) == (0, 0)
    assert split.step == split.compute + split.update + split.input


@given(works, speeds, st.integers(0, 10), st.integers(1, 4))
def test_parts_are_times_and_the_step_their_sum(work: Work, machine: Speeds, power: int, local: int) -> None:
    split = step(work, 1 << power, local, machine)
    parts = dataclasses.astuple(split)
    assert min(parts) >= 0
    assert split.step == pytest.approx(sum(parts))


@given(works, speeds, st.integers(0, 10), st.integers(1, 4))
def test_without_overlap_no_step_is_below_the_bound(work: Work, machine: Speeds, power: int, local: int) -> None:
    after = dataclasses.replace(work, overlap=0.0)
    assert step(after, 1 << power, local, machine).step >= alpha_beta(after, 1 << power, local, machine) * (1 - 1e-9)


@given(works, speeds, st.integers(0, 10))
def test_reduces_to_the_alpha_beta_model(work: Work, machine: Speeds, power: int) -> None:
    """Nothing but arithmetic and the sum: b/r + Rabenseifner, a ring or recursive doubling."""
    bare = dataclasses.replace(machine, half_batch=0.0, jitter=0.0, cycle=0.0, input_per_s=math.inf)
    plain = dataclasses.replace(work, passes=0, overlap=0.0)
    found = step(plain, 1 << power, 1, bare).step
    wanted = work.batch / (1 << power) / bare.samples_per_s + best(work.gradient, 1 << power, bare.network)[0]
    assert found == pytest.approx(wanted, rel=1e-12)


@given(works, speeds, st.integers(0, 9), st.integers(1, 4))
def test_more_nodes_compute_less_and_exchange_no_less(work: Work, machine: Speeds, power: int, local: int) -> None:
    """Of one batch; the waiting for the slowest is a growing share of what is computed."""
    after = dataclasses.replace(work, overlap=0.0)
    few, many = (step(after, 1 << p, local, machine) for p in (power, power + 1))
    assert many.compute <= few.compute * (1 + 1e-12)
    assert many.exchange >= few.exchange * (1 - 1e-12)
    assert many.jitter / many.compute >= few.jitter / few.compute - 1e-12
    assert many.update == few.update


WORSE: dict[str, float | Callable[[Link], Link]] = {
    "samples_per_s": 0.5,
    "half_batch": 2.0,
    "jitter": 2.0,
    "cycle": 2.0,
    "memory_per_s": 0.5,
    "input_per_s": 0.5,
    "network": lambda link: Link(2 * link.alpha, 2 * link.beta, link.gamma),
    "memory": lambda link: Link(link.alpha, link.beta, 2 * link.gamma),
}


@given(works, speeds, st.integers(0, 8), st.integers(1, 4), st.sampled_from(sorted(WORSE)))
def test_a_worse_machine_is_no_quicker(work: Work, machine: Speeds, power: int, local: int, field: str) -> None:
    """So best and worst numbers of a machine enclose the forecast."""
    change = WORSE[field]
    value = getattr(machine, field)
    worse = dataclasses.replace(machine, **{field: change(value) if callable(change) else change * value})
    after = dataclasses.replace(work, overlap=0.0)  # as this package exchanges
    assert step(after, 1 << power, local, worse).step >= step(after, 1 << power, local, machine).step * (1 - 1e-9)


def test_compute_is_half_the_rate_at_the_half_batch() -> None:
    machine = Speeds(100.0, 8.0, 0.0, LINK, LINK, 0.0, 1e10, math.inf)
    assert compute(8, 8, machine) == pytest.approx(2 * 8 / 100)
    assert compute(64, 32, machine) == pytest.approx((64 + 2 * 8) / 100)
    assert compute(65, 32, machine) == pytest.approx((65 + 3 * 8) / 100)


@pytest.mark.parametrize("count", [2, 16, 256])
def test_jitter_is_the_expected_largest_of_normal_draws(count: int) -> None:
    draws = random.Random(1)
    drawn = statistics.mean(max(draws.gauss(0, 1) for _ in range(count)) for _ in range(20000 // count + 1000))
    assert jitter(1.0, count, 1.0) == pytest.approx(drawn, abs=0.06)


def simulated(n: float, buckets: int, backward: float, seconds: Callable[[float], float]) -> float:
    """The pipeline of `left`, event by event."""
    ready = [(i + 1) / buckets * backward for i in range(buckets)]
    heapq.heapify(ready)
    done = 0.0
    while ready:
        done = max(done, heapq.heappop(ready)) + seconds(n / buckets)
    return done - backward


@given(st.floats(1e4, 1e9), st.floats(1e-4, 10), links)
def test_what_is_left_of_the_exchange_is_that_of_the_pipeline(n: float, backward: float, link: Link) -> None:
    def seconds(size: float) -> float:
        return ring(size, 4, link)

    found = left(n, [1 << i for i in range(8)], backward, seconds)
    assert found == pytest.approx(min(simulated(n, 1 << i, backward, seconds) for i in range(8)), rel=1e-6, abs=1e-9 * backward)
    assert left(n, [4], backward, seconds) == pytest.approx(simulated(n, 4, backward, seconds), rel=1e-6, abs=1e-9 * backward)


@given(works, speeds, st.integers(1, 8))
def test_overlap_hides_no_more_than_there_is(work: Work, machine: Speeds, power: int) -> None:
    none, half, full = (exchange(dataclasses.replace(work, overlap=o), 1 << power, 1, machine) for o in (0.0, 0.5, 1.0))
    assert full <= none * (1 + 1e-12)
    assert half == pytest.approx((none + full) / 2)


def test_horovod_waits_half_a_cycle_and_agrees() -> None:
    machine = Speeds(1.0, 0.0, 0.0, LINK, Link(1e-6, 1e-10), 1e-3, 1e10, math.inf)
    assert requests(1024, 2, machine) == pytest.approx(0.5e-3 + 10 * 2e-6 + 1e-6, rel=0.01)
    assert requests(1024, 2, dataclasses.replace(machine, cycle=0.0)) == 0


def test_input_is_read_during_the_step_before() -> None:
    work = Work(batch=100, micro_batch=100, gradient=1.0)
    machine = Speeds(100.0, 0.0, 0.0, LINK, LINK, 0.0, 1e10, input_per_s=200.0)
    assert step(work, 1, 1, machine).input == 0
    assert step(work, 1, 1, dataclasses.replace(machine, input_per_s=50.0)).input == pytest.approx(1.0)
    slow = dataclasses.replace(machine, network=Link(0.25, 0.0), input_per_s=50.0)  # while the ranks exchange, too
    waits, two = step(dataclasses.replace(work, batch=200), 2, 1, slow), exchange(work, 2, 1, slow)
    assert waits.input == pytest.approx(1.0 - two)
    assert 0 < two < 1
