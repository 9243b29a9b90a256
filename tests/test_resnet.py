"""Residual networks, against other implementations of the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from legw_hpc.models.batch_norm import BatchNorm
from legw_hpc.models.resnet import resnet20, resnet50
from tests.networks import EXACT, randomised

try:
    from torchvision.models import resnet50 as published
except Exception:  # a wheel for another torch raises a RuntimeError
    published = None

DEPTHS = (3, 4, 6, 3)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_parameters_of_resnet50() -> None:
    assert count(resnet50()) == 25_557_032
    assert count(resnet50(classes=7)) == 25_557_032 - 993 * 2049


def test_parameters_of_resnet20() -> None:
    """He et al. 2015, § 4.2: 6n + 2 layers with weights, "0.27M"; the shortcuts have none."""
    convolutions = 3 * 16 * 9 + 6 * 16 * 16 * 9 + (16 * 32 + 5 * 32 * 32) * 9 + (32 * 64 + 5 * 64 * 64) * 9
    norms = 2 * (7 * 16 + 6 * 32 + 6 * 64)
    assert convolutions + norms + 64 * 10 + 10 == 269_722 == count(resnet20())
    assert sum(p.ndim > 1 for p in resnet20().parameters()) == 20
    # With projections as shortcuts ("B"), which are often counted instead.
    assert 269_722 + 16 * 32 + 32 * 64 + 2 * (32 + 64) == 272_474


def test_names_are_the_published_ones() -> None:
    """Those of torchvision's checkpoints."""
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    names = ["conv1.weight", *(f"bn1.{n}" for n in norm), "fc.weight", "fc.bias"]
    for i, depth in enumerate(DEPTHS, 1):
        for j in range(depth):
            for k in (1, 2, 3):
                names += [f"layer{i}.{j}.conv{k}.weight", *(f"layer{i}.{j}.bn{k}.{n}" for n in norm)]
        names += [f"layer{i}.0.downsample.0.weight", *(f"layer{i}.0.downsample.1.{n}" for n in norm)]
    state = resnet50().state_dict()
    assert sorted(state) == sorted(names)
    assert len(state) == 320
    shapes = {
        "conv1.weight": (64, 3, 7, 7),
        "layer1.0.downsample.0.weight": (256, 64, 1, 1),
        "layer3.0.conv2.weight": (256, 256, 3, 3),
        "layer4.2.conv3.weight": (2048, 512, 1, 1),
        "layer4.2.bn3.running_var": (2048,),
        "fc.weight": (1000, 2048),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes


def hand_norm(state: dict[str, Tensor], name: str, x: Tensor, training: bool) -> Tensor:
    mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    if training:
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    scale = state[f"{name}.weight"] / (variance + 1e-5).sqrt()
    return (x - mean[:, None, None]) * scale[:, None, None] + state[f"{name}.bias"][:, None, None]


def plain_resnet50(state: dict[str, Tensor], x: Tensor, training: bool) -> Tensor:
    """Another ResNet-50 v1.5, from the names in the state dict alone."""
    x = F.conv2d(x, state["conv1.weight"], stride=2, padding=3)
    x = F.max_pool2d(hand_norm(state, "bn1", x, training).relu(), 3, 2, 1)
    for i, depth in enumerate(DEPTHS, 1):
        for j in range(depth):
            at, stride = f"layer{i}.{j}", 2 if i > 1 and j == 0 else 1
            y = hand_norm(state, f"{at}.bn1", F.conv2d(x, state[f"{at}.conv1.weight"]), training).relu()
            y = F.conv2d(y, state[f"{at}.conv2.weight"], stride=stride, padding=1)
            y = hand_norm(state, f"{at}.bn2", y, training).relu()
            y = hand_norm(state, f"{at}.bn3", F.conv2d(y, state[f"{at}.conv3.weight"]), training)
            if j == 0:
                x = F.conv2d(x, state[f"{at}.downsample.0.weight"], stride=stride)
                x = hand_norm(state, f"{at}.downsample.1", x, training)
            x = (x + y).relu()
    return F.linear(x.flatten(2).mean(2), state["fc.weight"], state["fc.bias"])


@pytest.mark.parametrize("training", [False, True])
def test_resnet50_is_a_plain_one(training: bool) -> None:
    model = randomised(resnet50(classes=11)).double().train(training)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(images), plain_resnet50(state, images, training), rtol=1e-8, atol=1e-9)


@pytest.mark.skipif(published is None, reason="no torchvision for this torch")
@pytest.mark.parametrize("training", [False, True])
def test_resnet50_is_torchvisions(training: bool) -> None:
    model = randomised(resnet50()).double().train(training)
    other = published().double().train(training)
    other.load_state_dict(model.state_dict())
    images, labels = torch.randn(2, 3, 64, 64, dtype=torch.float64), torch.tensor([3, 999])
    for network in (model, other):
        F.cross_entropy(network(images), labels).backward()
    for (name, mine), (its_name, its) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert name == its_name
        torch.testing.assert_close(mine.grad, its.grad, rtol=1e-6, atol=1e-9)
    for norm in model.modules():
        if isinstance(norm, BatchNorm) and training:
            norm.fold(2)
    torch.testing.assert_close(model.state_dict(), other.state_dict(), rtol=1e-8, atol=1e-9)


def test_resnet20_is_a_plain_one() -> None:
    model = randomised(resnet20()).double().eval()
    state = model.state_dict()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    x = hand_norm(state, "bn1", F.conv2d(images, state["conv1.weight"], padding=1), False).relu()
    for i in (1, 2, 3):
        for j in (0, 1, 2):
            at, stride = f"layer{i}.{j}", 2 if i > 1 and j == 0 else 1
            y = F.conv2d(x, state[f"{at}.conv1.weight"], stride=stride, padding=1)
            y = F.conv2d(hand_norm(state, f"{at}.bn1", y, False).relu(), state[f"{at}.conv2.weight"], padding=1)
            if stride == 2:
                x = torch.cat([x[:, :, ::2, ::2], torch.zeros_like(x[:, :, ::2, ::2])], 1)
            x = (x + hand_norm(state, f"{at}.bn2", y, False)).relu()
    logits = x.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]
    torch.testing.assert_close(model(images), logits, **EXACT)


@pytest.mark.parametrize("make", [resnet50, resnet20])
def test_initialisation(make: Callable[..., nn.Module]) -> None:
    """Blocks start as the identity; He's deviation for the convolutions; 0.01 for the last layer."""
    torch.manual_seed(0)
    model = make()
    names = dict(model.named_parameters())
    last = "bn3" if make is resnet50 else "bn2"
    for name, p in names.items():
        if p.ndim == 1 and "fc" not in name:
            assert p.unique().tolist() == [0.0 if name.endswith("bias") or f".{last}." in name else 1.0], name
        elif p.ndim == 4 and p.numel() > 2000:
            assert p.std().item() == pytest.approx((2 / (p.shape[0] * p.shape[2] * p.shape[3])) ** 0.5, rel=0.05), name
    assert names["fc.weight"].std().item() == pytest.approx(0.01, rel=0.1)
    assert names["fc.bias"].count_nonzero() == 0


@pytest.mark.parametrize("make", [resnet50, resnet20])
def test_memory_is_channels_last_throughout(make: Callable[..., nn.Module]) -> None:
    model = make()
    contiguous = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.is_contiguous(memory_format=torch.channels_last)
        elif isinstance(module, BatchNorm):
            module.register_forward_hook(
                lambda _, ins, out: contiguous.extend(t.is_contiguous(memory_format=torch.channels_last) for t in (ins[0], out))
            )
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    assert contiguous
    assert all(contiguous)
