"""What the benchmarks conclude from their measurements: ratios, tables, and whether something has become slower."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as program
from benchmarks import check, measure, report
from benchmarks.measure import Case, Goal

Line = dict[str, Any]


def ratio(value: float, goal: str = "ours / theirs", benchmark: str = "step", rounds: list[float] | None = None) -> Line:
    """Records of before rounds were kept have none."""
    line = {"benchmark": benchmark, "goal": goal, "ratio": value, "at_least": 2.0, "note": ""}
    return line if rounds is None else line | {"rounds": rounds}


def limit(value: float) -> Line:
    return {"benchmark": "step", "goal": "% that waits", "value": value, "at_most": 2.0, "note": ""}


CASE: Line = {"benchmark": "step", "case": "ours", "median": 3.0}

# What is recorded, what is found, the lines, and how many of them fail.
COMPARISONS: dict[str, tuple[list[Line], list[Line], list[str], int]] = {
    "the same": ([CASE, ratio(2)], [CASE, ratio(2)], ["step: ours / theirs: 2.00, recorded 2.00: 0% more"], 0),
    "faster": ([ratio(2)], [ratio(3)], ["step: ours / theirs: 3.00, recorded 2.00: 50% more"], 0),
    "a little slower": ([ratio(2)], [ratio(1.72)], ["step: ours / theirs: 1.72, recorded 2.00: 14% less"], 0),
    "too slow": ([ratio(2)], [ratio(1.68)], ["step: ours / theirs: 1.68, recorded 2.00: 16% less, TOO SLOW"], 1),
    "too slow, in every round": (
        [ratio(2, rounds=[1.7, 2, 3])],
        [ratio(1.6, rounds=[1.5, 1.6, 1.69])],
        ["step: ours / theirs: 1.60, recorded 2.00: 20% less, TOO SLOW"],
        1,
    ),
    "slower, in rounds as some of the recorded": (
        [ratio(2, rounds=[1.7, 2, 3])],
        [ratio(1.6, rounds=[1.5, 1.6, 1.7])],
        ["step: ours / theirs: 1.60, recorded 2.00: 20% less, but the rounds overlap"],
        0,
    ),
    "too slow, beside a record without rounds": (
        [ratio(2)],
        [ratio(1.6, rounds=[1.5, 1.6, 2.1])],
        ["step: ours / theirs: 1.60, recorded 2.00: 20% less, TOO SLOW"],
        1,
    ),
    "no record": ([CASE], [CASE, ratio(1)], ["step: ours / theirs: 1.00, no record"], 0),
    "not measured": ([ratio(2)], [CASE], ["step: ours / theirs: not measured, recorded 2.00, FAILED"], 1),
    "within the limit": ([limit(0.4)], [limit(1.9)], ["step: % that waits: 1.90, recorded 0.40, limit 2"], 0),
    "beyond the limit": ([limit(0.4)], [limit(2.1)], ["step: % that waits: 2.10, recorded 0.40, limit 2, TOO LARGE"], 1),
    "no further beyond it": ([limit(3.0)], [limit(3.3)], ["step: % that waits: 3.30, recorded 3.00, limit 2"], 0),
    "further beyond it": ([limit(3.0)], [limit(3.5)], ["step: % that waits: 3.50, recorded 3.00, limit 2, TOO LARGE"], 1),
    "each by its benchmark": (
        [ratio(2), ratio(4, benchmark="other")],
        [ratio(1, benchmark="other"), ratio(2)],
        ["other: ours / theirs: 1.00, recorded 4.00: 75% less, TOO SLOW", "step: ours / theirs: 2.00, recorded 2.00: 0% more"],
        1,
    ),
    "nothing": ([], [], [], 0),
}


@pytest.mark.parametrize(("recorded", "found", "lines", "failures"), COMPARISONS.values(), ids=COMPARISONS)
def test_a_loss_of_more_than_15_percent_fails(recorded: list[Line], found: list[Line], lines: list[str], failures: int) -> None:
    compared = check.compare(recorded, found)
    assert [str(one) for one in compared] == lines
    assert sum(one.failed for one in compared) == failures


def nothing() -> None:
    """What a case runs that is not measured."""


@pytest.mark.parametrize(
    ("ours", "theirs", "work", "wanted"),
    [
        ([1.0, 1.0, 1.0], [2.0, 2.0, 2.0], (0, 0), 2.0),
        ([1.0, 10.0, 2.0], [3.0, 30.0, 6.0], (0, 0), 3.0),  # a machine that drifts: each round for itself
        ([1.0, 1.0, 1.0], [2.0, 3.0, 400.0], (0, 0), 3.0),  # the median over the rounds
        ([1.0], [1.0], (100, 50), 2.0),  # twice the work in the same time
        ([2.0], [1.0], (100, 50), 1.0),
    ],
)
def test_a_goal_is_judged_round_by_round(
    ours: list[float], theirs: list[float], work: tuple[float, float], wanted: float
) -> None:
    cases = [Case("ours", nothing, work[0]), Case("theirs", nothing, work[1])]
    judged = measure._judged(Goal("ours", "theirs", 1.5, "why"), {"ours": ours, "theirs": theirs}, cases)
    rounds = judged.pop("rounds")
    assert rounds == sorted(rounds)
    assert len(rounds) == len(ours)
    assert judged == {"goal": "ours / theirs", "ratio": pytest.approx(wanted), "at_least": 1.5, "note": "why"}


ROW: Line = {
    "benchmark": "step", "case": "ours", "unit": "samples/s", "n": 7, "median": 12345.6, "quartiles": [9.8765, 23456.7],
    "quick": False, "ranks": 2, "threads": 1, "oversubscribed": False, "command": "python -m benchmarks.step",
    "commit": "abc", "hardware": "a processor, 2 cores", "versions": {"torch": "2.13.0", "horovod": None}, "time": "then",
}  # fmt: skip


@pytest.mark.parametrize(
    ("ratio_", "note", "said"),
    [
        (2.0, "", "| ours / theirs | 2 | ≥ 2 | reached |"),
        (1.99, "why", "| ours / theirs | 1.99 | ≥ 2 | not reached; why |"),
    ],
)
def test_a_table_shows_cases_goals_notes_and_where_it_was_measured(ratio_: float, note: str, said: str) -> None:
    lines = report.table("step", "a question", [ROW], [ratio(ratio_) | {"note": note}], ["a note"]).splitlines()
    assert lines[0] == "# step: a question"
    assert "| ours | 12,346 samples/s | 9.877 to 23,457 | 7 |" in lines
    assert said in lines
    assert "a note  " in lines
    assert lines[-1].startswith("`python -m benchmarks.step`, then, commit abc; a processor, 2 cores; 2 ranks x 1 threads;")
    assert "oversubscribed" not in lines[-1]
    assert "threads, oversubscribed;" in report.table("step", "", [ROW | {"oversubscribed": True}], [], [])


# rounds -> what is said of a goal of 2
VERDICTS = {
    "all above": ([2.1, 2.2, 2.3], "| 2.2 (2.1 to 2.3) | ≥ 2 | reached |"),
    "all below": ([1.1, 1.2, 1.3], "| 1.2 (1.1 to 1.3) | ≥ 2 | not reached |"),
    "on both sides": ([1.9, 2.2, 2.3], "| 2.2 (1.9 to 2.3) | ≥ 2 | not decided |"),
    "many, all but a few above": ([1.0, *[2.0 + i / 100 for i in range(1, 20)]], "| 2.09 (2.05 to 2.14) | ≥ 2 | reached |"),
    "nine, one of them aside on either side": (
        [1.0, *[2.0 + i / 10 for i in range(7)], 9.0],
        "| 2.3 (2 to 2.6) | ≥ 2 | reached |",
    ),
    "eight, all of them": ([1.0, *[2.0 + i / 10 for i in range(7)]], "| 2.25 (1 to 2.6) | ≥ 2 | not decided |"),
    "one": ([2.5], "| 2.5 | ≥ 2 | reached |"),
}


@pytest.mark.parametrize("name", VERDICTS)
def test_rounds_decide_a_goal(name: str) -> None:
    rounds, said = VERDICTS[name]
    goal = ratio(statistics.median(rounds)) | {"rounds": rounds, "note": ""}
    assert said in report.table("step", "a question", [ROW], [goal], [])


def test_the_benchmarks_are_found_and_their_goals_listed(tmp_path: Path) -> None:
    names = program.names()
    assert {"mnist_step", "shards", "jpeg", "growth"} <= set(names)
    assert not {"measure", "check", "__main__", "ours", "peer", "scaling_study", "scaling_report"} & set(names)
    limit = {"benchmark": "step", "goal": "% that waits", "value": 0.4, "at_most": 2.0, "note": ""}
    lines = (CASE, ratio(2.5), ratio(1, "a / b"), limit)
    (tmp_path / "step.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert program.goals(tmp_path, "step") == [
        "ours / theirs is 2.5, goal at least 2: reached",
        "a / b is 1, goal at least 2: not reached",
        "% that waits is 0.4, goal at most 2: reached",
    ]


def test_a_benchmark_that_fails_is_named_and_the_others_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "benchmarks"
    here.mkdir()
    (here / "__init__.py").touch()
    (here / "bad.py").write_text("raise SystemExit(3)\n")
    (here / "slow.py").write_text("import time\ntime.sleep(60)\n")
    good = "import pathlib, sys\nto = pathlib.Path(sys.argv[2])\n(to / 'good.jsonl').touch()\n(to / 'good.md').touch()\n"
    (here / "good.py").write_text(good)
    monkeypatch.setattr(program, "HERE", here)
    monkeypatch.setattr(program, "QUICK_LIMIT", 3)
    monkeypatch.setattr(program, "GRACE", 0.1)
    failed = program.run(["bad", "slow", "good"], tmp_path, quick=True)
    assert failed == ["bad: exit code 3", "slow: not done after 3 s"]
    assert (tmp_path / "good.jsonl").exists()


@pytest.mark.parametrize(
    ("found", "faults", "code", "words"),
    [
        (1.9, [], 0, "1 figures: 0 lost more than 15% in rounds that do not overlap, their limit, or all; 0 benchmarks failed"),
        (1.5, [], 1, "jpeg: ours / theirs: 1.50, recorded 2.00: 25% less, TOO SLOW"),
        (
            2.0,
            ["jpeg: exit code 1"],
            1,
            "1 figures: 0 lost more than 15% in rounds that do not overlap, their limit, or all; 1 benchmarks failed",
        ),
    ],
)
def test_the_check_ends_with_1_if_anything_is_slower_or_failed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    found: float,
    faults: list[str],
    code: int,
    words: str,
) -> None:
    def write(value: float, to: Path) -> None:
        (to / "jpeg.jsonl").write_text(json.dumps(ratio(value, benchmark="jpeg")) + "\n")

    def run(which: list[str], to: Path, quick: bool) -> list[str]:
        assert (which, quick) == (["jpeg"], True)
        write(found, to)
        return faults

    monkeypatch.setattr(check, "run", run)
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["check", "jpeg"])
    with pytest.raises(SystemExit, match=f"{measure.kind()}/quick has no record of this kind of processor"):
        check.main()
    kept = measure.results(quick=True)
    kept.mkdir(parents=True)
    write(2.0, kept)
    with pytest.raises(SystemExit) as end:
        check.main()
    assert end.value.code == code
    assert words in capsys.readouterr().out
