"""Which device and how many threads a rank takes, that it keeps the memory it has had, and what its processor can do."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from pathlib import Path

import torch

from legw_hpc.comm import Comm
from legw_hpc.errors import InputError
from legw_hpc.launcher import CORES

DEVICES = ("auto", "cpu", "cuda")


def choose_device(wanted: str, comm: Comm) -> torch.device:
    """ "cpu", or the GPU of this local rank.

    A rank that sees one GPU alone (`srun --gpus-per-task=1`) has it as device 0.

    Args:
        wanted: "auto" (a GPU where there is one and the backend can exchange from it), "cpu" or "cuda".

    Raises:
        InputError: no GPU for this rank, or an unknown name.
    """
    if wanted not in DEVICES:
        raise InputError(f"unknown device {wanted!r}: one of {', '.join(DEVICES)}")
    seen = torch.cuda.device_count() if wanted != "cpu" and torch.cuda.is_available() else 0
    if wanted == "cpu" or (wanted == "auto" and not (seen and comm.gpu)):
        return torch.device("cpu")
    if not comm.gpu:
        raise InputError(f"device=cuda: comm {comm.name} cannot sum on GPUs as built here: make HOROVOD_GPU_OPERATIONS=NCCL")
    if seen != 1 and comm.local_rank >= seen:
        where = f"local rank {comm.local_rank} of {comm.local_size} on {comm.node}"
        raise InputError(f"device={wanted}: {where}, but {seen} GPUs there: fewer ranks a node, or device=cpu")
    device = torch.device("cuda", 0 if seen == 1 else comm.local_rank)
    torch.cuda.set_device(device)
    return device


def check_distinct(device: torch.device, comm: Comm) -> None:
    """Refuse two ranks on one GPU, which NCCL answers with a hang or an error of its own.

    Raises:
        InputError: names the node and both ranks.
    """
    mine = str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else None
    owners: dict[tuple[str, str], int] = {}
    for rank, (node, uuid) in enumerate(comm.gather([comm.node, mine])):
        if uuid is not None and owners.setdefault((node, uuid), rank) != rank:
            raise InputError(
                f"ranks {owners[node, uuid]} and {rank} on {node} have one GPU: start one rank a GPU, or device=cpu", agreed=True
            )


def set_threads(wanted: int, comm: Comm) -> int:
    """Share the node's cores among its ranks: ranks x threads <= cores, whether ranks are pinned or not.

    Every rank has as many as the rank with the fewest: a norm is summed in pieces, one a thread, and LARS on ranks that cut
    it otherwise would let their weights drift apart.  They wait for the slowest in any case.

    Args:
        wanted: threads per rank; 0 is OMP_NUM_THREADS if set, else an equal share.

    Returns:
        The threads per rank, now set.
    """
    everyone = comm.gather([comm.node, CORES])
    # Pinned ranks have cores of their own; unpinned ones all see the same cores and share them.
    sharers = sum(node == comm.node and bool(set(theirs) & set(CORES)) for node, theirs in everyone)
    if not wanted and os.environ.get("OMP_NUM_THREADS", "").isdigit():
        wanted = int(os.environ["OMP_NUM_THREADS"])
    torch.set_num_threads(min(comm.gather(wanted or max(1, len(CORES) // sharers))))
    return torch.get_num_threads()


# mallopt's numbers in glibc's malloc.h -> values: no block of its own mapping (M_MMAP_MAX), no return of the heap's end
# (M_TRIM_THRESHOLD), growth in steps of 64 MiB (M_TOP_PAD, assumed).
_KEEP = {-4: 0, -1: 2**31 - 1, -2: 64 << 20}


def keep_memory() -> None:
    """Let glibc keep what is freed for the next tensor.

    By default it maps a large block anew each time, and the system hands out its pages zeroed and one by one: 233,000 page
    faults in a step of ResNet-50 with 16 images on a CPU, and 6 % of its time (measured).  Left alone where the user has
    set MALLOC_... or there is another malloc.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        for number, value in _KEEP.items():
            mallopt(number, value)


def hardware(device: torch.device, comm: Comm) -> str:
    """The model of the ranks' GPUs, or CPUs; all there are, where they differ."""
    mine = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return " and ".join(sorted(set(comm.gather(mine))))


def processor() -> str:
    """The model of the CPU."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def in_hardware(dtype: torch.dtype) -> bool:
    """Whether this processor has the arithmetic that oneDNN's kernels of bf16 or fp16 need; else it is emulated and slow."""
    checks = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    return bool(getattr(torch.ops.mkldnn, checks[dtype])())
