"""A training job under faults: started, watched, waited for, and nothing of it left."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from legw_hpc import runlog
from legw_hpc.launcher import local_ranks
from tests.parallel.ranks import ROOT, forget_launcher, ranks_of

# A rank that dies must end all of them within this (a stopped one: after the recipe's limit).
END_SECONDS = 30.0
# The recipe's eval_every.
EVALUATE_EPOCHS = 2
TAIL_BYTES = 4096
POLL_SECONDS = 0.005


class Hang(Exception):
    """Something that should have ended has not."""


class Missed(Exception):
    """The run has ended before the fault could come."""


class Job:
    """Ranks of one start of a run; what it prints goes to a file, so that a killed launcher's ranks can still write.

    Args:
        ranks: how many.
        words: of `legw-hpc train`.
        place: its folder: PLACE/run is the run folder, PLACE/data the shards.
    """

    living: ClassVar[list[Job]] = []
    over: ClassVar[bool] = False  # nothing more is to be started

    def __init__(self, ranks: int, words: Sequence[str], place: Path):
        if Job.over:
            raise Missed
        self.size, self._words, self.place = ranks, words, place
        self.out, self.data, self.ballast = place / "run", place / "data", place / "ballast"
        self._said = place.with_name(f"{place.name}.said")  # beside, not on a disk that is to be full
        command, environment = local_ranks(ranks)
        train = [sys.executable, "-m", "legw_hpc", "train", *words, f"data.dir={self.data}", f"out={self.out}"]
        with self._said.open("wb") as file:
            self.process = subprocess.Popen(
                [*command, *train], env=environment | {"PYTHONPATH": str(ROOT)}, cwd=ROOT,
                stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
            )  # fmt: skip
        Job.living.append(self)

    def again(self) -> Job:
        """The same command once more."""
        return Job(self.size, self._words, self.place)

    def runs(self) -> bool:
        return self.process.poll() is None

    def ranks(self) -> list[int]:
        """Process numbers, rank 0 first."""
        return ranks_of(self.out)

    def said(self) -> str:
        return self._said.read_text(errors="replace")

    def latest(self) -> Iterator[dict[str, Any]]:
        """The lines at the end of the log, the last one first."""
        try:
            with (self.out / runlog.LOG).open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
                lines = file.read().splitlines()
        except OSError:
            return
        for line in reversed(lines):
            with contextlib.suppress(ValueError):
                yield json.loads(line)

    def step(self) -> int:
        """The last step of the log; 0 before there is one."""
        return next((int(line["step"]) for line in self.latest() if line.get("step")), 0)

    def evaluates(self) -> bool:
        """Has a step been logged after which an evaluation is due, and not yet its metrics."""
        line = next(self.latest(), {})
        return line.get("event") == "step" and line["epoch"] % EVALUATE_EPOCHS == 0

    def resumed(self) -> int:
        """The step that this start has gone on from, by its own word; -1 before it has said so."""
        found = re.search(r"^out      [^;\n]*(?:; resumed after step (\d+))?$", self.said(), re.M)
        return int(found[1] or 0) if found else -1

    def reaches(self, step: int, seconds: float) -> bool:
        """Wait for a step; False if the job has ended before.

        Raises:
            Hang: not within so many seconds.
        """
        until = time.monotonic() + seconds
        while self.step() < step:
            if not self.runs():
                return False
            if time.monotonic() > until:
                raise Hang(f"step {step} not reached within {seconds:g} s:\n{self.said()[-2000:]}")
            time.sleep(POLL_SECONDS)
        return True

    def ended(self, seconds: float) -> int:
        """Wait for the launcher and all ranks to be gone; the exit code.

        Raises:
            Hang: not within so many seconds.
        """
        until = time.monotonic() + seconds
        while self.runs() or self.ranks():
            if time.monotonic() > until:
                raise Hang(f"not ended within {seconds:g} s, ranks {self.ranks()}:\n{self.said()[-2000:]}")
            time.sleep(POLL_SECONDS)
        forget_launcher(self.process.pid)
        return self.process.returncode

    def newest(self) -> Path:
        """The newest checkpoint that has a manifest."""
        return max((self.out / "checkpoints").glob("*.json")).with_suffix(".pt")

    def begun(self) -> set[str]:
        """Files that are written aside in the folder of checkpoints."""
        return {path.name for path in (self.out / "checkpoints").glob(".*.part")}

    def manifests(self) -> list[Path]:
        return sorted((self.out / "checkpoints").glob("step-*.json"))

    def clear(self) -> None:
        """Leave no process."""
        for pid in [*self.ranks(), self.process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        forget_launcher(self.process.pid)

    @classmethod
    def end_all(cls) -> None:
        """Leave no process of any job, and start no more."""
        cls.over = True
        for job in list(cls.living):
            job.clear()
