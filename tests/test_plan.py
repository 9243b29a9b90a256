"""legw-hpc plan on a machine: its numbers, what it prints, draws and advises against."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path

import pytest

from benchmarks.published_runs import Published
from legw_hpc import apps, sweep
from legw_hpc.derived import derive
from legw_hpc.errors import InputError
from legw_hpc.gradients import FlatGradients
from legw_hpc.plan import calibration
from legw_hpc.plan.forecast import Forecast, forecast
from legw_hpc.plan.gradient import gradient_bytes, parameters, update_passes
from legw_hpc.plan.model import Work, step
from legw_hpc.recipe import SOLVERS, available, load
from legw_hpc.submit import machine as machines
from tests.conftest import Cli

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
    assert row.hours.likely == pytest.approx((30 + 90 * (39 * seconds + last)) / 3600)
    assert row.node_hours.likely == 256 * row.hours.likely
    assert (row.ranks, row.share, row.jobs) == (512, 64, 1)


def test_pieces_hide_the_exchange_where_the_machine_lets_them() -> None:
    def at(*words: str, numbers: tuple[str, ...] = ()) -> list[float]:
        return [split.exchange for split in made(32768, "skylake", (512,), *words, numbers=numbers).rows[0].splits]

    after, behind, few = at(), at("exchange_pieces=8"), at("exchange_pieces=2")
    assert all(left < all_ for left, all_ in zip(behind, after, strict=True))
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


# Batch, nodes, more words, machine's numbers, and the reason.
AGAINST = {
    "not divisible": (32768, 100, (), (), "leaves 168 samples over"),
    "less than a micro-batch": (32768, 848, ("micro_batch=16",), (), "leaves"),
    "small micro-batch": (32768, 64, ("micro_batch=4",), (), "4 samples at once are computed at 47% of the full rate"),
    "small share": (1024, 64, ("options.batch_norm=sync",), (), "8 samples at once are computed at 64% of the full rate"),
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


def test_plan_on_a_machine_prints_table_and_advice(cli: Cli) -> None:
    done = cli("plan", RESNET, "batch=32768", "--machine", "knl", "--nodes", "64,100,256")
    assert (done.returncode, done.stderr) == (0, "")
    plain = cli("plan", RESNET, "batch=32768").stdout
    assert done.stdout.startswith(plain)
    lines = done.stdout[len(plain) :].splitlines()
    assert lines[0].startswith("machine  knl: 2 ranks a node, 32 threads each; numbers of ")
    assert lines[1].startswith("exchange 102 MB a step, between nodes by Rabenseifner")
    lines = lines[1:]
    assert lines[2].split() == ["nodes", "a", "rank", "s", "a", "step", "compute", "jitter", "exchange", "update", "input"]
    assert [line.split()[0] for line in lines[3:5]] == ["64", "256"]
    assert "not on 100 nodes: batch 32768 over 100 nodes" in done.stdout
    assert "Efficiency: samples/s a node beside those of 64 nodes, also a forecast." in done.stdout
    assert lines[-3:][0] == "sensible: 64, 256 nodes"
    assert max(map(len, lines[2:8])) <= 130


def test_plan_on_a_machine_as_json(cli: Cli) -> None:
    done = cli("plan", RESNET, "batch=8192,32768", "out=anywhere", "--machine", "knl", "--nodes", "64,100", "--json")
    small, large = map(json.loads, done.stdout.splitlines())
    assert (small["batch"], large["batch"], large["machine"], large["efficiency_base_nodes"]) == (8192, 32768, "knl", 64)
    first, second = large["nodes"]
    assert (first["nodes"], first["against"], first["efficiency"]) == (64, [], 1)
    parts = first["step"]["likely"]
    assert parts["step"] == pytest.approx(sum(value for name, value in parts.items() if name != "step"))
    assert second["against"]
    assert "hours" not in second


def test_plan_changes_a_machine(cli: Cli) -> None:
    words = ("plan", RESNET, "batch=32768", "--machine", "skylake", "--nodes", "64", "--json")
    before, after = (
        json.loads(cli(*words, *more).stdout)["nodes"][0]
        for more in ((), ("--set", "charge=2", "--set", "performance.jitter.likely=0.04"))
    )
    assert after["units"]["best"] == 2 * before["units"]["best"]
    assert after["step"]["likely"]["jitter"] == pytest.approx(before["step"]["likely"]["jitter"] * 0.04 / 0.063)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--nodes", "4"], "--nodes: of which machine?"),
        (["--plot", "x.png"], "--plot: of which machine?"),
        (["--machine", "skylak"], "unknown machine 'skylak': did you mean skylake?"),
        (["--machine", "skylake", "--nodes", "4,x"], "--nodes 4,x: expected whole numbers with commas"),
        (["--machine", "skylake", "--nodes", "900"], "--nodes 900: machine skylake gives a job 1 to 868 nodes"),
        (["--machine", "skylake", "--nodes", "0"], "--nodes 0: machine skylake gives a job 1 to 868 nodes"),
        (["--machine", "gpu8"], "nobody has measured machine gpu8 yet"),
        (["--machine", "skylake", "--plot", "no/such/x.png"], "no/such/x.png: cannot be written"),
        (["--machine", "skylake", "--plot", "x.pdf"], "--plot x.pdf: a PNG is written"),
        (["--machine", "skylake", "--set", "charge=nan"], "charge must be finite and at least 0, not nan"),
        (["--noise", "nowhere"], "--noise nowhere: no run there, nowhere/log.jsonl is missing"),
        (["--machine", "skylake", "--nodes", "3", "--plot", "x.png"], "none of these numbers of nodes can train it"),
    ],
)  # fmt: skip
def test_plan_refuses_in_one_line(words: list[str], said: str, cli: Cli) -> None:
    done = cli("plan", RESNET, *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


OPTIONS = {
    "words": (RESNET, "options.classes=abc", "options.classes must be a whole number from 1 to 1,000,000,000, not 'abc'"),
    "no number": ("imagenet-resnet50", "options.classes=nan", "options.classes must be a whole number"),
    "negative": ("imagenet-resnet50", "options.classes=-5", "options.classes must be a whole number"),
    "a list": ("ptb-lstm", "options.hidden=[1]", "options.hidden must be a whole number"),
    "huge": ("ptb-lstm", "options.hidden=1e200", "options.hidden must be a whole number"),
    "for ever": ("imagenet-resnet50", "epochs=1e300", "epochs must be at most 1,000,000, not 1e+300"),
    "no batch": ("imagenet-resnet50", "batch=0", "batch must be at least 1, not 0"),
    "more threads than cores": ("imagenet-resnet50", "threads=999", "threads=999: 2 ranks share the 48 cores of a node"),
    "a twin": ("imagenet-resnet50", "twin=no-exchange", "twin=no-exchange is a measurement, there is nothing to forecast"),
    "another batch of a fixed point": ("imagenet-you-2017", "batch=8192", "its rates follow no rule: batch 8192 wants lr=..."),
}  # fmt: skip


@pytest.mark.parametrize(("recipe", "word", "said"), OPTIONS.values(), ids=OPTIONS)
def test_options_that_cannot_be_planned(recipe: str, word: str, said: str, cli: Cli) -> None:
    done = cli("plan", recipe, word, "--machine", "skylake", "--nodes", "64")
    assert said in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == (done.returncode == 2)


def test_explicit_values_take_the_place_of_a_rule() -> None:
    derived = derive(load("imagenet-you-2017", ["batch=8192", "lr=12.8", "warmup_epochs=5"]))
    assert (derived.scaled.lr, derived.scaled.warmup_epochs) == (12.8, 5)
    own = derive(load("imagenet-you-2017"))
    assert (own.scaled.lr, own.scaled.warmup_epochs) == (29, 5)


def test_a_machine_like_another_has_its_numbers(cli: Cli, tmp_path: Path) -> None:
    assert calibration.path_of("knl-stampede2", machines.load("knl-stampede2").like) == calibration.path_of("knl")
    (tmp_path / "mine.toml").write_text(
        (machines.MACHINES / "skylake.toml").read_text().replace("charge =", 'like = "skylake"\ncharge =')
    )
    done = cli("plan", RESNET, "batch=32768", "--machine", "mine.toml", "--nodes", "64")
    assert done.returncode == 0, done.stderr
    assert f"numbers of {calibration.path_of('skylake')}" in done.stdout


def test_an_update_takes_as_many_copies_as_it_has_pairs_of_passes() -> None:
    """Beside the record of this package's own solvers: SGD with momentum within 20 % of 6 passes, 3 copies of 102 MB."""
    copy, sgd = 17.3e-3, 49.2e-3  # benchmarks/results/avx2/lars_step.md
    speeds = dataclasses.replace(
        calibration.load("skylake").speeds(load(RESNET), machines.load("skylake"))["likely"], memory_per_s=102.2e6 / copy
    )
    assert step(Work(64, 32, 102.2e6, passes=6), 1, 2, speeds).update == pytest.approx(sgd, rel=0.2)


