"""Grids: what is a cell, what stands in the table, and what a sweep trains."""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest

from legw_hpc.errors import InputError
from legw_hpc.grid import cells
from legw_hpc.places import Spread, places
from legw_hpc.recipe import load
from legw_hpc.records import Records
from legw_hpc.submit import record
from legw_hpc.sweep import markdown
from tests.conftest import Cli
from tests.test_records import log

# --- cells ------------------------------------------------------------------------------------

# words -> the values of the varied keys, in order
GRIDS: dict[str, tuple[list[str], list[tuple[Any, ...]]]] = {
    "the last varies fastest": (
        ["batch=128,256", "scheme=legw,linear"],
        [(128, "legw", 1), (128, "linear", 1), (256, "legw", 1), (256, "linear", 1)],
    ),
    "seeds from the recipe's on": (["seeds=3"], [(128, "legw", 1), (128, "legw", 2), (128, "legw", 3)]),
    "seeds from a given one on": (["seed=5", "seeds=2"], [(128, "legw", 5), (128, "legw", 6)]),
    "one seed": (["seeds=1"], [(128, "legw", 1)]),
    "a list is one value": (["decay=multi-step", "decays.multi-step.milestones=[10,20]"], [(128, "legw", 1)]),
}


@pytest.mark.parametrize("name", GRIDS)
def test_grids(name: str) -> None:
    words, expected = GRIDS[name]
    recipes = [cell.derived.recipe for cell in cells("mnist-lstm", words)]
    assert [(recipe.batch, recipe.scheme, recipe.seed) for recipe in recipes] == expected


# words -> what the one line says
BAD = [
    (["seeds=0"], "seeds=0"),
    (["seeds=2.5"], "seeds=2.5"),
    (["seeds=²"], "seeds=²: how many, a whole number from 1 to 10,000"),
    (["seeds=99999999"], "seeds=99999999: how many"),
    (["seeds=" + "9" * 5000], "seeds=9{20}: how many"),
    (["seed=1,2", "seeds=2"], "seed"),
    (["batch=128,128"], "twice"),
    (["batch=128,512", "lr=1", "batch=256"], "batch is given twice: batch=128,512 batch=256"),
    (["seeds=3", "seeds=2"], "seeds is given twice"),
    (["max_steps=50,100"], "differ in max_steps=50,100 alone are one run, in one folder"),
    (["batch=128,256", "out=x"], "--to"),
    (["batch=128,99999"], "99999"),
]


