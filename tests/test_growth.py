"""A global batch that grows during the run: which step is where, resume, ranks, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from legw_hpc import runlog, steps
from legw_hpc.apps import application
from legw_hpc.data import order
from legw_hpc.data.sources import text
from legw_hpc.derived import derive
from legw_hpc.errors import InputError
from legw_hpc.owner import OWNER
from legw_hpc.recipe import load
from legw_hpc.status import status
from legw_hpc.steps import Stage
from legw_hpc.work import _open
from tests import test_text
from tests.conftest import Cli
from tests.parallel.ranks import launch, needs_mpi
from tests.test_run import assert_same_bits, weights

GROWS = ["batch=48", "growth.epochs=[2, 3]"]  # 7, 4 and 2 steps an epoch of 300 samples


@given(st.integers(1, 500), st.integers(1, 60), st.integers(0, 2000))
def test_one_stage_is_plain_division(samples: int, batch: int, step: int) -> None:
    """To the bit: runs of one batch are what they were before there were stages."""
    per_epoch = steps.shuffled(samples, batch)
    whole = steps.course([batch], [0], lambda batch: steps.shuffled(samples, batch))
    assert whole.place(step) == divmod(step, per_epoch)
    assert whole.epoch(step) == step / per_epoch


@given(st.integers(1, 200), st.integers(0, 400), st.sampled_from(["0.1", "0.2", "0.25", "0.8", "1.1", "1.6", "2.2", "3"]))
@example(per_epoch=59, epochs=3, every="0.2")  # 177 steps are 3 epochs, and 14.999999999999998 of these
def test_a_multiple_comes_at_its_own_step(per_epoch: int, epochs: int, every: str) -> None:
    """Beside exact arithmetic: so that an evaluation of epoch 3 is of epoch 3."""
    whole = steps.course([1], [0], lambda batch: per_epoch)
    for step in range(max(0, epochs * per_epoch - 1), epochs * per_epoch + 2):
        assert whole.multiples(float(every), step) == Fraction(step, per_epoch) // Fraction(every)


@given(st.integers(1, 400), st.integers(1, 3), st.booleans(), st.integers(0, 700))
def test_steps_by_batch_are_all_samples(batch: int, epochs: int, grows: bool, most: int) -> None:
    words = [f"batch={batch}", "data.train_samples=1000", f"epochs={2 * epochs}", "micro_batch=1", *["growth.epochs=[1]"] * grows]
    derived = derive(load("mnist-lstm", words))
    assert sum(steps * batch for steps, batch in derived.steps_by_batch()) == 2 * epochs * 1000
    ended = derive(dataclasses.replace(derived.recipe, max_steps=most or None))
    assert sum(steps for steps, _ in ended.steps_by_batch()) == ended.last


def test_the_stages_of_a_recipe() -> None:
    derived = derive(load("mnist-lstm", ["batch=1000", "epochs=6", "growth.epochs=[2, 5]", "growth.factor=4"]))
    assert derived.course.stages == (Stage(1000, 0, 0, 60), Stage(4000, 2, 120, 15), Stage(16000, 5, 165, 4))
    assert (derived.steps, derived.steps_per_epoch, derived.last_batch) == (169, 60, 1000)
    assert [derived.course.epoch(step) for step in (0, 119, 120, 135, 164, 165, 169)] == pytest.approx(
        [0, 119 / 60, 2, 3, 2 + 44 / 15, 5, 6]
    )
    assert [derived.course.place(step) for step in (119, 120, 164, 165)] == [(1, 59), (2, 0), (4, 14), (5, 0)]
    assert "growth   4,000 from epoch 2, 15 steps each; 16,000 from epoch 5, 4 steps each" in derived.lines()
    assert [derived.course.until(epoch) for epoch in (0, 1.5, 2, 3, 5.5)] == [0, 90, 120, 135, 167]
    assert derived.steps_by_batch() == [(120, 1000), (45, 4000), (3, 16000), (1, 12000)]
    assert derive(dataclasses.replace(derived.recipe, max_steps=130)).steps_by_batch() == [(120, 1000), (10, 4000)]
    # Learning rate and warmup are those of the first batch.
    assert derived.scaled == derive(load("mnist-lstm", ["batch=1000", "epochs=6"])).scaled


def test_the_rate_follows_the_epoch() -> None:
    """Smith et al. 2018: the batch grows where the rate would have fallen; a decay beside it is by epochs as ever."""
    words = ["batch=128", "scheme=none", "decay=multi-step", "decays.multi-step.milestones=[4, 8]"]
    plain, grown = derive(load("mnist-lstm", words)), derive(load("mnist-lstm", [*words, "growth.epochs=[4, 8]"]))
    for step in range(0, grown.steps, 7):
        assert grown.lr(step) == plain.schedule(grown.course.epoch(step))


def test_every_epoch_holds_every_sample_once() -> None:
    batches, begins = [30, 60, 120], [0, 2, 3]
    whole = steps.course(batches, begins, lambda batch: steps.shuffled(250, batch))
    growing = order.Growing(whole, tuple(order.Shuffled(250, batch, 1) for batch in batches))
    read: dict[int, list[np.ndarray]] = {}  # type: ignore[type-arg]
    for number in range(whole.steps(5)):
        epoch, step = growing.place(number)
        read.setdefault(epoch, []).append(growing.items(epoch, step))
    assert [len(read[epoch]) for epoch in range(5)] == [9, 9, 5, 3, 3]
    for epoch, parts in read.items():
        assert np.concatenate(parts).tolist() == order.epoch_order(250, 1, epoch).tolist()


BAD = {
    "falls": (["growth.epochs=[4, 2]"], "growth.epochs must rise"),
    "twice": (["growth.epochs=[2, 2]"], "growth.epochs must rise"),
    "at the start": (["growth.epochs=[0, 2]"], "from 1 on"),
    "at the end": (["growth.epochs=[25]"], "below the run's 25"),
    "not whole": (["growth.epochs=[1.5]"], "growth.epochs[0] must be a whole number"),
    "no list": (["growth.epochs=3"], "growth.epochs must be a list"),
    "shrinks": (["growth.epochs=[3]", "growth.factor=1"], "growth.factor must be at least 2"),
    "too large": (["batch=20000", "growth.epochs=[3, 6]"], "batch 80000, grown 2 times by 2, is larger than"),
    "a twin": (["growth.epochs=[3]", "twin=synthetic"], "one batch"),
    "batch norm of a rank": (["growth.epochs=[3]", "options.batch_norm=rank"], "batch_norm=rank"),
}


@pytest.mark.parametrize("name", BAD)
def test_refused(name: str) -> None:
    words, said = BAD[name]
    with pytest.raises(InputError) as caught:
        derive(load("mnist-lstm", words))
    assert said in str(caught.value)


@pytest.mark.parametrize("stop", [13, 14, 16, 20])
def test_a_resumed_run_is_the_uninterrupted_one(cli: Cli, arguments: list[str], tmp_path: Path, stop: int) -> None:
    words = [*arguments, *GROWS, "epochs=5"]
    assert cli("train", *words, "out=whole").returncode == 0
    assert cli("train", *words, "out=parts", f"max_steps={stop}").returncode == 0
    assert cli("train", *words, "out=parts").returncode == 0
    assert_same_bits(tmp_path / "whole", tmp_path / "parts")
    lines = runlog.read(tmp_path / "whole")
    assert [(line["step"], line["epoch"]) for line in lines if line["event"] == "eval"] == [
        (7, 1), (14, 2), (18, 3), (20, 4), (22, 5),
    ]  # fmt: skip
    assert [stage["batch"] for stage in lines[0]["derived"]["stages"]] == [48, 96, 192]


def test_a_run_of_before_there_was_growth_goes_on(cli: Cli, arguments: list[str], tmp_path: Path) -> None:
    assert cli("train", *arguments, "out=r", "max_steps=3").returncode == 0
    assert "growth" not in (tmp_path / "r" / "recipe.json").read_text()
    assert cli("train", *arguments, *GROWS[1:], "out=r").returncode == 2


def test_the_plan_counts_every_stage(cli: Cli) -> None:
    """Cheaper than without growth, dearer than with the last batch throughout."""
    hours = []
    for words in (["batch=512"], ["batch=512", "growth.epochs=[30, 60]"], ["batch=2048"]):
        done = cli("plan", "imagenet-resnet50", *words, "--machine", "skylake", "--nodes", "8", "--json")
        hours.append(json.loads(done.stdout)["nodes"][0]["hours"]["likely"])
    assert hours[0] > hours[1] > hours[2]


@pytest.fixture(scope="module")
def words_of_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    text.convert(test_text.write(folder / "source"), folder / "out")
    return folder / "out"


@pytest.mark.parametrize("stop", [11, 12, 13, 20])
def test_a_language_model_starts_anew_with_more_rows(cli: Cli, words_of_text: Path, tmp_path: Path, stop: int) -> None:
    """12 steps of 20 rows, then 5 of 40: what was carried for 20 rows ends with their epoch."""
    words = test_text.training(words_of_text, **{"growth.epochs": "[1]", "epochs": 3, "options.dropout": 0.2})
    assert cli("train", *words, "out=whole").returncode == 0
    assert cli("train", *words, "out=parts", f"max_steps={stop}").returncode == 0
    assert cli("train", *words, "out=parts").returncode == 0
    assert_same_bits(tmp_path / "whole", tmp_path / "parts")
    newest = torch.load(max((tmp_path / "whole" / "checkpoints").glob("*.pt")), weights_only=True)
    assert (newest["step"], newest["carried"].shape[0]) == (22, 40)


def test_batch_norm_is_over_the_same_group_all_along(cli: Cli, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a rank's 32 samples of batch 32 are less than micro_batch 64"):
        _open(load("cifar10-smith-2018", ["batch=32"]), application("resnet20"), 1)


def test_the_time_to_go_counts_the_steps_that_are_left(tmp_path: Path) -> None:
    derived = derive(load("mnist-lstm", ["batch=1000", "epochs=6", "growth.epochs=[2, 5]", "growth.factor=4"]))
    start = {"event": "start", "derived": derived.as_dict(), "recipe": {"max_steps": 0}}
    lines = [start, {"event": "step", "step": 120, "samples_per_s": 1000.0}]
    (tmp_path / OWNER).write_text("{}")
    (tmp_path / runlog.LOG).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert status(tmp_path).eta_seconds == pytest.approx(4 * 60000 / 1000)


@needs_mpi
def test_two_ranks_compute_the_same(cli: Cli, arguments: list[str], tmp_path: Path) -> None:
    pytest.importorskip("horovod")
    words = [*arguments, *GROWS, "epochs=4", "solver=lars"]
    assert cli("train", *words, "out=alone").returncode == 0
    code, said = launch(2, [sys.executable, "-m", "legw_hpc", "train", *words, f"out={tmp_path / 'two'}"], timeout=90)
    assert code == 0, said
    mine, reference = weights(tmp_path / "two"), weights(tmp_path / "alone")
    for name, expected in reference.items():
        torch.testing.assert_close(mine[name], expected, rtol=1e-4, atol=2e-6, msg=name)


@pytest.mark.parametrize(
    ("recipe", "batch", "explicit"),
    [("mnist-lstm", 8192, ["lr=0.8", "warmup_epochs=12.8"]), ("imagenet-resnet50", 32768, ["lr=32", "warmup_epochs=10"])],
)
def test_the_distance_of_explicit_values_is_that_of_the_rule(recipe: str, batch: int, explicit: list[str]) -> None:
    ruled, given_ = (derive(load(recipe, [f"batch={batch}", *words])).lines()[-1] for words in ([], explicit))
    assert ruled == given_
    assert ruled.startswith("distance 0.1")
    base = derive(load(recipe))
    assert not base.lines()[-1].startswith("distance")


def test_no_distance_is_added_up_for_minutes() -> None:
    assert "distance" not in "\n".join(derive(load("mnist-lstm", ["batch=256", "epochs=1000000"])).lines())
