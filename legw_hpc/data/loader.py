"""Reads this rank's part of every global batch, ahead of the training loop, in one thread."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from legw_hpc.data.order import Order, micro_batches
from legw_hpc.data.shards import Shards

# Micro-batches read ahead: enough to cover one slow read, few enough that memory does not grow with the
# global batch (assumed).
AHEAD = 8

# The items that a micro-batch reads, and what becomes of them.  The draw, (seed, epoch), is what randomness
# (augmentation, dropout) may depend on besides the item; None is evaluation.
Draw = tuple[int, int]
Decode = Callable[[Any, NDArray[np.int64], Draw | None], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Step:
    """This rank's share of one optimizer step.

    Attributes:
        number: the step, counted from 0 over the whole run.
        first: is it the first of its epoch, where what is carried from step to step starts anew.
        samples: the samples of the global batch, over all ranks.
        parts: the micro-batches of this rank; there may be none at the end of an epoch, when there are more ranks than
            samples left.
        micro_batches: to be taken before the next step.
    """

    number: int
    first: bool
    samples: int
    parts: int
    micro_batches: Iterator[tuple[Tensor, ...]]


def train_steps(
    data: Shards,
    decode: Decode,
    *,
    order: Order,
    micro_batch: int,
    first: int,
    last: int,
    rank: int,
    size: int,
    device: torch.device,
    even: bool = False,
) -> Generator[Step, None, None]:
    """The steps `first` ... `last`-1 of a run, the same on every rank count but for who reads what.

    Args:
        data: the training split.
        decode: from items to tensors.
        order: the global batches.
        micro_batch: items that go through the model at once.
        first, last: steps of the run.
        rank, size: whose part this is.
        device: where the tensors go.
        even: see `order.micro_batches`.
    """

    def read() -> Iterator[Any]:
        """For each step its number, place and size and the count of its micro-batches, then those."""
        for number in range(first, last):
            epoch, step = order.place(number)
            items = order.items(epoch, step)
            parts = micro_batches(items, micro_batch, rank, size, even)
            yield number, step == 0, len(items) * order.per_item, len(parts)
            for piece in parts:
                yield _stage(decode(data, piece, (order.seed, epoch)), device)

    stream = ahead(read())
    try:
        for number, starts, count, parts in stream:
            arriving = (_arrive(tensors, device) for tensors in itertools.islice(stream, parts))
            yield Step(number, starts, count, parts, arriving)
            for _ in arriving:  # what the caller left
                pass
    finally:
        stream.close()


def evaluation_batches(
    data: Shards, decode: Decode, *, items: int, micro_batch: int, rank: int, size: int, device: torch.device
) -> Iterator[tuple[Tensor, ...]]:
    """The items 0 ... items-1 of a split once over all ranks, in micro-batches; no padding."""
    parts = micro_batches(np.arange(items), micro_batch, rank, size)
    for tensors in ahead(_stage(decode(data, piece, None), device) for piece in parts):
        yield _arrive(tensors, device)


def _stage(tensors: tuple[Tensor, ...], device: torch.device) -> tuple[Tensor, ...]:
    """In pinned memory where a GPU will fetch them, in the reading thread."""
    return tuple(t.pin_memory() for t in tensors) if device.type == "cuda" else tensors


def _arrive(tensors: tuple[Tensor, ...], device: torch.device) -> tuple[Tensor, ...]:
    return tuple(t.to(device, non_blocking=True) for t in tensors)


def ahead(items: Iterator[Any], depth: int = AHEAD) -> Generator[Any, None, None]:
    """Run an iterator in a thread of its own, up to `depth` items ahead; its errors surface here.

    The reader is woken when half of what it had read is gone, not for every item, and an item that is
    there is taken without a lock: where a rank has one core, each wake-up costs a turn of the scheduler.
    Closing the result, or letting it go, ends the thread.
    """
    done = object()
    ready: deque[tuple[Any, BaseException | None]] = deque()
    more, room, stop = threading.Event(), threading.Event(), threading.Event()

    def put(item: Any, error: BaseException | None = None) -> None:
        ready.append((item, error))
        more.set()

    def work() -> None:
        try:
            for item in items:
                put(item)
                if len(ready) >= depth:
                    room.clear()
                    # Looked at again after the clear, so that a consumer who was quicker is not missed.
                    if len(ready) > depth // 2 and not stop.is_set():
                        room.wait()
                if stop.is_set():
                    return
            put(done)
        except BaseException as error:
            put(done, error)

    thread = threading.Thread(target=work, name="legw-loader", daemon=True)
    thread.start()
    try:
        while True:
            while not ready:
                more.clear()
                if not ready:
                    more.wait()
            item, error = ready.popleft()
            if len(ready) <= depth // 2 and not room.is_set():
                room.set()
            if error is not None:
                raise error
            if item is done:
                return
            yield item
    finally:
        stop.set()
        room.set()
        thread.join()
