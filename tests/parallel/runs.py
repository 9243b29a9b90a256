"""Training on real ranks, and what it leaves."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from legw_hpc import checkpoint, runlog
from tests.parallel.ranks import launch

TRAIN = [sys.executable, "-m", "legw_hpc", "train"]


def trained(ranks: int, words: list[str], out: Path) -> dict[str, Any]:
    """The last checkpoint of a run that ended well."""
    code, said = launch(ranks, [*TRAIN, *words, f"out={out}"])
    assert code == 0, said
    return newest(out)


def newest(run: Path) -> dict[str, Any]:
    """The last checkpoint of a run."""
    return dict(torch.load(max((run / checkpoint.FOLDER).glob("*.pt")), weights_only=True))


def crashed(run: Path, step: int, to: Path) -> Path:
    """A copy of a run as a crash would have left it: the checkpoint of a step, and a log that is ahead of it."""
    kept = {f"step-{step:08d}.pt", f"step-{step:08d}.json"}
    shutil.copytree(run, to, ignore=lambda folder, names: set(names) - kept if Path(folder).name == checkpoint.FOLDER else set())
    assert {path.name for path in (to / checkpoint.FOLDER).iterdir()} == kept
    log = to / runlog.LOG
    lines = log.read_text().splitlines(keepends=True)
    assert '"end"' in lines[-1]
    log.write_text("".join(lines[:-1]))
    return to
