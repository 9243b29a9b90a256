"""The paper's figures: what they are made of, what their pages say, and that the kept pages are those of the kept logs."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from legw_hpc.errors import InputError
from legw_hpc.grid import Cell
from legw_hpc.paper import command, distance, pages, studies
from legw_hpc.paper.studies import FIGURES, Study
from legw_hpc.places import Place, Spread, learnt
from legw_hpc.recipe import load
from legw_hpc.records import Records
from tests.conftest import Cli

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"

# (figure, application) -> runs of one seed
COUNTS = {
    ("figure1", "mnist"): 14, ("figure1", "ptb"): 12, ("figure1", "ptb-paper"): 12, ("figure1", "imagenet"): 12,
    ("figure3", "mnist"): 21, ("figure3", "ptb"): 18, ("figure4", "mnist"): 35, ("figure5", "mnist"): 14, ("figure5", "ptb"): 12,
    ("figure5", "ptb-paper"): 12, ("figure6", "mnist"): 9, ("figure6", "ptb"): 6, ("figure6", "ptb-paper"): 6,
    ("figure7", "mnist"): 9, ("figure7", "ptb"): 6, ("figure7", "ptb-paper"): 6, ("table1", "imagenet"): 6,
    ("table1", "cifar"): 6, ("others", "mnist"): 8,
    ("others", "cifar-hoffer"): 2, ("others", "small"): 12, ("others", "small-nesterov"): 8,
}  # fmt: skip


def grid(figure: str, application: str) -> list[Cell]:
    return [cell for line in FIGURES[figure].studies[application].grid(application).values() for cell in line]


def test_every_figure_is_there_and_can_be_trained() -> None:
    assert list(FIGURES) == [*(f"figure{i}" for i in range(1, 8)), "table1", "others"]
    found = {(figure, name): len(grid(figure, name)) for figure in FIGURES for name in FIGURES[figure].studies}
    assert {key: count for key, count in found.items() if key[1] != studies.QUICK} == COUNTS


def test_figures_share_their_runs() -> None:
    names = {figure: {cell.name for cell in grid(figure, "mnist")} for figure in FIGURES if "mnist" in FIGURES[figure].studies}
    assert len(names["figure1"] & names["figure5"]) == 7  # LEGW
    assert len(names["figure4"] & names["figure5"]) == 7  # Adam
    assert len(names["others"] & names["figure6"]) == 1  # LEGW at 8,192, in fp32
    every = command._cells(list(FIGURES), ["mnist"], 1)
    assert len(every) == len({cell.name for cell in every}) == 14 + 21 + 35 + 0 + 8 + 9 + 8  # the last in fp32


def test_the_ranges_of_the_papers_comprehensive_tuning_are_searched() -> None:
    """0.01 to 0.16 for MNIST; 0.1 to 1.6 for PTB, of a loss summed over a window of 20 words."""
    rates = {name: {cell.derived.scaled.lr for cell in grid("figure6", name)} for name in ("mnist", "ptb")}
    assert {0.01, 0.02, 0.04, 0.08, 0.16} <= rates["mnist"]
    assert {round(20 * rate, 6) for rate in (0.1, 0.2, 0.4, 0.8, 1.6)} <= rates["ptb"]


def test_the_stretched_decay_of_figure_7_is_that_of_13_epochs() -> None:
    for name, hold in (("ptb", 4), ("ptb-paper", 7)):
        short, long = grid("figure1", name)[0].derived, grid("figure7", name)[1].derived
        decay = long.recipe.decays["exponential"]
        assert decay["hold_epochs"] / long.recipe.epochs == pytest.approx(hold / short.recipe.epochs, rel=1e-4)
        assert decay["factor"] ** long.recipe.epochs == pytest.approx(0.5**short.recipe.epochs, rel=1e-3)


# words, quick -> figures, applications
CHOSEN = [
    ([], False, (9, ["mnist", "ptb", "ptb-paper", "cifar", "cifar-hoffer", "small", "small-nesterov"])),
    (["figure1", "mnist"], False, (1, ["mnist"])),
    (["ptb", "figure5", "figure1"], False, (2, ["ptb"])),
    (["table1", "imagenet"], False, (1, ["imagenet"])),  # it is trained where it is named alone
    (["figure3"], True, (1, ["sample"])),
]


@pytest.mark.parametrize(("words", "quick", "expected"), CHOSEN)
def test_what_is_chosen(words: list[str], quick: bool, expected: tuple[int, list[str]]) -> None:
    figures, applications = command._chosen(words, quick)
    assert (len(figures), applications) == expected


@pytest.mark.parametrize(
    ("words", "quick", "said"),
    [
        (["figur1"], False, "figure1"),
        (["mnist"], True, "--quick"),
        (["x"], False, "ptb"),
        (["figure4", "ptb"], False, "figure4 is not of ptb: it has mnist"),
        (["others"], True, "others has nothing to try on the packaged sample"),
    ],
)
def test_what_is_not(words: list[str], quick: bool, said: str) -> None:
    with pytest.raises(InputError, match=said):
        command._chosen(words, quick)


def run(cell: Cell, path: Path, accuracy: float) -> None:
    """A log of a run that was never made, with a number to recognise."""
    recipe = cell.derived.recipe.as_dict() | {"out": "/secret/place"}
    told = {"commit": "abc", "ranks": 2, "command": "legw-hpc train mnist-lstm out=/secret/place batch=8"}
    start = {"event": "start", "time": 1e9, "recipe": recipe} | told
    measured = [{"event": "curvature", "step": i, "L": 10.0 - abs(i - 20) / 2.1} for i in range(1, 41)]
    end = {
        "event": "end",
        "status": "done",
        "metrics": {"accuracy": accuracy},
        "steps": cell.derived.last,
        "seconds": 90.0,
        "samples_per_s": 1.0,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in [start, *measured, end]))


def test_a_page_says_what_is_there_and_what_is_missing(tmp_path: Path) -> None:
    legw = FIGURES["figure1"].studies["mnist"].grid("mnist", seeds=3)["LEGW"]
    for i, cell in enumerate(legw[:4]):  # three seeds at 128, one at 256
        run(cell, tmp_path / "logs" / f"{i}.jsonl", 90.0 + i)
    text = pages.page("figure1", Records(tmp_path), tmp_path)
    assert "| 128 | 91.00 ± 1.00 (3) | missing |" in text
    assert "| 256 | 93.00 | missing |" in text
    assert "paper, batch 128: 98.8" in text
    assert "2 of 14 places have been run" in text
    assert "## ptb\n\nNot run: 0 of 12; `legw-hpc figures figure1 ptb --commands` prints" in text
    assert text.count("[log](logs/") == 4
    assert "| LEGW | 256 | 0.1414 | 0.4 | 1 | 93.00 | 1.5 | 2 | `abc` | 2001-09-09 01:46 UTC |" in text
    assert text.count("`legw-hpc train mnist-lstm batch=8`") == 4  # as it was typed, but for the folder
    assert (tmp_path / "figure1-mnist.png").read_bytes()[:4] == b"\x89PNG"
    assert not (tmp_path / "figure1-ptb.png").exists()


@pytest.mark.parametrize(
    ("values", "metric", "told"),
    [
        ((98.1, 11.35, 98.5), "accuracy", "98.30 ± 0.28 (2), 1 of 3 not learnt"),
        ((10.1, 11.3), "accuracy", "10.70 ± 0.85 (2)"),
        ((98.1, 98.5), "accuracy", "98.30 ± 0.28 (2)"),
        ((98.0, 11.0), "perplexity", "54.50 ± 61.52 (2)"),
    ],
)
def test_seeds_that_have_not_learnt_are_told_apart(values: tuple[float, ...], metric: str, told: str) -> None:
    assert str(learnt(Spread(values), metric)) == told


def test_a_page_of_curvature_has_peaks_and_the_slope(tmp_path: Path) -> None:
    for i, cell in enumerate(FIGURES["figure3"].studies["mnist"].grid("mnist")["sqrt"][:4]):
        run(cell, tmp_path / f"{i}.jsonl", 90.0)
    text = pages.page("figure3", Records(tmp_path), tmp_path)
    # At one step whatever the batch: in epochs in proportion to it, as the paper claims.
    assert re.search(r"\| sqrt \| 128 \| 1 \| 9\.\d+ \| \d+ \| (18|19|20|21|22) \| 0\.0[34]\d+ \|", text)
    assert re.search(r"sqrt: .* goes as batch to the power 1\.00 \(95 %: (0\.99|1\.00) to 1\.0[01]\), of 4 peaks[,.]", text)
    assert "legw: not run." in text
    assert (tmp_path / "figure3-mnist.png").exists()


def test_table_1_is_the_papers(tmp_path: Path) -> None:
    text = pages.page("table1", Records(tmp_path), tmp_path)
    assert "| 32,768 | 2^5 | 2^5 | 10 | 10 | 40 | 3,600 | 93.18 | missing |" in text
    rows = re.findall(r"^\| [\d,]+ \| (2\^[\d.]+) \| (2\^[\d.]+) \| ([\d.]+) \| ([\d.]+) \|", text, re.M)
    assert len(rows) == 6
    assert all(row[0] == row[1] and row[2] == row[3] for row in rows)


def test_the_pages_in_results_are_those_of_the_logs_in_results(tmp_path: Path) -> None:
    """`make results` changes no number."""
    kept = [path for path in RESULTS.glob("*.md") if path.stem in FIGURES]
    assert {"figure2.md", "table1.md"} <= {path.name for path in kept}
    for path in kept:
        text = pages.page(path.stem, Records(RESULTS), tmp_path)
        text = re.sub(r"\[log\]\([^)]*\)", "", text)
        assert re.sub(r"\[log\]\([^)]*\)", "", path.read_text()) == text, "run `make results`"
    assert (RESULTS / command.INDEX).read_text() == pages.index(Records(RESULTS), RESULTS), "run `make results`"


def test_kept_logs_name_no_place_of_a_machine() -> None:
    for path in (RESULTS / command.LOGS).glob("*.jsonl"):
        assert not re.search(r'[" =]/\w', path.read_text()), path


# --- as commands ------------------------------------------------------------------------------


def test_commands_of_what_is_missing(cli: Cli, tmp_path: Path) -> None:
    first = FIGURES["figure1"].studies["mnist"].grid("mnist")["LEGW"][0]
    run(first, tmp_path / "elsewhere" / "log.jsonl", 98.0)
    words = ["figures", "figure1", "figure5", "mnist", "--commands"]
    assert len(cli(*words).stdout.splitlines()) == 21
    kept = cli("keep", "elsewhere")
    assert kept.returncode == 0, kept.stderr
    assert "/secret" not in (tmp_path / "results" / "logs" / f"{first.name}.jsonl").read_text()
    lines = cli(*words).stdout.splitlines()
    assert len(lines) == 20
    assert lines[0] == (
        "legw-hpc train mnist-lstm scheme=legw precision=bf16 batch=256 seed=1 out=runs/figures/mnist-lstm-momentum-legw-b256-s1-"
        + lines[0][-8:]
    )
    assert cli("keep", "nowhere").returncode == 2
    _, _, recipe, *typed = shlex.split(cli(*words, "--runs", "r{x}").stdout.splitlines()[0])
    assert load(recipe, typed).out_folder().parent == Path("r{x}")


def test_the_folder_of_a_sweep_is_kept(cli: Cli, tmp_path: Path) -> None:
    """With its table, its results and its jobs in it, one run that has not ended, and one of another result."""
    first, second, third, fourth, *_ = FIGURES["figure1"].studies["mnist"].grid("mnist")["LEGW"]
    for cell in (first, second, third, fourth):
        run(cell, tmp_path / "s" / cell.name / "log.jsonl", 98.0)
    assert cli("keep", f"s/{fourth.name}").returncode == 0
    log = tmp_path / "s" / third.name / "log.jsonl"
    log.write_text("".join(line + "\n" for line in log.read_text().splitlines()[:-1]))
    run(fourth, tmp_path / "s" / fourth.name / "log.jsonl", 97.0)
    (tmp_path / "s" / "jobs").mkdir()
    (tmp_path / "s" / "quality.png").write_bytes(b"\x89PNG")
    (tmp_path / "s" / "results.jsonl").write_text('{"batch": 128}\n')
    done = cli("keep", *(f"s/{path.name}" for path in sorted((tmp_path / "s").iterdir())))
    assert (done.returncode, done.stdout.count("results/logs/")) == (2, 2)
    assert "this run has not ended" in done.stderr
    assert "another result of this run is there" in done.stderr
    assert done.stderr.endswith("legw-hpc: 2 of 4 could not be kept, as told above\n")
    assert cli("keep", "s/jobs", "s/quality.png").stderr == "legw-hpc: s/jobs: not the log of a run\n"


def test_a_figure_from_nothing_to_its_page(cli: Cli, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained, kept, drawn; then from the kept logs alone."""
    tiny = f"data.dir={shards} data.train_samples=300 epochs=2 baseline.warmup_epochs=0 threads=1"
    study = Study({"LEGW": f"{tiny} batch=64,128"})
    monkeypatch.setitem(FIGURES, "figure1", studies.Figure("Figure 1: x", {studies.QUICK: study}))
    done = cli("figures", "figure1", "--quick")
    assert done.returncode == 0, done.stderr
    assert "figure1: sample 2 of 2" in done.stdout
    page = (tmp_path / "runs/quick/figure1.md").read_text()
    assert "2 of 2 places have been run" in page
    logs = sorted((tmp_path / "runs/quick/logs").iterdir())
    assert len(logs) == 2
    (tmp_path / "alone/logs").mkdir(parents=True)
    for log in logs:
        log.rename(tmp_path / "alone/logs" / log.name)
    again = cli("figures", "figure1", "--quick", "--draw", "--to", "alone", "--runs", "nothing")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "alone/figure1.md").read_text() == page
    # What has been trained but not kept is kept, not trained again.
    anew = cli("figures", "figure1", "--quick", "--to", "anew")
    assert "[" not in anew.stdout
    assert len(list((tmp_path / "anew/logs").iterdir())) == 2


