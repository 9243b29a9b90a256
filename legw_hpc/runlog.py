"""What a run tells: a JSON-lines file, and on rank 0 a progress bar or plain lines.

RUN/log.jsonl    {"event": "start", ...}   recipe, derivation, digest of the data, versions, ranks, commit, hardware
                 {"event": "step", ...}    step, epoch, lr, loss, gradient norm, samples/s, input wait; noise scale
                 {"event": "curvature", ...}  step and L(x, g) before it (curvature.py), where it was measured
                 {"event": "eval", ...}    step, epoch, metrics; train_loss, the mean over the samples since the one before
                 {"event": "resume", ...}  from which step, by what command, code and ranks, and for how many steps
                 {"event": "end", ...}     status and result; of a run that diverged, at which step
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from legw_hpc.errors import InputError

LOG = "log.jsonl"
STALLED = "stalled"  # marks of ranks that wait for one that has stopped (watchdog.py)
RESULTS = ("results", "benchmarks/results")  # of the checkout: what is recorded there changes no code
JOBS = "jobs"  # scripts and output of the jobs that ran it (legw-hpc submit)
LINE_SECONDS = 30.0  # between lines where there is no terminal


class RunLog:
    """Rank 0's log; on other ranks (folder None) every call does nothing.

    Args:
        folder: the run's.
        before: called before a line is written.
    """

    def __init__(self, folder: Path | None, before: Callable[[], object] = lambda: None):
        self._before = before
        self._file: TextIO | None = None
        if folder is not None:
            try:
                self._file = open(folder / LOG, "a", encoding="utf-8")
            except OSError as error:
                raise InputError(f"{folder / LOG}: cannot be written: {error.strerror}") from None

    def write(self, event: str, **values: Any) -> None:
        """Append one line.

        Raises:
            InputError: the disk is full, or the folder gone.
        """
        if self._file is not None:
            self._before()
            with self._writing():
                self._file.write(json.dumps({"event": event, "time": round(time.time(), 3), **values}) + "\n")
                self._file.flush()

    def position(self) -> int:
        """Bytes written so far: a checkpoint keeps it."""
        return 0 if self._file is None else self._file.tell()

    def cut(self, position: int) -> None:
        """Forget what was logged after a checkpoint that the run goes on from."""
        if self._file is not None:
            with self._writing():
                end = self._file.seek(0, os.SEEK_END)
                if end < position:  # a crashed node may have lost the tail, and in the middle of a line
                    end = Path(self._file.name).read_bytes().rfind(b"\n") + 1
                self._file.truncate(end := min(position, end))
                self._file.seek(end)

    def sync(self) -> None:
        """Make what is written last."""
        if self._file is not None:
            with self._writing():
                os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # what did not fit was told when it was written
                self._file.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            assert self._file is not None
            raise InputError(f"{self._file.name}: cannot be written: {error.strerror}") from None


def settles(end: Mapping[str, Any], last: int) -> bool:
    """Is there nothing left to train of a run of `last` steps whose log ends so; one that diverged did so on the way.

    An older log does not tell at which step: it is taken for any length of its run.
    """
    return bool(end.get("step", 0) <= last if end["status"] == "diverged" else end["steps"] >= last)


def read(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log; a torn last line is left out.  Empty if there is no log."""
    try:
        text = (folder / LOG).read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise InputError(f"{folder / LOG}: cannot be read: {error.strerror}") from None
    return parse(text)


def parse(text: str) -> list[dict[str, Any]]:
    """The lines of a log's text; a torn last line is left out."""
    lines = []
    for line in text.splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def micro_batch(folder: Path) -> int | None:
    """That of the run in a folder; None if there is none."""
    for line in read(folder):
        if isinstance(line, dict) and line.get("event") == "start" and isinstance(line.get("recipe"), dict):
            size = line["recipe"].get("micro_batch")
            return size if isinstance(size, int) and size > 0 else None
    return None


class Progress:
    """A bar on a terminal, plain lines elsewhere, nothing on ranks other than 0.

    Args:
        steps: of the whole run.
        done: steps done before.
        shown: is this rank 0.
        micro_batches: step, counted from 0 -> of this rank in it.
    """

    def __init__(self, steps: int, done: int, shown: bool, micro_batches: Callable[[int], int]):
        self._bar = None
        self._steps, self._shown, self._told = steps, shown, time.monotonic()
        self._done, self._micro_batches = done, micro_batches
        if shown and sys.stderr.isatty():
            self._bar = tqdm(total=steps, initial=done, unit="step", dynamic_ncols=True, smoothing=0.1)

    def step(self, done: int, **values: Any) -> None:
        """Move the bar, or print a line now and then."""
        self._done = done
        if self._bar is not None:
            self._bar.set_postfix(values, refresh=False)
            self._bar.update(done - self._bar.n)
            self._told = time.monotonic()
        elif self._shown and time.monotonic() - self._told >= LINE_SECONDS:
            self._told = time.monotonic()
            print(f"step {done} of {self._steps}: " + ", ".join(f"{k} {v}" for k, v in values.items()), flush=True)

    def within(self, done: int) -> None:
        """Of a step that takes long, how many of its micro-batches are done."""
        if self._shown and time.monotonic() - self._told >= LINE_SECONDS:
            self._told = time.monotonic()
            about = f"micro-batch {done:,} of {self._micro_batches(self._done):,}"
            if self._bar is not None:
                self._bar.set_postfix_str(about)
            else:
                print(f"step {self._done + 1} of {self._steps}: {about}", flush=True)

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._bar is not None:
            self._bar.write(text)
        elif self._shown:
            print(text, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def command() -> str:
    """The words that this process was started with, without its launcher."""
    name = "legw-hpc" if Path(sys.argv[0]).name == "__main__.py" else Path(sys.argv[0]).name
    return shlex.join([name, *sys.argv[1:]])


def versions() -> dict[str, str | None]:
    """Of everything that can change a number."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("legw_hpc", "torch", "numpy", "h5py", "simplejpeg", "opencv-python-headless", "horovod", "mpi4py"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def code(*more: Path) -> str:
    """A digest of this package's source, and of more files: ranks of one version may still run different files."""
    return digest([*more, *sorted(Path(__file__).parent.rglob("*.py"))])


def digest(files: Sequence[Path]) -> str:
    """Of files that there are, and of the names of those in this package."""
    here, found = Path(__file__).parent, hashlib.sha256()
    for file in files:
        name = f"{file.relative_to(here)}\0" if file.is_relative_to(here) else ""
        try:
            if file.is_file():  # an editor's lock is a link to nothing
                found.update(name.encode() + file.read_bytes())
        except OSError as error:
            raise InputError(f"{file}: cannot be read: {error.strerror}") from None
    return found.hexdigest()


def commit() -> str | None:
    """The commit that this code stands at, with "+" if files differ from it; None outside a checkout.

    Where jobs/pack.sh has packed it, or a container holds it, the file COMMIT tells.
    """
    here = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", __file__) is None:
        packed = here / "COMMIT"
        return (packed.read_text().strip() or None) if packed.exists() else None
    head = git("rev-parse", "--short=12", "HEAD")
    other = git("status", "--porcelain", "-uno", "--", ":/", *(f":(top,exclude){folder}" for folder in RESULTS))
    return None if head is None else head + ("+" if other else "")
