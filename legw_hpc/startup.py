"""Ends a rank that does not come to its first collective.

Until the ranks are connected no watchdog can be: a rank whose imports hang on a file system leaves all others in MPI_Init,
for as long as the allocation lasts.  So the kernel's timer runs while a rank imports, and again while it connects.
Nothing heavy is imported here: this is what watches that.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import sys
import threading
import types
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

from legw_hpc.errors import EXIT_STALLED
from legw_hpc.launcher import launched

# A rank that imports may take so many times `stall_minutes`, like one that prepares its data (assumed).
TIMES = 12.0
# Longer for those that wait for the others to come: the one that hangs is the first to end, and is named (assumed).
CONNECT_SECONDS = 60.0
# A library that is being loaded, and MPI_Init, let no Python run; so much later a thread in C ends them (assumed).
HARD_SECONDS = 10.0


Result = TypeVar("Result")


def within(seconds: float, what: str, do: Callable[[], Result]) -> Result:
    """What a function returns; this process ends if it takes longer.  One rank alone has nobody who waits.

    With EXIT_STALLED and a line that names rank and host where Python still runs; else with 1 and a dump of all threads, in
    which the function's caller is named after both.

    Args:
        seconds: 0 is no limit.
        what: the function does, in the perfect, for the message.
        do: the function.
    """
    launch, host = launched(), socket.gethostname()
    if not seconds or launch.size == 1 or threading.current_thread() is not threading.main_thread():
        return do()

    def end(number: int, frame: FrameType | None) -> None:
        at = f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame else "?"
        print(
            f"legw-hpc: stalled: rank {launch.rank} on {host} has not {what} within {seconds:g} s: it is at {at}. "
            "Nothing is changed: the same command starts again",
            file=sys.stderr,
            flush=True,
        )
        os._exit(EXIT_STALLED)

    before: Any = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(seconds + HARD_SECONDS, exit=True, file=2)
    try:
        named = types.FunctionType(_call.__code__.replace(co_name=f"rank {launch.rank} on {host}"), globals())
        result: Result = named(do)
        return result
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


def _call(do: Callable[[], Result]) -> Result:
    return do()