def test_curvature_as_a_command(cli: Cli, arguments: list[str], tmp_path: Path) -> None:
    done = cli("curvature", *arguments, "epochs=6", "--every", "2")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^L\(x, g\)  measured at 12 of 23 steps, 5\.75 epochs$", done.stdout, re.M)
    assert re.search(r"^peak     ", done.stdout, re.M)
    folder = tmp_path / "runs/curvature-mnist-lstm-momentum-legw-b96-s1"
    assert (folder / "curvature.png").exists()
    again = cli("curvature", *arguments, "epochs=6", "--every", "2", "--draw")
    assert again.stdout == "".join(line + "\n" for line in done.stdout.splitlines()[-len(again.stdout.splitlines()) :])
    assert "no run here" in cli("curvature", *arguments, "out=nowhere", "--draw").stderr
    for option in ("--every", "--ranks"):
        assert f"{option} 0: at least 1" in cli("curvature", *arguments, option, "0").stderr
    other = cli("curvature", *arguments, "epochs=6", "baseline.lr=0.4", "--draw")
    assert (other.returncode, other.stdout) == (2, "")
    assert other.stderr.rstrip().endswith("the run there has other values of baseline.lr")


def test_legw_beside_its_baseline_is_of_the_seeds_that_have_learnt(tmp_path: Path) -> None:
    legw = FIGURES["figure1"].studies["mnist"].grid("mnist", seeds=3)["LEGW"]
    for i, (cell, accuracy) in enumerate(zip([legw[0], *legw[3:6]], [99.0, 98.0, 98.4, 10.1], strict=True)):
        run(cell, tmp_path / f"{i}.jsonl", accuracy)
    line = pages.found(FIGURES["figure1"].studies["mnist"], "mnist", Records(tmp_path))["LEGW"]
    assert distance.rows(line, "accuracy")[0][-1] == "98.20 ± 0.28 (2), 1 of 3 not learnt"


