"""A recipe on a machine: its numbers, what a forecast comes to, and what speaks against a choice."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from pathlib import Path

import pytest

from benchmarks.published_runs import Published
from legw_hpc import apps
from legw_hpc.allowed import SOLVERS
from legw_hpc.derived import derive
from legw_hpc.errors import InputError
from legw_hpc.gradients import FlatGradients
from legw_hpc.plan import calibration
from legw_hpc.plan.forecast import Forecast, _jobs, forecast, usual_nodes
from legw_hpc.plan.model import Work, step
from legw_hpc.recipe import available, load
from legw_hpc.sizes import OPTIONS, gradient_bytes, parameters, update_passes
from legw_hpc.submit import machine as machines

RESNET = "imagenet-resnet50"
MEASURED = sorted(path.stem for path in (machines.MACHINES / calibration.FOLDER).glob("*.toml"))


def made(
    batch: int, machine: str = "skylake", nodes: tuple[int, ...] = (), *words: str, numbers: tuple[str, ...] = ()
) -> Forecast:
    derived = derive(load(RESNET, [f"batch={batch}", *words]))
    return forecast(derived, machines.load(machine), calibration.load(machine, numbers), nodes)


@pytest.mark.parametrize("words", [[], ["options.classes=100"]], ids=["usual", "100 classes"])
@pytest.mark.parametrize("name", available())
def test_parameters_are_the_networks(name: str, words: list[str]) -> None:
    recipe = load(name, words if "resnet" in name else [])
    options = dict(recipe.options) | ({"window": recipe.data.window} if recipe.data.window else {})
    model = apps.application(recipe.application, **options).model()
    assert parameters(recipe) == sum(p.numel() for p in model.parameters())
    assert FlatGradients(model).buffer.nbytes == pytest.approx(gradient_bytes(recipe), rel=0.011)


@pytest.mark.parametrize("name", apps.APPLICATIONS)
def test_options_are_those_of_the_application(name: str) -> None:
    assert set(OPTIONS[name]) == set(inspect.signature(apps.APPLICATIONS[name]).parameters) - {"window"}


def test_passes_of_the_update() -> None:
    assert {solver: update_passes(load("mnist-lstm", [f"solver={solver}"])) for solver in SOLVERS} == {
        "sgd": 4, "momentum": 6, "nesterov": 6, "adagrad": 6, "rmsprop": 6, "adam": 8, "adadelta": 8, "lars": 8,
        "rmsprop-warmup": 8,
    }  # fmt: skip


@pytest.mark.parametrize("name", MEASURED)
def test_machines_numbers_are_in_order_and_sourced(name: str) -> None:
    assert name in machines.available()
    numbers = calibration.load(name)
    for recipe, by_precision in numbers.compute.items():
        for precision in by_precision:
            speeds = numbers.speeds(load(recipe, [f"precision={precision}"]), machines.load(name))
            assert list(speeds) == ["best", "likely", "worst"]
            work = Work(1024, 32, 1e8)
            times = [step(work, 4, 2, speeds[case]).step for case in calibration.CASES]
            assert times == sorted(times)


NUMBER = '{ best = %s, likely = %s, worst = %s, source = "s" }'
REFUSED = {
    "unknown field": ("jiter.likely=1", r"skylake\.toml: unknown key jiter: did you mean jitter\?"),
    "unknown field of a number": ("jitter.mean=1", r"unknown key jitter\.mean"),
    "unknown field of a recipe": (f"compute.{RESNET}.fp32.rate=1", rf"unknown key compute\.{RESNET}\.fp32\.rate"),
    "not a number": ("jitter.likely=much", r"jitter\.likely must be a number, not 'much'"),
    "no number": ("jitter=0.1", r"jitter must be a table"),
    "wrong way round": (f"jitter={NUMBER % (0.2, 0.1, 0.3)}", r"jitter must be best <= likely <= worst, not 0\.2, 0\.1, 0\.3"),
    "bandwidth the wrong way round": (
        f"network.gb_per_s={NUMBER % (1, 2, 3)}",
        r"network\.gb_per_s must be best >= likely >= worst",
    ),
    "no bandwidth": ("network.gb_per_s.worst=0", r"network\.gb_per_s must be positive, not 0"),
    "negative": ("jitter.best=-1", r"jitter must be at least 0, not -1"),
    "infinite": ("jitter.worst=inf", r"jitter must be finite"),
    "not a value": ("jitter.likely=nan", r"jitter must be finite"),
    "overlap of more than all": ("overlap.best=1.5", r"overlap is a share, not 1\.5"),
    "beyond any machine": ("jitter.worst=1e308", r"jitter must be between 1e-15 and 1e15"),
    "next to nothing": ("network.gb_per_s.worst=1e-320", r"network\.gb_per_s must be between 1e-15 and 1e15"),
    "no source": ('jitter.source=""', r"jitter\.source is empty"),
    "precisions missing": (f"compute.{RESNET}=1", rf"compute\.{RESNET} must be a table of precisions"),
}


@pytest.mark.parametrize(("word", "said"), REFUSED.values(), ids=REFUSED)
def test_numbers_that_are_refused(word: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        calibration.load("skylake", [word])


def test_a_field_that_is_missing_is_named(tmp_path: Path) -> None:
    text = calibration.path_of("skylake").read_text()
    (tmp_path / "performance").mkdir()
    (tmp_path / "performance/mine.toml").write_text(re.sub(r"alpha_us.*TACC.*\n", "", text))
    with pytest.raises(InputError, match=r"mine\.toml: network\.alpha_us is missing"):
        calibration.load(str(tmp_path / "mine.toml"))


def test_what_nobody_has_measured_is_said() -> None:
    with pytest.raises(
        InputError, match=r"performance/gpu4\.toml: nobody has measured machine gpu4 yet: in a checkout, python -m benchmarks"
    ):
        calibration.load("gpu4")
    with pytest.raises(InputError, match="no rate for recipe mnist-lstm in bf16, but for imagenet-resnet50 in fp32"):
        calibration.load("knl").speeds(load("mnist-lstm", ["precision=bf16"]), machines.load("knl"))


def test_a_forecast_is_the_models_step_times_the_runs_steps() -> None:
    row = made(32768, "skylake", (256,)).rows[0]
    recipe, where = load(RESNET, ["batch=32768"]), machines.load("skylake")
    speeds = calibration.load("skylake").speeds(recipe, where)["likely"]
    seconds = step(Work(32768, 32, 4 * 25_557_032, 8), 256, 2, speeds).step
    assert row.splits[1].step == seconds
    assert row.samples_per_s.likely == 32768 / seconds
    last = step(Work(3215, 32, 4 * 25_557_032, 8), 256, 2, speeds).step  # of an epoch
    assert row.hours.likely == pytest.approx((30 + 256 * 0.05 + 90 * (39 * seconds + last)) / 3600)
    assert row.node_hours.likely == 256 * row.hours.likely
    assert (row.ranks, row.share, row.jobs) == (512, 64, 1)


@pytest.mark.parametrize(("walltime", "start", "training", "jobs"), [
    ("01:00:00", 300, 3600 - 180 - 300, 1), ("01:00:00", 300, 3600 - 180 - 299, 2),
    ("00:40:00", 556, 5328, 4), ("00:12:00", 556, 5328, 0),
])  # fmt: skip
def test_each_job_of_a_chain_starts_anew_and_is_warned(walltime: str, start: float, training: float, jobs: int) -> None:
    assert _jobs(machines.load("knl", [f"walltime={walltime}"]), start, training) == jobs


def test_pieces_hide_the_exchange_where_the_machine_lets_them() -> None:
    def at(*words: str, numbers: tuple[str, ...] = ()) -> list[float]:
        return [split.exchange for split in made(32768, "skylake", (512,), *words, numbers=numbers).rows[0].splits]

    after, behind, few = at(), at("exchange_pieces=8"), at("exchange_pieces=2")
    assert all(left < all_ for left, all_ in zip(behind[:2], after[:2], strict=True))
    assert behind[2] == after[2]  # at worst nothing is hidden
    assert behind[1] < few[1]
    nothing = ("overlap.best=0", "overlap.likely=0", "overlap.worst=0")
    assert at("exchange_pieces=8", numbers=nothing) == after
    assert at("exchange_pieces=8", "comm=mpi") == at("comm=mpi")


# The published runs of ResNet-50 with a rate, on nodes that `plan` has a machine file for, by whether its range has them.  The
# files are fitted to these very runs: it is no test of what was held out, which results/plan.md is.
AS_THEY_RAN = {  # the exchange behind the backward pass, a rank's samples at once, or an even part of them
    "outside": {"Nurion, 4 KNL without input"},
    "refused": {"Codreanu 2017, 1,536 KNL"},  # 1,024 samples are left over
    "inside": 7,
}
AS_PLANNED = {  # one piece
    "outside": {"Nurion, 4 KNL without input", "You 2018, 800 Skylake nodes"},
    "refused": {"Codreanu 2017, 1,536 KNL"},
    "inside": 6,
}


@pytest.mark.parametrize(("more", "expected"), [(["exchange_pieces=8"], AS_THEY_RAN), ([], AS_PLANNED)], ids=["ran", "planned"])
def test_the_range_has_what_was_published(more: list[str], expected: dict[str, object]) -> None:
    found: dict[str, set[str]] = {"inside": set(), "outside": set(), "refused": set()}
    for name, run in Published.read().runs.items():
        if run.hardware in ("knl", "skylake") and run.seconds and run.scored:
            where = dataclasses.replace(machines.load(run.hardware), ranks=run.ranks)
            share = run.batch // (run.nodes * run.ranks)
            words = [f"batch={run.batch}", f"micro_batch={share if share <= 32 else math.gcd(share, 32)}", *more]
            row = forecast(derive(load(RESNET, words)), where, calibration.load(run.hardware), [run.nodes]).rows[0]
            has = row.samples_per_s.worst <= run.published <= row.samples_per_s.best
            found["inside" if has else "outside" if row.runs else "refused"].add(name)
            assert has or not row.runs or row.samples_per_s.best < run.published  # never too quick
    assert found | {"inside": len(found["inside"])} == expected


def test_charge_and_the_ranges_order() -> None:
    for row in made(32768, "knl").rows:
        if row.runs:
            assert row.units.likely == pytest.approx(0.8 * row.node_hours.likely)
            assert row.hours.best <= row.hours.likely <= row.hours.worst
            assert row.samples_per_s.best >= row.samples_per_s.likely >= row.samples_per_s.worst


def test_efficiency_is_beside_the_smallest_that_runs() -> None:
    found = made(32768, "skylake", (100, 512, 64))
    assert (found.base, [row.nodes for row in found.rows]) == (64, [64, 100, 512])
    small, none, large = found.rows
    assert small.efficiency == 1
    assert math.isnan(none.efficiency)
    assert large.efficiency == pytest.approx(large.samples_per_s.likely / small.samples_per_s.likely / 8)


def test_without_nodes_the_powers_of_two_and_the_first_that_cannot() -> None:
    found = made(1024, "skylake")
    assert [row.nodes for row in found.rows] == [1, 2, 4, 8, 16, 32]
    assert [row.runs for row in found.rows] == [True] * 5 + [False]
    assert "16 samples a rank, less than micro_batch 32" in found.rows[-1].against[0]


# recipe, words -> nodes of skylake, two ranks each
USUAL = {
    ("imagenet-surfsara-2017", ()): [1, 2, 4, 7, 8, 14, 16, 28, 32, 56, 64, 112, 224, 448, 512],  # 448: the published layout
    ("imagenet-resnet50", ("batch=1024",)): [1, 2, 4, 8, 16, 32],
    ("imagenet-resnet50", ("batch=1001",)): [1],
}


@pytest.mark.parametrize(("name", "words"), USUAL)
def test_the_usual_nodes_have_those_of_a_batch_that_is_no_power_of_two(name: str, words: tuple[str, ...]) -> None:
    assert usual_nodes(load(name, words), machines.load("skylake")) == USUAL[name, words]


@pytest.mark.parametrize("nodes", [448, 500])
def test_the_most_nodes_may_be_above_the_last_power_of_two(nodes: int) -> None:
    assert usual_nodes(load("imagenet-surfsara-2017"), machines.load("skylake", [f"nodes={nodes}"]))[-2:] == [224, 448]


def test_every_job_of_a_chain_starts_anew() -> None:
    derived, numbers = derive(load(RESNET, ["batch=32768"])), calibration.load("knl", ())
    whole, chained = (
        forecast(derived, machines.load("knl", [f"walltime={time}"]), numbers, (512,)).rows[0]
        for time in ("24:00:00", "00:40:00")
    )
    assert (whole.jobs, chained.jobs > 1) == (1, True)
    start = whole.hours.worst - chained.hours.worst
    assert start < 0
    assert start / (1 - chained.jobs) == pytest.approx(556 / 3600, rel=0.02)  # 556 s: of 512 nodes, at worst


# Batch, nodes, more words, machine's numbers, and the reason.
AGAINST = {
    "not divisible": (32768, 100, (), (), "leaves 168 samples over"),
    "less than a micro-batch": (32768, 848, ("micro_batch=16",), (), "leaves"),
    "small micro-batch": (32768, 64, ("micro_batch=4",), (), "4 samples at once are computed at 50% of the full rate"),
    "small share": (1024, 64, ("options.batch_norm=sync",), (), "8 samples at once are computed at 66% of the full rate"),
    "serial": (32768, 256, ("comm=serial",), (), "comm=serial is one rank alone, not 256 nodes x 2 ranks"),
    "nothing": (32768, 256, (), (), None),
    "exchange": (32768, 512, (), ("network.gb_per_s.likely=0.5", "network.gb_per_s.worst=0.5"), "the exchange is "),
    "input": (32768, 64, (), (f"compute.{RESNET}.fp32.input_per_s={NUMBER % (60, 50, 40)}",), "waiting for input is "),
    "walltime": (1024, 1, (), (), "hours are up to"),
}  # fmt: skip


@pytest.mark.parametrize(("batch", "nodes", "words", "numbers", "said"), AGAINST.values(), ids=AGAINST)
def test_what_speaks_against_a_choice(
    batch: int, nodes: int, words: tuple[str, ...], numbers: tuple[str, ...], said: str | None
) -> None:
    found = made(batch, "skylake", (nodes,), *words, numbers=numbers).rows[0].against
    assert (found == ()) if said is None else any(said in reason for reason in found), found


def test_explicit_values_take_the_place_of_a_rule() -> None:
    derived = derive(load("imagenet-you-2017", ["batch=8192", "lr=12.8", "warmup_epochs=5"]))
    assert (derived.scaled.lr, derived.scaled.warmup_epochs) == (12.8, 5)
    own = derive(load("imagenet-you-2017"))
    assert (own.scaled.lr, own.scaled.warmup_epochs) == (29, 5)


def test_an_update_takes_as_many_copies_as_it_has_pairs_of_passes() -> None:
    """Beside the record of this package's own solvers: SGD with momentum within 20 % of 6 passes, 3 copies of 102 MB."""
    copy, sgd = 17.3e-3, 49.2e-3  # benchmarks/results/avx2/lars_step.md
    speeds = dataclasses.replace(
        calibration.load("skylake").speeds(load(RESNET), machines.load("skylake"))["likely"], memory_per_s=102.2e6 / copy
    )
    assert step(Work(64, 32, 102.2e6, passes=6), 1, 2, speeds).update == pytest.approx(sgd, rel=0.2)


