"""Tables of kept logs in pages that are written by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from legw_hpc.errors import InputError
from legw_hpc.grid import cells
from legw_hpc.paper.tables import redrawn

RESULTS = Path(__file__).parents[1] / "results"


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """Two runs that were never made, of 3 epochs; of the second the first evaluation is missing."""
    for i, cell in enumerate(cells("mnist-lstm", ["batch=128,512", "epochs=3", "baseline.warmup_epochs=0"])):
        start = {"event": "start", "time": 1e9, "recipe": cell.derived.recipe.as_dict(), "ranks": 2}
        steps = cell.derived.steps_per_epoch
        events = [{"event": "curvature", "step": s, "L": 10.0 - abs(s - 20) / 2} for s in range(1, 41)]
        for epoch in (1, 2, 3)[i:]:
            events.append({"event": "eval", "step": epoch * steps, "epoch": float(epoch), "accuracy": 90.0 + 10 * i + epoch})
        metrics = {"accuracy": events[-1]["accuracy"]}
        end = {"event": "end", "status": "done", "metrics": metrics, "steps": 3 * steps, "samples_per_s": 1.0}
        (tmp_path / f"{'ab'[i]}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [start, *events, end]))
    return tmp_path


RUNS = "# Page\n\nText.\n\n<!-- runs: {columns}\na.jsonl\nb.jsonl\n-->\n"

# columns -> head, the row of either log
COLUMNS = [
    ("batch; ranks", "| batch | ranks |", ["| 128 | 2 |", "| 512 | 2 |"]),
    ("the rate = lr; baseline.lr", "| the rate | baseline.lr |", ["| 0.1 | 0.1 |", "| 0.2 | 0.1 |"]),
    ("accuracy; a = accuracy@1", "| accuracy | a |", ["| 93.00 | 91.00 |", "| 103.00 |  |"]),
    ("accuracy@last2:.1f", "| accuracy@last2 |", ["| 92.5 |", "| 102.5 |"]),
    ("w = 1 = precision; log", "| w = 1 | log |", ["| fp32 | [log](a.jsonl) |", "| fp32 | [log](b.jsonl) |"]),
]


@pytest.mark.parametrize(("columns", "head", "rows"), COLUMNS)
def test_a_row_a_log(logs: Path, columns: str, head: str, rows: list[str]) -> None:
    text = RUNS.format(columns=columns) + "\nMore.\n"
    page = redrawn(text, logs, "page.md")
    assert page.startswith(text.partition("-->")[0])
    assert page.endswith(" |\n\nMore.\n")
    made = [line for line in page.splitlines() if line.startswith("|")]
    assert [made[0], *made[2:]] == [head, *rows]
    assert redrawn(page, logs, "page.md") == page  # once more changes nothing


def test_the_peak_of_the_curvature(logs: Path) -> None:
    page = redrawn(RUNS.format(columns="peak; peak_step; peak_epoch:.4f; half_epoch"), logs, "page.md")
    value, step, epoch, half = map(float, page.splitlines()[-2].strip("| ").split(" | "))
    assert value == pytest.approx(9.5, abs=0.5)
    assert 18 <= step <= 22
    assert epoch == pytest.approx((step - 1) / 469, abs=1e-4)  # L is that before the step
    assert half == pytest.approx(30 / 469, abs=2 / 469)


def test_a_row_an_epoch_with_columns_of_each_log(logs: Path) -> None:
    text = "<!-- epochs: 1-3\na.jsonl: lr at its end = lr; accuracy\nb.jsonl: at 512, seed 1 = accuracy\n-->\n"
    made = [line for line in redrawn(text, logs, "page.md").splitlines() if line.startswith("|")]
    assert made[0] == "| epoch | lr at its end | accuracy | at 512, seed 1 |"
    assert made[2:] == ["| 1 | 0.1 | 91.00 |  |", "| 2 | 0.1 | 92.00 | 102.00 |", "| 3 | 0.1 | 93.00 | 103.00 |"]
    some = redrawn(text.replace("1-3", "1, 3"), logs, "page.md")
    assert [line[:5] for line in some.splitlines() if line.startswith("|")][2:] == ["| 1 |", "| 3 |"]


def test_a_table_that_no_longer_holds_is_made_anew(logs: Path) -> None:
    page = redrawn(RUNS.format(columns="accuracy"), logs, "page.md")
    assert redrawn(page.replace("93.00", "99.00"), logs, "page.md") == page


WRONG = [
    ("accuracy", "c.jsonl", "c.jsonl: no log of a run"),
    ("acuracy", "a.jsonl", "no acuracy in a.jsonl: there are accuracy"),
    ("baseline.rate", "a.jsonl", "no baseline.rate"),
    ("accuracy@x", "a.jsonl", "could not convert"),
]


@pytest.mark.parametrize(("columns", "log", "said"), WRONG)
def test_what_a_log_does_not_have(logs: Path, columns: str, log: str, said: str) -> None:
    with pytest.raises(InputError, match=r"page\.md: <!-- runs: .*" + said):
        redrawn(f"<!-- runs: {columns}\n{log}\n-->\n", logs, "page.md")


def test_the_tables_in_results_are_those_of_the_logs_in_results() -> None:
    """`make results` changes no number."""
    with_tables = 0
    for path in RESULTS.glob("*.md"):
        text = path.read_text()
        with_tables += redrawn(text, RESULTS, path.name) == text and "\n<!-- " in text
        assert redrawn(text, RESULTS, path.name) == text, f"{path.name}: run `make results`"
    assert with_tables >= 4
