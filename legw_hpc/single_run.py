"""One run, top to bottom: recipe -> ranks -> data -> model -> steps -> checkpoints, log, result."""

from __future__ import annotations

import dataclasses
import math
import signal
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch

from legw_hpc import apps, installed, noise, runlog, startup, watchdog
from legw_hpc.agreement import begin_alike
from legw_hpc.allowed import NORMALISED, check
from legw_hpc.comm import Comm, connect
from legw_hpc.data.files import keep_from_others
from legw_hpc.derived import Derived
from legw_hpc.device import hardware
from legw_hpc.errors import EXIT_BUG, EXIT_INPUT, STOP_SIGNALS, Diverged, InputError, Interrupted
from legw_hpc.launcher import CORES
from legw_hpc.recipe import Recipe
from legw_hpc.runfolder import RunFolder
from legw_hpc.trainer import Done, Timing
from legw_hpc.watchdog import not_for_ever, watching
from legw_hpc.work import Work, prepare

# Before the first step a rank may read many shards while the others wait: so many times `stall_minutes` (assumed).
PREPARING = 6.0


def run(recipe: Recipe) -> dict[str, Any]:
    """Train as the recipe says; the same call on every rank.

    A run folder with a checkpoint of the same recipe is gone on with; a finished one is left as it
    is, and its result returned.

    Args:
        recipe: after overrides; checked here as well as by `load`, since a program may change one.

    Returns:
        The result, as in the last line of the run's log: status, metrics, steps, samples/s.

    Raises:
        InputError: something to mend: recipe, data, folder, device, ranks.
        Diverged: the loss or gradient is not finite.
        Interrupted: a signal came; there is a checkpoint.
    """
    check(recipe)
    keep_from_others()
    with _stop_signals() as stop:
        long = startup.TIMES * 60 * recipe.stall_minutes
        # Horovod's own end, which names no rank, comes after all of ours.
        meet = lambda: connect(recipe.comm, stall_seconds=2 * long)  # noqa: E731
        comm = startup.within(long and long + startup.CONNECT_SECONDS, "met the other ranks", meet)
        with not_for_ever(comm, long):
            return _run(recipe, comm, stop)


def _run(recipe: Recipe, comm: Comm, stop: _Stop) -> dict[str, Any]:
    stalled = 60 * recipe.stall_minutes
    try:
        with watching(recipe.out_folder(), comm, PREPARING * stalled):
            begin_alike(comm, recipe)  # before anything that ranks with other recipes would do otherwise
            work = prepare(recipe, comm)
        with RunFolder(work.recipe, work.data, comm) as folder:
            if comm.rank == 0:
                watchdog.clear(folder.path)
            ended = folder.result()
            if ended is not None and runlog.settles(ended, work.derived.last):
                return _ended_before(folder, ended, comm)
            with watching(folder.path, comm, stalled), not_for_ever(comm, 3 * stalled):
                return _train(work, folder, stop)
    except InputError as error:
        if comm.size > 1 and not error.agreed:  # in the middle of the run: the others wait for this rank
            print(f"legw-hpc: {error} (rank {comm.rank} on {comm.node})", file=sys.stderr, flush=True)
            comm.abort(EXIT_INPUT)
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