def test_plan_draws(cli: Cli, tmp_path: Path) -> None:
    done = cli("plan", RESNET, "batch=32768", "--machine", "knl", "--nodes", "64,100,256", "--plot", "x.png")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert done.stdout.endswith("plot     x.png\n")


def test_the_cells_of_a_grid_are_set_beside_one_another(cli: Cli, tmp_path: Path) -> None:
    words = ("batch=1024,32768", "epochs=90", "--machine", "skylake")
    done = cli("plan", RESNET, *words, "--nodes", "1,16,64", "--plot", "x.png")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    legend, heads, one, some, many, cheap, quick = done.stdout.partition("\nhours / node-hours")[2].splitlines()[:7]
    assert legend == ", likely; *: something speaks against it, above; -: it cannot run"
    assert heads.split() == ["nodes", "batch=1024", "batch=32768"]
    assert [line.split()[0] for line in (one, some, many)] == ["1", "16", "64"]
    assert one.count("*") == 2, "over the walltime"
    assert many.split()[1] == "-", "16 samples a node"
    small, large = (
        {row["nodes"]: row for row in json.loads(line)["nodes"]}
        for line in cli("plan", RESNET, *words, "--nodes", "1,16,64", "--json").stdout.splitlines()
    )
    hours = [row[16]["hours"]["likely"] for row in (small, large)]
    assert some.split()[1::3] == [f"{h:.3g}" for h in hours]
    assert cheap.startswith("cheapest: batch=32768 on 16 nodes")
    assert quick.startswith("quickest: batch=32768 on 64 nodes")


def test_the_exchange_tells_its_algorithm(cli: Cli) -> None:
    plan = ("plan", "imagenet-resnet50", "batch=3072", "--machine", "skylake", "--nodes")
    assert "exchange 102 MB a step, between nodes by Rabenseifner (" in cli(*plan, "4,8").stdout
    assert "between nodes by ring on 3, 12 nodes and Rabenseifner on 4 nodes (" in cli(*plan, "3,4,12").stdout
    assert "exchange 102 MB a step\n" in cli(*plan, "1").stdout


def test_cells_of_a_grid_are_those_of_a_sweep(cli: Cli) -> None:
    words = ["batch=1024,2048", "scheme=legw,linear"]
    lines = cli("plan", RESNET, *words, "--machine", "knl", "--json").stdout.splitlines()
    assert len(lines) == len(sweep.cells(RESNET, words)) == 4


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


def test_a_grid_needs_no_machine(cli: Cli) -> None:
    done = cli("plan", RESNET, "batch=4096,8192", "--json")
    assert [json.loads(line)["batch"] for line in done.stdout.splitlines()] == [4096, 8192]
