"""What is trained while faults are injected: the three applications, small, with their own data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from legw_hpc.data.sources import synthetic, text
from tests import test_text
from tests.faults.job import EVALUATE_EPOCHS

# Steps between checkpoints: few enough that a fault often comes while one is written.
CHECKPOINT_STEPS = 7
# The recipe's stall_minutes: a stopped rank is told after so long.
STALL_SECONDS = 6.0

COMMON = [
    "threads=1", f"checkpoint.every_steps={CHECKPOINT_STEPS}", "checkpoint.every_minutes=0", "checkpoint.keep=3",
    "log_every=0.0001", f"stall_minutes={STALL_SECONDS / 60}", f"eval_every={EVALUATE_EPOCHS}",
]  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """One application.

    Attributes:
        words: of `legw-hpc train`, without data.dir and out.
        steps: of the whole run.
    """

    name: str
    words: tuple[str, ...]
    steps: int

    def make_data(self, folder: Path) -> None:
        """Write its shards."""
        if self.name == "ptb-lstm":
            text.convert(test_text.write(folder.with_name(f"{folder.name}-source")), folder)
        else:
            synthetic.write(folder, (28, 28) if self.name == "mnist-lstm" else (32, 32, 3), 10, 300, 101, samples_per_shard=83)


def _subject(name: str, epochs: int, steps_per_epoch: int, *words: str) -> Subject:
    return Subject(name, (name, *words, f"epochs={epochs}", *COMMON), epochs * steps_per_epoch)


# Each takes some 10 seconds on 2 ranks.  Batches that divide nothing evenly; dropout, clipping, batch norm, LARS; a gradient
# that is summed while the backward pass goes on.
SUBJECTS = {
    "mnist": _subject("mnist-lstm", 60, 4, "data.train_samples=300", "batch=96", "micro_batch=16"),
    "ptb": _subject(
        "ptb-lstm", 40, 12, "data.train_samples=1950", "data.window=8", "options.vocabulary=31", "options.hidden=12",
        "batch=20", "micro_batch=6", "options.dropout=0.2", "clip_norm=0.1",
    ),
    "resnet": _subject("cifar10-resnet20", 12, 7, "data.train_samples=300", "batch=46", "micro_batch=8", "exchange_pieces=4"),
}  # fmt: skip
