"""LARS against published vectors, its own equations, and an independent implementation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from legw_hpc.optim import LARS, parameter_groups, trust_ratio
from legw_hpc.optim.lars import _update_cpu, _update_foreach
from legw_hpc.optim.reference import lars_step
from legw_hpc.optim.rmsprop_warmup import RMSpropWarmup

# eta .001, wd .1, m .9, w0 = (3, 4), g = (1, 0) at every step; float64.
# (variant, denominator, learning rates, weights after the last)
VECTORS = [
    ("paper", "sum", [1], (2.995666667, 3.998666667)),
    ("timm", "sum", [1], (2.995666667, 3.998666667)),
    ("nus", "sum", [1], (2.995666667, 3.998666667)),
    ("paper", "sum", [1, 2, 4], (2.954525726, 3.986007916)),
    ("timm", "sum", [1, 2, 4], (2.932314946, 3.979173830)),
    ("nus", "sum", [1, 2, 4], (2.932380645, 3.979194045)),
    ("paper", "sum", [2, 2, 2], (2.951448336, 3.985061026)),
    ("timm", "sum", [2, 2, 2], (2.951448336, 3.985061026)),
    ("nus", "sum", [2, 2, 2], (2.951490312, 3.985073942)),
    ("paper", "norm", [1, 2, 4], (2.949848713, 3.984568835)),
    ("timm", "norm", [1, 2, 4], (2.925353824, 3.977031946)),
]


@pytest.mark.parametrize(("variant", "denominator", "lrs", "expected"), VECTORS)
def test_published_vector(variant: str, denominator: str, lrs: list[float], expected: tuple[float, float]) -> None:
    w = torch.tensor([3.0, 4.0], dtype=torch.float64, requires_grad=True)
    optimizer = LARS([w], lr=0.0, momentum=0.9, weight_decay=0.1, variant=variant, denominator=denominator)
    for lr in lrs:
        optimizer.param_groups[0]["lr"] = lr
        w.grad = torch.tensor([1.0, 0.0], dtype=torch.float64)
        optimizer.step()
    assert w.tolist() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "weight_norm", "grad_norm", "expected"),
    [
        ("torchlars' vector", 1.234, 5.678, 0.000217325),
        ("zero weight", 0.0, 5.678, 1.0),
        ("zero gradient", 1.234, 0.0, 1.0),
    ],
)
def test_trust_ratio(name: str, weight_norm: float, grad_norm: float, expected: float) -> None:
    w = torch.tensor([weight_norm], dtype=torch.float64, requires_grad=True)
    w.grad = torch.tensor([grad_norm], dtype=torch.float64)
    optimizer = LARS([w], lr=1.0, momentum=0.0, weight_decay=1e-4, eps=1e-8)
    optimizer.step()
    d = grad_norm + 1e-4 * weight_norm
    assert (weight_norm - w.item()) == pytest.approx(expected * d, rel=1e-5)


def test_trust_ratio_is_a_function_of_two_norms() -> None:
    q = trust_ratio(torch.tensor([5.0, 0.0, 5.0]), torch.tensor([1.5, 1.0, 0.0]), eta=0.001)
    assert q.tolist() == pytest.approx([0.005 / 1.5, 1.0, 1.0])


@pytest.mark.parametrize("adapt", [True, False])
@pytest.mark.parametrize("foreach", [False, True])
def test_larc_clip_at_rate_0_is_1(adapt: bool, foreach: bool) -> None:
    """min(q / lr, 1), with which a warmup begins: the buffer takes the gradient as it is."""
    w, g, v = torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0]), torch.zeros(2)
    group = {"momentum": 0.9, "weight_decay": 0.1, "lr": 0.0, "eta": 0.001, "eps": 0.0, "variant": "timm", "denominator": "sum"}
    (_update_foreach if foreach else _update_cpu)([w], [g], [v], group | {"clip": True, "adapt": adapt})
    assert v.tolist() == pytest.approx([1.3, 0.4])
    assert w.tolist() == [3.0, 4.0]


@pytest.mark.parametrize(("lr", "factor"), [(0.1, 1 / 30), (0.001, 1.0)], ids=["q below lr", "q above lr"])
def test_larc_clip(lr: float, factor: float) -> None:
    """By hand: ||w|| 5, ||g|| 1, wd 0.1: q = 0.001 x 5 / 1.5 = 1/300; the factor is min(q/lr, 1)."""
    w = torch.tensor([3.0, 4.0], dtype=torch.float64, requires_grad=True)
    w.grad = torch.tensor([1.0, 0.0], dtype=torch.float64)
    LARS([w], lr=lr, momentum=0.9, weight_decay=0.1, variant="timm", clip=True).step()
    assert w.tolist() == pytest.approx([3 - lr * factor * 1.3, 4 - lr * factor * 0.4], abs=1e-12)


def tensors(seed: int, channels_last: bool = False) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(7,), (5, 3), (8, 4, 3, 3), (1,), (300, 301)]
    made = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    if channels_last:
        made[2] = made[2].contiguous(memory_format=torch.channels_last)
    return made


options = st.fixed_dictionaries(
    {
        "variant": st.sampled_from(["paper", "timm", "nus"]),
        "denominator": st.sampled_from(["sum", "norm"]),
        "eps": st.sampled_from([0.0, 1e-5]),
        "clip": st.booleans(),
        "weight_decay": st.sampled_from([0.0, 0.05]),
        "momentum": st.sampled_from([0.0, 0.9]),
        "eta": st.sampled_from([0.001, 0.02]),
    }
)


@settings(max_examples=60, deadline=None)
@given(options, st.booleans(), st.booleans(), st.booleans())
def test_agrees_with_its_equations(option: dict[str, Any], channels_last: bool, adapt: bool, foreach: bool) -> None:
    """Five steps of a rising learning rate; one tensor starts at zero, and one gradient stays there."""
    plain = tensors(0)
    fast = [w.clone(memory_format=torch.preserve_format).requires_grad_() for w in tensors(0, channels_last)]
    for w in (plain[3], fast[3]):
        w.data.zero_()
    buffers = [torch.zeros_like(w) for w in plain]
    optimizer = LARS([{"params": fast, "adapt": adapt}], lr=0.1, **option)
    for step in range(5):
        lr = 0.1 * 2**step
        gradients = tensors(step + 1)
        gradients[1].zero_()
        lars_step(plain, gradients, buffers, lr, adapt=adapt, **option)
        for w, g in zip(fast, tensors(step + 1, channels_last), strict=True):
            w.grad = g
        fast[1].grad.zero_()  # type: ignore[union-attr]
        optimizer.param_groups[0]["lr"] = lr
        if foreach:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("legw_hpc.optim.lars._update_cpu", _update_foreach)
                optimizer.step()
        else:
            optimizer.step()
    for ours, reference in zip(fast, plain, strict=True):
        torch.testing.assert_close(ours.detach().contiguous(), reference, rtol=1e-9, atol=1e-12)


def test_agrees_with_pytorch_optimizer() -> None:
    """An independent LARS from PyPI; it is the "timm" variant, without decay for vectors."""
    theirs_module = pytest.importorskip("pytorch_optimizer")
    ours, theirs = ([w.float().clone().requires_grad_() for w in tensors(0)[:3] + tensors(0)[4:]] for _ in range(2))
    a = LARS(ours, lr=0.1, momentum=0.9, weight_decay=0.01, eta=0.001, variant="timm")
    b = theirs_module.LARS(theirs, lr=0.1, momentum=0.9, weight_decay=0.01, trust_coefficient=0.001)
    for step in range(5):
        for optimizer, weights in ((a, ours), (b, theirs)):
            optimizer.param_groups[0]["lr"] = 0.1 * (step + 1)
            for w, g in zip(weights, tensors(step + 1)[:3] + tensors(step + 1)[4:], strict=True):
                w.grad = g.float()
            optimizer.step()
    for x, y in zip(ours[1:], theirs[1:], strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("denominator", ["sum", "norm"])
def test_no_full_size_temporary_on_the_cpu(denominator: str) -> None:
    w = torch.randn(2048, 1024, requires_grad=True)  # 8 MiB
    optimizer = LARS([w], lr=0.1, weight_decay=1e-4, denominator=denominator)
    w.grad = torch.randn_like(w)
    optimizer.step()  # makes the momentum buffer
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        optimizer.step()
    largest = max(event.cpu_memory_usage for event in profiler.events())
    assert largest < w.nbytes / 8


def test_an_ordinary_optimizer() -> None:
    """Closure, state_dict through torch.save, parameters without gradients, zero_grad."""
    torch.manual_seed(0)  # of the weights too: not every network is twice as good after 60 steps
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    unused = nn.Parameter(torch.ones(3))
    x = torch.randn(32, 4)
    y = x.sum(1, keepdim=True)
    optimizer = LARS([*parameter_groups(model), {"params": [unused]}], lr=0.1, weight_decay=1e-4, eta=1.0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        return loss

    first = optimizer.step(closure).item()
    for _ in range(60):
        last = optimizer.step(closure).item()
    assert last < first / 2
    assert unused.tolist() == [1, 1, 1]

    again = LARS([*parameter_groups(model), {"params": [unused]}], lr=1.0)
    again.load_state_dict(optimizer.state_dict())
    assert again.param_groups[0]["lr"] == 0.1
    assert again.param_groups[1]["adapt"] is False
    mine, theirs = (list(o.state.values()) for o in (again, optimizer))
    assert all(torch.equal(a["momentum_buffer"], b["momentum_buffer"]) for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("make", [LARS, RMSpropWarmup])
def test_an_optimizer_can_be_made_of_its_groups_alone(make: type[torch.optim.Optimizer]) -> None:
    """As Horovod's DistributedOptimizer makes it; the groups have all options."""
    one = make([{"params": [nn.Parameter(torch.ones(3))], "lr": 0.5, "momentum": 0.8}], weight_decay=0.1)
    two = make(one.param_groups)
    assert two.param_groups == one.param_groups


