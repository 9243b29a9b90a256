"""A whole run as a user starts it: resume, folders, signals, damage."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from legw_hpc import checkpoint, runlog
from legw_hpc.data.format import Field
from legw_hpc.data.sources import synthetic
from legw_hpc.data.writer import Writer, write_index
from legw_hpc.device import processor
from tests.conftest import Cli
from tests.test_shard_damage import rewrite_index


def weights(run: Path) -> dict[str, Any]:
    newest = max((run / "checkpoints").glob("*.pt"))
    return dict(torch.load(newest, weights_only=True)["model"])


def assert_same_bits(a: Path, b: Path) -> None:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def numbers(run: Path) -> list[tuple[Any, ...]]:
    """What the log says of the mathematics, without clocks."""
    lines = [line for line in runlog.read(run) if line["event"] in ("eval", "end")]
    return [(line["event"], line.get("step"), line.get("accuracy"), line.get("loss"), line.get("metrics")) for line in lines]


def test_the_log_tells_the_run(whole: Path) -> None:
    lines = runlog.read(whole)
    start, end = lines[0], lines[-1]
    assert (start["event"], end["event"], end["status"], end["steps"]) == ("start", "end", "done", 24)
    assert start["recipe"]["batch"] == 96
    assert start["derived"]["lr"] == pytest.approx(start["recipe"]["baseline"]["lr"] * (96 / 128) ** 0.5)
    assert {"torch", "horovod", "mpi4py", "numpy", "h5py", "python"} <= start["versions"].keys()
    assert (start["ranks"], start["comm"], start["device"]) == (1, "serial", "cpu")
    assert [line["epoch"] for line in lines if line["event"] == "eval"] == [1, 2, 3, 4, 5, 6]
    last = [line for line in lines if line["event"] == "step"][-1]
    assert last["step"] == 24
    assert last["samples_per_s"] > 0
    assert sum(last[part] for part in ("input", "compute", "exchange", "update")) == pytest.approx(1, abs=0.01)


def test_the_training_loss_of_an_epoch_is_beside_its_evaluation(cli: Cli, arguments: list[str], tmp_path: Path) -> None:
    """The mean over its samples: three steps of 96 and one of 12."""
    done = cli("train", *arguments, "out=r", "epochs=2", "log_every=1e-9")
    assert done.returncode == 0, done.stderr
    steps, evals = ([line for line in runlog.read(tmp_path / "r") if line["event"] == event] for event in ("step", "eval"))
    for number, line in enumerate(evals):
        losses = [step["loss"] for step in steps[4 * number : 4 * number + 4]]
        expected = sum(loss * size for loss, size in zip(losses, (96, 96, 96, 12), strict=True)) / 300
        assert line["train_loss"] == pytest.approx(expected, rel=1e-12)
        assert f"train_loss {line['train_loss']:.4g}" in done.stdout
    assert len(evals) == 2
    assert "train_loss" not in runlog.read(tmp_path / "r")[-1]["metrics"]


@pytest.mark.parametrize("stop", [1, 4, 6, 23])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    cli: Cli, arguments: list[str], whole: Path, tmp_path: Path, stop: int
) -> None:
    assert cli("train", *arguments, "out=parts", f"max_steps={stop}").returncode == 0
    done = cli("train", *arguments, "out=parts")
    assert f"resumed after step {stop}" in done.stdout
    assert_same_bits(whole, tmp_path / "parts")
    assert numbers(tmp_path / "parts")[-1] == numbers(whole)[-1]


WARMUP = ["solver=rmsprop-warmup", "solvers.rmsprop-warmup.period=2"]


@pytest.mark.parametrize("words", [["solver=adam", "baseline.lr=0.001"], [*WARMUP, "solvers.rmsprop-warmup.center=2"]])
def test_resume_with_the_state_of_an_adaptive_solver(cli: Cli, arguments: list[str], tmp_path: Path, words: list[str]) -> None:
    more = [*words, "decay=poly"]
    assert cli("train", *arguments, *more, "out=whole").returncode == 0
    assert cli("train", *arguments, *more, "out=parts", "max_steps=7").returncode == 0
    assert cli("train", *arguments, *more, "out=parts").returncode == 0
    assert_same_bits(tmp_path / "whole", tmp_path / "parts")


def test_the_solver_is_told_the_epoch(cli: Cli, arguments: list[str], tmp_path: Path) -> None:
    """With its turn at epoch 1 the two runs are one until then."""
    for center in (1, 9):
        words = [*arguments, *WARMUP, f"solvers.rmsprop-warmup.center={center}", "max_steps=4", "scheme=none"]
        assert cli("train", *words, f"out=at-{center}").returncode == 0
    first, second = weights(tmp_path / "at-1"), weights(tmp_path / "at-9")
    assert not all(torch.equal(first[name], second[name]) for name in first)


def test_a_resumed_run_tells_what_code_it_was_before(
    cli: Cli, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("train", *arguments, "out=r", "max_steps=4").returncode == 0
    before = runlog.commit()
    assert "note " not in cli("train", *arguments, "out=r", "max_steps=8").stdout
    monkeypatch.setattr(runlog, "commit", lambda: "another")
    monkeypatch.setattr("legw_hpc.device.processor", lambda: "a slower one")
    told = cli("train", *arguments, "out=r").stdout
    assert f"note     commit until step 8: {before}" in told
    assert f"note     hardware until step 8: {processor()}" in told
    lines = [line for line in runlog.read(tmp_path / "r") if line["event"] in ("start", "resume")]
    assert [line["commit"] for line in lines] == [before, before, "another"]
    assert all("torch" in line["versions"] for line in lines)
    assert [line["hardware"] for line in lines] == [processor(), processor(), "a slower one"]


def test_another_recipe_is_refused_and_nothing_overwritten(cli: Cli, arguments: list[str], whole: Path) -> None:
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    done = cli("train", *arguments, "out=whole", "baseline.lr=0.3")
    assert done.returncode == 2
    assert "baseline.lr" in done.stderr
    assert "0.3" in done.stderr
    assert {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()} == before


def test_a_strangers_folder_is_refused(cli: Cli, arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    done = cli("train", *arguments, "out=mine")
    assert (done.returncode, "thesis.tex" in done.stderr) == (2, True)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_other_data_in_the_same_folder_is_another_run(cli: Cli, arguments: list[str], tmp_path: Path) -> None:
    synthetic.write(tmp_path / "other", (28, 28), 10, 300, 101, seed=1)
    assert cli("train", *arguments, "out=r", "max_steps=2").returncode == 0
    done = cli("train", *arguments, "out=r", f"data.dir={tmp_path / 'other'}")
    assert (done.returncode, "holds a run with data" in done.stderr) == (2, True)


def test_a_flipped_byte_in_a_shard_is_found_before_anything_is_trained(
    cli: Cli, arguments: list[str], shards: Path, tmp_path: Path
) -> None:
    shutil.copytree(shards, tmp_path / "data")
    words = [*arguments, f"data.dir={tmp_path / 'data'}", "max_steps=2", "out=r"]
    shard = tmp_path / "data" / "train-00002.h5"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1000] + bytes([whole[-1000] ^ 1]) + whole[-999:])  # in the pixels
    done = cli("train", *words)
    assert (done.returncode, "train-00002.h5: image is damaged" in done.stderr) == (2, True)
    assert not (tmp_path / "r").exists()
    assert cli("train", *words, "data.verify=false", "out=unseen").returncode == 0
    shard.write_bytes(whole)
    assert cli("train", *words).returncode == 0


def test_more_threads_than_cores_are_told(cli: Cli, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*arguments, "max_steps=1", "evaluate=false"]
    assert "threads a rank on" not in cli("train", *words, "out=a").stdout
    monkeypatch.setattr("torch.get_num_threads", lambda: 1000)
    assert "note     1000 threads a rank on" in cli("train", *words, "out=b").stdout


def test_a_seed_may_be_any_whole_number(cli: Cli, arguments: list[str]) -> None:
    assert cli("train", *arguments, "seed=20261122123456", "max_steps=2", "out=r").returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_leaves_a_checkpoint_and_says_resume(arguments: list[str], tmp_path: Path, number: int) -> None:
    command = [sys.executable, "-m", "legw_hpc", "train", *arguments, "epochs=4000", "out=r"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_steps(tmp_path / "r")
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 85, said
    assert "Traceback" not in said
    found = re.search(r"after step (\d+) of 16000; the same command goes on", said)
    assert found
    assert (tmp_path / "r" / "checkpoints" / f"step-{int(found[1]):08d}.pt").exists()


def wait_for_steps(run: Path) -> None:
    """Until the first evaluation stands in the log."""
    for _ in range(600):
        if any(line["event"] == "eval" for line in runlog.read(run)):
            return
        time.sleep(0.1)
    raise AssertionError(f"no step within 60 s in {run}")


# command -> words that the one line must have
BAD = [
    (["train", "mnist-lstm", "data.dir=nowhere"], ["nowhere", "not found"]),
    (["train", "mnist-lstm-sample", "data.train_samples=4999"], ["5000", "4999"]),
    (["train", "mnist-lstm-sample", "batch=5001"], ["5001", "5000"]),
    (["train", "mnist-lstm-sample", "application=mnist"], ["mnist", "mnist-lstm"]),
    (["train", "mnist-lstm-sample", "solver=lion"], ["lion", "momentum"]),
    (["train", "mnist-lstm-sample", "solvers.momentum.beta=1"], ["beta", "momentum"]),
    (["train", "mnist-lstm-sample", "comm=gloo"], ["gloo", "horovod"]),
    (["train", "mnist-lstm-sample", "solvers.momentum.lr=1"], ["solvers.momentum.lr", "baseline.lr"]),
    (["train", "mnist-lstm-sample", "solvers.momentum.momentum=x"], ["solver momentum: momentum", "'x'"]),
    (["curvature", "mnist-lstm-sample", "curvature_every=10"], ["curvature_every=10", "--every"]),
    (["data", "synthetic", "--seed", "-1"], ["seed", "-1"]),
    (["data", "synthetic", "--shape", "1000000,1000000"], ["1,000,000,000,000 bytes"]),
    (["train", "mnist-lstm-sample", "device=tpu"], ["tpu", "cpu"]),
    (["train", "mnist-lstm-sample", "epochs=1", "scheme=linear"], ["5", "1"]),
    (["train", "alexnet"], ["alexnet", "mnist-lstm"]),
    (["plan", "mnist-lstm", "bach=1"], ["bach", "batch"]),
    (["data", "mnist", "--source", "nowhere"], ["nowhere"]),
    (["data", "verify", "nowhere"], ["nowhere"]),
    (["sweep", "mnist-lstm-sample", "batch=32,99999"], ["99999", "5000"]),
    (["sweep", "mnist-lstm-sample", "batch=32,32"], ["twice"]),
]


@pytest.mark.parametrize(("words", "named"), BAD, ids=lambda value: " ".join(value[1:]))
def test_bad_input_is_one_clear_line(cli: Cli, tmp_path: Path, words: list[str], named: list[str]) -> None:
    done = cli(*words)
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    for word in named:
        assert word in lines[0]
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert left == []


# recipe -> samples, and how many are too few for a split
TOO_FEW: dict[str, tuple[dict[str, Any], int]] = {
    "mnist-lstm": ({"image": np.zeros((9, 28, 28), "u1"), "label": np.zeros(9, "i8")}, 0),
    "ptb-lstm": ({"token": np.zeros(9, "i4")}, 1),
}


@pytest.mark.parametrize("name", TOO_FEW)
def test_a_split_of_too_few_samples_is_refused(cli: Cli, tmp_path: Path, name: str) -> None:
    made, few = TOO_FEW[name]
    fields = {key: Field(str(v.dtype), v.shape[1:], None if key == "image" else 2) for key, v in made.items()}
    writers = [Writer(tmp_path / "d", each, fields) for each in ("train", "valid", "test")]
    for writer in writers:
        writer.write({key: values[: few if few and writer.split == "test" else 9] for key, values in made.items()})
    write_index(tmp_path / "d", writers)
    if not few:  # as nothing here writes any more
        rewrite_index(tmp_path / "d", lambda index: index["splits"]["test"].update(count=0, shards=[]))
    done = cli(
        "train",
        name,
        "data.dir=d",
        "data.train_samples=9",
        "batch=1",
        "micro_batch=1",
        *(["data.window=2"] if few else []),
        "out=r",
    )
    said = f"split test has {few} samples, {name} wants {few + 1} or more"
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr


def test_data_commands(cli: Cli, tmp_path: Path) -> None:
    made = cli(
        "data", "synthetic", "--shape", "28,28", "--train", "60", "--test", "20", "--out", "d", "--samples-per-shard", "25"
    )
    assert (made.returncode, made.stdout.strip()) == (0, "d: train 60 in 3, test 20 in 1")
    assert cli("data", "verify", "d").stdout.strip() == "d: whole: train 60, test 20"
    shard = tmp_path / "d" / "train-00001.h5"
    shard.write_bytes(shard.read_bytes()[:-1])
    broken = cli("data", "verify", "d")
    assert (broken.returncode, "train-00001.h5" in broken.stderr) == (2, True)


def test_a_step_that_takes_long_tells_where_it_is(cli: Cli, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("legw_hpc.runlog.LINE_SECONDS", 0.0)
    said = cli("train", *arguments, "max_steps=1").stdout
    assert [line for line in said.splitlines() if "micro-batch" in line and line.startswith("step ")] == [
        f"step 1 of 24: micro-batch {done} of 3" for done in (1, 2, 3)
    ]


def test_a_run_of_a_version_without_a_newer_key_is_gone_on_with(cli: Cli, arguments: list[str], tmp_path: Path) -> None:
    """A key whose default is what the older version did."""
    assert cli("train", *arguments, "out=r", "max_steps=6").returncode == 0
    kept = tmp_path / "r" / "recipe.json"
    values = json.loads(kept.read_text())
    assert "seed" in json.dumps(values)
    assert not {"evaluate", "twin", "curvature_every"} & set(json.dumps(values).replace('"', " ").split())
    assert cli("train", *arguments, "out=r", "max_steps=9").returncode == 0
    for other in ("twin=synthetic", "evaluate=false"):
        said = cli("train", *arguments, "out=r", other)
        assert (said.returncode, "holds a run with" in said.stderr) == (2, True)


def test_a_run_begins_with_the_weights_of_another(cli: Cli, arguments: list[str], whole: Path, tmp_path: Path) -> None:
    words = [*arguments, f"start={whole}", "out=second"]
    done = cli("train", *words, "max_steps=1")  # of a warmup, whose first rate is 0
    assert done.returncode == 0, done.stderr
    assert f"start    the last weights of {whole}" in done.stdout
    assert_same_bits(tmp_path / "second", whole)
    assert cli("train", *words).returncode == 0  # and goes on from its own
    assert numbers(tmp_path / "second")[-1] != numbers(whole)[-1]
    refused = cli("train", *arguments, "out=second")
    assert (refused.returncode, "holds a run with start" in refused.stderr) == (2, True)


def test_what_cannot_be_begun_with_is_refused(cli: Cli, arguments: list[str], whole: Path, tmp_path: Path) -> None:
    other, ended = tmp_path / "other", {"event": "end", "status": "done"}
    other.mkdir()
    for name, lines, said in (
        ("nowhere", [], "no run there"),
        ("other", [{"event": "start"}], "that run has not ended"),
        ("other", [{"event": "start"}, ended], "no checkpoint there"),
        ("other", [{"event": "start"}, ended], "its checkpoint is of another model"),
    ):
        if lines:
            (other / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        if said.startswith("its"):
            checkpoint.save(other / "checkpoints", 1, {"model": {"w": torch.zeros(1)}}, 1)
        done = cli("train", *arguments, f"start={name}", "out=run")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert f"start={name}: {said}" in done.stderr
        assert not (tmp_path / "run").exists()


def test_what_is_begun_with_is_left_as_it_is(cli: Cli, arguments: list[str], whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "first")
    newest = max((tmp_path / "first" / "checkpoints").glob("*.pt"))
    for path in (newest, newest.with_suffix(".json")):
        shutil.copy(path, path.with_stem("step-00000023"))  # the one before it
    newest.write_bytes(newest.read_bytes()[:-1])
    before = sorted(path.name for path in newest.parent.iterdir())
    done = cli("train", *arguments, "start=first", "out=second", "max_steps=1")
    assert done.returncode == 0, done.stderr
    assert "damaged" in done.stdout
    assert sorted(path.name for path in newest.parent.iterdir()) == before
