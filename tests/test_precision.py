"""bf16 and fp16 on any processor: with the arithmetic of its own, and without."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from legw_hpc.models import lstm as lstm_module
from legw_hpc.models.lstm import lstm, rounded_lstm
from legw_hpc.precision import FIRST_SCALE
from legw_hpc.runlog import read
from tests.conftest import Cli

STEPS, ROWS, WIDTH, HIDDEN = 6, 5, 7, 8


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("emulated", [True, False], ids=["emulated", "as this processor does it"])
def test_the_cells_agree_with_torchs_module(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, layers: int, emulated: bool
) -> None:
    """Outputs and gradients, beside float32's."""
    tolerance = 0.02
    if emulated:
        monkeypatch.setattr(lstm_module, "in_hardware", lambda dtype: False)
    torch.manual_seed(0)
    module = nn.LSTM(WIDTH, HIDDEN, layers)
    x = torch.randn(STEPS, ROWS, WIDTH, requires_grad=True)
    start = torch.randn(2, layers, ROWS, HIDDEN)
    wanted, _ = module(x, tuple(start))
    with torch.autocast("cpu", dtype):
        found, outputs, memories = lstm(x, start[0], start[1], list(module.parameters()), layers)
    torch.testing.assert_close(found.float(), wanted, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(outputs[-1].float(), wanted[-1], rtol=tolerance, atol=tolerance)
    assert memories.shape == (layers, ROWS, HIDDEN)
    ours, theirs = (torch.autograd.grad(states.float().sum(), [x, *module.parameters()]) for states in (found, wanted))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.float(), b, rtol=10 * tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.filterwarnings("ignore:TF32")  # flags of another kind of processor
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
def test_emulated_cells_are_those_of_torch_in_the_same_type(dtype: torch.dtype, layers: int) -> None:
    """Beside torch's own kernel, which computes in the narrow type on any processor; what comes out, that type holds."""
    torch.manual_seed(0)
    module = nn.LSTM(WIDTH, HIDDEN, layers)
    x, start = torch.randn(STEPS, ROWS, WIDTH, requires_grad=True), torch.randn(2, layers, ROWS, HIDDEN)
    ours = rounded_lstm(x, start[0], start[1], list(module.parameters()), layers, dtype)
    gradients = torch.autograd.grad(ours[0].sum(), [x, *module.parameters()])
    narrow, y = copy.deepcopy(module).to(dtype), x.detach().to(dtype).requires_grad_()
    with torch.backends.mkldnn.flags(enabled=False):
        states, last = narrow(y, tuple(start.to(dtype)))
        wanted = torch.autograd.grad(states.float().sum(), [y, *narrow.parameters()])
    near = {"rtol": 0.0, "atol": 4 * torch.finfo(dtype).eps}
    for a, b in zip(ours, (states, *last), strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, a.to(dtype).float())
        torch.testing.assert_close(a, b.float(), **near)
    for a, b in zip(gradients, wanted, strict=True):
        assert float((a - b.float()).norm() / b.float().norm()) < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_run_stays_near_float32_and_resumes_to_the_bit(precision: str, arguments: list[str], cli: Cli, tmp_path: Path) -> None:
    assert cli("train", *arguments, "out=wide").returncode == 0
    words = [*arguments, f"precision={precision}"]
    assert cli("train", *words, "out=whole").returncode == 0
    assert cli("train", *words, "out=cut", "max_steps=9").returncode == 0
    assert cli("train", *words, "out=cut").returncode == 0
    whole, cut = (state(tmp_path / name) for name in ("whole", "cut"))
    for name, value in whole["model"].items():
        assert value.dtype == torch.float32
        assert torch.equal(value, cut["model"][name]), name
    assert whole["precision"] == cut["precision"]
    assert whole["precision"]["scale"] == (FIRST_SCALE if precision == "fp16" else 1)
    wide, narrow = (losses(tmp_path / name) for name in ("wide", "whole"))
    both = sorted(set(wide) & set(narrow))  # a log has a step's line now and then, by the clock
    assert both
    assert [narrow[step] for step in both] == pytest.approx([wide[step] for step in both], rel=0.1)
    assert [narrow[step] for step in both] != [wide[step] for step in both]


def losses(run: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in read(run) if line["event"] == "step"}


def state(run: Path) -> dict[str, dict[str, torch.Tensor]]:
    return dict(torch.load(max((run / "checkpoints").glob("*.pt")), weights_only=True))


@pytest.mark.parametrize("emulated", [True, False])
def test_an_emulated_precision_is_told(
    emulated: bool, arguments: list[str], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("legw_hpc.precision.in_hardware", lambda dtype: not emulated)
    monkeypatch.setattr(lstm_module, "in_hardware", lambda dtype: False)  # whatever this processor is
    done = cli("train", *arguments, "precision=bf16", "max_steps=1", "out=r")
    assert done.returncode == 0, done.stderr
    assert ("this processor emulates it; fp32 is faster" in done.stdout) == emulated
    assert read(tmp_path / "r")[0].get("emulated", False) == emulated
