"""Batch norm, on one rank and over ranks, against torch's of the same samples."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from legw_hpc.apps import application
from legw_hpc.errors import InputError
from legw_hpc.models.batch_norm import BatchNorm, StepStatistics, synchronise
from legw_hpc.models.resnet import resnet20
from tests.networks import EXACT, randomised


def test_unknown_mode() -> None:
    with pytest.raises(InputError, match="unknown batch_norm 'ghost': one of micro-batch, rank, sync"):
        resnet20(batch_norm="ghost")


# --- batch norm on one rank ---


def pair(mode: str = "micro-batch", channels: int = 5) -> tuple[BatchNorm, nn.BatchNorm2d]:
    """Ours and torch's, in the same state, float64."""
    mine = randomised(BatchNorm(channels, mode)).double()
    torchs = nn.BatchNorm2d(channels).double()
    torchs.load_state_dict(mine.state_dict())
    assert isinstance(mine, BatchNorm)
    return mine, torchs


def assert_same_state(mine: nn.Module, torchs: nn.Module) -> None:
    torch.testing.assert_close(mine.state_dict(), torchs.state_dict(), **EXACT)


@pytest.mark.parametrize("mode", ["micro-batch", "rank", "sync"])
def test_one_micro_batch_is_torchs(mode: str) -> None:
    mine, torchs = pair(mode)
    assert synchronise(mine, lambda tensor: None) == (mode == "sync")
    for step in range(3):
        xs = [torch.randn(4, 5, 3, 2, dtype=torch.float64).add_(2 + step).requires_grad_() for _ in range(2)]
        xs[1].data = xs[0].data.clone()
        outs = [layer(x) for layer, x in zip((mine, torchs), xs, strict=True)]
        way = torch.randn_like(outs[0])
        for layer, out in zip((mine, torchs), outs, strict=True):
            layer.zero_grad()
            out.backward(way)
        torch.testing.assert_close(outs[0], outs[1], **EXACT)
        torch.testing.assert_close(xs[0].grad, xs[1].grad, **EXACT)
        torch.testing.assert_close(mine.weight.grad, torchs.weight.grad, **EXACT)
        torch.testing.assert_close(mine.bias.grad, torchs.bias.grad, **EXACT)
        mine.fold(4)
        assert_same_state(mine, torchs)
    torch.testing.assert_close(mine.eval()(xs[0]), torchs.eval()(xs[0]), **EXACT)
    assert mine.sums.count_nonzero() == 0


def test_micro_batches_fold_to_their_mean() -> None:
    """3 + 1 samples: the mean of two torch layers' statistics, by samples; running statistics move once."""
    mine, torchs = pair()
    start = mine.running_var.clone()
    parts = torch.randn(4, 5, 3, 3, dtype=torch.float64).split(3)
    for part in parts:
        mine(part)
        assert torch.equal(mine.running_var, start)
    mine.fold(4)
    variance = (3 * parts[0].var((0, 2, 3)) + parts[1].var((0, 2, 3))) / 4
    torch.testing.assert_close(mine.running_var, 0.9 * start + 0.1 * variance, **EXACT)
    mean = torch.cat(list(parts)).mean((0, 2, 3))
    torch.testing.assert_close(mine.running_mean, 0.9 * torchs.running_mean + 0.1 * mean, **EXACT)
    assert mine.num_batches_tracked == torchs.num_batches_tracked + 1


def test_momentum_1_keeps_the_last_step_alone() -> None:
    """Akiba et al. 2017: no moving averages; the mean over all micro-batches of the step."""
    layer = next(module for module in resnet20(momentum=1.0).modules() if isinstance(module, BatchNorm))
    micro_batches = torch.randn(2, 4, 16, 3, 3) * 2 + 1
    for _ in range(2):
        layer(torch.randn(8, 16, 3, 3) * 9)
        layer.fold(8)
        for x in micro_batches:
            layer(x)
        layer.fold(8)
    torch.testing.assert_close(layer.running_mean, micro_batches.mean((0, 1, 3, 4)))
    torch.testing.assert_close(layer.running_var, micro_batches.var((1, 3, 4)).mean(0))


