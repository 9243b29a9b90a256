"""The same code on a GPU; skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from legw_hpc.comm import Serial
from legw_hpc.device import choose_device
from legw_hpc.errors import InputError
from tests.conftest import Cli
from tests.test_run import weights

pytestmark = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


@needs_gpu
@pytest.mark.parametrize("solver", ["momentum", "lars", "adam"])
def test_a_gpu_trains_as_the_cpu_does(cli: Cli, arguments: list[str], tmp_path: Path, solver: str) -> None:
    words = [*arguments, f"solver={solver}", "baseline.lr=0.01"]
    for device in ("cpu", "cuda"):
        assert cli("train", *words, f"device={device}", f"out={device}").returncode == 0
    on_cpu, on_gpu = weights(tmp_path / "cpu"), weights(tmp_path / "cuda")
    for name, expected in on_cpu.items():
        torch.testing.assert_close(on_gpu[name].cpu(), expected, rtol=1e-2, atol=1e-4)


@needs_gpu
def test_a_resumed_gpu_run_goes_on(cli: Cli, arguments: list[str], tmp_path: Path) -> None:
    assert cli("train", *arguments, "device=cuda", "out=r", "max_steps=5").returncode == 0
    assert "resumed after step 5" in cli("train", *arguments, "device=cuda", "out=r").stdout


@needs_gpu
def test_each_local_rank_takes_its_own_gpu() -> None:
    comm = Serial()
    comm.local_rank = torch.cuda.device_count() - 1
    assert choose_device("auto", comm).index == comm.local_rank


def test_more_ranks_than_gpus_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    comm = Serial()
    comm.local_rank, comm.local_size = 2, 4
    with pytest.raises(InputError, match=r"local rank 2 of 4.*2 GPUs"):
        choose_device("cuda", comm)


def test_cpu_is_the_cpu_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto", Serial()).type == "cpu"
    with pytest.raises(InputError, match="GPU"):
        choose_device("cuda", Serial())
