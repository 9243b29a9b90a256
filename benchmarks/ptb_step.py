"""PTB-LSTM at global batch 640: our training step beside the usual language-model loop under DDP."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import made
from benchmarks.measure import Bench, Case, Goal, Outcome, run
from benchmarks.ours import BF16, FP32, asked_here, steps
from benchmarks.peer import peer

BATCH = 640
WINDOW = 20
WORDS = 10000
HIDDEN = 200


class Plain(nn.Module):
    """Embedding, nn.LSTM and a linear layer, as in torch's own word-language-model example."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(WORDS, HIDDEN), nn.Linear(HIDDEN, WORDS)
        self.lstm = nn.LSTM(HIDDEN, HIDDEN, num_layers=2)

    def forward(self, words: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        states, state = self.lstm(self.embedding(words), state)
        return self.head(states), state


def plain(rows: int) -> Callable[[], None]:
    """The step of the usual loop on one rank's rows: whole logits, state carried, clipping."""
    model = nn.parallel.DistributedDataParallel(Plain())
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    text = torch.randint(0, WORDS, (WINDOW + 1, rows))
    state = torch.zeros(2, rows, HIDDEN), torch.zeros(2, rows, HIDDEN)

    def step() -> None:
        nonlocal state
        optimizer.zero_grad()
        logits, state = model(text[:-1], (state[0].detach(), state[1].detach()))
        F.cross_entropy(logits.view(-1, WORDS), text[1:].view(-1)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        optimizer.step()

    return step


def cases(bench: Bench) -> Outcome:
    batch = BATCH // 4 if bench.quick else BATCH
    words = [*made.text(bench), f"batch={batch}"]
    work = batch * WINDOW
    beside = "DDP (gloo), nn.LSTM, whole logits"
    return Outcome(
        [
            *steps(bench, "ptb-lstm", words, work, "words"),
            Case(beside, peer(bench, "benchmarks.ptb_step", batch // bench.comm.size), work, "words"),
        ],
        asked_here([Goal(FP32, beside, 2.0), Goal(BF16, beside, 2.0)]),
    )


if __name__ == "__main__":
    run("ptb_step", "the training step of PTB-LSTM at batch 640", cases, ranks=2)
