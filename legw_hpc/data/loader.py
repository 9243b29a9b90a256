"""Reads this rank's part of every global batch, ahead of the training loop, in one thread."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from legw_hpc.data import order
from legw_hpc.data.shards import Shards

# Micro-batches read ahead: enough to cover one slow read, few enough that memory does not grow with the
# global batch (assumed).
AHEAD = 8

# The samples that a micro-batch reads, and what becomes of them: (data, sample numbers) -> tensors.
Decode = Callable[[Any, NDArray[np.int64]], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Step:
    """This rank's share of one optimizer step.

    Attributes:
        number: the step, counted from 0 over the whole run.
        samples: the samples of the global batch, over all ranks.
        micro_batches: this rank's, to be taken before the next step; there may be none at the end of
            an epoch, when there are more ranks than samples left.
    """

    number: int
    samples: int
    micro_batches: Iterator[tuple[Tensor, ...]]


def train_steps(
    data: Shards,
    decode: Decode,
    *,
    batch: int,
    micro_batch: int,
    seed: int,
    first: int,
    last: int,
    rank: int,
    size: int,
    device: torch.device,
) -> Generator[Step, None, None]:
    """The steps `first` ... `last`-1 of a run, the same on every rank count but for who reads what.

    Args:
        data: the training split.
        decode: from sample numbers to tensors.
        batch: global batch, samples.
        micro_batch: samples that go through the model at once.
        seed: of the order.
        first, last: steps of the run.
        rank, size: whose part this is.
        device: where the tensors go.
    """
    per_epoch = order.steps_per_epoch(len(data), batch)

    def read() -> Iterator[Any]:
        """For each step its number, size and count of micro-batches, then those."""
        epoch, samples = -1, np.empty(0, np.int64)
        for number in range(first, last):
            if number // per_epoch != epoch:
                epoch = number // per_epoch
                samples = order.epoch_order(len(data), seed, epoch)
            whole = order.global_batch(samples, number % per_epoch, batch)
            mine = order.part(len(whole), rank, size)
            parts = order.pieces(whole[mine.start : mine.stop], micro_batch)
            yield number, len(whole), len(parts)
            for part in parts:
                yield _stage(decode(data, part), device)

    stream = ahead(read())
    try:
        for number, count, parts in stream:
            micro_batches = (_arrive(tensors, device) for tensors in itertools.islice(stream, parts))
            yield Step(number, count, micro_batches)
            for _ in micro_batches:  # what the caller left
                pass
    finally:
        stream.close()


def evaluation_batches(
    data: Shards, decode: Decode, *, micro_batch: int, rank: int, size: int, device: torch.device
) -> Iterator[tuple[Tensor, ...]]:
    """Every sample of a split once over all ranks, in micro-batches; no padding."""
    mine = order.part(len(data), rank, size)
    parts = order.pieces(np.arange(mine.start, mine.stop), micro_batch)
    for tensors in ahead(_stage(decode(data, part), device) for part in parts):
        yield _arrive(tensors, device)


def _stage(tensors: tuple[Tensor, ...], device: torch.device) -> tuple[Tensor, ...]:
    """In pinned memory where a GPU will fetch them, in the reading thread."""
    return tuple(t.pin_memory() for t in tensors) if device.type == "cuda" else tensors


def _arrive(tensors: tuple[Tensor, ...], device: torch.device) -> tuple[Tensor, ...]:
    return tuple(t.to(device, non_blocking=True) for t in tensors)


def ahead(items: Iterator[Any], depth: int = AHEAD) -> Generator[Any, None, None]:
    """Run an iterator in a thread of its own, up to `depth` items ahead; its errors surface here.

    Closing the result, or letting it go, ends the thread.
    """
    done = object()
    ready: queue.Queue[Any] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: Any) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((done, None))
        except BaseException as error:
            put((done, error))

    thread = threading.Thread(target=work, name="legw-loader", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is done:
                return
            yield item
    finally:
        stop.set()
        thread.join()
