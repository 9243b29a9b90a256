"""ResNet-50 on 224 x 224: our training step beside the plain torch loop (NCHW, fp32, DDP)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import made
from benchmarks.measure import Bench, Case, Goal, Outcome, run
from benchmarks.ours import BF16, FP32, asked_here, steps
from benchmarks.peer import peer
from legw_hpc.models.batch_norm import BatchNorm
from legw_hpc.models.resnet import resnet50


def cases(bench: Bench) -> Outcome:
    share = 8 if bench.quick else 16
    batch = share * bench.comm.size
    words = [*made.jpegs(bench), f"batch={batch}", "micro_batch=8"]
    beside = "DDP (gloo), NCHW, fp32"
    return Outcome(
        [
            *steps(bench, "imagenet-resnet50", words, batch, "images"),
            Case(beside, peer(bench, "benchmarks.resnet_step", share), batch, "images"),
        ],
        asked_here([Goal(FP32, beside, 1.3), Goal(BF16, beside, 2.8)]),
        notes=["Ours reads, decodes and augments JPEGs; the plain loop has its images in memory."],
    )


class Plain(nn.Module):
    """Our network with torch's own layout (NCHW) and batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.net = resnet50(1000)
        _plain_layers(self.net)

    def forward(self, x: Tensor) -> Tensor:
        net = self.net
        x = F.max_pool2d(F.relu(net.bn1(net.conv1(x))), 3, stride=2, padding=1)
        for stage in net.stages:
            x = getattr(net, stage)(x)
        return net.fc(x.mean((2, 3)))


def plain(share: int) -> Callable[[], None]:
    """The step of the usual script on a rank's share of the batch."""
    model = nn.parallel.DistributedDataParallel(Plain())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    images, labels = torch.rand(share, 3, 224, 224), torch.randint(0, 1000, (share,))

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def _plain_layers(model: nn.Module) -> None:
    for name, child in model.named_children():
        if isinstance(child, BatchNorm):
            setattr(model, name, nn.BatchNorm2d(child.num_features))
        else:
            _plain_layers(child)
    for p in model.parameters(recurse=False):
        p.data = torch.empty(p.shape).copy_(p.data)


if __name__ == "__main__":
    run("resnet_step", "the training step of ResNet-50", cases, ranks=2, rounds=5)
