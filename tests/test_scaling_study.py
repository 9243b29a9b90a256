"""The scaling study: its points, what its page makes of logs, and a small one run to the end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import scaling_report, scaling_study
from benchmarks.scaling_report import Measured
from benchmarks.scaling_study import Point
from legw_hpc import local_runs, records, runlog
from legw_hpc.errors import InputError
from legw_hpc.grid import Cell
from legw_hpc.recipe import load
from tests.conftest import Cli


def test_points_share_a_batch_or_have_their_part_of_it() -> None:
    found = scaling_study.points(256, [(2, 1), (8, 4)], scaling_study.KINDS)
    assert found == [Point("strong", 2, 1, 256), Point("weak", 2, 1, 64), Point("strong", 8, 4, 256), Point("weak", 8, 4, 256)]
    with pytest.raises(InputError, match="batch 256 over 3 ranks leaves 1 samples over"):
        scaling_study.points(256, [(1, 0), (3, 0)], ["strong"])
    with pytest.raises(InputError, match="--share -4: samples of a rank"):
        scaling_study.points(256, [(1, 0)], ["weak"], share=-4)


def log(
    folder: Path, ranks: int, twin: str, rates: list[float], batch: int = 100, threads: int = 1,
    recipe: tuple[str, ...] = ("mnist-lstm-sample",), hardware: str = "a processor", **derived: int,
) -> None:  # fmt: skip
    """A run's log: a step a rate, four fifths of it compute and a fifth exchange."""
    trained = load(recipe[0], [*recipe[1:], f"batch={batch}", f"twin={twin}"])
    start: dict[str, Any] = {
        "event": "start", "time": 0, "recipe": trained.as_dict(), "ranks": ranks, "nodes": 1, "threads": threads,
        "derived": {"steps_per_epoch": 50, "batch": batch, "last_batch": batch} | derived,
        "comm": "horovod", "commit": "c", "versions": {"torch": "t"}, "hardware": hardware,
    }  # fmt: skip
    shares = {"compute": 0.8, "exchange": 0.2, "update": 0.0, "input": 0.0}
    steps = [{"event": "step", "step": i + 1, "samples_per_s": rate, **shares} for i, rate in enumerate(rates)]
    folder.mkdir(parents=True)
    lines = [start, *steps, {"event": "end", "status": "done", "steps": len(rates), "metrics": {}, "samples_per_s": 1.0}]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def measured(folder: Path) -> dict[tuple[int, str], Measured]:
    read = [record for path in sorted(folder.glob("*/*/log.jsonl")) if (record := records.read(path))]
    return {(one.ranks, one.twin): one for one in scaling_report.measured(read)}


def test_steps_of_all_runs_count_but_the_first_and_those_of_another_size(tmp_path: Path) -> None:
    warm = [1.0] * scaling_report.WARM
    log(tmp_path / "strong-1-ranks" / "a", 1, "none", [*warm, 100.0, 50.0], last_batch=7, steps_per_epoch=5)
    log(tmp_path / "strong-1-ranks" / "b", 1, "none", [*warm, 50.0, 10.0], last_batch=7, steps_per_epoch=5)
    (one,) = measured(tmp_path).values()
    assert one.seconds == (1.0, 2.0)
    assert one.rate == pytest.approx(200 / 3)  # all samples over all the time, not the mean of the rates
    assert one.parts == pytest.approx({"compute": 1.2, "exchange": 0.3, "update": 0.0, "input": 0.0})


