"""A few spawned processes that work through tasks, and end together whatever happens."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from legw_hpc.errors import InputError

Task = TypeVar("Task")
Result = TypeVar("Result")
Progress = Callable[[int], None]

REPORT_SECONDS = 0.2  # a worker tells its progress at most so often (assumed: smooth for the eye, nothing for the pipe)
END_SECONDS = 10.0  # a worker has so long to finish writing a shard before it is killed (assumed)


def run(
    function: Callable[[Task, Progress], Result],
    tasks: Sequence[Task],
    workers: int,
    progress: Progress,
    done: Callable[[int, Result], None],
) -> None:
    """Call `function` for each task; in this process if one worker is enough.

    Workers are spawned, never forked: they share nothing with this process, and import only what
    `function` needs.  Ctrl-C reaches this process alone.  However it ends, its pipes close, and a
    worker unwinds at its next report of progress.  No signal does that: an exception from a signal
    handler is lost where Python happens to be in a destructor.

    Args:
        function: of a module, so that a worker can import it; reports progress through its second argument.
        tasks: handed out in this order, one at a time.
        workers: processes, at least 1.
        progress: called here with what the tasks report.
        done: called here with the place of a finished task and its result.

    Raises:
        InputError: from `function`, or a worker that was killed.
    """
    if min(workers, len(tasks)) <= 1:
        for place, task in enumerate(tasks):
            done(place, function(task, progress))
        return
    pool: dict[Connection, BaseProcess] = {}
    try:
        _start(pool, min(workers, len(tasks)), function)
        _feed(pool, tasks, progress, done)
    finally:
        for pipe in pool:
            pipe.close()  # the workers see the end
        _join(list(pool.values()))


def _start(pool: dict[Connection, BaseProcess], workers: int, function: Callable[..., Any]) -> None:
    context = multiprocessing.get_context("spawn")
    # A worker inherits what is blocked here.  The tracker unblocks as it starts, so it starts first.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        for _ in range(workers):
            here, there = context.Pipe()
            process = context.Process(target=_work, args=(function, there), daemon=True)
            process.start()
            there.close()
            pool[here] = process
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _feed(
    pool: dict[Connection, BaseProcess], tasks: Sequence[Any], progress: Progress, done: Callable[[int, Any], None]
) -> None:
    waiting = list(enumerate(tasks))[::-1]
    busy: dict[Connection, int] = {}
    idle = list(pool)
    while idle or busy:
        for pipe in idle:
            if waiting:
                busy[pipe], task = waiting.pop()
                _talk(pool, pipe, pipe.send, task)
        idle = []
        ready = set(connection.wait(list(busy))) if busy else set()
        for pipe in [pipe for pipe in busy if pipe in ready]:
            kind, value = _talk(pool, pipe, pipe.recv)
            if kind == "failed":
                raise value
            if kind == "progress":
                progress(value)
            else:
                done(busy.pop(pipe), value)
                idle.append(pipe)


def _talk(pool: dict[Connection, BaseProcess], pipe: Connection, send_or_receive: Callable[..., Any], *what: Any) -> Any:
    try:
        return send_or_receive(*what)
    except (EOFError, OSError):
        pool[pipe].join(END_SECONDS)
        code = pool[pipe].exitcode
        why = f"killed by signal {-code}, perhaps for want of memory" if code and code < 0 else f"exit code {code}"
        raise InputError(f"a worker has ended ({why}); the same command goes on, with fewer workers or smaller shards") from None


def _join(processes: list[BaseProcess]) -> None:
    until = time.monotonic() + END_SECONDS
    try:
        for process in processes:
            process.join(max(0.0, until - time.monotonic()))
    finally:  # also at a second Ctrl-C
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join()
            process.close()


def _work(function: Callable[[Any, Progress], Any], pipe: Connection) -> None:
    """The life of a worker: it ends when the other end of the pipe is closed, in the midst of a task too."""
    told, count = time.monotonic(), 0

    def report(more: int) -> None:
        nonlocal told, count
        count += more
        if time.monotonic() - told >= REPORT_SECONDS:
            tell("progress", count)
            told, count = time.monotonic(), 0

    def tell(kind: str, value: Any) -> None:
        try:
            pipe.send((kind, value))
        except OSError:
            sys.exit(1)  # nobody is left to hear it

    while True:
        try:
            task = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            result = function(task, report)
        except InputError as error:
            tell("failed", error)
        except Exception:
            tell("failed", RuntimeError(f"in a worker:\n{traceback.format_exc()}"))
        else:
            tell("progress", count)
            count = 0
            tell("done", result)
