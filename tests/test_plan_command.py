"""legw-hpc plan on the command line: what it prints, draws and refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from legw_hpc import sweep
from legw_hpc.plan import calibration
from legw_hpc.submit import machine as machines
from tests.conftest import Cli

RESNET = "imagenet-resnet50"


def test_plan_on_a_machine_prints_table_and_advice(cli: Cli) -> None:
    done = cli("plan", RESNET, "batch=32768", "--machine", "knl", "--nodes", "64,100,256")
    assert (done.returncode, done.stderr) == (0, "")
    plain = cli("plan", RESNET, "batch=32768").stdout
    assert done.stdout.startswith(plain)
    lines = done.stdout[len(plain) :].splitlines()
    assert lines[0].startswith("machine  knl: 2 ranks a node, 32 threads each; numbers of ")
    assert lines.pop(1).startswith("assumed  memory (")
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
        for more in ((), ("--set", "charge=2", "--set", "performance.jitter.likely=0.05"))
    )
    assert after["units"]["best"] == 2 * before["units"]["best"]
    assert after["step"]["likely"]["jitter"] == pytest.approx(before["step"]["likely"]["jitter"] * 0.05 / 0.0675)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--nodes", "4"], "--nodes: of which machine?"),
        (["--plot", "x.png"], "--plot: of which machine?"),
        (["--machine", "skylak"], "unknown machine 'skylak': did you mean skylake?"),
        (["--machine", "skylake", "--nodes", "4,x"], "--nodes 4,x: expected whole numbers with commas"),
        (["--machine", "skylake", "--nodes", "9" * 5000], "expected whole numbers with commas"),
        (["--machine", "skylake", "options.size=64"], "in fp32 with options.label_smoothing=0.1, options.size=64"),
        (["--machine", "skylake", "options.sise=64"], "application resnet50 has no option 'sise': it takes classes, "),
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


def test_what_is_assumed_is_told(cli: Cli) -> None:
    """And an assumed network is no reason to take several nodes."""
    words = ("plan", RESNET, "batch=8192", "--machine")
    told = cli(*words, "skylake", "--nodes", "1,64").stdout
    assert "assumed  memory (alpha_us, gb_per_s, add_gb_per_s, copy_gb_per_s), start_s, start_s_per_node\n" in told
    more = cli(*words, "skylake", "--nodes", "64", "exchange_pieces=8", "--set", "performance.overlap.source=assumed").stdout
    assert "start_s_per_node, overlap\n" in more
    networks = [f"performance.network.{field}.source=assumed: as memory" for field in ("alpha_us", "gb_per_s")]
    said = cli(*words, "skylake", "--nodes", "16,64", *(word for network in networks for word in ("--set", network))).stdout
    assert "not on 64 nodes: the network's numbers are assumed: calibrate on two nodes or more" in said
    assert "sensible: none of these" in said
    fewer = cli(*words, "skylake", "--nodes", "64", "--set", "spare_cores=20").stdout
    assert "note     the rates are those of 2 x 22 threads a node" in fewer
    assert "note " not in told


def test_a_case_of_which_no_job_comes_to_train_has_no_end(cli: Cli) -> None:
    words = ("plan", RESNET, "batch=32768", "--machine", "knl", "--set", "walltime=00:05:00", "--nodes", "64")
    done = cli(*words)
    assert re.search(r"^ +64 .* [\d.]+ \([\d.]+ to no end\) ", done.stdout, re.M), done.stdout
    assert "not on 64 nodes: " in done.stdout
    assert "a job of 00:05:00 may be over before it has started to train" in done.stdout
    (row,) = json.loads(cli(*words, "--json").stdout)["nodes"]
    assert (row["hours"]["best"] > 1, row["hours"]["worst"], row["node_hours"]["worst"]) == (True, None, None)


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
    "another batch of a fixed point": ("imagenet-you-2017", "batch=8192", "the rates follow no rule: batch 8192 wants lr=..."),
}  # fmt: skip


@pytest.mark.parametrize(("recipe", "word", "said"), OPTIONS.values(), ids=OPTIONS)
def test_options_that_cannot_be_planned(recipe: str, word: str, said: str, cli: Cli) -> None:
    done = cli("plan", recipe, word, "--machine", "skylake", "--nodes", "64")
    assert said in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == (done.returncode == 2)


def test_a_machine_like_another_has_its_numbers(cli: Cli, tmp_path: Path) -> None:
    assert calibration.path_of("knl-stampede2", machines.load("knl-stampede2").like) == calibration.path_of("knl")
    (tmp_path / "mine.toml").write_text(
        (machines.MACHINES / "skylake.toml").read_text().replace("charge =", 'like = "skylake"\ncharge =')
    )
    done = cli("plan", RESNET, "batch=32768", "--machine", "mine.toml", "--nodes", "64")
    assert done.returncode == 0, done.stderr
    assert f"numbers of {calibration.path_of('skylake')}" in done.stdout


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
    legend, epochs, heads, one, some, many, cheap, quick = done.stdout.partition("\nhours / node-hours")[2].splitlines()[:8]
    assert legend == ", likely; *: something speaks against it, above; -: it cannot run"
    assert epochs.startswith("each for the epochs it has; ")
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


def test_a_grid_needs_no_machine(cli: Cli) -> None:
    done = cli("plan", RESNET, "batch=4096,8192", "--json")
    assert [json.loads(line)["batch"] for line in done.stdout.splitlines()] == [4096, 8192]


def test_a_run_that_stops_earlier_says_so(cli: Cli) -> None:
    said = cli("plan", "mnist-lstm", "max_steps=10", "batch=8192").stdout
    assert "200 in all, max_steps=10 of them\n" in said