def test_a_state_of_another_optimizer_leaves_what_it_does_not_know() -> None:
    model = nn.Linear(3, 2)
    mine = LARS(parameter_groups(model), lr=1.0, eta=0.02)
    mine.load_state_dict(torch.optim.SGD(parameter_groups(model), lr=0.1).state_dict())
    assert [(group["lr"], group["eta"]) for group in mine.param_groups] == [(0.1, 0.02)] * 2
    assert [group["adapt"] for group in mine.param_groups] == [True, False]


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_weights_in_half_precision_move_as_far(kind: torch.dtype, scale: float) -> None:
    """Their norms as well, which are beyond what fp16 holds as a sum of squares (300 ** 2 elements of 100)."""
    torch.manual_seed(0)
    start, gradient = scale * torch.randn(300, 300), scale * torch.randn(300, 300)
    moved = []
    for dtype in (torch.float32, kind):
        weight = nn.Parameter(start.to(dtype, copy=True))
        weight.grad = gradient.to(dtype)
        LARS([weight], lr=1.0, eta=0.3).step()
        moved.append((weight.detach().float() - start).norm() / start.norm())
    assert moved[0] == pytest.approx(0.3, rel=1e-4)
    assert moved[1] == pytest.approx(0.3, rel=0.01)


def test_complex_weights_are_refused() -> None:
    weight = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    weight.grad = torch.ones_like(weight)
    with pytest.raises(ValueError, match="view_as_real"):
        LARS([weight], lr=1.0).step()


