"""What survives a run: checkpoints, each with a manifest of its checksum, written whole.

    RUN/checkpoints/step-00000469.pt      the state, torch.save; loaded with weights_only=True
    RUN/checkpoints/step-00000469.json    its size and SHA-256, written after it

A checkpoint counts once its manifest is there and agrees; otherwise the one before it is used.
Rank 0 writes and reads, and hands the bytes to the others, so the folder may be on its node alone.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from legw_hpc.comm import Comm
from legw_hpc.data.files import make_folder, written_whole
from legw_hpc.errors import InputError

VERSION = 2


def save(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write the checkpoint of a step and remove all but the newest `keep`.

    Args:
        folder: RUN/checkpoints; made if need be, RUN is not: one that is gone was removed during the run.
        step: optimizer steps done.
        state: tensors and plain values.
        keep: at least 1.

    Raises:
        InputError: the folder cannot be written; the earlier checkpoints stay.
    """
    make_folder(folder, parents=False)
    buffer = io.BytesIO()
    torch.save({"version": VERSION, "step": step, **state}, buffer)
    data = buffer.getbuffer()
    for torn in folder.glob(".step-*.part"):  # of a run that was killed while it wrote
        torn.unlink(missing_ok=True)
    target = folder / f"step-{step:08d}.pt"
    with written_whole(target) as path:
        path.write_bytes(data)
    manifest = {"step": step, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    with written_whole(target.with_suffix(".json")) as path:
        path.write_text(json.dumps(manifest) + "\n")
    for old in _manifests(folder)[keep:]:
        old.unlink(missing_ok=True)  # first: a state without a manifest does not count
        old.with_suffix(".pt").unlink(missing_ok=True)
    return target


def load_newest(folder: Path, comm: Comm, say: Callable[[str], None]) -> dict[str, Any] | None:
    """The newest whole checkpoint, the same on every rank; None if there is none.

    Args:
        folder: RUN/checkpoints.
        comm: rank 0's folder is the one that counts.
        say: told of each damaged checkpoint that is passed over.

    Raises:
        InputError: a checkpoint of another version.
    """
    data = comm.broadcast_bytes(_newest(folder, say) if comm.rank == 0 else b"")
    if not data:
        return None
    state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    if state.get("version") != VERSION:
        raise InputError(
            f"{folder}: checkpoint version {state.get('version')}, this program reads version {VERSION}", agreed=True
        )
    return state


def _newest(folder: Path, say: Callable[[str], None]) -> bytes:
    for manifest in _manifests(folder):
        path = manifest.with_suffix(".pt")
        try:
            wanted = json.loads(manifest.read_text())
            data = path.read_bytes()
            if len(data) == wanted["bytes"] and hashlib.sha256(data).hexdigest() == wanted["sha256"]:
                return data
            why = f"{len(data)} bytes, {wanted['bytes']} written" if len(data) != wanted["bytes"] else "checksum differs"
        except (OSError, ValueError, KeyError, TypeError) as error:
            why = str(error)
        say(f"{path.name}: damaged ({why}); trying the one before it")
        # Out of the count: a later save must not keep it in place of a whole one.
        manifest.rename(manifest.with_suffix(".damaged"))
    return b""


def _manifests(folder: Path) -> list[Path]:
    """Newest first."""
    return sorted(folder.glob("step-*.json"), reverse=True)