@pytest.mark.parametrize(("words", "said"), BAD, ids=lambda value: str(value))
def test_bad_grids(words: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        cells("mnist-lstm", words)


def test_a_cell_has_one_folder_whichever_grid_it_is_of() -> None:
    grids = (["batch=8192"], ["batch=128,8192"], ["scheme=linear,legw", "batch=8192"], ["threads=1", "batch=8192", "seeds=3"])
    found = [{cell.name for cell in cells("mnist-lstm", words)} for words in grids]
    assert set.intersection(*found) == found[0]


# What makes another run, and what does not.
SAME = ["threads=1", "micro_batch=16", "max_steps=3", "data.dir=elsewhere", "solvers.adam.beta1=0.5", "decays.poly.power=3"]
OTHER = [
    "seed=2", "epochs=24", "baseline.lr=0.2", "lr=0.1", "solvers.momentum.momentum=0.8", "curvature_every=1", "eval_every=5",
]  # fmt: skip


def test_a_name_tells_runs_apart() -> None:
    name = load("mnist-lstm").run_name()
    assert {load("mnist-lstm", [word]).run_name() for word in SAME} == {name}
    others = [load("mnist-lstm", [word]).run_name() for word in OTHER]
    assert len({name, *others}) == 1 + len(OTHER)
    first, again = (load("mnist-lstm", [f"start={start}"]).run_name() for start in ("runs/first", "./runs//first/"))
    assert first == again != name


# --- spread -----------------------------------------------------------------------------------

SPREADS = [
    (Spread((98.1,)), "98.10"),
    (Spread((98.0, 98.2, 98.4)), "98.20 ± 0.20 (3)"),
    (Spread((), 1), "diverged"),
    (Spread((), 3), "3 of 3 diverged"),
    (Spread((98.1,), 2), "98.10, 2 of 3 diverged"),
    (Spread(()), "missing"),
    (Spread((), unscored=2), "not evaluated"),  # evaluate=false
]


@pytest.mark.parametrize(("spread", "text"), SPREADS)
def test_spreads(spread: Spread, text: str) -> None:
    assert str(spread) == text
    if len(spread.values) > 1:
        assert spread.deviation == pytest.approx(statistics.stdev(spread.values))


# --- table ------------------------------------------------------------------------------------


def test_the_table_has_mean_and_spread_and_what_varies(tmp_path: Path) -> None:
    words = ["batch=128,512", "solver=momentum,adam", "seeds=2"]
    for i, cell in enumerate(cells("mnist-lstm", words)[:-1]):
        log(tmp_path / f"{i}.jsonl", list(cell.overrides), None if i == 1 else 90.0 + i)
    table = markdown(places(cells("mnist-lstm", words), Records(tmp_path))).splitlines()
    assert table[0] == "| scheme | solver | batch | k | lr | warmup epochs | accuracy | samples/s |"
    assert [[cell.strip() for cell in line.split("|")[2:8:1]] for line in table[2:]] == [
        ["momentum", "128", "1", "0.1", "0.2", "90.00, 1 of 2 diverged"],
        ["adam", "128", "1", "0.1", "0.2", "92.50 ± 0.71 (2)"],
        ["momentum", "512", "4", "0.2", "0.8", "94.50 ± 0.71 (2)"],
        ["adam", "512", "4", "0.2", "0.8", "96.00"],
    ]
    every = places(cells("mnist-lstm", ["batch=128"]), Records(tmp_path), every_seed=True)
    assert len(every[0].records) == 2


# --- as a command -----------------------------------------------------------------------------


def logs(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("log.jsonl")}


def test_a_sweep_skips_what_is_finished(cli: Cli, grid: list[str], tmp_path: Path) -> None:
    words = [*grid, "batch=32,96", "scheme=legw,linear", "--to", "s"]
    first = cli(*words)
    assert first.returncode == 0, first.stderr
    table = (tmp_path / "s" / "table.md").read_text()
    assert len(table.splitlines()) == 2 + 4
    assert (tmp_path / "s" / "quality.png").read_bytes()[:4] == b"\x89PNG"
    rows = [json.loads(line) for line in (tmp_path / "s" / "results.jsonl").read_text().splitlines()]
    assert [(row["batch"], row["scheme"], row["status"]) for row in rows] == [
        (32, "legw", "done"), (32, "linear", "done"), (96, "legw", "done"), (96, "linear", "done"),
    ]  # fmt: skip
    assert all(row["metrics"]["accuracy"] > 0 and row["command"].startswith("legw-hpc train mnist-lstm") for row in rows)
    before = logs(tmp_path / "s")
    assert len(before) == 4
    assert table in cli(*words).stdout
    # Another grid with some of the same cells, side by side, and three seeds of one.
    shutil.rmtree(next(path.parent for path in before if "linear-b96" in str(path)))
    more = cli(
        *grid,
        "batch=96",
        "scheme=legw,linear",
        "seeds=2",
        "--to",
        "s",
        "--jobs",
        "2" if len(os.sched_getaffinity(0)) > 1 else "1",
    )
    assert more.returncode == 0, more.stderr
    after = logs(tmp_path / "s")
    assert len(after) == 6
    assert before.items() - after.items() == {item for item in before.items() if "linear-b96" in str(item[0])}
    assert "(2)" in (tmp_path / "s" / "table.md").read_text()


def test_a_sweep_shows_its_own_cells_alone(cli: Cli, grid: list[str], tmp_path: Path) -> None:
    assert cli(*grid, "batch=96", "max_steps=2", "--to", "s").returncode == 0
    assert cli(*grid, "batch=96", "max_steps=2", "baseline.lr=0.9", "--to", "s").returncode == 0
    (row,) = (tmp_path / "s" / "results.jsonl").read_text().splitlines()
    told = json.loads(row)
    assert told["lr"] == pytest.approx(0.9 * (96 / 128) ** 0.5)
    assert (told["steps"], told["planned_steps"], told["settings"]["baseline.lr"]) == (2, 24, 0.9)
    assert len(logs(tmp_path / "s")) == 2


def test_a_diverged_cell_does_not_stop_a_sweep(cli: Cli, grid: list[str], tmp_path: Path) -> None:
    done = cli(*grid, "batch=96", "lr=1e30,0.1", "--to", "s")
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "s" / "table.md").read_text()
    assert table.count("diverged") == 1
    assert json.dumps(0.1) in table
    rows = [json.loads(line) for line in (tmp_path / "s" / "results.jsonl").read_text().splitlines()]
    assert [(row["status"], row["settings"]["lr"], "diverged_at" in row) for row in rows] == [
        ("diverged", 1e30, True), ("done", 0.1, False),
    ]  # fmt: skip
    assert 1 <= rows[0]["diverged_at"] < rows[0]["planned_steps"]


