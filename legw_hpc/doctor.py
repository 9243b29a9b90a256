"""Is everything in order?  One line a check; a fault comes with its remedy."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from legw_hpc import runlog
from legw_hpc.errors import InputError
from legw_hpc.launcher import CORES, launched, local_ranks, mpirun

# Assumed: a ResNet-50 checkpoint is 0.2 GB, and two of them and the log should fit many times over.
FREE_BYTES = 2 << 30
# The launch of N ranks may import torch from a cold network file system (assumed).
LAUNCH_SECONDS = 300
BROKEN = "run `make setup`; on a cluster, load the modules first that this environment was made with"


class Fault(Exception):
    """A check that failed, and what to do about it."""

    def __init__(self, what: str, remedy: str):
        super().__init__(what)
        self.remedy = remedy


def doctor(ranks: int) -> None:
    """Run all checks and print them; of what is in order rank 0 tells for all, of a fault the rank that has it.

    Args:
        ranks: launch so many ranks on this machine and let them agree; 0 launches none.  Under a
            launcher, its own ranks are checked instead.

    Raises:
        InputError: some check failed.
    """
    launch = launched()
    checks: dict[str, Callable[[], str]] = {
        "python": _python, "MPI": _mpi, "mpi4py": _mpi4py, "Horovod": _horovod, "device": _device, "threads": _threads,
        "HDF5": _hdf5, "free space": _space,
    }  # fmt: skip
    if launch.size != 1:
        checks["ranks"] = _agree
    elif ranks:
        checks["ranks"] = lambda: _launch(ranks)
    here = "" if launch.rank == 0 else f"rank {launch.rank} on {socket.gethostname()}: "
    faults = 0
    for name, check in checks.items():
        try:
            said = check()
        except Exception as error:  # also what an installation that is broken raises: that is what this looks for
            faults += 1
            told = error if isinstance(error, Fault) else Fault(f"{name}: {type(error).__name__}: {error}", BROKEN)
            print(f"{here}FAULT  {told}\n{here}       remedy: {told.remedy}", flush=True)
        else:
            if launch.rank == 0:
                print(f"ok     {said}", flush=True)
    if faults:
        raise InputError(f"doctor: {faults} of {len(checks)} checks failed")


def _python() -> str:
    found = {name: version for name, version in runlog.versions().items() if name not in ("horovod", "mpi4py")}
    return ", ".join(f"{name} {version or 'missing'}" for name, version in found.items())


def _mpi() -> str:
    command = mpirun()
    if command is None:
        named = f"; MPIRUN is {os.environ['MPIRUN']}" if os.environ.get("MPIRUN") else ""
        raise Fault(
            f"MPI: no mpirun or mpiexec{named}", "load your cluster's MPI module, or run `make setup` (srun alone is fine too)"
        )
    done = subprocess.run([command, "--version"], capture_output=True, text=True)
    lines = (done.stdout or done.stderr).strip().splitlines() or ["no version"]
    if done.returncode:
        raise Fault(f"MPI: {command} --version ends with {done.returncode}: {lines[-1]}", "mend that, or load another MPI module")
    return f"MPI launcher: {command} ({lines[0]})"


def _mpi4py() -> str:
    out, why = _python_says("from mpi4py import MPI; print(MPI.Get_library_version().splitlines()[0].rstrip('\\0 '))")
    if not out:
        raise Fault(
            f"mpi4py cannot be imported or finds no MPI library ({why})",
            "run `make setup`; on a cluster, load the MPI module first",
        )
    return f"mpi4py: {out}"


def _horovod() -> str:
    out, why = _python_says("from legw_hpc.comm.horovod import facts; f = facts(); print(f['version'], f['mpi'], f['nccl'])")
    if not out:
        raise Fault(
            f"Horovod cannot be imported ({why}): several ranks can only train with comm=mpi",
            "run `make setup`: the published release needs a patch to build (see .setup/wheels.py)",
        )
    version, mpi, nccl = out.split()
    if mpi != "True":
        raise Fault(
            f"Horovod {version} was built without MPI: every rank would be rank 0 of 1",
            "run `make setup` with mpicxx on the PATH",
        )
    return f"Horovod {version}: MPI yes, NCCL {'yes' if nccl == 'True' else 'no'}"


def _python_says(code: str) -> tuple[str, str]:
    """The last line that a fresh interpreter prints, outside of the launcher's world, and, where it fails, of its complaint."""
    prefixes = ("OMPI_", "PMI", "PRTE_", "SLURM_", "PALS_", "ALPS_", "MV2_", "MPI_")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(prefixes)}
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=LAUNCH_SECONDS
        )
    except subprocess.TimeoutExpired:
        return "", f"no answer within {LAUNCH_SECONDS:g} s"
    said, complaint = (text.strip().splitlines() or [""] for text in (done.stdout, done.stderr))
    return ("", complaint[-1]) if done.returncode else (said[-1], "")