def test_biases_and_normalisation_are_exempt() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    adapted, exempt = parameter_groups(model)
    assert [tuple(p.shape) for p in adapted["params"]] == [(4, 1, 3, 3), (2, 4)]
    assert (len(exempt["params"]), exempt["weight_decay"], exempt["adapt"]) == (4, 0.0, False)
    assert len(parameter_groups(model, exempt=False)) == 1


BAD = [
    {"lr": -1.0},
    {"lr": math.nan},
    {"momentum": -0.1},
    {"weight_decay": -1.0},
    {"eta": math.inf},
    {"eps": -1e-9},
    {"variant": "mlperf2"},
    {"denominator": "product"},
]


@pytest.mark.parametrize("option", BAD, ids=str)
def test_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        LARS([torch.zeros(1, requires_grad=True)], **({"lr": 1.0} | option))


@pytest.mark.parametrize("option", BAD, ids=str)
def test_a_group_with_such_an_option_is_refused(option: dict[str, Any]) -> None:
    weight = torch.zeros(1, requires_grad=True)
    with pytest.raises(ValueError):
        LARS([{"params": [weight]} | option], lr=1.0)
    optimizer = LARS([weight], lr=1.0)
    with pytest.raises(ValueError):
        optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)]} | option)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_no_host_synchronisation_on_a_gpu() -> None:
    weights = [w.float().cuda().requires_grad_() for w in tensors(0)]
    optimizer = LARS(weights, lr=0.1, weight_decay=1e-4)
    for w in weights:
        w.grad = torch.randn_like(w)
    optimizer.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
