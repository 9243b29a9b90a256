"""A run's folder: whose it is, what it has reached, and what is written to it.

    RUN/recipe.json     the recipe that the folder belongs to
    RUN/log.jsonl       see runlog.py
    RUN/checkpoints/    see checkpoint.py

Rank 0 reads and writes; the other ranks are told.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from legw_hpc import checkpoint, runlog
from legw_hpc.comm import Comm
from legw_hpc.data.files import make_folder, written_whole
from legw_hpc.data.order import part
from legw_hpc.errors import InputError
from legw_hpc.recipe import Recipe
from legw_hpc.trainer import Timing

RECIPE = "recipe.json"


class RunFolder:
    """Opens a run's folder, making it if need be.

    Args:
        recipe: after overrides; its `out` names the folder.
        data: digest of the training data: another data set is another run.
        comm: rank 0's view of the folder counts.

    Raises:
        InputError: the folder cannot be written, or belongs to another recipe; nothing is changed then.
    """

    def __init__(self, recipe: Recipe, data: str, comm: Comm):
        self.path, self._comm, self._keep = recipe.out_folder(), comm, recipe.checkpoint.keep
        self._micro_batch = recipe.micro_batch
        with comm.together():
            if comm.rank == 0:
                make_folder(self.path)
                _claim(self.path, recipe.identity() | {"data": data})
        with comm.together():
            self.log = runlog.RunLog(self.path if comm.rank == 0 else None)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *error: object) -> None:
        self.log.close()

    def result(self) -> dict[str, Any] | None:
        """The result of the run in this folder, if it has ended; the same on every rank."""
        with self._comm.together():
            lines = runlog.read(self.path) if self._comm.rank == 0 else []
        ended = lines[-1] if lines and lines[-1].get("event") == "end" else None
        found = self._comm.broadcast(ended)
        return None if found is None else dict(found)

    def restore(self, parts: Mapping[str, Any], timing: Timing, carried: list[Tensor], say: Callable[[str], None]) -> int:
        """Bring everything back to the newest whole checkpoint.

        Args:
            parts: what has a `load_state_dict`, by name.
            timing: changed in place.
            carried: filled with what this rank's micro-batches carry; see `trainer.train`.
            say: told of damaged checkpoints.

        Returns:
            The steps done; 0 if there is no checkpoint.
        """
        state = checkpoint.load_newest(self.path / "checkpoints", self._comm, say)
        if state is None:
            self.log.cut(0)
            return 0
        for name, owner in parts.items():
            owner.load_state_dict(state[name])
        vars(timing).update(state["timing"])
        rows = state["carried"]
        if rows is not None:
            mine = part(len(rows), self._comm.rank, self._comm.size)
            carried[:] = [piece.clone() for piece in rows[mine.start : mine.stop].split(self._micro_batch)]
        self.log.cut(state["log"])
        return int(state["step"])

    def save(self, step: int, parts: Mapping[str, Any], timing: Timing, carried: list[Tensor]) -> None:
        """Write a checkpoint; every rank takes part, so that all hear of a full disk."""
        rows = _all_rows(carried, self._comm)
        with self._comm.together():
            if self._comm.rank == 0:
                self.log.sync()
                state: dict[str, Any] = {name: owner.state_dict() for name, owner in parts.items()}
                state |= {"timing": dataclasses.asdict(timing), "carried": rows, "log": self.log.position()}
                checkpoint.save(self.path / "checkpoints", step, state, self._keep)


def _all_rows(carried: list[Tensor], comm: Comm) -> Tensor | None:
    """What the rows of the global batch carry, in their order; on every rank."""
    if not carried:
        return None
    mine = torch.cat(carried).cpu().contiguous()
    everyone = b"".join(comm.gather_bytes(mine.numpy().tobytes()))
    return torch.frombuffer(bytearray(everyone), dtype=mine.dtype).view(-1, *mine.shape[1:])


def _claim(folder: Path, identity: dict[str, Any]) -> None:
    """Write the identity of the run into a new folder; compare it in one that is in use."""
    mine = json.loads(json.dumps(identity))
    path = folder / RECIPE
    try:
        theirs = json.loads(path.read_text())
    except FileNotFoundError:
        names = sorted(entry.name for entry in folder.iterdir())
        if strangers := [name for name in names if name != runlog.JOBS and not name.endswith(".part")]:
            raise InputError(f"{folder}: not empty ({strangers[0]}) and not a run's folder; nothing overwritten") from None
        with written_whole(path) as aside:
            aside.write_text(json.dumps(mine, indent=1) + "\n")
        return
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    for key in sorted(mine.keys() | theirs.keys()):
        if mine.get(key) != theirs.get(key):
            raise InputError(
                f"{folder}: holds a run with {key} {theirs.get(key)!r}, this one has {mine.get(key)!r}; "
                "choose another folder with out=..., nothing overwritten"
            )
