"""Learning rate against epoch: § 3.2 of the paper to the digit."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legw_hpc.derived import derive
from legw_hpc.legw import scale
from legw_hpc.recipe import load
from legw_hpc.schedule import Constant, Cyclic, Decay, Exponential, MultiStep, Poly, Schedule, build, decay_from
from tests.test_legw import IMAGENET, TABLE_1


def imagenet(batch: int, decay: Decay) -> Schedule:
    scaled = scale(IMAGENET, batch)
    return build(scaled.lr, 90, scaled.warmup, scaled.warmup_epochs, decay)


# § 3.2, multi-step at batch 1K: (epoch, learning rate as a multiple of 2^2.5)
MULTI_STEP = [
    (0.0, 0.0),
    (0.15625, 0.5),
    (0.3125, 1.0),
    (29.999, 1.0),
    (30.0, 0.1),
    (59.999, 0.1),
    (60.0, 0.01),
    (79.999, 0.01),
    (80.0, 0.001),
    (89.999, 0.001),
]


@pytest.mark.parametrize(("epoch", "multiple"), MULTI_STEP)
def test_multi_step_of_the_paper(epoch: float, multiple: float) -> None:
    assert imagenet(1024, MultiStep())(epoch) == pytest.approx(2**2.5 * multiple, rel=1e-12)


@pytest.mark.parametrize(("batch", "lr", "warmup"), TABLE_1)
def test_multi_step_for_every_batch(batch: int, lr: float, warmup: float) -> None:
    """§ 3.2: another batch moves the peak and the warmup, and no milestone."""
    schedule = imagenet(batch, MultiStep())
    points = {0: 0, warmup / 2: lr / 2, warmup: lr, 29.99: lr, 30: lr / 10, 60: lr / 100, 80: lr / 1000}
    for epoch, value in points.items():
        assert schedule(epoch) == pytest.approx(value, rel=1e-12)


def test_multi_step_with_a_factor_for_each_milestone() -> None:
    """The slow start of Akiba et al. 2017: 0.5, 0.075, 0.01 and 0.001 of a rate."""
    schedule = derive(load("imagenet-akiba-2017", ["batch=32768"])).schedule
    for epoch, share in {0: 0.5, 39.9: 0.5, 40: 0.075, 69.9: 0.075, 70: 0.01, 84.9: 0.01, 85: 0.001, 89.9: 0.001}.items():
        assert schedule(epoch) == pytest.approx(12.8 * share)


@pytest.mark.parametrize(("batch", "lr", "warmup"), TABLE_1)
def test_poly_for_every_batch(batch: int, lr: float, warmup: float) -> None:
    """eta (1 - i/I)^2 with i from the start of training, as the formula reads; 0 at the end."""
    schedule = imagenet(batch, Poly())
    for epoch in (warmup, 45.0, 89.0):
        assert schedule(epoch) == pytest.approx(lr * (1 - epoch / 90) ** 2, rel=1e-12)
    assert schedule(warmup / 4) == pytest.approx(lr / 4)
    assert schedule(90.0) == 0


# Smith 2015, his code for "triangular": cycle = floor(1 + it / (2 s)); x = |it / s - 2 cycle + 1|; base + (max - base) (1 - x).
@pytest.mark.parametrize(("epoch", "lr"), [(0, 1.0), (2, 2.5), (4, 4.0), (5, 3.25), (8, 1.0), (9, 1.75), (12, 4.0), (15, 1.75)])
def test_triangles(epoch: float, lr: float) -> None:
    base, most, half = 1.0, 4.0, 4.0
    cycle = math.floor(1 + epoch / (2 * half))
    assert base + (most - base) * max(0.0, 1 - abs(epoch / half - 2 * cycle + 1)) == lr
    assert build(most, 16, decay=Cyclic(half, base / most))(epoch) == pytest.approx(lr)


# Published systems: recipe, batch -> peak rate, warmup in epochs, and the rate at epoch 45.
PUBLISHED = [
    ("imagenet-goyal-2017", 256, 0.1, 5, 0.01),
    ("imagenet-goyal-2017", 8192, 3.2, 5, 0.32),
    ("imagenet-you-2017", 32768, 29.0, 5, 29.0 / 4),
    ("imagenet-surfsara-2017", 14336, 4.8, 5, 2.4),
]


@pytest.mark.parametrize(("name", "batch", "lr", "warmup", "halfway"), PUBLISHED)
def test_published_systems(name: str, batch: int, lr: float, warmup: float, halfway: float) -> None:
    derived = derive(load(name, [f"batch={batch}"]))
    assert (derived.scaled.lr, derived.scaled.warmup_epochs) == (pytest.approx(lr), warmup)
    assert derived.schedule(45.0) == pytest.approx(halfway)
    assert derived.schedule(warmup) == pytest.approx(lr * {"multi-step": 1, "poly": (85 / 90) ** (2 if "you" in name else 1)}[
        derived.recipe.decay])  # fmt: skip


def test_poly_origins_at_32k() -> None:
    """From the start, the rate drops to 0.79 of the peak as the warmup ends; from its end, it does not."""
    before, after = 10 - 1e-9, 10.0
    start = build(32, 90, "gradual", 10, Poly(origin="start"))
    warmup = build(32, 90, "gradual", 10, Poly(origin="warmup"))
    assert start(before) / 32 == pytest.approx(1.0)
    assert start(after) / 32 == pytest.approx(0.7901, abs=1e-4)
    assert warmup(before) / 32 == pytest.approx(1.0)
    assert warmup(after) == 32
    assert warmup(50) == pytest.approx(8)
    assert warmup(90) == 0


def test_exponential_of_ptb() -> None:
    """§ 5.1.2: constant for seven epochs, then halved after each."""
    schedule = build(1.0, 13, decay=Exponential(hold_epochs=7, factor=0.5))
    assert [schedule(epoch + 0.5) for epoch in range(13)] == [1.0] * 7 + [2.0**-i for i in range(1, 7)]


def test_exponential_that_falls_within_an_epoch() -> None:
    """23 / 10 - 0.3 is a little less than 2, and the third halving is of that very step."""
    schedule = build(1.0, 5, decay=Exponential(hold_epochs=0.3))
    assert [schedule(step / 10) for step in (2, 3, 12, 13, 22, 23)] == [1.0, 0.5, 0.5, 0.25, 0.25, 0.125]


def test_multi_step_at_a_milestone_that_is_a_step() -> None:
    """1 + 18 / 50, the epoch of a step after the batch has grown, is a little less than 1.36."""
    assert build(1.0, 5, decay=MultiStep((1.36,)))(1 + 18 / 50) == 0.1


def test_a_decay_from_the_end_of_no_warmup_begins_at_the_peak() -> None:
    assert build(1.0, 90, "none", 5.0, Poly(2, "warmup"))(0) == 1.0


def test_exponential_of_the_tensorflow_tutorial() -> None:
    """Four epochs at 1.0, and 0.00195 in the thirteenth."""
    schedule = build(1.0, 13, decay=Exponential(hold_epochs=4))
    assert schedule(3.99) == 1
    assert schedule(12) == pytest.approx(0.00195, abs=5e-6)


def test_constant_warmup_is_the_baseline_rate() -> None:
    schedule = build(0.8, 10, "constant", 5, Constant(), warmup_lr=0.1)
    assert (schedule(0), schedule(4.99), schedule(5), schedule(9)) == (0.1, 0.1, 0.8, 0.8)


def test_a_warmup_from_the_baseline_rate() -> None:
    """Goyal et al. 2017 § 2.2: at 8,192 from 0.1 to 3.2 by a constant amount an iteration; in the recipe too."""
    schedule = build(3.2, 90, "from-baseline", 5, MultiStep(), warmup_lr=0.1)
    assert [schedule(epoch) for epoch in (0, 2.5, 5, 30)] == pytest.approx([0.1, 1.65, 3.2, 0.32])
    recipe = derive(load("imagenet-goyal-2017", ["batch=8192"])).schedule
    assert all(recipe(epoch / 4) == schedule(epoch / 4) for epoch in range(361))


decays = st.sampled_from([Constant(), MultiStep((3, 6)), Exponential(2), Poly(), Poly(1.0, "warmup")])


@given(st.floats(1e-4, 100), st.floats(0, 9), decays, st.floats(0, 10))
def test_between_zero_and_peak(peak: float, warmup: float, decay: Decay, epoch: float) -> None:
    lr = build(peak, 10, "gradual", warmup, decay)(epoch)
    assert 0 <= lr <= peak * (1 + 1e-12)


@given(st.floats(0.1, 9), decays)
def test_rises_then_never_rises_again(warmup: float, decay: Decay) -> None:
    schedule = build(1.0, 10, "gradual", warmup, decay)
    rising = [schedule(warmup * i / 50) for i in range(50)]
    falling = [schedule(warmup + (10 - warmup) * i / 50) for i in range(51)]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)


BAD = {
    "warmup longer than training": lambda: build(1, 5, "gradual", 6),
    "lr negative": lambda: build(-1, 5),
    "lr NaN": lambda: build(math.nan, 5),
    "no epochs": lambda: build(1, 0),
    "warmup negative": lambda: build(1, 5, "gradual", -1),
    "warmup unknown": lambda: build(1, 5, "sudden", 1),
    "decay unknown": lambda: decay_from("cosine"),
    "decay value unknown": lambda: decay_from("poly", exponent=2),
    "poly origin unknown": lambda: Poly(origin="end"),
    "poly power zero": lambda: Poly(power=0),
    "poly power text": lambda: decay_from("poly", power="2"),
    "factor negative": lambda: MultiStep(factor=-1),
    "factor above 1": lambda: MultiStep(factor=1.5),
    "exponential that grows": lambda: Exponential(factor=2.0),
    "too few factors": lambda: MultiStep((30.0, 60.0), factors=(0.5,)),
    "factors not a list": lambda: decay_from("multi-step", factors=0.5),
    "factors of milestones that fall": lambda: MultiStep((60.0, 30.0), factors=(0.5, 0.1)),
    "factor of a list negative": lambda: MultiStep((30.0,), factors=(-1.0,)),
    "factor NaN": lambda: Exponential(factor=math.nan),
    "milestones not a list": lambda: decay_from("multi-step", milestones=30),
    "milestone text": lambda: MultiStep(("30",)),  # type: ignore[arg-type]
    "hold NaN": lambda: Exponential(hold_epochs=math.nan),
}


@pytest.mark.parametrize("name", BAD)
def test_refused(name: str) -> None:
    with pytest.raises(ValueError):
        BAD[name]()


def test_too_long_a_warmup_names_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"6\.5 epochs.*5 epochs"):
        build(1, 5, "gradual", 6.5)
