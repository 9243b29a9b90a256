"""How much memory a rank needs, without torch: enough to refuse what cannot fit, not to fill a node."""

from __future__ import annotations

from legw_hpc.allowed import APPLICATIONS
from legw_hpc.recipe import Recipe
from legw_hpc.sizes import kept_bytes, sample_bytes

PROCESS_BYTES = 0.6e9  # assumed: Python, torch, Horovod and MPI


def rank_gb(recipe: Recipe, samples: int, gpu: bool = False) -> float:
    """Of one rank.

    Args:
        recipe: of an application of another package nothing is known, and nothing refused.
        samples: of the global batch that a rank has.
        gpu: the part on the device alone.

    Raises:
        InputError: an option that the application does not take.
    """
    known = recipe.application in APPLICATIONS
    tensors = kept_bytes(recipe) + min(samples, recipe.most_at_once) * sample_bytes(recipe) if known else 0.0
    return (tensors + (0 if gpu else PROCESS_BYTES)) / 1e9
