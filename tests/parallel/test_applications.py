"""The language model and the image networks on real ranks: invariants 1, 2 and 4 for each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from legw_hpc import runlog
from legw_hpc.data.sources import images, small_images, text
from tests import test_images, test_text
from tests.conftest import Cli
from tests.parallel.ranks import needs_mpi
from tests.parallel.runs import crashed, newest, trained

pytestmark = needs_mpi


@pytest.fixture(autouse=True)
def _horovod_is_installed() -> None:
    pytest.importorskip("horovod")


Alone = Callable[[list[str], Path], dict[str, Any]]


@pytest.fixture
def trained_alone(cli: Cli) -> Alone:
    """On one rank, within this process."""

    def call(words: list[str], out: Path) -> dict[str, Any]:
        ended = cli("train", *words, f"out={out}")
        assert ended.returncode == 0, ended.stderr
        return newest(out)

    return call


def close(mine: dict[str, Any], reference: dict[str, Any]) -> None:
    for name, expected in reference["model"].items():
        torch.testing.assert_close(mine["model"][name], expected, rtol=1e-4, atol=1e-5, msg=name)


@pytest.fixture(scope="module")
def words_of_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    text.convert(test_text.write(folder / "source"), folder / "out")
    return folder / "out"


@pytest.mark.parametrize(("batch", "ranks"), [(64, 2), (20, 4)])
def test_a_language_model_on_1_2_and_4_ranks(
    batch: int, ranks: int, words_of_text: Path, tmp_path: Path, trained_alone: Alone
) -> None:
    """20 steps with carried state, dropout and clipping: equal weights to rounding, equal perplexity."""
    changed = {"batch": batch, "epochs": 20, "max_steps": 20, "options.dropout": 0.2, "clip_norm": 0.1}
    words = test_text.training(words_of_text, **changed)
    reference, mine = trained_alone(words, tmp_path / "alone"), trained(ranks, words, tmp_path / "together")
    assert reference["carried"].shape[0] == batch
    close(mine, reference)
    torch.testing.assert_close(mine["carried"], reference["carried"], rtol=1e-4, atol=1e-5)
    metrics = [runlog.read(tmp_path / name)[-1]["metrics"]["perplexity"] for name in ("alone", "together")]
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-5)


def test_a_language_model_goes_on_with_other_ranks(words_of_text: Path, tmp_path: Path) -> None:
    """In the middle of an epoch: each row finds its state on the rank that now has it."""
    words = test_text.training(words_of_text, **{"options.dropout": 0.2})
    whole = trained(2, [*words, "checkpoint.every_steps=7", "checkpoint.keep=9"], tmp_path / "whole")
    same = trained(2, words, crashed(tmp_path / "whole", 7, tmp_path / "same"))
    assert all(torch.equal(whole["model"][name], same["model"][name]) for name in whole["model"])
    close(trained(3, words, crashed(tmp_path / "whole", 7, tmp_path / "moved")), whole)


def test_curvature_on_2_ranks_leaves_no_trace_and_is_that_of_1(words_of_text: Path, tmp_path: Path, trained_alone: Alone) -> None:
    words = test_text.training(words_of_text, **{"options.dropout": 0.2, "clip_norm": 0.1, "max_steps": 14, "exchange_pieces": 3})
    plain = trained(2, words, tmp_path / "plain")
    measured = trained(2, [*words, "curvature_every=1"], tmp_path / "2")
    assert all(torch.equal(plain["model"][name], measured["model"][name]) for name in plain["model"])
    trained_alone([*words, "curvature_every=1"], tmp_path / "1")
    alone, together = (
        [line["L"] for line in runlog.read(tmp_path / ranks) if line["event"] == "curvature"] for ranks in ("1", "2")
    )
    assert len(alone) == 14
    assert together == pytest.approx(alone, rel=0.02, abs=2e-4)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    small_images.convert(test_images.pictures(folder / "source", ".png", (32, 32)), folder / "out", (32, 32))
    return folder / "out"


@pytest.mark.parametrize(("mode", "alone", "together"), [("micro-batch", 4, 4), ("sync", 8, 4)])
def test_batch_norm_on_2_ranks(mode: str, alone: int, together: int, small: Path, tmp_path: Path, trained_alone: Alone) -> None:
    """The same samples normalised together: weights and running statistics agree to rounding."""
    changed = {"batch": 8, "epochs": 1, "options.batch_norm": mode}
    reference = trained_alone(test_images.training("cifar10-resnet20", small, **changed, micro_batch=alone), tmp_path / "1")
    # In pieces, which are being summed while batch norm's sums of mode "sync" meet in the same backward pass.
    words = test_images.training("cifar10-resnet20", small, **changed, micro_batch=together, exchange_pieces=4)
    mine = trained(2, words, tmp_path / "2")
    close(mine, reference)
    one, two = (runlog.read(tmp_path / ranks)[-1]["metrics"] for ranks in "12")
    assert (one["top1"], one["top5"]) == (two["top1"], two["top5"])


def test_synchronised_batch_norm_where_a_rank_has_no_sample(small: Path, tmp_path: Path) -> None:
    """Steps of 23 and 1 images on 2 ranks: no hang."""
    changed = {"batch": 23, "baseline.batch": 23, "epochs": 2, "options.batch_norm": "sync", "exchange_pieces": 4}
    assert trained(2, test_images.training("cifar10-resnet20", small, **changed), tmp_path / "r")["step"] == 4


def test_jpegs_resume_on_2_ranks_to_the_bit(tmp_path: Path) -> None:
    images.convert(test_images.pictures(tmp_path / "source", ".jpg", (48, 64)), tmp_path / "jpegs", workers=2)
    changed = {"options.size": 32, "options.resize": 36, "epochs": 1}
    words = test_images.training("imagenet-resnet50", tmp_path / "jpegs", **changed)
    whole = trained(2, [*words, "checkpoint.every_steps=1", "checkpoint.keep=9"], tmp_path / "whole")
    cut = trained(2, words, crashed(tmp_path / "whole", 1, tmp_path / "cut"))
    assert all(torch.equal(whole["model"][name], cut["model"][name]) for name in whole["model"])