@pytest.mark.parametrize("momentum", [0, -0.1, 1.1, "x", True])
def test_momentum_out_of_range(momentum: object) -> None:
    with pytest.raises(InputError, match="batch_norm_momentum must be above 0 and at most 1"):
        application("resnet20", batch_norm_momentum=momentum)


def test_sums_may_be_a_view_of_the_trainers_buffer() -> None:
    layer = BatchNorm(5)
    buffer = torch.zeros(3 + 10)
    assert isinstance(layer, StepStatistics)
    layer.sums = buffer[3:].view(2, 5)
    x = torch.randn(4, 5, 2, 2)
    layer(x)
    torch.testing.assert_close(buffer[3:8], 4 * x.mean((0, 2, 3)))
    torch.testing.assert_close(buffer[8:], 4 * x.var((0, 2, 3)))
    assert "sums" not in layer.state_dict()


@pytest.mark.parametrize("mode", ["micro-batch", "sync"])
@pytest.mark.parametrize("samples", [0, 1])
def test_one_value_per_channel_has_no_variance(mode: str, samples: int) -> None:
    """Normalised as in evaluation; the running statistics stay as they are.  No value: nothing is added."""
    mine, torchs = pair(mode)
    synchronise(mine, lambda tensor: None)
    x = torch.randn(samples, 5, 1, 1, dtype=torch.float64, requires_grad=True)
    out = mine(x)
    torch.testing.assert_close(out, torchs.eval()(x), **EXACT)
    out.sum().backward()
    torch.testing.assert_close(mine.sums, samples * torch.stack([torchs.running_mean, torchs.running_var]), **EXACT)
    if samples:
        mine.fold(samples)
        torch.testing.assert_close(mine.running_mean, torchs.running_mean, **EXACT)
        torch.testing.assert_close(mine.running_var, torchs.running_var, **EXACT)


def test_older_checkpoints_load() -> None:
    """Some published ones have no num_batches_tracked."""
    state = resnet20().state_dict()
    older = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    assert len(older) == len(state) - 19
    resnet20().load_state_dict(older)


# --- batch norm over ranks ---


