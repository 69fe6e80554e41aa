"""LSTM: the paper's network for IMDB, two bidirectional layers over word embeddings."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ArgumentError
from .checks import check_sizes
from .init import glorot_

__all__ = ["BiLSTM", "lstm"]


class BiLSTM(nn.Module):
    """Word numbers [B, words] -> scores [B, classes].

    Embedding, two bidirectional LSTM layers, and one fully connected layer on the last state of both directions. For
    two classes that layer has one output z, as in the paper; the scores are then (0, z), whose softmax is the sigmoid
    of z, so that cross-entropy over them is the paper's binary cross-entropy.

    Args:
        vocabulary: numbers of words, from 0.
        embedding: width of a word's vector.
        hidden: units of one direction of one layer.
        classes: number of classes, at least 2.
    """

    def __init__(self, vocabulary: int, embedding: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.lstm = nn.LSTM(embedding, hidden, num_layers=2, bidirectional=True, batch_first=True)
        self.fc = nn.Linear(2 * hidden, 1 if classes == 2 else classes)
        for name, parameter in self.lstm.named_parameters():
            if name.startswith("bias_hh"):
                # PyTorch adds two biases, of which one says everything; the paper's network has one.
                parameter.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Return float32[B, classes] for float32[B, words], which hold whole numbers."""
        _, (state, _) = self.lstm(self.embedding(x.long()))
        z: Tensor = self.fc(state[-2:].transpose(0, 1).flatten(1))
        return F.pad(z, (1, 0)) if z.shape[1] == 1 else z


def lstm(
    vocabulary: int = 25_000, embedding: int = 128, hidden: int = 64, classes: int = 2, spread: float = 0.05
) -> BiLSTM:
    """Return the network [B, words] -> [B, classes]; 3,397,761 parameters as in arXiv 2204.12430.

    Args:
        vocabulary: numbers of words, padding and unknown words included.
        embedding: width of a word's vector.
        hidden: units of one direction of one layer.
        classes: number of classes; two of them are told apart by one output.
        spread: initial word vectors are uniform in +-spread; larger ones learn sooner, but stand out in a global purge.

    Raises:
        ArgumentError: a size is no whole number of at least 1, or ``spread`` is not above 0 and finite.
    """
    check_sizes(vocabulary=vocabulary, embedding=embedding, hidden=hidden, classes=classes)
    if not 0 < spread < float("inf"):
        raise ArgumentError(f"model.spread = {spread} must be more than 0 and finite")
    network = glorot_(BiLSTM(vocabulary, embedding, hidden, classes))
    nn.init.uniform_(network.embedding.weight, -spread, spread)
    return network