def _train(work: Work, folder: RunFolder, stop: _Stop) -> dict[str, Any]:
    recipe, comm, derived = work.recipe, work.comm, work.derived
    timing, log = Timing(), folder.log
    carried: list[torch.Tensor] = []
    done = folder.restore(work.parts, timing, carried, derived.last, print)
    carried[:] = [tensor.to(work.device) for tensor in carried]
    _announce(work, folder, done)
    at_once = comm.size * recipe.micro_batch
    progress = runlog.Progress(derived.steps, done, comm.rank == 0, lambda step: -(-derived.course.stage(step).batch // at_once))
    every = _Every(recipe, derived, comm.rank == 0)
    metrics: dict[str, float] | None = None
    logged, estimates = dataclasses.replace(timing), list[noise.Noise]()
    doing = done  # the step that a divergence is of

    def keep(step: int) -> None:
        work.check(step)
        folder.save(step, work.parts, timing, carried)
        every.checkpointed()

    def asks() -> tuple[bool, bool]:
        return stop.asked, every.minutes_passed()

    try:
        if recipe.evaluate and 0 < done < derived.last and every.evaluation_due(done) and not folder.evaluation(done):
            _score(work, done, timing, log, progress)  # it was stopped between the step and its evaluation
        doing = min(done + 1, derived.last)
        with closing(work.train(done, timing, carried, asks, progress.within)) as steps:
            for at in steps:
                doing = at.step
                progress.step(at.step, loss=f"{at.loss:.4f}", lr=f"{at.lr:.4g}")
                if at.curvature is not None:
                    log.write("curvature", step=at.step, L=at.curvature)
                ends = at.step == derived.last
                estimates += [at.noise] if at.noise else []
                if every.line_due() or ends:
                    measured = noise.as_line(noise.mean(estimates)) if estimates else {}
                    skipped = {"skipped": timing.skipped} if timing.skipped else {}
                    log.write("step", **_step_line(at, derived), **skipped, **timing.line(logged), **measured)
                    logged, estimates = dataclasses.replace(timing), []
                stops = at.stop and not ends
                # Before the evaluation, which may take minutes and is made up for by a run that goes on; the last one after it.
                if not ends and (at.save or at.stop or every.checkpoint_due(at.step)):
                    keep(at.step)
                if recipe.evaluate and not stops and (every.evaluation_due(at.step) or ends):
                    metrics = _score(work, at.step, timing, log, progress)
                if ends:
                    keep(at.step)
                if stops:
                    raise Interrupted(f"stopped by a signal after step {at.step} of {derived.last}; the same command goes on")
                doing = min(at.step + 1, derived.last)
        if metrics is None and recipe.evaluate:  # the run had ended with a checkpoint, and only its result was missing
            metrics = folder.evaluation(derived.last) or _score(work, derived.last, timing, log, progress)
    except Diverged as error:
        log.write("end", status="diverged", step=doing, message=str(error))
        raise
    finally:
        progress.close()
    rate = timing.line(Timing())["samples_per_s"]
    seconds = round(timing.samples / rate, 3) if rate else 0.0
    result = {"status": "done", "metrics": metrics or {}, "steps": derived.last, "samples_per_s": rate, "seconds": seconds}
    result |= {"skipped_steps": timing.skipped} if timing.skipped else {}
    result = dict(comm.broadcast(result))  # one clock, one result
    log.write("end", **result)
    return result


def _score(work: Work, step: int, timing: Timing, log: runlog.RunLog, progress: runlog.Progress) -> dict[str, float]:
    metrics = work.score()
    if not all(map(math.isfinite, metrics.values())):
        found = ", ".join(f"{name} {value:g}" for name, value in metrics.items())
        raise Diverged(f"diverged: not finite after step {step} ({work.derived.where(step)}): {found}")
    epoch = round(work.derived.course.epoch(step), 4)
    train_loss = timing.train_loss()
    told = metrics | ({} if train_loss is None else {"train_loss": train_loss})
    log.write("eval", step=step, epoch=epoch, **told)
    shown = ", ".join(f"{name} {value:.4g}" for name, value in told.items())
    progress.say(f"epoch {epoch:g} of {work.recipe.epochs:g}, step {step}: {shown}")
    return metrics


class _Every:
    """What is due after which step; clocks count on rank 0 alone, which asks the others."""

    def __init__(self, recipe: Recipe, derived: Derived, clock: bool):
        self._evaluate_every, self._course = recipe.eval_every, derived.course
        self._when, self._log_every, self._clock = recipe.checkpoint, recipe.log_every, clock
        self._saved = self._logged = time.monotonic()

    def line_due(self) -> bool:
        due = time.monotonic() - self._logged >= self._log_every
        self._logged = time.monotonic() if due else self._logged
        return due

    def evaluation_due(self, step: int) -> bool:
        """Has this step crossed a multiple of `eval_every`; the same on every rank."""
        return self._course.multiples(self._evaluate_every, step) > self._course.multiples(self._evaluate_every, step - 1)

    def checkpoint_due(self, step: int) -> bool:
        """By the count of steps; the same on every rank."""
        return bool(self._when.every_steps) and step % self._when.every_steps == 0

    def minutes_passed(self) -> bool:
        minutes = self._when.every_minutes
        return self._clock and minutes > 0 and time.monotonic() - self._saved >= 60 * minutes

    def checkpointed(self) -> None:
        self._saved = time.monotonic()


def _ended_before(folder: RunFolder, ended: dict[str, Any], comm: Comm) -> dict[str, Any]:
    if ended["status"] == "diverged":
        raise Diverged(f"{folder.path}: {ended['message']} (recorded; remove the folder to try again)")
    if comm.rank == 0:
        print(f"{folder.path}: this run is finished; its result is below", flush=True)
    return {key: value for key, value in ended.items() if key not in ("event", "time")}


def _announce(work: Work, folder: RunFolder, done: int) -> None:
    recipe, derived, comm = work.recipe, work.derived, work.comm
    nodes = len(set(comm.gather(comm.node)))
    facts = {"ranks": comm.size, "nodes": nodes, "comm": comm.name, "device": str(work.device), "threads": work.threads}
    models = hardware(work.device, comm)
    if comm.rank != 0:
        return
    for line in derived.lines():
        print(line)
    where = f"{comm.size} on {nodes} {'node' if nodes == 1 else 'nodes'}, {comm.name}, {work.device}, threads {work.threads}"
    what = "rows" if recipe.data.window else "samples"
    share = recipe.batch / comm.size
    at_once = min(recipe.micro_batch, math.ceil(share))
    print(f"ranks    {where}; {share:g} {what} a rank in micro-batches of {at_once}")
    if work.precision.emulated:
        print(f"note     precision={recipe.precision}: this processor emulates it; fp32 is faster here")
        facts["emulated"] = True
    if work.threads > len(CORES):
        print(f"note     {work.threads} threads a rank on {len(CORES)} cores: more than there are only get in each other's way")
    if work.tuned is not None:
        print(f"micro    {work.tuned}")
        facts["micro_batches_tried"] = work.tuned.seconds
    if recipe.start:
        print(f"start    the last weights of {recipe.start}")
    print(f"out      {folder.path}" + (f"; resumed after step {done}" if done else ""), flush=True)
    made_by = {"versions": runlog.versions(), "commit": runlog.commit(), "hardware": models}
    if recipe.application in NORMALISED and recipe.options.get("batch_norm") != "sync":
        made_by["batch_norm"] = f"over {at_once} samples"  # by the ranks too, where their share is smaller than micro_batch
    if (package := installed.package(recipe.application)) is not None:
        made_by["package"] = f"{package}, sources {runlog.digest(apps.sources(recipe.application))[:12]}"
    if done:
        for key, then in _made_before(folder.path, made_by).items():
            if then != made_by[key]:
                print(f"note     {key} until step {done}: {then}")
        folder.log.write("resume", step=done, max_steps=recipe.max_steps, **facts, **made_by, command=runlog.command())
    else:
        about = {"recipe": recipe.as_dict(), "derived": derived.as_dict(), "data": work.data, **facts}
        folder.log.write("start", **about, **made_by, command=runlog.command())


def _made_before(run: Path, keys: Iterable[str]) -> dict[str, Any]:
    """What made the part of a run before this one, as far as its log has it."""
    told: dict[str, Any] = {}
    for line in runlog.read(run):
        told |= {key: line[key] for key in keys if key in line}
    return told


def _step_line(at: Done, derived: Derived) -> dict[str, Any]:
    epoch = round(derived.course.epoch(at.step), 4)
    return {"step": at.step, "epoch": epoch, "lr": at.lr, "loss": at.loss, "gradient_norm": at.gradient_norm}


@dataclasses.dataclass
class _Stop:
    """Whether a signal has asked for it; no `threading.Event`, in whose lock a handler would wait for the one it interrupts."""

    asked: bool = False


@contextmanager
def _stop_signals() -> Iterator[_Stop]:
    """Collect SIGINT, SIGTERM, SIGUSR1 and SIGUSR2 in a flag; a second SIGINT interrupts at once."""
    flag = _Stop()

    def handler(number: int, frame: Any) -> None:
        if number == signal.SIGINT and flag.asked:
            raise KeyboardInterrupt
        flag.asked = True  # nothing more: a handler that prints can meet itself

    try:
        before = {number: signal.signal(number, handler) for number in STOP_SIGNALS}
    except ValueError:  # not the main thread: somebody else's program, somebody else's signals
        yield flag
        return
    try:
        yield flag
    finally:
        for number, old in before.items():
            signal.signal(number, old)
