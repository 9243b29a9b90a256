"""A peer's training step in a process of its own on every rank, so that nothing of ours is set for it.

Ours tells glibc to keep freed memory (device.keep_memory), which holds for the whole process and cannot be taken back.
The peer's ranks are joined by torch.distributed (gloo) and wait on a pipe while others are measured.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
import weakref
from collections.abc import Callable

import torch
from torch import distributed

from benchmarks.exchange import without_horovod
from benchmarks.measure import Bench


def peer(bench: Bench, module: str, *sizes: int) -> Callable[[], float]:
    """A peer's step, each call once, and its seconds; its process begins here and ends with the benchmark.

    Horovod is shut down meanwhile: its thread would share the peer's core.

    Args:
        bench: whose ranks get a process each.
        module: of the benchmark; its `plain(*sizes)` makes the step, torch.distributed being ready.
        sizes: for it.
    """
    comm = bench.comm
    store = distributed.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False) if comm.rank == 0 else None  # type: ignore[attr-defined]
    port = comm.broadcast(store.port if store is not None else None)
    words = [module, comm.rank, comm.size, port, torch.get_num_threads(), *sizes]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.peer", *map(str, words)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    said, asks = process.stdout, process.stdin
    if said.readline() != b"ready\n":
        raise RuntimeError(f"the peer of {module} did not start: exit code {process.wait()}")

    def step() -> float:
        with without_horovod(comm):
            start = time.perf_counter()
            asks.write(b"step\n")
            asks.flush()
            if said.readline() != b"done\n":
                raise RuntimeError(f"the peer of {module} ended: exit code {process.wait()}")
            return time.perf_counter() - start

    weakref.finalize(step, _end, process, store)
    return step


def _end(process: subprocess.Popen[bytes], store: object) -> None:
    """The end of its input ends it; `store`, by which the ranks found each other, has to live until then."""
    try:
        process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()


def main() -> None:
    """A peer's rank: one step for each line on standard input."""
    module, (rank, size, port, threads, *sizes) = sys.argv[1], map(int, sys.argv[2:])
    torch.set_num_threads(threads)
    store = distributed.TCPStore("127.0.0.1", port, None, False)  # type: ignore[attr-defined]
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=size)
    step = importlib.import_module(module).plain(*sizes)
    print("ready", flush=True)
    for _ in sys.stdin:
        step()
        print("done", flush=True)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