def test_a_cell_that_fails_is_told_and_does_not_stop_a_sweep(cli: Cli, grid: list[str], tmp_path: Path) -> None:
    words = [word for word in grid if not word.startswith("data.train_samples")]
    done = cli(*words, "batch=96", "max_steps=2", "data.train_samples=299,300", "--to", "s")
    assert done.returncode == 2
    assert re.search(r"^legw-hpc: cell .* ended with exit code 2: .*300 training samples, .* 299$", done.stderr, re.M)
    assert "legw-hpc: 1 of 2 cells failed" in done.stderr
    assert len((tmp_path / "s" / "results.jsonl").read_text().splitlines()) == 1
    assert (tmp_path / "s" / "table.md").read_text().count("| missing |") == 1


def test_data_that_are_not_here_are_told_once_and_nothing_starts(cli: Cli, grid: list[str], tmp_path: Path) -> None:
    done = cli(*grid, "data.dir=nowhere", "batch=32,96", "seeds=2", "--to", "s")
    assert (done.returncode, done.stdout) == (2, "0 of 4 cells are finished\n")
    assert done.stderr.splitlines() == [
        "legw-hpc: nowhere/index.json: not found (no such folder); `legw-hpc data` makes shards",
        "legw-hpc: 4 of 4 cells cannot be trained, as told above",
    ]
    assert not (tmp_path / "s").exists()


def test_a_result_of_other_data_is_told(cli: Cli, grid: list[str], tmp_path: Path) -> None:
    words = [*grid, "batch=96", "max_steps=2", "--to", "s"]
    assert "other data" not in cli(*words).stderr
    (path,) = logs(tmp_path / "s")
    assert "other data" not in cli(*words).stderr
    path.write_text(re.sub(r'"data": "[0-9a-f]{64}"', '"data": "other"', path.read_text()))
    done = cli(*words)
    assert done.returncode == 0
    assert re.search(r"^note: 1 that count are of other data, or of other shards, than .*log\.jsonl \.\.\.$", done.stderr, re.M)


def test_an_option_that_a_run_would_refuse_starts_none(cli: Cli, grid: list[str], tmp_path: Path) -> None:
    done = cli(*grid, "batch=96", "options.hiden=8,16", "--to", "s")
    assert (done.returncode, done.stdout) == (2, "0 of 2 cells are finished\n")
    assert "application mnist-lstm has no option 'hiden': it takes init, dropout" in done.stderr
    assert not (tmp_path / "s").exists()


def test_a_longer_run_is_not_the_one_asked_for(cli: Cli, grid: list[str], tmp_path: Path) -> None:
    words = [*grid, "batch=96", "--to", "s"]
    assert cli(*words, "max_steps=3").returncode == 0
    assert cli(*words, "max_steps=2", "--draw").stdout == "0 of 1 cells are finished\n"
    done = cli(*words, "max_steps=2", "seeds=2")  # the other is trained
    assert (done.returncode, "the run there is longer than 2 steps: another --to\n" in done.stderr) == (2, True)
    assert "1 of 2 cells are finished" in done.stdout
    assert done.stderr.endswith("legw-hpc: 1 of 2 cells cannot be trained, as told above\n")
    unknown = cli(*words, "max_steps=3", "data.dir=nowhere", "--draw")
    assert "note: whether 1 that count are of these data is not known: " in unknown.stderr


@pytest.mark.parametrize(
    "option", ["--dry-run", "--nodes=4", "--time=01:00:00", "--account=a1", "--chain=2", "--at-once=2", "--set=ranks=2"]
)
def test_what_is_of_a_machine_trains_nothing_here(option: str, cli: Cli, grid: list[str], tmp_path: Path) -> None:
    done = cli(*grid, "batch=96", "--to", "s", option)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{option.partition('=')[0]}: on which machine?" in done.stderr
    assert not (tmp_path / "s").exists()