def _device() -> str:
    import torch

    from legw_hpc.device import in_hardware

    if not torch.cuda.is_available():
        kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
        words = ", ".join(f"{name} {'in hardware' if in_hardware(kind) else 'emulated: slow'}" for name, kind in kinds.items())
        return f"device: CPU ({torch.backends.cpu.get_cpu_capability()}; {words})"
    found = f"device: {torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    if _python_says("from legw_hpc.comm.horovod import facts; print(facts()['nccl'])")[0] == "True":
        return f"{found}, NCCL"
    return f"{found}, but Horovod has no NCCL: several ranks train on the CPU (make HOROVOD_GPU_OPERATIONS=NCCL)"


def _threads() -> str:
    cores = len(CORES)
    local = max(1, launched().local_size)
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > cores:
        raise Fault(
            f"OMP_NUM_THREADS is {asked}, but this rank may use {cores} cores", f"export OMP_NUM_THREADS={max(1, cores // local)}"
        )
    note = "; oversubscribed" if local > (os.cpu_count() or 1) else ""
    if cores * local < (os.cpu_count() or 1):
        note += "; pinned to fewer cores than there are (Open MPI: --map-by slot:PE=N, or --bind-to none)"
    rule = "ranks x threads <= cores unless threads= or OMP_NUM_THREADS says otherwise"
    return f"threads: {cores} of {os.cpu_count()} cores, {local} ranks here{note}, OMP_NUM_THREADS {asked or 'not set'}; {rule}"


def _hdf5() -> str:
    import h5py
    import numpy as np

    with tempfile.TemporaryDirectory(dir=_writable()) as folder:
        path = Path(folder) / "check.h5"
        try:
            with h5py.File(path, "w") as file:
                file["x"] = np.arange(8)
            with h5py.File(path, "r", locking=False) as file:
                whole = bool((file["x"][...] == np.arange(8)).all())
        except OSError as error:
            raise Fault(
                f"HDF5 cannot write here: {error}", "export HDF5_USE_FILE_LOCKING=FALSE, or use another file system"
            ) from None
    if not whole:
        raise Fault("HDF5 reads back other values than it wrote", "reinstall h5py")
    return f"HDF5 {h5py.version.hdf5_version}: writes and reads in {Path.cwd()}"


def _writable() -> Path:
    here = Path.cwd()
    if not os.access(here, os.W_OK):
        raise Fault(f"{here} cannot be written", "change to a folder of your own")
    return here


def _space() -> str:
    free = shutil.disk_usage(Path.cwd()).free
    if free < FREE_BYTES:
        raise Fault(
            f"{free / 2**30:.1f} GiB free in {Path.cwd()}, {FREE_BYTES / 2**30:.0f} wanted", "make room, or train elsewhere"
        )
    return f"free space: {free / 2**30:.0f} GiB in {Path.cwd()}"


def _agree() -> str:
    """Under a launcher: do all parties count the same ranks, and is a sum right."""
    import torch

    from legw_hpc.comm import connect

    try:
        comm = connect("horovod")
    except InputError as error:
        raise Fault(str(error), "start the ranks with the mpirun or srun of the MPI that Horovod was built with") from None
    try:
        total = torch.full((1000,), float(comm.rank + 1))
        comm.sum_(total)
        expected = comm.size * (comm.size + 1) / 2
        if not bool((total == expected).all()):
            raise Fault(
                f"a sum over {comm.size} ranks gives {total[0]:g}, not {expected:g}", "rebuild Horovod with this MPI: make setup"
            )
        everyone = comm.gather([comm.node, len(CORES)])
        nodes = len({node for node, _ in everyone})
        return f"ranks: {comm.size} on {nodes} nodes agree, {everyone[0][1]} cores each may be used"
    finally:
        comm.close()


def _launch(ranks: int) -> str:
    try:
        command, environment = local_ranks(ranks)
    except InputError as error:
        raise Fault(str(error), "run `make setup`, or load an MPI module") from None
    command += [sys.executable, "-m", "legw_hpc", "doctor"]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=LAUNCH_SECONDS, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise Fault(
            f"{ranks} ranks did not answer within {LAUNCH_SECONDS} s", "try mpirun -np 2 hostname; look for a firewall"
        ) from None
    found = [line for line in done.stdout.splitlines() if line.startswith("ok     ranks: ")]
    if done.returncode or not found:
        tail = " | ".join((done.stdout + done.stderr).strip().splitlines()[-6:])
        raise Fault(
            f"{ranks} ranks do not agree (mpirun ended with {done.returncode}): {tail}", "run mpirun -np 2 legw-hpc doctor"
        )
    return found[0].removeprefix("ok     ")
