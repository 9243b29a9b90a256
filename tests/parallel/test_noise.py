"""The noise scale on real ranks: the numbers of single samples' gradients, the log, and what plan makes of it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from legw_hpc import noise, runlog
from legw_hpc.comm import Serial
from legw_hpc.recipe import load
from legw_hpc.work import prepare
from tests.conftest import SAMPLES, Cli
from tests.parallel.ranks import launch, needs_mpi, on_ranks
from tests.test_noise import by_ranks

pytestmark = needs_mpi


@pytest.fixture(autouse=True)
def _horovod_is_installed() -> None:
    pytest.importorskip("horovod")


def of_single_samples(words: list[str], step: int) -> NDArray[np.float64]:
    """[B, parameters]: the gradients of a step's batch at the first weights."""
    work = prepare(load("mnist-lstm", [*words, "comm=serial", "threads=1"]), Serial())
    rows = []
    for item in work.order.items(0, step):
        loss, _ = work.app.loss(work.model, None, *work.app.decode(work.training, np.array([item]), (1, 0)))
        work.model.zero_grad()
        loss.backward()
        rows.append(np.concatenate([p.grad.double().numpy().ravel() for p in work.model.parameters() if p.grad is not None]))
    return np.array(rows)


@pytest.mark.parametrize(
    ("ranks", "batch", "step"), [(2, 32, 0), (3, 32, 0), (3, 149, 2)], ids=["even", "uneven", "a rank without samples"]
)
def test_the_ranks_find_what_single_samples_say(ranks: int, batch: int, step: int, shards: Path) -> None:
    """The third step of 149 samples has 2.  The weights stay."""
    words = [f"data.dir={shards}", f"data.train_samples={SAMPLES}", f"batch={batch}", "micro_batch=75", "lr=1e-30"]
    expected = by_ranks(of_single_samples(words, step), ranks)
    assert expected is not None
    for answer in on_ranks(ranks, "programs:noise", words=words, steps=step + 1):
        assert answer[-1] == [pytest.approx(expected.variance, rel=1e-3), pytest.approx(expected.square, rel=1e-3)]


def test_a_run_logs_it_and_plan_says_whether_a_larger_batch_pays(arguments: list[str], tmp_path: Path, cli: Cli) -> None:
    words = [*arguments, "epochs=2", "log_every=1e-6", "noise_scale=true", f"out={tmp_path / 'run'}"]
    code, said = launch(2, [sys.executable, "-m", "legw_hpc", "train", *words])
    assert code == 0, said
    lines = [line for line in runlog.read(tmp_path / "run") if line["event"] == "step"]
    assert len(lines) == 8
    assert all(line["gradient_variance"] > 0 for line in lines)
    found = noise.from_log(lines)
    planned = cli("plan", *arguments, "--noise", tmp_path / "run")
    assert found is not None
    assert f"over the second half of the lines that {tmp_path / 'run'}" in planned.stdout
    assert "of the steps to the same loss" in planned.stdout or "not told from its noise" in planned.stdout
    without = cli("plan", *arguments, "--noise", tmp_path)
    assert (without.returncode, "no run there" in without.stderr) == (2, True)


def test_it_changes_nothing_else_and_one_rank_is_refused(shards: Path, cli: Cli, arguments: list[str]) -> None:
    assert load("mnist-lstm", ["noise_scale=true"]).identity() == load("mnist-lstm").identity()
    alone = cli("train", *arguments, "noise_scale=true", "comm=serial")
    assert (alone.returncode, alone.stderr.count("\n")) == (2, 1)
    assert "one rank has no gradient beside the average" in alone.stderr
