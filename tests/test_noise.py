"""The noise scale's formulas, on problems with a known answer."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from legw_hpc import noise
from legw_hpc.data.order import part
from legw_hpc.errors import InputError
from legw_hpc.noise import Noise
from legw_hpc.plan.text import noise_lines
from legw_hpc.recipe import load
from tests.conftest import Cli


def by_ranks(gradients: NDArray[np.float64], ranks: int) -> Noise | None:
    """As the trainer has it: each rank sums its samples' gradients over B, then all ranks sum.

    Args:
        gradients: of single samples [B, parameters].
    """
    batch = len(gradients)
    shares = [part(batch, rank, ranks) for rank in range(ranks)]
    sums = [gradients[share.start : share.stop].sum(0) / batch for share in shares]
    total = sum(float(u @ u) * noise.weight(batch, len(share)) for u, share in zip(sums, shares, strict=True))
    whole = np.sum(sums, axis=0)
    return noise.estimate(total, float(whole @ whole), batch, min(ranks, batch))


@given(st.integers(2, 40), st.integers(2, 50), st.integers(0, 1000))
def test_it_is_the_variance_between_ranks(batch: int, ranks: int, seed: int) -> None:
    """Whatever the shares: sum_r b_r |g_r - g|^2 / (P - 1)."""
    gradients = np.random.default_rng(seed).normal(1, 2, (batch, 5))
    found = by_ranks(gradients, ranks)
    assert found is not None
    mean, between = gradients.mean(0), 0.0
    shares = [gradients[one.start : one.stop] for one in (part(batch, rank, ranks) for rank in range(ranks)) if len(one)]
    for share in shares:
        between += len(share) * float(np.sum((share.mean(0) - mean) ** 2))
    assert found.variance == pytest.approx(between / (len(shares) - 1), rel=1e-9, abs=1e-9)
    assert found.square == pytest.approx(float(mean @ mean) - found.variance / batch, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("batch", "ranks"), [(64, 2), (64, 4), (50, 7), (6, 6), (5, 8)])
def test_known_gradient_and_covariance(batch: int, ranks: int) -> None:
    """Gradients of deviations 1, 2, 3 around (2, 0, -1): tr(C) = 14, |G|^2 = 5, noise scale 2.8."""
    draw = np.random.default_rng(1)
    steps = 20_000 // batch
    found = [by_ranks(draw.normal((2, 0, -1), (1, 2, 3), (batch, 3)), ranks) for _ in range(steps)]
    average = noise.mean([one for one in found if one])
    # One step's variance has a relative deviation of about sqrt(2 sum s^4) / tr(C) / sqrt(P - 1), here below 1.
    assert average.variance == pytest.approx(14, rel=4 / steps**0.5)
    assert average.square == pytest.approx(5, rel=0.1)
    assert average.scale == pytest.approx(2.8, rel=0.15)


def test_two_batch_sizes_of_the_paper() -> None:
    """Equal shares: appendix A.1 with B_small = b and B_big = B."""
    gradients = np.random.default_rng(2).normal(0.5, 1, (24, 3))
    found = by_ranks(gradients, 4)
    small = np.mean([np.sum(gradients[i : i + 6].mean(0) ** 2) for i in range(0, 24, 6)])
    big = np.sum(gradients.mean(0) ** 2)
    assert found is not None
    assert found.variance == pytest.approx((small - big) / (1 / 6 - 1 / 24))
    assert found.square == pytest.approx((24 * big - 6 * small) / (24 - 6))


def test_no_noise_and_no_signal() -> None:
    same = by_ranks(np.ones((8, 2)), 4)
    assert same == Noise(pytest.approx(0), pytest.approx(2))
    assert by_ranks(np.ones((1, 2)), 4) is None  # one rank has the only sample
    assert Noise(1.0, -0.1).scale is None
    assert noise.as_line(Noise(1.0, 0.0)) == {"gradient_variance": 1.0, "gradient_square": 0.0, "noise_scale": None}


def test_steps_and_samples_at_the_noise_scale_are_twice_the_fewest() -> None:
    assert noise.fewest_steps(1000, 1000.0) == noise.fewest_samples(1000, 1000.0) == 2
    for batch in (1, 10, 10_000):  # the paper's trade-off: (S / S_min - 1) (E / E_min - 1) = 1
        product = (noise.fewest_steps(batch, 1000.0) - 1) * (noise.fewest_samples(batch, 1000.0) - 1)
        assert product == pytest.approx(1)


@pytest.mark.parametrize(
    ("batch", "found", "said"),
    [
        (100, Noise(1000.0, 1.0), "a batch of 200 would save 45% of the steps to the same loss for 9% more samples: it pays"),
        (1000, Noise(1000.0, 1.0), "would save 25% of the steps to the same loss for 50% more samples: it no longer pays"),
        (1000, Noise(0.0, 1.0), "would save 0% of the steps to the same loss for 100% more samples: it no longer pays"),
        (1000, Noise(5.0, -1.0), "is not told from its noise in runs/x: log more steps"),
    ],
)
def test_what_plan_says(batch: int, found: Noise, said: str) -> None:
    assert said in "\n".join(noise_lines(load("mnist-lstm", [f"batch={batch}"]), found, "runs/x"))


def test_a_texts_batch_is_of_rows() -> None:
    assert "for 9% more rows" in "\n".join(noise_lines(load("ptb-lstm", ["batch=100"]), Noise(1000.0, 1.0), "runs/x"))


def logged(*estimates: tuple[int, object, object]) -> list[dict[str, object]]:
    """Lines of a log: (step, variance, square)."""
    return [{"event": "start"}] + [{"step": n, "gradient_variance": v, "gradient_square": s} for n, v, s in estimates]


def test_of_a_log_the_second_half_counts_and_sums_are_divided() -> None:
    assert noise.from_log(logged((1, 9, 9), (2, 9, 9), (3, 1, 4), (4, 5, 2))) == Noise(3.0, 3.0)
    assert noise.from_log([{"event": "step"}]) is None


def test_a_line_counts_as_many_times_as_it_has_steps() -> None:
    assert noise.from_log(logged((1, 9, 9), (2, 9, 9), (4, 1, 4), (8, 5, 2))) == Noise(5.0, 2.0)
    assert noise.mean([Noise(1.0, 4.0), Noise(5.0, 2.0)], [1, 3]) == Noise(4.0, 2.5)


@pytest.mark.parametrize("line", [(4, None, 1.0), (4, "x", 1.0), (4, 1.0, None), (None, 1.0, 1.0), (4, math.nan, 1.0)])
def test_a_damaged_log_is_refused(line: tuple[int, object, object]) -> None:
    with pytest.raises(InputError, match="a noise scale that is no number"):
        noise.from_log(logged(line))


def test_a_scale_beyond_numbers_is_none() -> None:
    assert Noise(1e300, 1e-300).scale is None


def noisy(folder: Path, recipe: str, scale: float) -> Path:
    """A run's log with a noise scale."""
    start = {"event": "start", "time": 0, "recipe": load(recipe).as_dict()}
    lines = [start, {"event": "step", "step": 1, "gradient_variance": scale, "gradient_square": 1.0}]
    folder.mkdir()
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_batches_are_compared_at_one_loss(cli: Cli, tmp_path: Path) -> None:
    """Past the noise scale the larger batch is cheaper by the epoch, and dearer to the loss."""
    words = ("plan", "imagenet-resnet50", "batch=8192,65536", "--machine", "knl", "--nodes", "128")
    plain = cli(*words).stdout
    assert "each for the epochs it has; to the same loss a larger batch may take more: --noise RUN" in plain
    assert "cheapest: batch=65536 on 128 nodes" in plain
    told = cli(*words, "--noise", noisy(tmp_path / "r", "imagenet-resnet50", 2000.0)).stdout
    assert "by the noise scale, as many epochs as it has, times: batch=8192 1, batch=65536 6.63; hours are with that" in told
    assert "cheapest: batch=8192 on 128 nodes" in told


def test_the_noise_of_another_network_is_refused(cli: Cli, tmp_path: Path) -> None:
    said = cli("plan", "ptb-lstm", "batch=640", "--noise", noisy(tmp_path / "r", "mnist-lstm", 2000.0))
    assert (said.returncode, "a run of mnist-lstm, which trains another network than ptb-lstm" in said.stderr) == (2, True)
    (tmp_path / "r" / "log.jsonl").write_text('{"event": "step"}\n')
    assert "is not the log of a run" in cli("plan", "ptb-lstm", "--noise", tmp_path / "r").stderr
