"""The loop by itself: accumulation, the flat gradient, exact evaluation, divergence."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from legw_hpc.apps import application
from legw_hpc.apps.base import Application
from legw_hpc.comm import Serial
from legw_hpc.data.loader import Step, evaluation_batches, train_steps
from legw_hpc.data.order import Shuffled
from legw_hpc.data.shards import Shards
from legw_hpc.derived import Derived, derive
from legw_hpc.errors import Diverged
from legw_hpc.gradients import FlatGradients
from legw_hpc.optim import parameter_groups, solver
from legw_hpc.precision import FIRST_SCALE, Precision
from legw_hpc.recipe import load
from legw_hpc.trainer import Timing, evaluate, train
from legw_hpc.twins import Apart
from tests.conftest import Cli

CPU = torch.device("cpu")
APP = application("mnist-lstm")


ORDER = Shuffled(300, 96, 1)


def fresh(precision: str = "fp32") -> dict[str, Any]:
    """What a new run hands to the trainer."""
    return {"timing": Timing(), "carried": [], "precision": Precision(precision, CPU)}


def derived(**changed: object) -> Derived:
    words = {"data.train_samples": 300, "batch": 96, "epochs": 6} | changed
    return derive(load("mnist-lstm", [f"{key}={value}" for key, value in words.items()]))


def trained(shards: Path, micro_batch: int, steps: int = 9, clip_norm: float = 0.0, app: Application = APP) -> nn.Module:
    torch.manual_seed(0)
    model = app.model()
    data = Shards(shards, "train")
    source = train_steps(data, app.decode, order=ORDER, micro_batch=micro_batch, first=0, last=steps, rank=0, size=1, device=CPU)
    optimizer = solver("momentum", parameter_groups(model), 0.1)
    for _ in train(app, model, optimizer, source, derived(), Serial(), clip_norm=clip_norm, **fresh()):
        pass
    return model


@pytest.mark.parametrize(("micro_batch", "share"), [(1, 0.0), (7, 0.0), (32, 0.0), (1000, 0.0), (7, 0.3)])
def test_the_micro_batch_changes_time_not_maths(shards: Path, micro_batch: int, share: float) -> None:
    """9 steps, two of them the smaller last one; 7 leaves a smaller last micro-batch.  With dropout too."""
    app = application("mnist-lstm", dropout=share)
    whole, pieces = trained(shards, 96, app=app), trained(shards, micro_batch, app=app)
    for a, b in zip(whole.parameters(), pieces.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_step_is_that_of_a_plain_loop(shards: Path) -> None:
    """Against torch alone: mean loss over each global batch, momentum, LR of the schedule."""
    torch.manual_seed(0)
    model = APP.model()
    data, plan = Shards(shards, "train"), derived()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for step in train_steps(data, APP.decode, order=ORDER, micro_batch=96, first=0, last=9, rank=0, size=1, device=CPU):
        optimizer.param_groups[0]["lr"] = plan.lr(step.number)
        optimizer.zero_grad()
        ((images, labels),) = step.micro_batches
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    for a, b in zip(model.parameters(), trained(shards, 32).parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_clipping_bounds_the_averaged_gradient(shards: Path) -> None:
    free, clipped = trained(shards, 32, steps=3), trained(shards, 32, steps=3, clip_norm=1e-4)
    torch.manual_seed(0)
    start = APP.model()
    moved = [
        sum(float((a - b).detach().norm() ** 2) for a, b in zip(model.parameters(), start.parameters(), strict=True)) ** 0.5
        for model in (free, clipped)
    ]
    assert moved[1] <= 0.1 * 1e-4 * (1 + 1.9 + 2.71) < moved[0]


def test_gradients_share_one_buffer_and_keep_their_strides() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 2)).to(memory_format=torch.channels_last)
    flat = FlatGradients(model)
    model(torch.rand(4, 3, 3, 3)).sum().backward()
    for p in model.parameters():
        assert p.grad is not None
        assert p.grad.stride() == p.stride()
        assert p.grad.untyped_storage().data_ptr() == flat.buffer.untyped_storage().data_ptr()
    norms = torch.stack([p.grad.norm() for p in model.parameters()])  # type: ignore[union-attr]
    assert torch.linalg.vector_norm(flat.gradients) == pytest.approx(norms.norm().item())


def test_what_rows_carry_starts_anew_with_each_epoch() -> None:
    seen: list[float | None] = []

    def loss(model: nn.Module, carried: torch.Tensor | None, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(None if carried is None else carried.item())
        return model(x).sum(), x

    net = nn.Linear(1, 1)
    steps = iter(Step(i, i % 3 == 0, 1, 1, iter([(torch.tensor([[float(i)]]),)])) for i in range(7))
    app = dataclasses.replace(APP, loss=loss)
    assert len(list(train(app, net, torch.optim.SGD(net.parameters(), 0.1), steps, derived(), Serial(), **fresh()))) == 7
    assert seen == [None, 0.0, 1.0, None, 3.0, 4.0, None]


def test_what_a_model_draws_depends_on_the_step_alone() -> None:
    """A run that goes on needs no state of torch's generator."""

    def after(*parts: range) -> torch.Tensor:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
        app = dataclasses.replace(APP, loss=lambda model, carried, x: (model(x).square().sum(), None))
        for part in parts:
            torch.rand(17)  # whatever was drawn meanwhile
            steps = iter(Step(i, i == 0, 4, 2, iter([(torch.full((2, 3), 0.1 * (i + 1)),)] * 2)) for i in part)
            list(train(app, net, optimizer, steps, derived(), Serial(), **fresh()))
        return torch.cat([p.detach().flatten() for p in net.parameters()])

    whole = after(range(6))
    assert torch.equal(whole, after(range(3), range(3, 6)))
    assert not torch.equal(whole, after(range(1, 7)))


