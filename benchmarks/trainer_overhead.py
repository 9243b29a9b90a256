"""All that training adds to its arithmetic: `Work.train` beside a bare loop over data that is in memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import made
from benchmarks.measure import Bench, Case, Goal, Outcome, run
from benchmarks.ours import Trained
from legw_hpc.comm import Comm
from legw_hpc.models.mnist_lstm import MnistLSTM
from legw_hpc.trainer import Timing

MICRO_BATCH = 128
# Batch -> steps in a round: enough that what the loader has ready before a round is little of it.
BATCHES = {8192: 4, 256: 100}


def cases(bench: Bench) -> Outcome:
    words = made.mnist(bench)
    measured, goals, trained = [], [], {}
    for batch, steps in BATCHES.items():
        count = max(1, steps // 4) if bench.quick else steps
        ours = trained[batch] = Trained(bench, "mnist-lstm", [*words, f"batch={batch}"])
        for name, step in ((f"ours, {batch}", ours.step), (f"bare loop, {batch}", bare(bench.comm, batch))):
            measured.append(Case(name, repeated(step, count), batch * count, "samples"))
        goals.append(Goal(f"ours, {batch}", f"bare loop, {batch}", 0.98))

    def after(seconds: dict[str, list[float]]) -> list[str]:
        return [f"ours, {batch}, on rank 0: {shares(ours.timing)}." for batch, ours in trained.items()]

    return Outcome(measured, goals, [], after)


def repeated(step: Callable[[], None], count: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(count):
            step()

    return run


def shares(timing: Timing) -> str:
    line = timing.line(Timing())
    return ", ".join(f"{name} {100 * line[name]:.2f} %" for name in ("input", "compute", "exchange", "update"))


def bare(comm: Comm, batch: int) -> Callable[[], None]:
    """A step with nothing in it but the arithmetic, one exchange and the update."""
    model = MnistLSTM()
    parameters = list(model.parameters())
    flat = torch.zeros(sum(p.numel() for p in parameters))
    for p, view in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad = view.view_as(p)
    optimizer = torch.optim.SGD(parameters, 0.1, 0.9, fused=True)
    share = batch // comm.size
    data: list[tuple[Tensor, Tensor]] = list(
        zip(torch.rand(share, 28, 28).split(MICRO_BATCH), torch.randint(0, 10, (share,)).split(MICRO_BATCH), strict=True)
    )

    def step() -> None:
        flat.zero_()
        for images, labels in data:
            (F.cross_entropy(model(images), labels, reduction="sum") / batch).backward()
        comm.sum_(flat)
        optimizer.step()

    return step


if __name__ == "__main__":
    run("trainer_overhead", "our training beside a bare loop, MNIST-LSTM", cases, ranks=2)
