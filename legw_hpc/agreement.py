"""That all ranks have the same: what they begin with, and what they have come to.

Data-parallel training is one training only as long as the ranks' weights are one.  What could make them differ at the start
(recipe, code, libraries, data) is compared before the first step, and what they have come to before each checkpoint, which
holds rank 0's alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from legw_hpc import apps, runlog, strict
from legw_hpc.comm import Comm
from legw_hpc.data import format
from legw_hpc.data.shards import Shards
from legw_hpc.errors import InputError
from legw_hpc.recipe import Recipe

# Keys of a recipe that each rank may have its own value of: node-local copies, threads that decode.
OWN_KEYS = ("data.dir", "out", "input_threads")
NAMED = 8  # ranks in a message
PIECE = 1 << 22  # values that are summed at once (assumed: their copy is small beside a model)


def begin_alike(comm: Comm, recipe: Recipe) -> None:
    """Stop unless all ranks have the same recipe, versions and code; a collective.

    Raises:
        InputError: names the field, the ranks and two values; on every rank.
    """
    with comm.together():
        keys = strict.flatten(recipe.as_dict())
        mine = {
            # All that a rank's course depends on, whether or not it changes the result: invariant 5.
            "recipe": {key: value for key, value in keys.items() if key not in OWN_KEYS},
            "versions": runlog.versions(),
            "code": {"digest": runlog.code(*apps.sources(recipe.application))},
        }
    _compare(comm, mine)


def learn_alike(comm: Comm, data: Shards, model: nn.Module) -> None:
    """Stop unless all ranks have the same data and first weights; a collective.

    Raises:
        InputError: as `begin_alike`.
    """
    weights = hashlib.sha256()
    for tensor in model.state_dict().values():
        weights.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    _compare(comm, {"data": {"digest": format.digest(data.index)}, "initial weights": {"digest": weights.hexdigest()}})


def stay_alike(comm: Comm, tensors: Iterable[tuple[str, Tensor]], step: int) -> None:
    """Stop unless all ranks hold the same bits; a collective.

    A layer that keeps statistics of its own rank (torch's batch norm), a processor that rounds otherwise and a memory that
    fails have one thing in common: what a run goes on from would be rank 0's view of it.

    Args:
        comm: the ranks.
        tensors: names and tensors, the same names in the same order on every rank.
        step: optimizer steps done.

    Raises:
        InputError: names the first tensor that differs, and the ranks; on every rank.
    """
    if comm.size == 1:
        return
    mine = {name: _sum_of_bits(tensor) for name, tensor in tensors}
    if len(set(comm.gather(hashlib.sha256(json.dumps(mine).encode()).hexdigest()))) == 1:
        return
    found = _first_difference(comm.gather(mine))
    if found is not None:
        name, ranks = found
        raise InputError(
            f"after step {step} {name} of {_named(ranks)} is not that of rank 0, whose state a checkpoint would keep; nothing "
            "written. A layer with statistics of its own must sum them over ranks (legw_hpc/models/batch_norm.py); if there is "
            "none, the ranks' processors differ or one of them is at fault",
            agreed=True,
        )


def _compare(comm: Comm, mine: Mapping[str, Mapping[str, Any]]) -> None:
    flat = {f"{about}/{key}": repr(value) for about, values in mine.items() for key, value in values.items()}
    everyone = comm.gather(flat)
    found = _first_difference(everyone)
    if found is not None:
        name, ranks = found
        about, _, key = name.partition("/")
        there, here = (str(everyone[rank].get(name)).strip("'")[:80] for rank in (ranks[0], 0))
        have = "has" if len(ranks) == 1 else "have"
        raise InputError(f"{_named(ranks)} {have} other {about} than rank 0: {key} {there} against {here}", agreed=True)


def _first_difference(everyone: list[dict[str, Any]]) -> tuple[str, list[int]] | None:
    """The first name whose value is not rank 0's on some rank, and all ranks of which that is so."""
    for name in [*everyone[0], *sorted(set().union(*everyone) - everyone[0].keys())]:
        if ranks := [rank for rank, theirs in enumerate(everyone) if theirs.get(name) != everyone[0].get(name)]:
            return name, ranks
    return None


def _named(ranks: list[int]) -> str:
    told = ", ".join(map(str, ranks[:NAMED])) + (f" and {len(ranks) - NAMED} more" if len(ranks) > NAMED else "")
    return f"rank {told}" if len(ranks) == 1 else f"ranks {told}"


def _sum_of_bits(tensor: Tensor) -> int:
    """A tensor's bits as whole numbers, added up modulo 2**64: no bit that flips is missed."""
    flat = tensor.detach().contiguous().reshape(-1)
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32}.get(flat.element_size(), torch.int64)
    pieces = [piece.sum(dtype=torch.int64) for piece in flat.view(whole).split(PIECE)]  # torch makes an int64 copy of each
    return int(torch.stack(pieces).sum()) if pieces else 0