@pytest.mark.parametrize("micro_batch", [8, 101])
def test_evaluation_is_exact(shards: Path, micro_batch: int) -> None:
    torch.manual_seed(0)
    model, data = APP.model(), Shards(shards, "test")
    batches = evaluation_batches(data, APP.decode, items=101, micro_batch=micro_batch, rank=0, size=1, device=CPU)
    found = evaluate(APP, model, batches, Serial(), Precision("fp32", CPU))
    images, labels = APP.decode(data, torch.arange(101).numpy(), None)
    with torch.no_grad():
        right = int((model(images).argmax(1) == labels).sum())
    assert found["accuracy"] == 100 * right / 101
    assert model.training


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_divergence_names_step_epoch_and_lr(broken: str) -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            value = self.w.sum() * (float("nan") if broken == "loss" and x.sum() > 2 else 1.0)
            if broken == "gradient" and x.sum() > 2:
                value = value + torch.sqrt(self.w[0] * 0)  # finite, with an infinite slope times zero
            return value

    model = Broken()
    app = dataclasses.replace(APP, loss=lambda m, carried, x: (m(x), None))
    steps = iter(Step(i, False, 1, 1, iter([(torch.tensor([float(i)]),)])) for i in range(5))
    loop = train(app, model, torch.optim.SGD(model.parameters(), 0.1), steps, derived(), Serial(), **fresh())
    assert [next(loop).step for _ in range(3)] == [1, 2, 3]
    with pytest.raises(Diverged, match=r"step 4 \(epoch 1\.000, lr 0\.0"):
        next(loop)


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.05), ("fp16", 0.01)])
def test_reduced_precision_stays_near(shards: Path, precision: str, tolerance: float) -> None:
    """Loss scaling by powers of two leaves no trace but the narrower arithmetic's."""
    app = dataclasses.replace(APP, loss=lambda m, carried, x, y: (nn.functional.cross_entropy(m(x), y, reduction="sum"), None))
    losses = []
    for name in ("fp32", precision):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
        source = train_steps(
            Shards(shards, "train"), APP.decode, order=ORDER, micro_batch=32, first=0, last=9, rank=0, size=1, device=CPU
        )
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        losses.append([done.loss for done in train(app, net, optimizer, source, derived(), Serial(), **fresh(name))])
    assert losses[1] == pytest.approx(losses[0], rel=tolerance)
    assert losses[1] != losses[0]


def test_an_fp16_overflow_skips_the_step_and_halves_the_scale() -> None:
    net = nn.Linear(1, 1, bias=False)
    app = dataclasses.replace(APP, loss=lambda m, carried, x: (0.1 * m(x).float().sum(), None))
    steps = iter(Step(i, False, 1, 1, iter([(torch.tensor([[x]]),)])) for i, x in enumerate((0.1, 1e3, 0.1)))
    state = fresh("fp16")
    before = net.weight.item()
    done = []
    weights = []
    for at in train(app, net, torch.optim.SGD(net.parameters(), 0.1), steps, derived(), Serial(), **state):
        done.append(at.skipped)
        weights.append(net.weight.item())
    assert done == [False, True, False]
    assert weights[0] == before  # learning rate 0 at the first step of a warmup
    assert weights[1] == weights[0] != weights[2]
    assert state["precision"].scale == FIRST_SCALE / 2
    assert state["timing"].skipped == 1
    copy = Precision("fp16", CPU)
    copy.load_state_dict(state["precision"].state_dict())
    assert copy.state_dict() == state["precision"].state_dict()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_no_overflow_of_the_scale(precision: str, value: float) -> None:
    net = nn.Linear(1, 1, bias=False)
    app = dataclasses.replace(APP, loss=lambda m, carried, x: (m(x).float().sum() * value, None))
    steps = iter([Step(0, False, 1, 1, iter([(torch.tensor([[0.1]]),)]))])
    with pytest.raises(Diverged, match="diverged at step 1"):
        next(train(app, net, torch.optim.SGD(net.parameters(), 0.1), steps, derived(), Serial(), **fresh(precision)))


def test_the_watchdog_sees_the_micro_batches_of_a_twin() -> None:
    """It asks the ranks' own `comm`, from before there was a twin."""
    comm = Serial()
    comm.beats += 1
    apart = Apart(comm)
    apart.beats += 3
    comm.beats += 1
    assert (comm.beats, apart.beats) == (5, 5)


@pytest.mark.parametrize(("stops", "samples"), [([2, 9], 9 * 96), ([3, 9], 9 * 96), ([3, 4], 3 * 96 + 12)])
def test_a_twin_that_goes_on_repeats_a_whole_batch(
    cli: Cli, arguments: list[str], tmp_path: Path, stops: list[int], samples: int
) -> None:
    """Of 96, 96, 96 and 12 samples an epoch: not the 12, unless nothing comes after them."""
    for last in stops:
        assert cli("train", *arguments, "twin=synthetic", "out=r", f"max_steps={last}").returncode == 0
    newest = max((tmp_path / "r" / "checkpoints").glob("*.pt"))
    assert torch.load(newest, weights_only=True)["timing"]["samples"] == samples
