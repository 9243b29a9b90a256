"""The rule: the paper's numbers to the digit, and what must follow from it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legw_hpc.legw import SCALINGS, SCHEMES, WARMUPS, Baseline, scale, split_scheme

IMAGENET = Baseline(batch=1024, lr=2**2.5, warmup_epochs=0.3125)
IMAGENET_IMAGES = 1_281_167

# Paper, Table 1: batch, initial LR, warmup epochs.
TABLE_1 = [
    (32768, 2**5.0, 10.0),
    (16384, 2**4.5, 5.0),
    (8192, 2**4.0, 2.5),
    (4096, 2**3.5, 1.25),
    (2048, 2**3.0, 0.625),
    (1024, 2**2.5, 0.3125),
]


@pytest.mark.parametrize(("batch", "lr", "warmup"), TABLE_1)
def test_table_1(batch: int, lr: float, warmup: float) -> None:
    scaled = scale(IMAGENET, batch)
    assert scaled.lr == pytest.approx(lr, rel=1e-15)
    assert (scaled.warmup_epochs, scaled.warmup) == (warmup, "gradual")


@pytest.mark.parametrize(("batch", "lr", "warmup"), TABLE_1)
def test_table_1_from_the_large_end(batch: int, lr: float, warmup: float) -> None:
    """§ 3.3: tune at 32K and derive the smaller batches."""
    scaled = scale(Baseline(32768, 32.0, 10.0), batch)
    assert (scaled.lr, scaled.warmup_epochs) == (pytest.approx(lr, rel=1e-15), warmup)


# Factors that others have published for their own code, and that § 5.1 implies.
FACTORS = [
    ("square root of a scale, adaptdl's vectors", 100, [(100, 1), (400, 2), (900, 3), (1600, 4), (2500, 5)]),
    ("MNIST 128 to 8K", 128, [(256, 1.414), (512, 2), (1024, 2.828), (2048, 4), (4096, 5.657), (8192, 8)]),
    ("PTB 20 to 640", 20, [(40, 1.414), (80, 2), (160, 2.828), (320, 4), (640, 5.657)]),
    ("ImageNet downwards", 1024, [(512, 1 / 1.414)]),
]


@pytest.mark.parametrize(("name", "base", "pairs"), FACTORS, ids=[row[0] for row in FACTORS])
def test_lr_factor(name: str, base: int, pairs: list[tuple[int, float]]) -> None:
    for batch, factor in pairs:
        assert scale(Baseline(base, 1.0), batch).lr == pytest.approx(factor, abs=5e-4)


batches = st.integers(1, 1 << 20)
baselines = st.builds(Baseline, batches, st.floats(1e-6, 1e3), st.floats(0, 100))


@given(baselines, batches)
def test_lr_squared_over_batch_is_constant(base: Baseline, batch: int) -> None:
    assert scale(base, batch).lr ** 2 / batch == pytest.approx(base.lr**2 / base.batch, rel=1e-12)


@given(baselines, batches)
def test_warmup_in_iterations_is_constant(base: Baseline, batch: int) -> None:
    """Epochs x samples / batch; about 391 steps for every batch of Table 1."""
    steps = scale(base, batch).warmup_epochs * IMAGENET_IMAGES / batch
    assert steps == pytest.approx(base.warmup_epochs * IMAGENET_IMAGES / base.batch, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(("batch", "_lr", "_warmup"), TABLE_1)
def test_table_1_warms_up_for_391_steps(batch: int, _lr: float, _warmup: float) -> None:
    assert round(scale(IMAGENET, batch).warmup_epochs * IMAGENET_IMAGES / batch) == 391


@given(baselines)
def test_k_1_changes_nothing(base: Baseline) -> None:
    scaled = scale(base, base.batch)
    assert (scaled.k, scaled.lr, scaled.warmup_epochs) == (1, base.lr, base.warmup_epochs)


@given(baselines, batches)
def test_there_and_back(base: Baseline, batch: int) -> None:
    there = scale(base, batch)
    back = scale(Baseline(there.batch, there.lr, there.warmup_epochs), base.batch)
    assert (back.lr, back.warmup_epochs) == (pytest.approx(base.lr), pytest.approx(base.warmup_epochs))


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("warmup", WARMUPS)
def test_every_pair_of_rules(scaling: str, warmup: str) -> None:
    scaled = scale(Baseline(100, 0.5, 0.25), 400, f"{scaling}+{warmup}", fixed_warmup_epochs=3)
    assert scaled.lr == 0.5 * {"none": 1, "linear": 4, "sqrt": 2}[scaling]
    assert scaled.warmup_epochs == {"none": 0, "constant": 3, "gradual": 3, "from-baseline": 3, "legw": 1}[warmup]
    assert scaled.warmup == {"legw": "gradual"}.get(warmup, warmup)


def test_goyal_is_linear_with_five_epochs() -> None:
    scaled = scale(Baseline(256, 0.1), 8192, "linear")
    assert (scaled.lr, scaled.warmup, scaled.warmup_epochs) == (pytest.approx(3.2), "gradual", 5.0)


BAD = {
    "batch 0": lambda: scale(IMAGENET, 0),
    "batch negative": lambda: scale(IMAGENET, -8),
    "batch fractional": lambda: scale(IMAGENET, 1.5),  # type: ignore[arg-type]
    "baseline batch 0": lambda: Baseline(0, 0.1),
    "lr negative": lambda: Baseline(1, -0.1),
    "lr zero": lambda: Baseline(1, 0),
    "lr NaN": lambda: Baseline(1, math.nan),
    "lr infinite": lambda: Baseline(1, math.inf),
    "warmup negative": lambda: Baseline(1, 0.1, -1),
    "warmup NaN": lambda: Baseline(1, 0.1, math.nan),
    "batch infinite": lambda: scale(IMAGENET, math.inf),  # type: ignore[arg-type]
    "another batch without a rule": lambda: scale(IMAGENET, 2048, "fixed"),
    "scheme unknown": lambda: scale(IMAGENET, 1, "cubic"),
    "half a pair": lambda: split_scheme("sqrt+"),
}


@pytest.mark.parametrize("name", BAD)
def test_refused(name: str) -> None:
    with pytest.raises(ValueError):
        BAD[name]()


def test_named_schemes_are_pairs_of_rules() -> None:
    for name, (scaling, warmup) in SCHEMES.items():
        assert split_scheme(f"{scaling}+{warmup}") == split_scheme(name)
