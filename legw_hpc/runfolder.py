"""A run's folder: whose it is, what it has reached, and what is written to it.

    RUN/recipe.json, RUN/owner.json    see owner.py
    RUN/log.jsonl       see runlog.py
    RUN/checkpoints/    see checkpoint.py

Rank 0 reads and writes; the other ranks are told.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from legw_hpc import checkpoint, runlog
from legw_hpc.comm import Comm
from legw_hpc.data.files import make_folder
from legw_hpc.errors import InputError
from legw_hpc.owner import belongs, claim, owning
from legw_hpc.recipe import Recipe
from legw_hpc.trainer import Timing


class RunFolder:
    """A run's folder, made if need be; a context in which no other job trains into it.

    Args:
        recipe: after overrides; its `out` names the folder.
        data: digest of the training data: another data set is another run.
        comm: rank 0's view of the folder counts.

    Raises:
        InputError: the folder cannot be written, belongs to another recipe, or is in use; nothing is changed then.
    """

    log: runlog.RunLog

    def __init__(self, recipe: Recipe, data: str, comm: Comm):
        self.path, self._comm, self._keep = recipe.out_folder(), comm, recipe.checkpoint.keep
        self._identity = json.loads(json.dumps(recipe.identity() | {"data": data}))

    def __enter__(self) -> RunFolder:
        with ExitStack() as stack:
            with self._comm.together():
                if self._comm.rank == 0:
                    make_folder(self.path)
                    belongs(self.path, self._identity)  # before this job waits for another
            self._hold = stack.enter_context(owning(self.path, self._comm))
            with self._comm.together():
                if self._comm.rank == 0:
                    claim(self.path, self._identity)
                self.log = runlog.RunLog(self.path if self._comm.rank == 0 else None, self._hold.check)
            stack.callback(self.log.close)
            self._leave = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._leave.close()

    def result(self) -> dict[str, Any] | None:
        """The result of the run in this folder, if it has ended; the same on every rank."""
        with self._comm.together():
            lines = self._lines()
        ended = lines[-1] if lines and lines[-1].get("event") == "end" else None
        found = self._comm.broadcast(ended)
        return None if found is None else dict(found)

    def evaluation(self, step: int) -> dict[str, float] | None:
        """The metrics of a step, if the log has them; the same on every rank."""
        with self._comm.together():
            lines = self._lines()
        about = ("event", "time", "step", "epoch", "train_loss")
        found = [line for line in lines if line.get("event") == "eval" and line.get("step") == step]
        told = self._comm.broadcast({key: value for key, value in found[-1].items() if key not in about} if found else None)
        return None if told is None else dict(told)

    def _lines(self) -> list[dict[str, Any]]:
        """Of the log; on rank 0 alone."""
        lines = runlog.read(self.path) if self._comm.rank == 0 else []
        for number, line in enumerate(lines, start=1):
            if not isinstance(line, dict):
                raise InputError(f"{self.path / runlog.LOG}: line {number} is no JSON object: {str(line)[:80]!r}")
        return lines

    def restore(
        self, parts: Mapping[str, Any], timing: Timing, carried: list[Tensor], last: int, say: Callable[[str], None]
    ) -> int:
        """Bring everything back to the newest whole checkpoint.

        Args:
            parts: what has a `load_state_dict`, by name.
            timing: changed in place.
            carried: filled with what the rows of the global batch carry, as one piece, [rows, ...].
            last: step of the run.
            say: told of damaged checkpoints.

        Returns:
            The steps done; 0 if there is no checkpoint.

        Raises:
            InputError: the checkpoint is of a later step than the last one, or of another model.
        """
        state = checkpoint.load_newest(self.path / checkpoint.FOLDER, self._comm, say)
        if state is None:
            self.log.cut(0)
            return 0
        if state["step"] > last:
            raise InputError(
                f"{self.path}: its checkpoint is of step {state['step']}, and max_steps={last}: more steps, or another out=",
                agreed=True,
            )
        with self._comm.together():
            try:
                for name, owner in parts.items():
                    owner.load_state_dict(state[name])
            except (RuntimeError, KeyError, ValueError) as error:
                why = " ".join(str(error).split())[:200]
                raise InputError(f"{self.path}: its checkpoint is of another model or code than this: {why}") from None
        vars(timing).update(state["timing"])
        carried[:] = [] if state["carried"] is None else [state["carried"]]
        self.log.cut(state["log"])
        return int(state["step"])

    def save(self, step: int, parts: Mapping[str, Any], timing: Timing, carried: list[Tensor]) -> None:
        """Write a checkpoint; every rank takes part, so that all hear of a full disk."""
        rows = _all_rows(carried, self._comm)
        with self._comm.together():
            if self._comm.rank == 0:
                self._hold.check()
                self.log.sync()
                state: dict[str, Any] = {name: owner.state_dict() for name, owner in parts.items()}
                state |= {"timing": dataclasses.asdict(timing), "carried": rows, "log": self.log.position()}
                checkpoint.save(self.path / checkpoint.FOLDER, step, state, self._keep)


def _all_rows(carried: list[Tensor], comm: Comm) -> Tensor | None:
    """What the rows of the global batch carry, in their order; on every rank."""
    if not carried:
        return None
    mine = torch.cat(carried).cpu().contiguous()
    everyone = b"".join(comm.gather_bytes(mine.view(torch.uint8).numpy().tobytes()))  # NumPy has no bfloat16
    return torch.frombuffer(bytearray(everyone), dtype=mine.dtype).view(-1, *mine.shape[1:])