def test_legw_beside_its_baseline_at_an_equal_sum_of_rates(tmp_path: Path) -> None:
    """A log whose accuracy is the sum of the rates so far is found again at the sums of the larger batches."""
    legw = FIGURES["figure1"].studies["mnist"].grid("mnist")["LEGW"]
    base, large, *_, last = legw
    assert distance.rows([Place(base.derived, ()), Place(large.derived, ())], "accuracy") == []
    run(base, tmp_path / "base.jsonl", 99.0)
    first, *_, end = (tmp_path / "base.jsonl").read_text().splitlines()
    steps = [469 * epoch for epoch in range(1, 26)]
    evals = [{"event": "eval", "step": step, "epoch": step / 469, "accuracy": base.derived.lr_sum(step)} for step in steps]
    (tmp_path / "base.jsonl").write_text("\n".join([first, *map(json.dumps, evals), end]) + "\n")
    run(large, tmp_path / "large.jsonl", 98.0)
    run(last, tmp_path / "last.jsonl", 97.0)
    records = Records(tmp_path)
    line = pages.found(FIGURES["figure1"].studies["mnist"], "mnist", records)["LEGW"]
    rows = distance.rows(line, "accuracy")
    sums = [cell.derived.lr_sum() for cell in (large, last)]
    assert [row[0] for row in rows] == ["256", "8,192"]
    assert [row[4] for row in rows] == [f"{total:.2f}" for total in sums]
    assert [row[5] for row in rows] == ["98.00", "97.00"]
    assert float(rows[1][2]) == pytest.approx(1 / 8, abs=0.03)  # 1 / sqrt(k), less for the longer warmup
