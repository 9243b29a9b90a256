"""Recipes: strict keys, values derived last, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from legw_hpc import allowed
from legw_hpc.apps import APPLICATIONS
from legw_hpc.comm.base import BACKENDS
from legw_hpc.derived import derive
from legw_hpc.device import DEVICES
from legw_hpc.errors import InputError
from legw_hpc.optim import SOLVERS
from legw_hpc.recipe import RECIPES, available, load
from tests.conftest import Cli


@pytest.mark.parametrize("name", available())
def test_packaged_recipe_derives(name: str) -> None:
    recipe = load(name)
    derived = derive(recipe)
    assert derived.scaled.k == 1
    assert derived.scaled.lr == recipe.baseline.lr
    assert derived.course.epoch(derived.steps) == pytest.approx(recipe.epochs, abs=0.5 / derived.course.stages[-1].per_epoch)


@pytest.mark.parametrize("name", available())
def test_packaged_recipe_carries_its_record(name: str) -> None:
    """Header comment: paper section, command, expected and measured number, and where lr and warmup are from."""
    text = (RECIPES / f"{name}.toml").read_text()
    header = "".join(line for line in text.splitlines() if line.startswith("#")).lower()
    for word in ("paper", "command", "expected", "measured"):
        assert word in header


# The paper's Table 1: batch -> log2 of the learning rate, warmup epochs; steps of an epoch from 1,281,167 images.
TABLE_1 = [
    (1024, 2.5, 0.3125, 1252), (2048, 3.0, 0.625, 626), (4096, 3.5, 1.25, 313),
    (8192, 4.0, 2.5, 157), (16384, 4.5, 5.0, 79), (32768, 5.0, 10.0, 40),
]  # fmt: skip


@pytest.mark.parametrize(("batch", "power", "warmup", "steps"), TABLE_1)
def test_table_1(batch: int, power: float, warmup: float, steps: int) -> None:
    derived = derive(load("imagenet-resnet50", [f"batch={batch}"]))
    assert derived.scaled.lr == pytest.approx(2**power)
    assert derived.scaled.warmup_epochs == warmup
    assert derived.steps_per_epoch == steps
    assert derived.steps == 90 * steps
    assert derived.lr(derived.steps) == 0
    middle = 45 * steps
    assert derived.lr(middle) == pytest.approx(2**power / 4)  # poly of power 2, halfway
    assert derived.lr(steps) == pytest.approx(2**power * (1 / warmup if warmup > 1 else (89 / 90) ** 2))


@pytest.mark.parametrize(("batch", "steps"), [(20, 2323), (40, 1161), (80, 580), (160, 290), (320, 145), (640, 72)])
def test_windows_of_ptb(batch: int, steps: int) -> None:
    derived = derive(load("ptb-lstm", [f"batch={batch}"]))
    assert derived.steps_per_epoch == steps
    assert derived.scaled.lr == pytest.approx(derived.recipe.baseline.lr * (batch / 20) ** 0.5)


# Solver and its options, epochs, lr, clipping, window, options; epochs at the first rate, what each one after them makes of it.
PTB = {
    "ptb-lstm-paper": ("momentum", {"momentum": 0.9}, 13, 4.0, 0.25, 20, {}, 7, 0.5),
    "ptb-lstm-large": ("sgd", {}, 55, 35.0, 10 / 35, 35, {"hidden": 1500, "init": 0.04, "dropout": 0.65}, 14, 1 / 1.15),
}


@pytest.mark.parametrize("name", PTB)
def test_the_other_recipes_of_ptb(name: str) -> None:
    solver, of_solver, epochs, lr, clip, window, options, hold, factor = PTB[name]
    recipe = load(name)
    assert (recipe.solver, recipe.solvers.get(solver, {})) == (solver, of_solver)
    assert (recipe.epochs, recipe.data.window, recipe.options) == (epochs, window, options)
    assert (recipe.baseline.batch, recipe.baseline.lr) == (20, lr)
    assert recipe.clip_norm == pytest.approx(clip, rel=1e-3)
    schedule = derive(recipe).schedule
    wanted = [lr] * hold + [lr * factor**i for i in range(1, epochs - hold + 1)]
    for place in (0.0, 0.99):  # of an epoch; the first may have the warmup
        assert [schedule(epoch + place) for epoch in range(1, epochs)] == pytest.approx(wanted[1:], rel=1e-5)


def test_a_text_too_short_for_its_rows_is_refused() -> None:
    with pytest.raises(InputError, match=r"100 words in 50 rows.*window of 20"):
        derive(load("ptb-lstm", ["data.train_samples=100", "batch=50"]))


@pytest.mark.parametrize(("name", "window"), [("ptb-lstm", 0), ("mnist-lstm", 20)])
def test_a_text_is_read_in_windows_and_nothing_else_is(name: str, window: int) -> None:
    with pytest.raises(InputError, match=f"reads .*not data.window={window}"):
        load(name, [f"data.window={window}"])


def test_the_micro_batch_belongs_to_a_run_with_batch_norm_alone() -> None:
    assert "micro_batch" in load("cifar10-resnet20").identity()
    assert "micro_batch" not in load("mnist-lstm").identity()
    assert set(allowed.NORMALISED) | set(allowed.TEXTS) < set(allowed.APPLICATIONS)


def test_overriding_the_batch_rescales_what_depends_on_it() -> None:
    small, large = derive(load("mnist-lstm")), derive(load("mnist-lstm", ["batch=8192"]))
    assert large.scaled.lr == pytest.approx(8 * small.scaled.lr)
    assert large.scaled.warmup_epochs == pytest.approx(64 * small.scaled.warmup_epochs)
    assert (large.steps_per_epoch, large.steps, large.last_batch) == (8, 200, 60000 - 7 * 8192)


# MNIST, steps per epoch by batch (60,000 images, the last step smaller).
@pytest.mark.parametrize(
    ("batch", "steps"), [(128, 469), (256, 235), (512, 118), (1024, 59), (2048, 30), (4096, 15), (8192, 8), (60000, 1)]
)
def test_steps_per_epoch(batch: int, steps: int) -> None:
    assert derive(load("mnist-lstm", [f"batch={batch}", "scheme=none"])).steps_per_epoch == steps


def test_overriding_the_baseline_is_seen_by_the_derived_values() -> None:
    derived = derive(load("mnist-lstm", ["baseline.lr=0.2", "baseline.warmup_epochs=0.05", "batch=512"]))
    assert (derived.scaled.lr, derived.scaled.warmup_epochs) == (pytest.approx(0.4), pytest.approx(0.2))


def test_an_explicit_lr_wins_and_is_reported() -> None:
    derived = derive(load("mnist-lstm", ["batch=8192", "lr=0.3"]))
    assert (derived.scaled.lr, derived.explicit) == (0.3, ("lr",))
    assert any("0.3" in line and "explicit" in line for line in derived.lines())
    assert "explicit" not in "".join(derive(load("mnist-lstm", ["batch=8192"])).lines())


def test_an_explicit_warmup_wins_over_a_scheme_without_one() -> None:
    derived = derive(load("mnist-lstm", ["scheme=none", "warmup_epochs=2"]))
    assert (derived.scaled.warmup, derived.scaled.warmup_epochs) == ("gradual", 2.0)
    assert derived.schedule(1.0) == pytest.approx(derived.scaled.lr / 2)


def test_the_learning_rate_is_a_closed_form_of_the_step() -> None:
    derived = derive(load("mnist-lstm", ["batch=8192", "decay=poly"]))
    backwards = [derived.lr(step) for step in reversed(range(derived.steps))]
    assert backwards[::-1] == [derived.lr(step) for step in range(derived.steps)]
    assert derived.lr(0) == 0


def test_overrides_are_toml(tmp_path: Path) -> None:
    recipe = load(
        "mnist-lstm", ["decay=multi-step", "decays.multi-step.milestones=[10, 20]", "exempt=false", "seed=7", "out=x y"]
    )
    assert recipe.decays["multi-step"]["milestones"] == [10, 20]
    assert (recipe.exempt, recipe.seed, recipe.out) == (False, 7, "x y")
    assert derive(recipe).schedule(15.0) == pytest.approx(0.1 * recipe.baseline.lr)


def test_the_names_that_recipes_know_are_those_of_the_code() -> None:
    assert list(allowed.SOLVERS) == list(SOLVERS)
    assert list(allowed.APPLICATIONS) == list(APPLICATIONS)
    assert list(allowed.COMMS) == list(BACKENDS)
    assert list(allowed.DEVICES) == list(DEVICES)


def test_a_recipe_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'application = "mnist-lstm"\nepochs = 2\n[baseline]\nbatch = 8\nlr = 0.5\n[data]\ndir = "d"\ntrain_samples = 100\n'
    )
    recipe = load(str(path), ["batch=16"])
    assert (recipe.name, recipe.batch) == ("mine", 16)
    assert recipe.out_folder() == Path("runs/mine-momentum-legw-b16-s1")


def test_a_tilde_is_the_home() -> None:
    """bash leaves that of out=~/run as it is, and a folder of that name would be one `rm -r` from the home."""
    recipe = load("mnist-lstm", ["out=~/run", "data.dir=~/data"])
    assert (recipe.out_folder(), recipe.data.folder()) == (Path.home() / "run", Path.home() / "data")


# What the user typed, and words that the one line of the answer must have.
BAD = [
    (["bach=8192"], ["bach", "batch"]),
    (["baseline.learning_rate=1"], ["baseline.learning_rate", "baseline."]),
    (["lr=-0.1"], ["lr", "-0.1"]),
    (["lr=nan"], ["lr", "nan"]),
    (["lr=fast"], ["lr", "fast"]),
    (["baseline.lr=0"], ["lr", "0"]),
    (["baseline.lr=nan"], ["lr", "nan"]),
    (["batch=0.5"], ["batch", "0.5"]),
    (["batch=-8"], ["batch", "-8"]),
    (["batch=70000"], ["70000", "60000"]),
    (["epochs=0"], ["epochs", "0"]),
    (["epochs=inf"], ["epochs", "inf"]),
    (["batch=8192", "epochs=5"], ["warmup", "epochs", "5"]),
    (["epochs=3", "scheme=linear"], ["5", "3"]),
    (["warmup_epochs=30"], ["30", "25"]),
    (["micro_batch=-1"], ["micro_batch", "-1"]),
    (["scheme=legv"], ["legv", "legw"]),
    (["decay=cosine"], ["cosine", "poly"]),
    (["decay=poly", "decays.poly.pow=2"], ["poly", "pow", "power"]),
    (["decay=poly", "decays.poly=2"], ["table", "2"]),
    (["twin=synthetic", "curvature_every=2"], ["twin=synthetic", "curvature_every"]),
    (["twin=no-exchange", "noise_scale=true"], ["twin=no-exchange", "noise_scale"]),
    (["twin=other"], ["other", "no-exchange"]),
    (["seed=true"], ["seed", "True"]),
    (["baseline=3"], ["baseline", "table"]),
    (["data.train_samples=0"], ["train_samples", "0"]),
    (["checkpoint.keep=0"], ["keep", "0"]),
    (["out={date}"], ["date", "{batch}"]),
    (["8192"], ["8192", "key=value"]),
    (["comm=gloo"], ["gloo", "horovod"]),
    (["device=tpu"], ["tpu", "cuda"]),
    (["solver=nesterov", "solvers.nestorov.momentum=0.5"], ["solvers.nestorov", "nesterov"]),
    (["solvers.lars=5"], ["solvers.lars", "table", "5"]),
    (["decays.cosine.power=2"], ["decays.cosine", "poly"]),
    (["solver=lion"], ["lion", "momentum"]),
    (["application=mnist"], ["mnist", "mnist-lstm"]),
    (["batch=60000", "epochs=0.4", "scheme=none"], ["0.4", "no step"]),
    (["decay=multi-step", "decays.multi-step.factor=-1"], ["factor", "-1"]),
    (["=8"], ["key=value"]),
    (["batch=" + "9" * 400], ["batch", "2**63"]),
    (["epochs=" + "9" * 400], ["epochs", "2**63"]),
    (["seed=-" + "9" * 400], ["seed", "2**63"]),
    (["growth.epochs=[" + "9" * 400 + "]"], ["growth.epochs[0]", "2**63"]),
    ([f"growth.epochs={list(range(1, 25))}", f"growth.factor={9 * 10**18}"], ["growth.factor", "24 times"]),
    (["options.x=" + "[" * 60 + "]" * 60], ["20 tables"]),
    (["options.x=" + "{a=" * 60 + "1" + "}" * 60], ["20 tables"]),
    (["options." + "a." * 1500 + "b=1"], ["1501 tables", "20"]),
    (["out={name.x}"], ["out={name.x}"]),
    (["out={seed[0]}"], ["out={seed[0]}"]),
]


@pytest.mark.parametrize(("overrides", "words"), BAD, ids=lambda value: " ".join(map(str, value))[:60])
def test_refused_in_one_line(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        derive(load("mnist-lstm", overrides))
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("epochs = ", "TOML"),
        ("", "application is missing"),
        ('application = "mnist-lstm"\nepochs = 1\nbaseline = 1\ndata = 2', "table"),
        (
            'application = 3\nepochs = 1\n[baseline]\nbatch = 8\nlr = 1\n[data]\ndir = "d"\ntrain_samples = 1',
            "application must be text",
        ),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=word):
        load(str(path))


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean mnist-lstm"):
        load("mnist-lsmt")


# --- as commands -----------------------------------------------------------------------------


def test_plan_json(cli: Cli) -> None:
    done = cli("plan", "mnist-lstm", "batch=8192", "--json")
    plan = json.loads(done.stdout)
    assert (plan["k"], plan["steps_per_epoch"], plan["steps"]) == (64, 8, 200)
    assert plan["warmup_steps"] == pytest.approx(plan["warmup_epochs"] * 8)


@pytest.mark.parametrize(("words", "limit"), [(["--help"], 0.3), (["plan", "mnist-lstm", "batch=8192"], 0.5)])
def test_answers_at_once(process: Cli, words: list[str], limit: float) -> None:
    """In seconds of the processor, the best of three: a busy machine is not the program's fault."""
    times = []
    for _ in range(3):
        before = os.times()
        assert process(*words).returncode == 0
        after = os.times()
        times.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(times) < limit


def test_plan_imports_neither_torch_nor_numpy(process: Cli, tmp_path: Path) -> None:
    for name in ("torch", "numpy", "h5py", "horovod", "mpi4py"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('plan must not import me')\n")
    done = process("plan", "mnist-lstm", env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0, done.stderr
