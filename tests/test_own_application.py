"""An application of another package: what it has to give, and what it is told where it does not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from legw_hpc import installed, runlog
from legw_hpc.apps import application
from tests.conftest import Cli


def install(source: str | None, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package `broken` whose application is what `make` gives; None is no such file."""
    about = folder / "site" / "broken-1.dist-info"
    about.mkdir(parents=True, exist_ok=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    (about / "entry_points.txt").write_text(f"[{installed.GROUP}]\nbroken = broken:make\n")
    if source is not None:
        (folder / "site" / "broken.py").write_text(source)
    monkeypatch.syspath_prepend(str(folder / "site"))
    monkeypatch.delitem(sys.modules, "broken", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a source that changes within a second


BROKEN = {
    "not there": (None, "No module named 'broken'"),
    "no Python": ("def make(:", "invalid syntax"),
    "no such name": ("", "has no attribute 'make'"),
    "no function": ("make = 3", "it is no function"),
    "ends the program": ("raise ValueError('no')", "no"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_an_application_that_cannot_be_loaded_is_one_line(
    what: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, why = BROKEN[what]
    install(source, tmp_path, monkeypatch)
    said = cli("train", "mnist-lstm-sample", "application=broken")
    assert said.returncode == 2
    assert "application broken (broken:make) cannot be loaded: " in said.stderr
    assert why in said.stderr


# MNIST's own application, but for what is named
SOURCE = """
import dataclasses
import numpy as np
import torch
from legw_hpc.apps import application
mnist = application("mnist-lstm")
def make(**options):
    return dataclasses.replace(mnist, name="mine", {})
"""
TRAIN = ["train", "mnist-lstm-sample", "application=broken", "batch=64", "micro_batch=64", "max_steps=2", "threads=1"]
# what is another -> what is said, before the first step or at it
WRONG = {
    "decode gives no tuple": ("decode=lambda *given: mnist.decode(*given)[0]", "decode gives a tensor of shape [1, 28, 28], not"),
    "decode gives arrays": ("decode=lambda *g: (np.zeros(1),)", "decode gives (ndarray), not a tuple of tensors"),
    "loss gives no pair": ("loss=lambda *given: mnist.loss(*given)[0]", "loss gives a tensor of shape [], not a pair: the"),
    "loss of each sample": (
        "loss=lambda model, carried, x, y: (model(x)[:, 0], None)",
        "loss gives a tensor of shape [64], not a scalar with a gradient",
    ),
    "loss without a gradient": (
        "loss=lambda *given: (mnist.loss(*given)[0].detach(), None)", "loss gives a tensor of shape [], not a scalar with a",
    ),
    "evaluate gives a vector": (
        "evaluate=lambda model, x, y: {'count': torch.ones(3)}", "evaluate gives {count: a tensor of shape [3]}, not sums",
    ),
    "metrics give text": ("metrics=lambda sums: {'accuracy': 'good'}", "metrics gives {accuracy: str}, not metrics by name"),
    "metrics have a log's name": ("metrics=lambda sums: {'step': 1.0}", "metrics may not be called step"),
    "weights of another type": (
        "model=lambda: mnist.model().double()", "weights are to be float32, input_kernel is float64; precision=bf16",
    ),
    "no weights": ("model=lambda: torch.nn.ReLU()", "its model has no weights to train"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_no_run_can_go_on_with_is_one_line(what: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other, why = WRONG[what]
    install(SOURCE.replace("{}", other), tmp_path, monkeypatch)
    said = cli(*TRAIN, "out=r")
    assert said.returncode == 2, said.stderr
    assert f"application mine: {why}" in said.stderr
    assert not (tmp_path / "r" / "checkpoints").exists()


def test_what_makes_no_application_is_told(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install("def make(): return 3", tmp_path, monkeypatch)
    assert "broken: its function gives a int, not a legw_hpc.apps.Application" in cli(*TRAIN).stderr


def test_metrics_of_numpy_and_of_torch_are_numbers(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = "metrics=lambda sums: {'a': np.float32(1.5), 'b': torch.tensor([2]), 'ratio': 1 / (sums['count'] - 1)}"
    install(SOURCE.replace("{}", metrics), tmp_path, monkeypatch)
    done = cli(*TRAIN, "options.any=1", "out=r")  # **options take all
    assert done.returncode == 0, done.stderr
    assert runlog.read(tmp_path / "r")[-1]["metrics"] == {"a": 1.5, "b": 2.0, "ratio": pytest.approx(1 / 999)}


def test_a_run_that_goes_on_with_another_source_says_so(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(SOURCE.replace("{}", ""), tmp_path, monkeypatch)
    assert cli(*TRAIN, "out=r").returncode == 0
    install(SOURCE.replace("{}", "") + "# another loss\n", tmp_path, monkeypatch)
    done = cli(*TRAIN, "out=r", "max_steps=4")
    assert done.returncode == 0, done.stderr
    assert "note     package until step 2: broken 1, sources " in done.stdout
    first, second = (line["package"] for line in runlog.read(tmp_path / "r") if "package" in line)
    assert first != second


def test_the_applications_of_this_package_are_not_checked_at_every_step() -> None:
    assert application("mnist-lstm").decode.__module__ == "legw_hpc.apps.mnist_lstm"


def test_a_machine_has_no_numbers_of_it(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is not to be measured for it."""
    install(SOURCE.replace("{}", ""), tmp_path, monkeypatch)
    said = cli("plan", "mnist-lstm-sample", "application=broken", "micro_batch=64", "--machine", "gpu8")
    assert "plan does not know how much an application of another package exchanges" in said.stderr
    assert "calibrate" not in said.stderr