def test_efficiency_is_a_ranks_rate_beside_the_smallest_points(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    warm = [1.0] * scaling_report.WARM
    for ranks, twin, rate in [(2, "none", 200.0), (8, "none", 600.0), (8, "no-exchange", 700.0)]:
        log(tmp_path / "weak-x" / f"{ranks}{twin}", ranks, twin, [*warm, *[rate] * 20], batch=50 * ranks)
    found = measured(tmp_path)
    assert scaling_report.efficiency(found[8, "none"], found[2, "none"]) == 0.75
    scaling_report.write(tmp_path)
    page = (tmp_path / "scaling.md").read_text()
    assert "Weak scaling; efficiency beside 2 ranks on 1 node:" in page
    assert (
        "| 1 | 8 | 400 | 1, 20 | 666.7 (666.7 to 666.7) | 600 | 0.75 (0.75 to 0.75) | 0.88 (0.88 to 0.88) |  | 533.33 |" in page
    )
    assert (tmp_path / "scaling.png").stat().st_size > 5000
    assert page in capsys.readouterr().out


def test_points_that_are_of_other_processors_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for ranks, hardware in ((1, "Intel A"), (2, "Intel B")):
        log(tmp_path / f"strong-{ranks}-ranks" / "a", ranks, "none", [100.0] * 9, hardware=hardware)
    scaling_report.write(tmp_path)
    assert "**Not all on the same hardware**: Intel A, Intel B." in capsys.readouterr().out


def test_the_interval_of_an_efficiency_has_it() -> None:
    steps = tuple(1.0 + 0.01 * (i % 7) for i in range(50))
    base, one = Measured("weak", 1, 1, 1, "none", steps, {}, 1, 1), Measured("weak", 1, 2, 2, "none", steps[::-1], {}, 1, 2)
    low, high = scaling_report.likely(one, base)
    assert scaling_report.efficiency(one, base) == pytest.approx(1.0)
    assert low < 1.0 < high
    assert 0.02 > high - low > 0.005
    assert scaling_report.likely(one, base) == (low, high)


def test_runs_that_differ_widen_the_interval() -> None:
    """Two runs, each even, one a tenth slower: no step tells, the runs do."""
    base = Measured("weak", 1, 1, 1, "none", (1.0,) * 40, {}, 1, 1)
    one = Measured("weak", 1, 2, 2, "none", (1.0,) * 20 + (1.1,) * 20, {}, 2, 2, (20, 20))
    assert scaling_report.likely(one, base) == pytest.approx((1 / 1.1, 1.0))


def test_points_of_as_many_ranks_on_other_nodes_are_rows_of_their_own(tmp_path: Path) -> None:
    warm = [1.0] * scaling_report.WARM
    for nodes, ranks in ((1, 1), (1, 2), (2, 2)):
        log(tmp_path / f"strong-{nodes}-{ranks}" / "a", ranks, "none", [*warm, *[100.0 * nodes] * 9])
        path = tmp_path / f"strong-{nodes}-{ranks}" / "a" / "log.jsonl"
        path.write_text(path.read_text().replace('"nodes": 1', f'"nodes": {nodes}'))
    scaling_report.write(tmp_path)
    rows = [line.split(" | ")[:2] for line in (tmp_path / "scaling.md").read_text().splitlines() if line.startswith("| ")]
    assert rows[1:4] == [["| 1", "1"], ["| 1", "2"], ["| 2", "2"]]


def test_the_interval_is_of_order_statistics() -> None:
    """Steps 41 to 61 of 100 have the median among them with 95.4 % (binomial(100, 1/2))."""
    steps = tuple(map(float, range(1, 101)))
    assert Measured("weak", 1, 1, 1, "none", steps, {}, 1, 1).interval == (41.0, 61.0)
    assert Measured("weak", 1, 1, 1, "none", steps[:5], {}, 1, 1).interval is None


def test_a_step_of_a_text_is_its_words(tmp_path: Path) -> None:
    log(tmp_path / "strong-x" / "a", 1, "none", [1.0] * scaling_report.WARM + [1000.0], recipe=("ptb-lstm", "data.window=20"))
    (one,) = measured(tmp_path).values()
    assert (one.seconds, one.rate) == ((2.0,), 1000.0)  # 100 rows of 20 words


DIFFERENT = {
    "precision": ({}, {"recipe": ("mnist-lstm-sample", "precision=bf16")}),
    "name": ({}, {"recipe": ("mnist-lstm",)}),
    "batch of strong points": ({}, {"batch": 200}),
    "threads a rank": ({}, {"threads": 2}),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_runs_that_do_not_belong_together_are_refused(what: str, tmp_path: Path) -> None:
    for name, about in zip("ab", DIFFERENT[what], strict=True):
        log(tmp_path / "strong-x" / name, 1, "none", [100.0] * 9, **about)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=f"differ in {what}"):
        scaling_report.write(tmp_path)


UNFINISHED = {
    "twins alone": [("weak", "no-exchange", [100.0] * 9)],
    "too few steps": [("strong", "none", [100.0] * scaling_report.WARM)],
    "no rate": [("strong", "none", [0.0] * 9)],
}


@pytest.mark.parametrize("what", UNFINISHED)
def test_what_cannot_be_told_yet_is_left_out(what: str, tmp_path: Path) -> None:
    for kind, twin, rates in UNFINISHED[what]:
        log(tmp_path / f"{kind}-x" / twin, 1, twin, rates)
    with pytest.raises(InputError, match="no run of a scaling study is finished"):
        scaling_report.write(tmp_path)
    log(tmp_path / "strong-y" / "whole", 2, "none", [100.0] * 9)
    scaling_report.write(tmp_path)
    assert "| 1 | 2 | 100 |" in (tmp_path / "scaling.md").read_text()


def test_the_kept_page_is_that_of_the_kept_logs(tmp_path: Path) -> None:
    kept = Path(__file__).parents[1] / "results" / "scaling" / "mnist-lstm"
    shutil.copytree(kept, tmp_path / "study")
    scaling_report.write(tmp_path / "study")
    assert (tmp_path / "study" / "scaling.md").read_text() == (kept / "scaling.md").read_text()


def test_a_study_from_start_to_page_and_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["mnist-lstm-sample", "batch=256", "--ranks", "1", "--kinds", "strong", "--steps", "5", "--repeats", "1"]
    assert scaling_study.main([*words, "--to", str(tmp_path)]) == 0
    assert "strong-1-ranks: batch 256, 3 runs to do" in capsys.readouterr().out
    logs = {line[0]["recipe"]["twin"]: line for path in tmp_path.glob("*/*") if (line := runlog.read(path))}
    assert set(logs) == {"none", "no-exchange", "synthetic"}
    for twin, lines in logs.items():
        assert [line["step"] for line in lines if line["event"] == "step"] == [1, 2, 3, 4, 5], twin
        assert not [line for line in lines if line["event"] == "eval"]
    losses = [line["loss"] for line in logs["synthetic"] if line["event"] == "step"]
    assert losses == sorted(losses, reverse=True)  # the same samples again and again: they are learnt
    assert scaling_study.main([*words, "--to", str(tmp_path)]) == 0
    assert "0 runs to do" in capsys.readouterr().out


def test_all_points_are_measured_once_and_then_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that slows down meanwhile does so for all of them."""
    order: list[tuple[int, int, str]] = []

    def train(cells: list[Cell], folder: Path, ranks: int, jobs: int, say: object) -> None:
        for cell in cells:
            recipe = cell.derived.recipe
            order.append((ranks, recipe.seed, recipe.twin))
            log(folder / cell.name, ranks, recipe.twin, [100.0] * 9, 256)
            path = folder / cell.name / "log.jsonl"
            start = json.loads(path.read_text().splitlines()[0]) | {"recipe": recipe.as_dict()}
            path.write_text("\n".join([json.dumps(start), *path.read_text().splitlines()[1:]]) + "\n")

    monkeypatch.setattr(local_runs, "train", train)
    words = ["mnist-lstm-sample", "batch=256", "--ranks", "1,2", "--kinds", "strong", "--steps", "9", "--repeats", "2"]
    assert scaling_study.main([*words, "--to", str(tmp_path)]) == 0
    assert [(ranks, seed) for ranks, seed, _ in order[::3]] == [(1, 1), (2, 1), (1, 2), (2, 2)]
    assert {twin for *_, twin in order[:3]} == {"none", "no-exchange", "synthetic"}


def test_on_a_cluster_a_point_is_a_job_array(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["mnist-lstm-sample", "--machine", "localhost", "--nodes", "2,1,2", "--to", str(tmp_path), "--dry-run"]
    words += ["--partition", "short", "batch=256"]
    assert scaling_study.main(words) == 0
    scripts = capfd.readouterr().out
    assert scripts.count("#SBATCH --array=") == 4
    assert "weak-1-nodes-1-ranks" in scripts
    assert "weak-2-nodes-2-ranks" in scripts
    assert scripts.count("twin=no-exchange") == 4 * 3
    assert scripts.count("#SBATCH --partition=short") == 4
    assert (scripts.count(" batch=256 "), scripts.count(" batch=128 ")) == (27, 9)
    assert scaling_study.main([*words, "--kinds", "weak", "--share", "16", "--set", "ranks=2", "--set", "spare_cores=0"]) == 0
    scripts = capfd.readouterr().out
    assert "weak-2-nodes-4-ranks" in scripts
    assert (scripts.count(" batch=32 "), scripts.count(" batch=64 ")) == (9, 9)


def test_a_study_that_a_machine_is_too_small_for_submits_none(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["mnist-lstm-sample", "--machine", "localhost", "--nodes", "1,1,8", "--kinds", "strong", "--to", str(tmp_path / "s")]
    assert scaling_study.main([*words, "batch=256", "--set", "nodes=4"]) == 2
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "legw-hpc: --nodes 8: machine localhost gives a job 1 to 4 nodes",
        "scaling_study: strong-8-nodes-8-ranks cannot be submitted",
    ]
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--nodes", "1,2,4"], "--nodes=1,2,4: only with --machine"),
        (["--time", "01:00:00"], "--time=01:00:00: only with --machine"),
        (["--machine", "localhost", "--ranks", "1"], "--ranks=1: machine localhost has its own"),
    ],
)
def test_what_is_of_a_machine_trains_nothing_here(words: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        scaling_study.main(["mnist-lstm-sample", *words])
    assert (end.value.code, named in capsys.readouterr().err) == (2, True)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["mnist-lstm-sample", "--ranks", "1,x"], "1,x"),
        (["mnist-lstm-sample", "--ranks", "0"], "0"),
        (["mnist-lstm-sample", "--ranks", "²"], "²: expected numbers such as 1,2,4"),
        (["mnist-lstm-sample", "--kinds", "weka"], "weka"),
        (["mnist-lstm-sample", "--ranks", "3", "batch=256"], "leaves 1"),
        (["mnist-lstm-sampel"], "mnist-lstm-sample"),
        (["mnist-lstm", "--draw"], "no run of a scaling study"),
    ],
)
def test_refused_in_one_line(words: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert scaling_study.main([*words, "--to", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line


def test_a_twin_without_exchange_is_refused_where_every_layer_exchanges(cli: Cli) -> None:
    said = cli("plan", "cifar10-resnet20", "twin=no-exchange", "options.batch_norm=sync")
    assert (said.returncode, "batch_norm=sync exchanges in every layer" in said.stderr) == (2, True)


def test_one_rank_without_exchange_is_the_run_itself(cli: Cli, arguments: list[str], tmp_path: Path) -> None:
    for twin in ("none", "no-exchange"):
        assert cli("train", *arguments, f"twin={twin}", f"out={twin}", "max_steps=3").returncode == 0
    one, other = (torch.load(max((tmp_path / out / "checkpoints").glob("*.pt")), weights_only=True)["model"]
                  for out in ("none", "no-exchange"))  # fmt: skip
    assert all(torch.equal(one[name], other[name]) for name in one)
