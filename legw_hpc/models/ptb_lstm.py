"""The PTB language model of the paper's § 5.1.2: the next word, from all words before it.

    tokens [B, T] -> embedding H -> LSTM H, LSTM H -> states [B, T, H] -> linear -> logits [B, T, V]

With H = 200 each cell kernel is 400 x 800 (paper).  Initialisation is the TensorFlow tutorial's
"small" configuration, where the paper's 115.91 comes from: weights, and here biases too, are uniform in -0.1 ... 0.1, and nothing
is added to the forget gate; the tutorial's LSTMBlockCell starts its biases at 0, a difference that our measured figures include.
The tutorial's "large" one is H = 1500, +-0.04, dropout 0.65 on what enters each layer and what
leaves the last (Zaremba et al. 2014).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from legw_hpc.models.linear_loss import linear_cross_entropy
from legw_hpc.models.lstm import lstm
from legw_hpc.models.stateless import dropout


class PtbLSTM(nn.Module):
    """See the module's text.

    Args:
        vocabulary: V, words.
        hidden: H, the width of the embedding and of each layer.
        layers: LSTM layers.
        init: parameters start uniform in -init ... init.
        dropout: share of activations dropped in training, between layers as described above.
    """

    def __init__(
        self, vocabulary: int = 10000, hidden: int = 200, layers: int = 2, init: float = 0.1, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.hidden, self.layers, self.dropout = hidden, layers, dropout
        self.embedding = nn.Embedding(vocabulary, hidden)
        # Per layer the cell's kernel, 2H x 4H in the paper, as PyTorch keeps it: gates first, in the order i, f, g, o.
        self.input_kernels = nn.ParameterList([nn.Parameter(torch.empty(4 * hidden, hidden)) for _ in range(layers)])
        self.state_kernels = nn.ParameterList([nn.Parameter(torch.empty(4 * hidden, hidden)) for _ in range(layers)])
        self.biases = nn.ParameterList([nn.Parameter(torch.empty(4 * hidden)) for _ in range(layers)])
        self.head = nn.Linear(hidden, vocabulary)
        # PyTorch's kernel adds two biases where the cell has one.
        self.no_bias: Tensor
        self.register_buffer("no_bias", torch.zeros(4 * hidden), persistent=False)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -init, init)

    def start(self, rows: int) -> Tensor:
        """The state before the first word: zeros [rows, 2, layers, H], the cells' outputs and memories."""
        return self.no_bias.new_zeros(rows, 2, self.layers, self.hidden)

    def forward(self, tokens: Tensor, state: Tensor, keys: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The states of the last layer at every word, and what is carried to the next window.

        Args:
            tokens: int64 [B, T].
            state: [B, 2, layers, H], as `start` or an earlier call gave it; no gradient flows through it.
            keys: int64 [B]: what a row's dropout is drawn from; None is no dropout.

        Returns:
            ([T, B, H], [B, 2, layers, H])
        """
        x = self.embedding(tokens.t())
        outputs, memories = (part.contiguous() for part in state.permute(1, 2, 0, 3))
        if self.dropout and keys is not None:
            return self._dropped(x, outputs, memories, keys)
        weights = [w for layer in range(self.layers) for w in self._weights(layer)]
        x, outputs, memories = lstm(x, outputs, memories, weights, self.layers)
        return x, _carried(outputs, memories)

    def _weights(self, layer: int) -> list[Tensor]:
        return [self.input_kernels[layer], self.state_kernels[layer], self.biases[layer], self.no_bias]

    def _dropped(self, x: Tensor, outputs: Tensor, memories: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Layer by layer, so that each one's input can be dropped."""
        last = []
        for layer in range(self.layers):
            x = dropout(x, self.dropout, keys, layer)
            one = slice(layer, layer + 1)
            x, h, c = lstm(x, outputs[one], memories[one], self._weights(layer), layers=1)
            last.append((h, c))
        x = dropout(x, self.dropout, keys, self.layers)
        return x, _carried(*(torch.cat(parts) for parts in zip(*last, strict=True)))

    def loss(self, states: Tensor, targets: Tensor) -> Tensor:
        """The cross-entropy of the next words, summed.

        Args:
            states: [N, H].
            targets: int64 [N].
        """
        return linear_cross_entropy(states, self.head.weight, self.head.bias, targets)


def _carried(outputs: Tensor, memories: Tensor) -> Tensor:
    return torch.stack([outputs, memories]).detach().permute(2, 0, 1, 3)