def test_a_drawing_runs_nothing(cli: Cli, grid: list[str], tmp_path: Path) -> None:
    done = cli(*grid, "batch=32,96", "--to", "s", "--draw")
    assert (done.returncode, done.stdout) == (0, "0 of 2 cells are finished\n")
    assert not (tmp_path / "s").exists()


def test_a_machine_gets_what_is_missing(cli: Cli, tmp_path: Path) -> None:
    log(tmp_path / "s" / "r" / "log.jsonl", ["batch=1024"], 98.0)
    words = ["sweep", "mnist-lstm", "batch=1024,2048", "seeds=2", "--to", "s", "--machine", "skylake"]
    assert "--nodes" in cli(*words).stderr
    assert "--draw alone" in cli(*words, "--nodes", "4", "--draw").stderr
    assert "--jobs is of runs here" in cli(*words, "--nodes", "4", "--jobs", "2").stderr
    assert "--set ranks=..." in cli(*words, "--nodes", "4", "--ranks", "2").stderr
    assert "--at-once -1: at least 1 task" in cli(*words, "--nodes", "4", "--at-once", "-1").stderr
    charged = cli(*words, "--nodes", "4", "--dry-run", "--account", "a1", "--set", "ranks=2", "--chain=3", "--at-once=2").stdout
    assert {"#SBATCH --account=a1", "#SBATCH --ntasks-per-node=2", "#SBATCH --array=0-2%2"} <= set(charged.splitlines())
    assert " chain=3\n" in charged
    done = cli(*words, "--nodes", "4", "--dry-run")
    assert done.returncode == 0, done.stderr
    tasks = [line for line in done.stdout.splitlines() if "set -- mnist-lstm" in line]
    assert [[word for word in line.split() if word.startswith(("batch", "seed"))] for line in tasks] == [
        ["batch=1024", "seed=2"], ["batch=2048", "seed=1"], ["batch=2048", "seed=2"],
    ]  # fmt: skip


def test_a_machine_gets_no_cell_that_has_a_job(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One waits, one has ended without a result, one is trained by a process, and of one the scheduler knows nothing."""
    words = ["batch=1024,2048,4096,8192"]
    waits, ended, trained, forgotten = (cell.name for cell in cells("mnist-lstm", words))
    (tmp_path / "s/jobs").mkdir(parents=True)
    record.add(tmp_path / "s/jobs", "slurm", "20", [waits, ended, forgotten])
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/sacct").write_text('#!/bin/bash\necho "20_0|PENDING"; echo "20_1|FAILED"\n')
    (tmp_path / "bin/sacct").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "s" / trained).mkdir()
    (tmp_path / "s" / trained / "owner.json").write_text("{}")
    command = ["sweep", "mnist-lstm", *words, "--to", "s", "--machine", "skylake", "--nodes", "4", "--dry-run"]
    done = cli(*command)
    assert done.returncode == 0, done.stderr
    assert sorted(set(re.findall(r"out=s/([\w-]+)", done.stdout))) == sorted([ended, forgotten])
    note = f"2 of 4 are left out, being trained or queued: {waits} (job 20_0: PENDING), {trained} (it gives signs of life)"
    assert note in done.stderr
    every = cli(*["batch=1024,4096" if word == words[0] else word for word in command])
    assert (every.returncode, "every cell that is not finished is being trained, or queued" in every.stderr) == (2, True)


@pytest.mark.parametrize("command", [["sweep"], ["submit", "--array"]], ids=" ".join)
@pytest.mark.parametrize("recipe", ["mnist-lstm", "ptb-lstm"])
def test_a_recipe_has_a_folder_of_its_own(command: list[str], recipe: str, cli: Cli) -> None:
    done = cli(*command, recipe, "batch=256,512", "--machine", "skylake", "--nodes", "2", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"out=runs/sweep/{recipe}/") == 2


def test_what_makes_no_other_run_is_named() -> None:
    with pytest.raises(InputError, match=r"cell twice.*; runs that differ in threads=1,2 alone are one run"):
        cells("mnist-lstm", ["batch=128,256", "threads=1,2"])
    with pytest.raises(InputError, match=r"cell twice: batch=128,128$"):
        cells("mnist-lstm", ["batch=128,128"])
    assert len(cells("mnist-lstm", ["threads=1,2"], runs=False)) == 2
    for words in (["seeds=3", "seed=5"], ["seed=5", "seeds=3"]):
        assert [cell.overrides for cell in cells("mnist-lstm", words)] == [("seed=5",), ("seed=6",), ("seed=7",)]
