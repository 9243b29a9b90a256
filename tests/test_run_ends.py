"""How runs end: with a result, as diverged, or without one, to be gone on with."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from legw_hpc import records, run, runlog
from legw_hpc.errors import InputError
from legw_hpc.recipe import load
from tests.conftest import Cli


def test_a_run_that_went_on_is_told_by_its_last_command(
    cli: Cli, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("max_steps=4", "max_steps=8"):
        monkeypatch.setattr(runlog, "command", lambda limit=limit: f"legw-hpc train {limit}")
        assert cli("train", *arguments, "out=r", limit).returncode == 0
    found = records.read(tmp_path / "r" / "log.jsonl")
    assert found is not None
    assert (found.recipe.max_steps, found.steps) == (8, 8)
    assert found.command == "legw-hpc train max_steps=8"
    assert "step 8 of 8" in cli("status", "r").stdout
    kept = records.keep(found, tmp_path / "kept")
    again = records.read(kept)
    assert again is not None
    assert again.recipe.max_steps == 8


def test_a_checkpoint_that_is_past_the_last_step_is_refused(cli: Cli, arguments: list[str], tmp_path: Path) -> None:
    """Its weights would be scored as those of an earlier step."""
    assert cli("train", *arguments, "out=r", "max_steps=11").returncode == 0
    unfinished(tmp_path / "r")
    before = (tmp_path / "r" / "log.jsonl").read_bytes()
    refused = cli("train", *arguments, "out=r", "max_steps=5")
    assert refused.returncode == 2
    assert "its checkpoint is of step 11, and max_steps=5" in refused.stderr
    assert (tmp_path / "r" / "log.jsonl").read_bytes() == before


def test_a_run_that_ends_again_is_not_scored_again(cli: Cli, arguments: list[str], whole: Path) -> None:
    """It was killed between its last checkpoint and its result."""
    ended = unfinished(whole)
    assert cli("train", *arguments, "out=whole").returncode == 0
    lines = runlog.read(whole)
    assert [line["step"] for line in lines if line["event"] == "eval"] == [4, 8, 12, 16, 20, 24]
    assert lines[-1]["metrics"] == ended["metrics"]


def unfinished(run: Path) -> dict[str, Any]:
    """Take the result off a run's log."""
    *lines, end = (run / "log.jsonl").read_text().splitlines(keepends=True)
    (run / "log.jsonl").write_text("".join(lines))
    ended: dict[str, Any] = json.loads(end)
    assert ended["event"] == "end"
    return ended


