"""What survives a run: checkpoints, each with a manifest of its checksum, written whole.

    RUN/checkpoints/step-00000469.pt      the state, torch.save; loaded with weights_only=True
    RUN/checkpoints/step-00000469.json    its size and SHA-256, written after it

A checkpoint counts once its manifest is there and agrees; otherwise the one before it is used.
Rank 0 writes and reads, and hands the bytes to the others, so the folder may be on its node alone.
"""

from __future__ import annotations

import fnmatch
import hashlib
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from legw_hpc.comm import Comm
from legw_hpc.data.files import make_folder, written_whole
from legw_hpc.data.reading import tried
from legw_hpc.errors import InputError

VERSION = 2
FOLDER = "checkpoints"  # of a run's


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
    for torn in _listed(folder, ".step-*.part"):  # of a run that was killed while it wrote
        _remove(torn)
    target = folder / f"step-{step:08d}.pt"
    with written_whole(target) as path:
        path.write_bytes(data)
    manifest = {"step": step, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    with written_whole(target.with_suffix(".json")) as path:
        path.write_text(json.dumps(manifest) + "\n")
    for old in _manifests(folder)[keep:]:
        _remove(old)  # first: a state without a manifest does not count
    vouched = {manifest.stem for manifest in _manifests(folder)}
    for state_file in _listed(folder, "step-*.pt"):  # those, damaged ones, and what was killed before its manifest
        if target.stem in vouched and state_file.stem not in vouched:  # a list without what was just written is not the last word
            _remove(state_file)
    return target


def any_in(run: Path) -> bool:
    """Has a run's folder a checkpoint that was finished."""
    return bool(_manifests(run / FOLDER))


def load_newest(folder: Path, comm: Comm, say: Callable[[str], None], aside: bool = True) -> dict[str, Any] | None:
    """The newest whole checkpoint, the same on every rank; None if none was ever written.

    Args:
        folder: RUN/checkpoints.
        comm: rank 0's folder is the one that counts.
        say: told of each damaged checkpoint that is passed over.
        aside: damaged ones are renamed; not those of another run.

    Raises:
        InputError: none of several is whole, or all manifests are gone: what to do with so much damage is for a person
            to say; one that cannot be read, or is of another version.
    """
    with comm.together():
        data, state = _newest(folder, say, aside) if comm.rank == 0 else (b"", None)
    data = comm.broadcast_bytes(data)
    return _loaded(folder, data) if data and comm.rank != 0 else state


def _loaded(folder: Path, data: bytes) -> dict[str, Any]:
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # its checksum is right: somebody else made it, over which the loader stumbles in many ways
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{folder}: no checkpoint of this program: {why}") from None
    if not isinstance(state, dict):
        raise TypeError(f"a {type(state).__name__}, not a dict")
    if state.get("version") != VERSION:
        raise InputError(f"{folder}: checkpoint version {state.get('version')}, this program reads version {VERSION}")
    return state


def _newest(folder: Path, say: Callable[[str], None], aside: bool) -> tuple[bytes, dict[str, Any] | None]:
    """A whole one, as it is in its file and loaded; nothing where none was finished."""
    manifests = _manifests(folder)
    if not manifests and aside:
        _none_finished(folder, say)
    for manifest in manifests:
        path = manifest.with_suffix(".pt")
        try:
            wanted = json.loads(tried(manifest.read_text, str(manifest), absent=True))
            data = tried(path.read_bytes, str(path), absent=True)
            if len(data) == wanted["bytes"] and hashlib.sha256(data).hexdigest() == wanted["sha256"]:
                return data, _loaded(folder, data)
            why = f"{len(data)} bytes, {wanted['bytes']} written" if len(data) != wanted["bytes"] else "checksum differs"
        except FileNotFoundError:
            why = "gone"
        except (ValueError, KeyError, TypeError) as error:
            why = str(error)
        if manifest == manifests[-1]:
            raise InputError(
                f"{folder}: none of its {len(manifests)} checkpoints is whole ({path.name}: {why}); "
                + (f"remove {folder.parent} to begin anew, or bring one back" if aside else "bring one back")
            )
        say(f"{path.name}: damaged ({why}); trying the one before it")
        if aside:
            _set_aside(manifest)
    return b"", None


def _none_finished(folder: Path, say: Callable[[str], None]) -> None:
    """Refuse states that have lost their manifests: the first save would remove them."""
    states, damaged = _listed(folder, "step-*.pt"), _listed(folder, "step-*.damaged")
    if len(states) > 1 or damaged:
        raise InputError(
            f"{folder}: {len(states)} step-*.pt and {len(damaged)} step-*.damaged, but no manifest (step-*.json); remove "
            f"{folder.parent} to begin anew, or bring the manifests back"
        )
    for state in states:
        say(f"{state.name}: without a manifest, as after a kill during the first checkpoint; beginning anew")


def _set_aside(manifest: Path) -> None:
    """Out of the count: a later save must not keep it in place of a whole one."""
    try:
        manifest.rename(manifest.with_suffix(".damaged"))
    except OSError as error:
        raise InputError(f"{manifest}: cannot be renamed: {error.strerror}") from None


def _manifests(folder: Path) -> list[Path]:
    """Newest first."""
    return _listed(folder, "step-*.json")[::-1]


def _listed(folder: Path, pattern: str) -> list[Path]:
    """Sorted; none where there is no folder.  `Path.glob` takes a folder that cannot be read for an empty one.

    Raises:
        InputError: it cannot be listed.
    """
    try:
        names = tried(lambda: os.listdir(folder), f"{folder}: its list", absent=True)
    except FileNotFoundError:
        return []
    return [folder / name for name in sorted(fnmatch.filter(names, pattern))]


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be removed: {error.strerror}") from None
