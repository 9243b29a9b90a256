"""How much memory a rank needs, without torch: enough to refuse what cannot fit, not to fill a node."""

from __future__ import annotations

from legw_hpc.recipe import Recipe

# Parameters, and bytes that a sample leaves for the backward pass, of each application at its usual size.
# Measured by torch.autograd.graph.saved_tensors_hooks in fp32; a sample of ptb-lstm is a row of 20 words.
NEEDS = {
    "mnist-lstm": (136_586, 0.24e6),
    "ptb-lstm": (4_650_000, 2.5e6),  # derived: 20 words x 10,000 logits, three times
    "resnet50": (25_557_032, 86e6),
    "resnet20": (269_722, 1.5e6),
}
PROCESS_BYTES = 0.6e9  # assumed: Python, torch, Horovod and MPI
# Weights, gradients, momentum, and the buffer that an exchange makes (derived), 4 bytes each.
COPIES = 4


def rank_gb(recipe: Recipe, samples: int, gpu: bool = False) -> float:
    """Of one rank.

    Args:
        recipe: its application decides.
        samples: of the global batch that a rank has.
        gpu: the part on the device alone.
    """
    parameters, sample_bytes = NEEDS.get(recipe.application, (0, 0.0))  # what is not known is not refused
    tensors = 4 * COPIES * parameters + min(samples, recipe.most_at_once) * sample_bytes
    return (tensors + (0 if gpu else PROCESS_BYTES)) / 1e9
