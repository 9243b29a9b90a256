"""One run, top to bottom: recipe -> ranks -> data -> model -> steps -> checkpoints, log, result."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from legw_hpc import apps, runlog
from legw_hpc.comm import Comm, connect
from legw_hpc.data import augment
from legw_hpc.data.loader import evaluation_batches, train_steps
from legw_hpc.data.order import Order, Shuffled, Windows
from legw_hpc.data.shards import Shards
from legw_hpc.device import check_distinct, choose_device, set_threads
from legw_hpc.errors import EXIT_BUG, Diverged, InputError, Interrupted
from legw_hpc.models.batch_norm import synchronise
from legw_hpc.optim import parameter_groups, solver
from legw_hpc.precision import Precision
from legw_hpc.recipe import Derived, Recipe, derive
from legw_hpc.runfolder import RunFolder
from legw_hpc.trainer import Done, Timing, evaluate, train

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def run(recipe: Recipe) -> dict[str, Any]:
    """Train as the recipe says; the same call on every rank.

    A run folder with a checkpoint of the same recipe is gone on with; a finished one is left as it
    is, and its result returned.

    Args:
        recipe: after overrides.

    Returns:
        The result, as in the last line of the run's log: status, metrics, steps, samples/s.

    Raises:
        InputError: something to mend: data, folder, device, ranks.
        Diverged: the loss or gradient is not finite.
        Interrupted: a signal came; there is a checkpoint.
    """
    comm = connect(recipe.comm)
    try:
        work = _prepare(recipe, comm)
        with RunFolder(recipe, _digest(work.training.index["splits"]), comm) as folder:
            ended = folder.result()
            if ended is not None and (ended["status"] == "diverged" or ended["steps"] >= work.derived.last):
                return _ended_before(folder, ended, comm)
            return _train(work, folder)
    except InputError as error:
        error.agreed = True  # ranks that are connected find out together
        raise
    except (Diverged, Interrupted):
        raise  # on every rank at the same step
    except Exception as error:
        if comm.size == 1:
            raise
        # The others wait for this rank in a collective: end them all.
        print(f"legw-hpc: rank {comm.rank} on {comm.node}: {type(error).__name__}: {error}", file=sys.stderr)
        traceback.print_exc()
        sys.stderr.flush()
        comm.abort(EXIT_BUG)
        raise
    finally:
        comm.close()


@dataclass(frozen=True)
class _Work:
    """All that a run needs but its folder."""

    recipe: Recipe
    comm: Comm
    app: apps.Application
    training: Shards
    evaluated: tuple[Shards, ...]
    derived: Derived
    device: torch.device
    threads: int
    model: nn.Module
    optimizer: Optimizer
    precision: Precision
    order: Order


def _prepare(recipe: Recipe, comm: Comm) -> _Work:
    """Everything that can be wrong with the input is found here, before anything is written."""
    with comm.together():
        options = dict(recipe.options) | ({"window": recipe.data.window} if recipe.data.window else {})
        app = apps.application(recipe.application, **options)
        training, evaluated = _open(recipe, app, comm.size)
        derived = derive(recipe)
        device = choose_device(recipe.device, comm)
        if recipe.precision == "fp16" and device.type != "cuda":
            raise InputError(f"precision=fp16 is for GPUs; on {device} use bf16 or fp32")
        torch.manual_seed(recipe.seed)
        model = app.model().to(device)
        optimizer = _optimizer(recipe, model)
    _agree(comm, recipe, training, model)
    check_distinct(device, comm)
    synchronise(model, comm.sum_)
    threads = set_threads(recipe.threads, comm)
    augment.set_threads(recipe.input_threads or threads)
    precision = Precision(recipe.precision, device)
    return _Work(recipe, comm, app, training, evaluated, derived, device, threads, model, optimizer, precision, _order(recipe))


def _order(recipe: Recipe) -> Order:
    data = recipe.data
    if data.window:
        return Windows(data.train_samples, recipe.batch, data.window, recipe.seed)
    return Shuffled(data.train_samples, recipe.batch, recipe.seed)


def _train(work: _Work, folder: RunFolder) -> dict[str, Any]:
    recipe, comm, derived, model, optimizer = work.recipe, work.comm, work.derived, work.model, work.optimizer
    timing, log = Timing(), folder.log
    carried: list[torch.Tensor] = []
    parts = {"model": model, "optimizer": optimizer, "precision": work.precision}
    done = folder.restore(parts, timing, carried, print)
    carried[:] = [tensor.to(work.device) for tensor in carried]
    _announce(work, folder, done)
    progress = runlog.Progress(derived.steps, done, comm.rank == 0)
    every = _Every(recipe, derived, comm.rank == 0)
    steps = train_steps(
        work.training, work.app.decode, order=work.order, micro_batch=recipe.micro_batch, even=_together(recipe),
        first=done, last=derived.last, rank=comm.rank, size=comm.size, device=work.device,
    )  # fmt: skip
    metrics: dict[str, float] | None = None
    logged = dataclasses.replace(timing)
    try:
        with _stop_signals() as stopped:
            for at in train(
                work.app, model, optimizer, steps, derived, comm, timing=timing, carried=carried,
                precision=work.precision, clip_norm=recipe.clip_norm,
                asks=lambda: (stopped.is_set(), every.minutes_passed()),
            ):  # fmt: skip
                progress.step(at.step, loss=f"{at.loss:.4f}", lr=f"{at.lr:.4g}")
                ends = at.step == derived.last
                if every.line_due() or ends:
                    log.write("step", **_step_line(at, derived), **timing.line(logged))
                    logged = dataclasses.replace(timing)
                if every.evaluation_due(at.step) or ends:
                    metrics = _score(work, at.step, log, progress)
                if at.save or at.stop or ends or every.checkpoint_due(at.step):
                    folder.save(at.step, parts, timing, carried)
                    every.checkpointed()
                if at.stop and not ends:
                    raise Interrupted(f"stopped by a signal after step {at.step} of {derived.last}; the same command goes on")
        if metrics is None:  # the run had ended with a checkpoint, and only its result was missing
            metrics = _score(work, derived.last, log, progress)
    except Diverged as error:
        log.write("end", status="diverged", message=str(error))
        raise
    finally:
        steps.close()
        progress.close()
    rate = timing.line(Timing())["samples_per_s"]
    seconds = round(timing.samples / rate, 3) if rate else 0.0
    result = {"status": "done", "metrics": metrics, "steps": derived.last, "samples_per_s": rate, "seconds": seconds}
    result = dict(comm.broadcast(result))  # one clock, one result
    log.write("end", **result)
    return result


def _score(work: _Work, step: int, log: runlog.RunLog, progress: runlog.Progress) -> dict[str, float]:
    """The metrics of every evaluated split; those of the first have no prefix."""
    metrics: dict[str, float] = {}
    for data in work.evaluated:
        batches = evaluation_batches(
            data, work.app.decode, items=work.app.items(len(data)), micro_batch=work.recipe.micro_batch,
            rank=work.comm.rank, size=work.comm.size, device=work.device,
        )  # fmt: skip
        found = evaluate(work.app, work.model, batches, work.comm, work.precision)
        metrics |= {name if data is work.evaluated[0] else f"{data.split}_{name}": value for name, value in found.items()}
    epoch = round(step / work.derived.steps_per_epoch, 4)
    log.write("eval", step=step, epoch=epoch, **metrics)
    shown = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
    progress.say(f"epoch {epoch:g} of {work.recipe.epochs:g}, step {step}: {shown}")
    return metrics


class _Every:
    """What is due after which step; clocks count on rank 0 alone, which asks the others."""

    def __init__(self, recipe: Recipe, derived: Derived, clock: bool):
        self._evaluation_steps = recipe.eval_every * derived.steps_per_epoch
        self._when, self._log_every, self._clock = recipe.checkpoint, recipe.log_every, clock
        self._saved = self._logged = time.monotonic()

    def line_due(self) -> bool:
        due = time.monotonic() - self._logged >= self._log_every
        self._logged = time.monotonic() if due else self._logged
        return due

    def evaluation_due(self, step: int) -> bool:
        """Has this step crossed a multiple of `eval_every`; the same on every rank."""
        return int(step / self._evaluation_steps) > int((step - 1) / self._evaluation_steps)

    def checkpoint_due(self, step: int) -> bool:
        """By the count of steps; the same on every rank."""
        return bool(self._when.every_steps) and step % self._when.every_steps == 0

    def minutes_passed(self) -> bool:
        minutes = self._when.every_minutes
        return self._clock and minutes > 0 and time.monotonic() - self._saved >= 60 * minutes

    def checkpointed(self) -> None:
        self._saved = time.monotonic()


def _open(recipe: Recipe, app: apps.Application, ranks: int) -> tuple[Shards, tuple[Shards, ...]]:
    if recipe.batch < ranks:
        raise InputError(f"batch {recipe.batch} is smaller than the {ranks} ranks: each needs a sample a step")
    share = -(-recipe.batch // ranks)
    if recipe.options.get("batch_norm") == "rank" and share > recipe.micro_batch:
        raise InputError(
            f"batch_norm=rank: a rank's {share} samples of batch {recipe.batch} must be one micro-batch, "
            f"micro_batch is {recipe.micro_batch}: more ranks, or micro_batch={share}"
        )
    training = Shards(recipe.data.folder(), "train")
    evaluated = tuple(Shards(training.folder, split) for split in app.splits)
    for data in (training, *evaluated):
        app.check(data)
    declared = recipe.data.train_samples
    if len(training) != declared:
        raise InputError(
            f"{training.folder}: {len(training)} training samples, recipe {recipe.name} declares data.train_samples {declared}"
        )
    return training, evaluated


def _together(recipe: Recipe) -> bool:
    """Do the ranks meet in every micro-batch, so that all need as many of them."""
    return recipe.options.get("batch_norm") == "sync"


def _optimizer(recipe: Recipe, model: nn.Module) -> Optimizer:
    """The learning rate is set before every step, from the schedule."""
    groups = parameter_groups(model, recipe.exempt)
    try:
        return solver(recipe.solver, groups, recipe.baseline.lr, **recipe.solvers.get(recipe.solver, {}))
    except (ValueError, TypeError) as error:
        raise InputError(f"recipe {recipe.name}: {error}") from None


def _agree(comm: Comm, recipe: Recipe, data: Shards, model: nn.Module) -> None:
    """Stop unless all ranks have the same recipe, code, data and first weights.

    Raises:
        InputError: names the field and two ranks that differ.
    """
    weights = hashlib.sha256()
    for tensor in model.state_dict().values():
        weights.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    mine = {
        "recipe": json.dumps(recipe.identity(), sort_keys=True),
        "versions": runlog.versions(),
        "data": _digest(data.index["splits"]),
        "initial weights": weights.hexdigest(),
    }
    everyone = comm.gather({key: json.dumps(value, sort_keys=True) for key, value in mine.items()})
    for rank, theirs in enumerate(everyone):
        for key, value in theirs.items():
            if value != everyone[0][key]:
                raise InputError(f"rank {rank} has other {key} than rank 0: {value[:200]} against {everyone[0][key][:200]}")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _ended_before(folder: RunFolder, ended: dict[str, Any], comm: Comm) -> dict[str, Any]:
    if ended["status"] == "diverged":
        raise Diverged(f"{folder.path}: {ended['message']} (recorded; remove the folder to try again)")
    if comm.rank == 0:
        print(f"{folder.path}: this run is finished; its result is below", flush=True)
    return {key: value for key, value in ended.items() if key not in ("event", "time")}


def _announce(work: _Work, folder: RunFolder, done: int) -> None:
    recipe, derived, comm = work.recipe, work.derived, work.comm
    nodes = len(set(comm.gather(comm.node)))
    facts = {"ranks": comm.size, "nodes": nodes, "comm": comm.name, "device": str(work.device), "threads": work.threads}
    if comm.rank != 0:
        return
    for line in derived.lines():
        print(line)
    where = f"{comm.size} on {nodes} {'node' if nodes == 1 else 'nodes'}, {comm.name}, {work.device}, threads {work.threads}"
    what = "rows" if recipe.data.window else "samples"
    print(f"ranks    {where}; {recipe.batch / comm.size:g} {what} a rank in micro-batches of {recipe.micro_batch}")
    print(f"out      {folder.path}" + (f"; resumed after step {done}" if done else ""), flush=True)
    if done:
        folder.log.write("resume", step=done, **facts)
    else:
        about = {"recipe": recipe.as_dict(), "derived": derived.as_dict(), **facts}
        folder.log.write("start", **about, versions=runlog.versions(), commit=runlog.commit())


def _step_line(at: Done, derived: Derived) -> dict[str, Any]:
    epoch = round(at.step / derived.steps_per_epoch, 4)
    line = {"step": at.step, "epoch": epoch, "lr": at.lr, "loss": at.loss, "gradient_norm": at.gradient_norm}
    return line | ({"skipped": True} if at.skipped else {})


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """Collect SIGINT, SIGTERM, SIGUSR1 and SIGUSR2 in a flag; a second SIGINT interrupts at once."""
    flag = threading.Event()

    def handler(number: int, frame: Any) -> None:
        if number == signal.SIGINT and flag.is_set():
            raise KeyboardInterrupt
        flag.set()  # nothing more: a handler that prints can meet itself

    try:
        before = {number: signal.signal(number, handler) for number in STOP_SIGNALS}
    except ValueError:  # not the main thread: somebody else's program, somebody else's signals
        yield flag
        return
    try:
        yield flag
    finally:
        if not flag.is_set():  # else this process is on its way out, and another signal must not cut that short
            for number, old in before.items():
                signal.signal(number, old)
