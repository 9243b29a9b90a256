"""L(x, g): against the exact Hessian, and that measuring it leaves no trace in the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from legw_hpc import apps, runlog
from legw_hpc.comm import Serial
from legw_hpc.data.loader import train_steps
from legw_hpc.data.sources import small_images, text
from legw_hpc.errors import InputError
from legw_hpc.models.linear_loss import plain
from legw_hpc.recipe import load
from legw_hpc.single_run import run
from legw_hpc.trainer import Timing
from legw_hpc.work import Work, prepare
from tests import test_images, test_text
from tests.conftest import Cli
from tests.test_run import assert_same_bits

CPU = torch.device("cpu")

# Mean loss of a batch as plain float64 torch, twice differentiable: (model, carried, *tensors) -> scalar.
Exact = Callable[..., Tensor]


def mnist(model: nn.Module, carried: None, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(model(images.double()), labels)


def ptb(model: nn.Module, carried: Tensor | None, words: Tensor, keys: Tensor) -> Tensor:
    state = model.start(len(words)) if carried is None else carried.double()  # type: ignore[operator]
    states, _ = model(words[:, :-1], state)
    targets = words[:, 1:].t().reshape(-1)
    return plain(states.flatten(0, 1), model.head.weight, model.head.bias, targets) / len(targets)  # type: ignore


def exact_curvature(
    work: Work, loss: Exact, weights: dict[str, Tensor], carried: list[Tensor], batch: tuple[Tensor, ...]
) -> float:
    """|g' H g| / ||g||^2 by double backward."""
    model = work.app.model().double()
    model.load_state_dict(weights)
    parameters = list(model.parameters())
    gradient = torch.autograd.grad(loss(model, carried[0] if carried else None, *batch), parameters, create_graph=True)
    fixed = [g.detach() for g in gradient]
    product = torch.autograd.grad(sum(torch.sum(g * v) for g, v in zip(gradient, fixed, strict=True)), parameters)  # type: ignore
    return abs(float(sum(torch.sum(h * v) for h, v in zip(product, fixed, strict=True)))) / float(
        sum(torch.sum(v * v) for v in fixed)
    )


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    text.convert(test_text.write(folder / "source"), folder / "out")
    return folder / "out"


@pytest.mark.parametrize("name", ["mnist", "ptb"])
def test_it_is_the_exact_product(name: str, shards: Path, texts: Path) -> None:
    """At the weights before each step, on its whole batch, with the state that its rows carry."""
    words = test_text.training(texts, micro_batch=20, clip_norm=0.1)
    if name == "mnist":
        words = ["mnist-lstm", f"data.dir={shards}", "data.train_samples=300", "batch=96", "epochs=6", "micro_batch=96"]
    recipe = load(words[0], [*words[1:], "curvature_every=1", "max_steps=9", "threads=1", "baseline.warmup_epochs=0"])
    work = prepare(recipe, Serial())
    batches = train_steps(
        work.training, work.app.decode, order=work.order, micro_batch=96, first=0, last=9, rank=0, size=1, device=CPU
    )
    carried: list[Tensor] = []
    steps = work.train(0, Timing(), carried)
    for step in batches:
        (batch,) = step.micro_batches
        before = [] if step.first else list(carried)
        weights = {key: value.double().clone() for key, value in work.model.state_dict().items()}
        expected = exact_curvature(work, {"mnist": mnist, "ptb": ptb}[name], weights, before, batch)
        assert next(steps).curvature == pytest.approx(expected, rel=0.02, abs=2e-4)
    steps.close()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    small_images.convert(test_images.pictures(folder / "source", ".png", (32, 32)), folder / "out", (32, 32))
    return folder / "out"


@pytest.mark.parametrize("name", ["mnist", "ptb with dropout", "batch norm", "batch norm, sync"])
def test_a_measured_run_is_the_unmeasured_one_bit_for_bit(
    name: str, cli: Cli, arguments: list[str], texts: Path, pictures: Path, tmp_path: Path
) -> None:
    words = {
        "mnist": arguments,
        "ptb with dropout": test_text.training(texts, **{"options.dropout": 0.2, "clip_norm": 0.1}),
        "batch norm": test_images.training("cifar10-resnet20", pictures, batch=8, micro_batch=4),
        "batch norm, sync": test_images.training("cifar10-resnet20", pictures, batch=8, **{"options.batch_norm": "sync"}),
    }[name]
    assert cli("train", *words, "out=plain").returncode == 0
    done = cli("train", *words, "curvature_every=2", "out=measured")
    assert done.returncode == 0, done.stderr
    assert_same_bits(tmp_path / "plain", tmp_path / "measured")
    lines = [line for line in runlog.read(tmp_path / "measured") if line["event"] == "curvature"]
    last = runlog.read(tmp_path / "plain")[-1]["steps"]
    assert [line["step"] for line in lines] == list(range(1, last + 1, 2))
    assert all(line["L"] > 0 for line in lines)


def test_a_resumed_run_has_measured_what_the_uninterrupted_one_has(cli: Cli, arguments: list[str], tmp_path: Path) -> None:
    for stop in ([], ["max_steps=7"], []):
        out = "whole" if not (tmp_path / "whole").exists() else "parts"
        assert cli("train", *arguments, "curvature_every=1", f"out={out}", *stop).returncode == 0
    values = [[line["L"] for line in runlog.read(tmp_path / run) if line["event"] == "curvature"] for run in ("whole", "parts")]
    assert values[0] == values[1]
    assert len(values[0]) == 24


def test_reduced_precision_is_refused(shards: Path) -> None:
    words = [f"data.dir={shards}", "data.train_samples=300", "batch=96", "epochs=7", "precision=bf16", "curvature_every=1"]
    with pytest.raises(InputError, match=r"curvature_every=1.*fp32"):
        prepare(load("mnist-lstm", words), Serial())


def test_a_layer_with_statistics_of_its_own_does_not_see_the_measurement(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of another package's model, which may have them on one rank."""
    app = apps.application("mnist-lstm")
    monkeypatch.setitem(
        apps.APPLICATIONS,
        "mnist-lstm",
        lambda: dataclasses.replace(app, model=lambda: nn.Sequential(nn.BatchNorm1d(28), app.model())),
    )
    for out, every in (("plain", 0), ("measured", 1)):
        run(load(arguments[0], [*arguments[1:], "max_steps=5", f"curvature_every={every}", f"out={tmp_path / out}"]))
    assert_same_bits(tmp_path / "plain", tmp_path / "measured")
