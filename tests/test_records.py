"""Logs of runs: found by what they say, what counts as finished, and what is kept of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from legw_hpc.derived import Derived, derive
from legw_hpc.errors import InputError
from legw_hpc.grid import cells
from legw_hpc.optim import SOLVERS
from legw_hpc.recipe import load
from legw_hpc.records import MOMENTUM, Records, keep, read
from legw_hpc.sweep import missing


def log(path: Path, words: list[str], accuracy: float | None, steps: int | None = None, **start: Any) -> Derived:
    """A run's log, as the trainer writes it but for its numbers."""
    derived = derive(load("mnist-lstm", words))
    path.parent.mkdir(parents=True, exist_ok=True)
    ended = {
        "event": "end",
        "time": 9.0,
        "status": "done",
        "metrics": {"accuracy": accuracy},
        "samples_per_s": 10.0,
        "seconds": 1,
    }
    if accuracy is None:
        ended = {"event": "end", "time": 9.0, "status": "diverged", "message": "at step 3"}
    lines = [
        {"event": "start", "time": 1e9, "recipe": derived.recipe.as_dict(), "commit": "abc", "ranks": 2} | start,
        {"event": "step", "step": 1, "loss": 2.3},
        {"event": "curvature", "step": 1, "L": 0.123456},
        {"event": "curvature", "step": 2, "L": 2.5},
        {"event": "eval", "step": 1, "epoch": 1.0, "accuracy": 50.0},
        ended | {"steps": derived.last if steps is None else steps},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return derived


def test_a_log_is_found_by_its_recipe_whatever_it_is_called(tmp_path: Path) -> None:
    derived = log(tmp_path / "deep" / "anything.jsonl", ["batch=512", "threads=1"], 98.0)
    (tmp_path / "other.jsonl").write_text('{"a": 1}\n[2]\n')
    (tmp_path / "empty.jsonl").write_text("")
    records = Records(tmp_path, tmp_path / "nowhere")
    assert records.of(derive(load("mnist-lstm", ["batch=512"]))) is not None
    assert records.of(derive(load("mnist-lstm", ["batch=512", "seed=2"]))) is None
    assert records.of(derive(load("mnist-lstm", ["batch=512", "baseline.lr=0.2"]))) is None
    assert list(records.seeds(derived)) == [1]


def test_logs_of_older_versions_lack_keys(tmp_path: Path) -> None:
    derived = log(tmp_path / "a.jsonl", ["batch=512"], 98.0)
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    for key in ("options", "precision", "curvature_every", "input_threads", "stall_minutes"):
        del lines[0]["recipe"][key]
    del lines[0]["recipe"]["data"]["window"]
    lines[0]["recipe"]["solvers"] = {}
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert Records(tmp_path).of(derived) is not None


def test_the_momentum_that_older_logs_do_not_name_is_the_solvers() -> None:
    import inspect

    (value,) = MOMENTUM.values()
    assert inspect.signature(SOLVERS["momentum"]).parameters["momentum"].default == value


def test_a_log_of_an_unknown_key_is_refused(tmp_path: Path) -> None:
    log(tmp_path / "a.jsonl", [], 98.0, recipe={"name": "x", "from_the_future": 1})
    with pytest.raises(InputError, match=r"a\.jsonl.*from_the_future"):
        Records(tmp_path)


@pytest.mark.parametrize(("accuracy", "steps", "ended"), [(98.0, None, True), (None, 3, True), (98.0, 3, False)])
def test_what_counts_as_finished(accuracy: float | None, steps: int | None, ended: bool, tmp_path: Path) -> None:
    log(tmp_path / "r" / "log.jsonl", ["batch=512"], accuracy, steps)
    grid = cells("mnist-lstm", ["batch=512,1024"])
    assert missing(grid, tmp_path) == grid[1 if ended else 0 :]


BROKEN = {
    "no status": ({"event": "end"}, "no status and no message"),
    "no metrics": ({"event": "end", "status": "done", "steps": 3}, "no metrics and no samples_per_s"),
}


@pytest.mark.parametrize(("end", "said"), BROKEN.values(), ids=BROKEN)
def test_a_log_whose_end_is_no_result_is_refused(end: dict[str, Any], said: str, tmp_path: Path) -> None:
    log(tmp_path / "a.jsonl", [], 98.0)
    *lines, _ = (tmp_path / "a.jsonl").read_text().splitlines()
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, json.dumps(end)]) + "\n")
    with pytest.raises(InputError, match=rf"a\.jsonl.*{said}"):
        Records(tmp_path)


def kept(path: Path, overrides: list[str], accuracy: float | None, to: Path) -> Path:
    log(path, overrides, accuracy)
    record = read(path)
    assert record is not None
    return keep(record, to)


def test_a_kept_log_is_replaced_by_its_like_alone(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    whole = kept(tmp_path / "a.jsonl", [], 98.0, logs)
    parts = {kept(tmp_path / f"{n}.jsonl", [f"max_steps={n}"], 60.0, logs) for n in (10, 20)}
    assert len({whole, *parts}) == 3  # runs of other lengths lie beside it
    assert kept(tmp_path / "again.jsonl", [], 98.0, logs) == whole
    for accuracy in (97.0, None):  # None: diverged
        with pytest.raises(InputError, match=r"-s1-\w+\.jsonl: another result of this run is there; it stays"):
            kept(tmp_path / "other.jsonl", [], accuracy, logs)
    assert '"accuracy": 98.0' in whole.read_text()


def test_kept_logs_say_the_same_without_the_steps(tmp_path: Path) -> None:
    derived = log(tmp_path / "r" / "log.jsonl", ["batch=512"], 98.0)
    record = read(tmp_path / "r" / "log.jsonl")
    assert record is not None
    path = keep(record, tmp_path / "kept")
    copy = read(path)
    assert copy is not None
    assert path.stem == load("mnist-lstm", ["batch=512"]).run_name()
    assert "loss" not in path.read_text()
    assert copy.row(derived) | {"log": ""} == record.row(derived) | {"log": ""}
    assert copy.row(derived)["commit"] == "abc"
    assert copy.row(derived)["started"] == "2001-09-09 01:46 UTC"
    assert copy.curvature() == ([1, 2], [0.1235, 2.5])
    assert keep(copy, tmp_path / "again").read_text() == path.read_text()


def test_a_run_that_has_not_ended_is_not_kept(tmp_path: Path) -> None:
    log(tmp_path / "log.jsonl", ["batch=512"], 98.0, steps=3)
    record = read(tmp_path / "log.jsonl")
    assert record is not None
    with pytest.raises(InputError, match="has not ended"):
        keep(record, tmp_path / "kept")
