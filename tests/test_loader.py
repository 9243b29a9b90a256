"""Who reads what, when: the same global batches on any number of ranks."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from legw_hpc.data import order
from legw_hpc.data.loader import AHEAD, Step, ahead, evaluation_batches, train_steps
from legw_hpc.data.shards import Shards

CPU = torch.device("cpu")
ORDER = order.Shuffled(300, 96, 3)
counts = st.integers(1, 200)


@given(counts, counts, st.integers(0, 9), st.integers(0, 9))
def test_an_epoch_holds_every_sample_once(samples: int, batch: int, seed: int, epoch: int) -> None:
    whole = order.Shuffled(samples, batch, seed)
    steps = [whole.items(epoch, step) for step in range(whole.steps_per_epoch)]
    assert sorted(np.concatenate(steps).tolist()) == list(range(samples))
    assert all(len(step) == batch for step in steps[:-1])


@given(counts, st.integers(1, 50), st.integers(1, 40))
def test_ranks_and_pieces_part_a_batch_in_order(count: int, size: int, micro: int) -> None:
    parts = [order.part(count, rank, size) for rank in range(size)]
    assert [i for part in parts for i in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    whole = np.arange(count)
    pieces = order.pieces(whole, micro)
    assert np.concatenate(pieces).tolist() == whole.tolist()
    assert all(1 <= len(piece) <= micro for piece in pieces)


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    first = order.epoch_order(100, 1, 0).tolist()
    assert first == order.epoch_order(100, 1, 0).tolist()
    assert first != order.epoch_order(100, 2, 0).tolist()
    assert first != order.epoch_order(100, 1, 1).tolist()


def test_the_order_is_pinned() -> None:
    """Another NumPy that permutes differently would change every run in silence."""
    assert order.epoch_order(10, seed=1, epoch=0).tolist() == PINNED


PINNED = [6, 2, 1, 0, 8, 4, 3, 9, 7, 5]


def numbers(data: Shards, samples: np.ndarray, draw: object) -> tuple[torch.Tensor, ...]:  # type: ignore[type-arg]
    return (torch.from_numpy(samples.copy()),)


def steps(data: Shards, rank: int = 0, size: int = 1, first: int = 0, last: int = 9, micro: int = 20) -> list[Step]:
    """With their micro-batches taken in time."""
    return [
        dataclasses.replace(step, micro_batches=list(step.micro_batches)) for step in lazy(data, rank, size, first, last, micro)
    ]  # type: ignore[arg-type]


def lazy(data: Shards, rank: int, size: int, first: int, last: int, micro: int) -> Iterator[Step]:
    return train_steps(data, numbers, order=ORDER, micro_batch=micro, first=first, last=last, rank=rank, size=size, device=CPU)


def flat(step: Step) -> list[int]:
    return [i for (tensor,) in step.micro_batches for i in tensor.tolist()]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 13])
def test_global_batches_do_not_depend_on_the_ranks(shards: Path, size: int) -> None:
    """13 ranks: the last step of an epoch has 12 samples, so one rank has none."""
    data = Shards(shards, "train")
    alone = [flat(step) for step in steps(data)]
    ranks = [steps(data, rank, size) for rank in range(size)]
    assert [[sample for rank in ranks for sample in flat(rank[i])] for i in range(9)] == alone
    assert [step.samples for step in ranks[0]] == [96, 96, 96, 12, 96, 96, 96, 12, 96]


@pytest.mark.parametrize(("size", "micro"), [(1, 20), (2, 20), (5, 7), (13, 4), (20, 3)])
def test_even_gives_every_rank_as_many_micro_batches(shards: Path, size: int, micro: int) -> None:
    """As ranks that meet in each micro-batch need; some may be empty, no sample is lost."""
    data = Shards(shards, "train")
    ranks = [
        [
            [tensor.tolist() for (tensor,) in step.micro_batches]
            for step in train_steps(
                data, numbers, order=ORDER, micro_batch=micro, first=0, last=4, rank=r, size=size, device=CPU, even=True
            )
        ]
        for r in range(size)
    ]
    for step in range(4):
        assert len({len(rank[step]) for rank in ranks}) == 1
        assert [i for rank in ranks for piece in rank[step] for i in piece] == ORDER.items(0, step).tolist()
        assert all(len(piece) <= micro for rank in ranks for piece in rank[step])


@given(st.integers(2, 3000), st.integers(1, 40), st.integers(1, 30))
def test_windows_cover_each_row_once_and_in_order(tokens: int, rows: int, window: int) -> None:
    whole = order.Windows(tokens, rows, window, seed=1)
    starts = [whole.items(epoch=0, step=step) for step in range(whole.steps_per_epoch)]
    for row in range(rows if starts else 0):
        begin = row * (tokens // rows)
        assert [int(start[row]) for start in starts] == list(range(begin, begin + window * len(starts), window))
        assert begin + window * len(starts) < begin + tokens // rows  # the last target is still of this row
    assert (whole.steps_per_epoch + 1) * window > tokens // rows - 1  # no whole window is left


def test_starting_in_the_middle_reads_the_same(shards: Path) -> None:
    data = Shards(shards, "train")
    assert [flat(s) for s in steps(data, first=5)] == [flat(s) for s in steps(data)][5:]


@pytest.mark.parametrize("size", [1, 2, 7, 150])
def test_evaluation_sees_every_sample_once(shards: Path, size: int) -> None:
    data = Shards(shards, "test")
    seen = [
        i
        for rank in range(size)
        for (tensor,) in evaluation_batches(data, numbers, items=101, micro_batch=8, rank=rank, size=size, device=CPU)
        for i in tensor.tolist()
    ]
    assert seen == list(range(101))


def test_micro_batches_that_are_left_do_not_reach_the_next_step(shards: Path) -> None:
    data = Shards(shards, "train")
    numbers_seen = [(step.number, step.samples) for step in lazy(data, 0, 1, 0, 5, 20)]
    assert numbers_seen == [(0, 96), (1, 96), (2, 96), (3, 12), (4, 96)]


def test_memory_does_not_grow_with_the_batch(shards: Path) -> None:
    """No more than AHEAD micro-batches are read before the first is taken."""
    read = []

    def decode(data: Shards, samples: np.ndarray, draw: object) -> tuple[torch.Tensor, ...]:  # type: ignore[type-arg]
        read.append(len(samples))
        return (torch.zeros(1),)

    data = Shards(shards, "train")
    loop = train_steps(
        data, decode, order=order.Shuffled(300, 300, 1), micro_batch=2, first=0, last=1, rank=0, size=1, device=CPU
    )
    next(next(loop).micro_batches)
    time.sleep(0.3)
    assert len(read) <= AHEAD + 3
    loop.close()


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "legw-loader"]


def test_an_error_in_the_reader_surfaces() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        list(ahead(items()))
    assert not readers()


def test_closing_ends_the_reader() -> None:
    endless = ahead(iter(lambda: 0, 1))
    assert next(endless) == 0
    assert len(readers()) == 1
    endless.close()
    assert not readers()


@pytest.mark.parametrize("depth", [1, 2, 3, 8])
def test_reading_ahead_keeps_order_however_fast_each_side_is(depth: int) -> None:
    """Thousands of hand-overs, and an end at every place: none is lost, none hangs."""
    assert list(ahead(iter(range(20000)), depth)) == list(range(20000))
    for taken in range(300):
        stream = ahead(iter(range(301)), depth)
        assert [next(stream) for _ in range(taken)] == list(range(taken))
        stream.close()
    assert not readers()