def test_a_finished_run_is_left_alone(cli: Cli, arguments: list[str], whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    again = cli("train", *arguments, "out=whole")
    assert again.returncode == 0
    assert "finished" in again.stdout
    assert re.search(r"done: accuracy", again.stdout)
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


def test_divergence_is_recorded_not_a_number(cli: Cli, arguments: list[str], tmp_path: Path) -> None:
    for _ in range(2):  # the second time from the record
        done = cli("train", *arguments, "lr=1e30", "out=r")
        assert done.returncode == 3
        assert re.search(r"diverged at step \d+ \(epoch .*lr", done.stderr)
        assert "Traceback" not in done.stderr
    end = runlog.read(tmp_path / "r")[-1]
    assert (end["event"], end["status"]) == ("end", "diverged")
    assert f"diverged at step {end['step']} (" in end["message"]
    assert "metrics" not in end


SETTLED = {
    "done, as far": ({"status": "done", "steps": 8}, True),
    "done, not as far": ({"status": "done", "steps": 7}, False),
    "diverged before": ({"status": "diverged", "step": 3}, True),
    "diverged in the last step": ({"status": "diverged", "step": 8}, True),
    "diverged later": ({"status": "diverged", "step": 9}, False),
    "diverged, the log does not say where": ({"status": "diverged"}, True),
}


@pytest.mark.parametrize("name", SETTLED)
def test_what_is_a_result_of_8_steps(name: str) -> None:
    end, settled = SETTLED[name]
    assert runlog.settles(end, 8) is settled


def test_a_result_that_is_not_finite_is_a_divergence(
    cli: Cli, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("legw_hpc.work.Work.score", lambda work: {"accuracy": 10.0, "loss": float("nan")})
    done = cli("train", *arguments, "out=r", "max_steps=3")
    assert (done.returncode, "not finite after step 3 (epoch 0.750, lr 0.0866025): accuracy 10, loss nan" in done.stderr) == (
        3,
        True,
    )
    end = runlog.read(tmp_path / "r")[-1]
    assert (end["status"], end["step"]) == ("diverged", 3)


def test_a_result_that_is_not_finite_after_a_resume_is_one_of_its_step(
    cli: Cli, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was stopped with its last checkpoint; found once, it is a record."""
    assert cli("train", *arguments, "out=r", "max_steps=3").returncode == 0
    unfinished(tmp_path / "r")
    log = tmp_path / "r" / "log.jsonl"
    log.write_text("".join(line for line in log.read_text().splitlines(keepends=True) if '"eval"' not in line))
    monkeypatch.setattr("legw_hpc.work.Work.score", lambda work: {"accuracy": 10.0, "loss": float("inf")})
    for _ in range(2):
        assert cli("train", *arguments, "out=r", "max_steps=3").returncode == 3
    assert [(line["step"], line["status"]) for line in runlog.read(tmp_path / "r") if line["event"] == "end"] == [(3, "diverged")]


def test_weights_that_are_not_finite_do_not_replace_the_last_good_checkpoint(
    cli: Cli, arguments: list[str], tmp_path: Path
) -> None:
    """Seen by the loss one step later only."""
    words = [*arguments, "out=r", "checkpoint.keep=1", "checkpoint.every_steps=1", "evaluate=false"]
    assert cli("train", *words, "max_steps=2").returncode == 0
    done = cli("train", *words, "max_steps=9")
    assert done.returncode == 0
    sick = "solver=sgd", "lr=3e38", "out=sick"
    done = cli("train", *words, *sick)
    assert done.returncode == 3, done.stdout
    saved = list((tmp_path / "sick" / "checkpoints").glob("*.pt"))
    assert len(saved) == 1
    for path in saved:
        assert all(torch.isfinite(value).all() for value in torch.load(path, weights_only=True)["model"].values())


@pytest.mark.parametrize("change", [{"micro_batch": -5}, {"eval_every": 0.0}, {"precision": "fp8"}], ids=str)
def test_a_recipe_that_a_program_has_spoilt_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    recipe = replace(load("mnist-lstm-sample", [f"out={tmp_path / 'r'}"]), **change)
    with pytest.raises(InputError, match=next(iter(change))):
        run(recipe)
    assert not (tmp_path / "r").exists()


LIBRARY = """
import os, pathlib, signal, sys, threading, time
from legw_hpc import run
from legw_hpc.errors import Interrupted
from legw_hpc.recipe import load
def stop():
    log = pathlib.Path(sys.argv[1], "log.jsonl")
    while not (log.exists() and '"step"' in log.read_text()):
        time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=stop, daemon=True).start()
try:
    run(load("mnist-lstm-sample", ["epochs=4000", "threads=1", "log_every=1", f"out={sys.argv[1]}"]))
except Interrupted:
    os.kill(os.getpid(), signal.SIGTERM)
"""


def test_a_program_that_caught_the_end_of_a_run_obeys_signals_again(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LIBRARY, tmp_path / "r"], capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGTERM, done.stderr
    assert list((tmp_path / "r/checkpoints").glob("step-*.json"))


COLLECTS = """
import time
from legw_hpc.single_run import _stop_signals
with _stop_signals() as stop:
    print("ready", flush=True)
    until = time.monotonic() + 2
    while time.monotonic() < until:
        sum(range(100))
    print("asked" if stop.asked else "not asked")
"""


def test_signals_that_come_at_once_are_one() -> None:
    """A launcher hands on what the batch system sent to the ranks as well."""
    process = subprocess.Popen([sys.executable, "-c", COLLECTS], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        for _ in range(500):
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGUSR1)
            time.sleep(0.001)
        assert process.communicate(timeout=30)[0] == "asked\n"
    finally:
        process.kill()
        process.wait()