def test_without_horovod_nobody_waits_for_its_cycle() -> None:
    numbers, where = calibration.load("skylake"), machines.load("skylake")
    cycles = [numbers.speeds(load(RESNET, [f"comm={comm}"]), where)["likely"].cycle for comm in ("auto", "mpi")]
    assert cycles == [1e-3, 0]


def test_a_machine_with_other_ranks_shares_the_nodes_rate() -> None:
    one, four = (dataclasses.replace(machines.load("skylake"), ranks=ranks) for ranks in (1, 4))
    numbers, recipe = calibration.load("skylake"), load(RESNET)
    all_, part = (numbers.speeds(recipe, where)["likely"] for where in (one, four))
    assert (all_.samples_per_s, all_.half_batch) == (4 * part.samples_per_s, 4 * part.half_batch)


def test_a_recipe_of_the_same_network_has_its_rate() -> None:
    where, numbers = machines.load("skylake"), calibration.load("skylake")
    other = load("imagenet-surfsara-2017")
    assert numbers.speeds(other, where) == numbers.speeds(load(RESNET), where)
    own = dataclasses.replace(numbers, compute=dict(numbers.compute) | {other.name: numbers.compute[RESNET]})
    assert (numbers.rate_of(other), own.rate_of(other)) == (RESNET, other.name)
    with pytest.raises(
        InputError, match=r"no rate for recipe cifar10-resnet20 .*benchmarks\.calibrate cifar10-resnet20 --machine"
    ):
        numbers.speeds(load("cifar10-resnet20"), where)