class Ranks:
    """Threads that stand for ranks, and the sum over them."""

    def __init__(self, size: int):
        self.tensors: list[Tensor | None] = [None] * size
        self.barrier = threading.Barrier(size, timeout=30)

    def sum_(self, rank: int) -> Callable[[Tensor], None]:
        def sum_(tensor: Tensor) -> None:
            assert tensor.is_contiguous()
            self.tensors[rank] = tensor.clone()
            self.barrier.wait()
            total = torch.stack([t for t in self.tensors if t is not None]).sum(0)
            self.barrier.wait()
            tensor.copy_(total)

        return sum_

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        """work(rank) on every rank."""
        results: list[Any] = [None] * len(self.tensors)

        def call(rank: int) -> None:
            try:
                results[rank] = work(rank)
            except BaseException as error:
                results[rank] = error
                self.barrier.abort()

        threads = [threading.Thread(target=call, args=(rank,)) for rank in range(len(results))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return results


@pytest.mark.parametrize("shares", [(3, 2), (4, 0), (2, 0, 1)])
def test_sync_is_torchs_over_the_joint_batch(shares: tuple[int, ...]) -> None:
    whole = torch.randn(sum(shares), 5, 3, 2, dtype=torch.float64) * 2 + 7
    way = torch.randn_like(whole)
    reference = pair()[1]
    joint = whole.clone().requires_grad_()
    expected = reference(joint)
    expected.backward(way)
    ranks = Ranks(len(shares))
    layers = [pair("sync")[0] for _ in shares]  # here: threads share one random state

    def work(rank: int) -> tuple[Tensor, Tensor]:
        layer = layers[rank]
        synchronise(layer, ranks.sum_(rank))
        x = whole.split(shares)[rank].clone(memory_format=torch.channels_last).requires_grad_()
        out = layer(x)
        out.backward(way.split(shares)[rank])
        assert x.grad is not None
        assert all(t.is_contiguous(memory_format=torch.channels_last) for t in (out, x.grad))
        ranks.sum_(rank)(layer.sums)  # as the trainer does
        layer.fold(sum(shares))
        return out.detach(), x.grad

    outs, gradients = zip(*ranks.run(work), strict=True)
    torch.testing.assert_close(torch.cat(outs), expected.detach(), **EXACT)
    torch.testing.assert_close(torch.cat(gradients), joint.grad, **EXACT)
    torch.testing.assert_close(sum(layer.weight.grad for layer in layers), reference.weight.grad, **EXACT)
    torch.testing.assert_close(sum(layer.bias.grad for layer in layers), reference.bias.grad, **EXACT)
    for layer in layers:
        assert_same_state(layer, reference)


def test_a_synchronised_network_is_one_over_the_joint_batch() -> None:
    """ResNet-20 on 3 + 0 + 2 samples, forward and backward."""
    shares = (3, 0, 2)
    images, labels = torch.randn(5, 3, 32, 32, dtype=torch.float64), torch.arange(5)
    reference = randomised(resnet20()).double()
    F.cross_entropy(reference(images), labels, reduction="sum").backward()
    ranks = Ranks(3)
    models = [resnet20(batch_norm="sync").double() for _ in shares]
    for model in models:
        model.load_state_dict(reference.state_dict())

    def work(rank: int) -> None:
        assert synchronise(models[rank], ranks.sum_(rank)) == 19
        logits = models[rank](images.split(shares)[rank])
        F.cross_entropy(logits, labels.split(shares)[rank], reduction="sum").backward()

    ranks.run(work)
    for p, *parts in zip(reference.parameters(), *(m.parameters() for m in models), strict=True):
        torch.testing.assert_close(sum(part.grad for part in parts), p.grad, rtol=1e-7, atol=1e-9)


def test_sync_does_not_cancel() -> None:
    """A mean of 1,000 deviations, in float32: the naive mean of squares has no digit of the variance left."""
    ranks = Ranks(2)
    whole = torch.randn(8, 5, 9, 9, generator=torch.Generator().manual_seed(0)) + 1000
    exact = whole.double()
    expected = ((exact - exact.mean((0, 2, 3), keepdim=True)) / exact.std((0, 2, 3), keepdim=True)).float()

    def work(rank: int) -> tuple[Tensor, Tensor]:
        layer = BatchNorm(5, "sync")
        synchronise(layer, ranks.sum_(rank))
        return layer(whole.split((6, 2))[rank]).detach(), layer.sums / (6, 2)[rank]

    outs, sums = zip(*ranks.run(work), strict=True)
    torch.testing.assert_close(torch.cat(outs), expected, rtol=1e-3, atol=2e-3)
    for rank in (0, 1):
        torch.testing.assert_close(sums[rank][1], exact.var((0, 2, 3)).float(), rtol=1e-5, atol=0)


def test_sync_without_ranks_stops() -> None:
    with pytest.raises(RuntimeError, match="synchronise"):
        BatchNorm(5, "sync")(torch.randn(2, 5, 2, 2))
    BatchNorm(5, "sync").eval()(torch.randn(2, 5, 2, 2))


@pytest.mark.parametrize("mode", ["micro-batch", "sync"])
def test_bfloat16_autocast(mode: str) -> None:
    """Activations in bfloat16; statistics in float32, of the activations to their last digit."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), BatchNorm(8, mode), nn.Conv2d(8, 2, 1))
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    synchronise(model, lambda tensor: None)
    norm = model[1]
    assert isinstance(norm, BatchNorm)
    seen: list[Tensor] = []
    norm.register_forward_hook(lambda _, ins, out: seen.extend((ins[0], out)))
    images = torch.randn(4, 3, 8, 8).add_(3).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(images).float().square().sum()
    loss.backward()
    x, y = seen
    assert (x.dtype, y.dtype, norm.sums.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(norm.sums[0] / 4, x.double().mean((0, 2, 3)).float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.sums[1] / 4, x.double().var((0, 2, 3)).float(), rtol=1e-5, atol=0)
    assert norm.weight.grad is not None
    assert norm.weight.grad.dtype == torch.float32
    assert norm.weight.grad.isfinite().all()
    torch.testing.assert_close(y.double().mean((0, 2, 3)), torch.zeros(8, dtype=torch.float64), rtol=0, atol=5e-3)
