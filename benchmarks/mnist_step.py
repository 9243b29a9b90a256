"""MNIST-LSTM at global batch 8,192: our training step beside the straightforward DDP script."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import made
from benchmarks.exchange import without_horovod
from benchmarks.measure import Bench, Case, Goal, Outcome, run
from benchmarks.ours import BF16, FP32, asked_here, steps
from benchmarks.peer import peer

BATCH = 8192


class Plain(nn.Module):
    """The model as the paper draws it, from torch's own layers."""

    def __init__(self) -> None:
        super().__init__()
        self.transform, self.lstm, self.head = nn.Linear(28, 128), nn.LSTM(128, 128, batch_first=True), nn.Linear(128, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        states, _ = self.lstm(self.transform(images))
        return self.head(states[:, -1])


def plain(share: int) -> Callable[[], None]:
    """The step of the usual script: a rank's whole share of the batch at once."""
    model = nn.parallel.DistributedDataParallel(Plain())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    images, labels = torch.rand(share, 28, 28), torch.randint(0, 10, (share,))

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def cases(bench: Bench) -> Outcome:
    batch = BATCH // 4 if bench.quick else BATCH
    comm = bench.comm
    words = [*made.mnist(bench), f"batch={batch}"]
    ours = steps(bench, "mnist-lstm", words, batch, "samples")
    theirs, beside = peer(bench, "benchmarks.mnist_step", batch // comm.size), "DDP (gloo), nn.LSTM, whole batch"

    left, right = torch.rand(128, 156), torch.rand(156, 512)
    products = 2000

    def multiply() -> float:
        with without_horovod(comm):
            start = time.perf_counter()
            for _ in range(products):
                torch.mm(left, right)
            return time.perf_counter() - start

    # Multiplications and additions of a sample: 28 steps of the cell (input share folded into 28 -> 512), twice again backward.
    flops = 3 * 28 * 2 * (28 + 128) * 512
    return Outcome(
        [
            *ours,
            Case(beside, theirs, batch, "samples"),
            Case("matrix product 128 x 156 x 512 alone", multiply, comm.size * products * 2 * 128 * 156 * 512 / flops, "samples"),
        ],
        asked_here(
            [
                Goal(FP32, beside, 2.5),
                Goal(BF16, FP32, 1.5),
                Goal(FP32, "matrix product 128 x 156 x 512 alone", 0.7, "the products of the cell at the machine's own rate"),
            ]
        ),
    )


if __name__ == "__main__":
    run("mnist_step", "the training step of MNIST-LSTM at global batch 8,192", cases, ranks=2)
