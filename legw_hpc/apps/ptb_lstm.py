"""A language model of words (paper § 5.1.2): test perplexity, and that of the validation text.

The loss is the mean over words.  The TensorFlow tutorial sums it over the 20 words of a window and
takes the mean over rows, so its learning rate 1 and clipping norm 5 are 20 and 0.25 here.
"""

from __future__ import annotations

import functools
import math
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from legw_hpc.apps.base import Application, check_options
from legw_hpc.data.format import Field
from legw_hpc.data.loader import Draw
from legw_hpc.models.ptb_lstm import PtbLSTM
from legw_hpc.models.stateless import row_keys

# An evaluated text is read in rows of about so many words, each after CONTEXT words that are not
# scored, so that the rows can go side by side and to any rank.  Measured against the validation text read
# in one piece (perplexity 130.78): without context 0.4 % more, after 32 words 0.07 %, after 256 0.002 % less.
ROW = 1024
CONTEXT = 256
# They go through the model so many training windows at a time: what a piece makes is then less than what a window of training
# keeps for its backward pass (derived: some 30 bytes a word and unit beside 156).  80 words at a time cost about 15 % of the
# time that whole rows take, and fewer whole rows, in as little memory, 50 % (measured: PTB's small model, micro-batch 20).
WINDOWS = 4


def ptb_lstm(
    window: int,
    vocabulary: int = 10000,
    hidden: int = 200,
    layers: int = 2,
    init: float = 0.1,
    dropout: float = 0.0,
) -> Application:
    """The application.

    Args:
        window: words of a row in a step; the recipe's data.window.
        vocabulary, hidden, layers, init, dropout: see `PtbLSTM`.

    Raises:
        ValueError: a value out of range.
    """
    check_options(
        vocabulary=(vocabulary, int, 2, 2**31), hidden=(hidden, int, 1, 2**20), layers=(layers, int, 1, 100),
        init=(init, (int, float), 0, 10), dropout=(dropout, (int, float), 0, 1),
    )  # fmt: skip

    def decode(data: Any, items: NDArray[np.int64], draw: Draw | None) -> tuple[Tensor, ...]:
        """Training: words int64 [B, window + 1] and keys [B].  Evaluation: see `_rows`."""
        if draw is None:
            return _rows(data, items)
        tokens = data.take("token", (items[:, None] + np.arange(window + 1)).reshape(-1))
        return torch.from_numpy(tokens.astype(np.int64)).view(len(items), window + 1), row_keys(items, draw)

    return Application(
        name="ptb-lstm",
        model=lambda: PtbLSTM(vocabulary, hidden, layers, init, dropout),
        fields={"token": Field("int32", (), classes=vocabulary)},
        decode=decode,
        loss=_loss,
        evaluate=functools.partial(_evaluate, words=WINDOWS * window),
        metrics=_metrics,
        splits=("test", "valid"),
        items=_row_count,
        least=2,  # a word, and the one that is foretold
    )


def _row_count(tokens: int) -> int:
    return -(-(tokens - 1) // ROW)


def _rows(data: Any, rows: NDArray[np.int64]) -> tuple[Tensor, ...]:
    """Words int64 [B, L + 1] and which of the L targets are scored, bool [B, L].

    Over all rows every word but the first is a scored target once.  Row 0 begins with the text, as
    the state does; the others are warmed by at least CONTEXT words.
    """
    targets, count = len(data) - 1, _row_count(len(data))
    length = min(targets, -(-targets // count) + CONTEXT)
    begin, end = (rows * targets // count)[:, None], ((rows + 1) * targets // count)[:, None]
    start = np.clip(begin - CONTEXT, 0, targets - length)
    place = start + np.arange(length + 1)
    tokens = torch.from_numpy(data.take("token", place.reshape(-1)).astype(np.int64)).view(place.shape)
    scored = (place[:, :-1] >= begin) & (place[:, :-1] < end)
    return tokens, torch.from_numpy(scored)


def _loss(model: nn.Module, carried: Tensor | None, tokens: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    net = cast(PtbLSTM, model)
    state = net.start(len(tokens)) if carried is None else carried
    states, carried = net(tokens[:, :-1], state, keys)
    return net.loss(states.flatten(0, 1), tokens[:, 1:].t().reshape(-1)), carried.float()  # autocast's may be bf16


def _evaluate(model: nn.Module, tokens: Tensor, scored: Tensor, words: int) -> dict[str, Tensor]:
    """Of rows of any length, `words` of each at a time."""
    net = cast(PtbLSTM, model)
    state, loss = net.start(len(tokens)), torch.zeros((), dtype=torch.float64, device=tokens.device)
    for inputs, targets, here in zip(*(part.split(words, 1) for part in (tokens[:, :-1], tokens[:, 1:], scored)), strict=True):
        states, carried = net(inputs, state)
        state = carried.float()
        loss += net.loss(states.transpose(0, 1)[here], targets[here])
    return {"count": scored.sum(), "loss": loss}


def _metrics(sums: dict[str, float]) -> dict[str, float]:
    loss = sums["loss"] / sums["count"]
    return {"perplexity": math.exp(loss) if loss < 700 else math.inf if loss == loss else loss, "loss": loss}
