"""The network, the data of one site, and the site's own training loop."""

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fedsparsify.data import Dataset, load

PIXELS = {"digits": 64, "fashion-mnist": 784}


class Net(nn.Module):
    """Two hidden layers of 128 units, the first with batch normalisation."""

    def __init__(self, dataset: str) -> None:
        super().__init__()
        self.first = nn.Linear(PIXELS[dataset], 128)
        self.norm = nn.BatchNorm1d(128)
        self.second = nn.Linear(128, 128)
        self.last = nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of ten classes."""
        x = torch.relu(self.norm(self.first(x.flatten(1))))
        return self.last(torch.relu(self.second(x)))


def loaders(dataset: str, site: int, sites: int) -> tuple[DataLoader, DataLoader]:
    """Return what a site trains on, every ``sites``-th example, and its share of the test set."""
    train, test = load(dataset)
    mine = [part.take(np.arange(site, len(part), sites)) for part in (train, test)]
    return _loader(mine[0], shuffle=True), _loader(mine[1])


def test_loader(dataset: str) -> DataLoader:
    """Return the whole test set, for the server."""
    return _loader(load(dataset)[1])


def _loader(part: Dataset, shuffle: bool = False) -> DataLoader:
    examples = TensorDataset(torch.from_numpy(part.x), torch.from_numpy(part.y))
    return DataLoader(examples, batch_size=64 if shuffle else 1000, shuffle=shuffle)


def train(net: nn.Module, data: DataLoader, epochs: int, lr: float) -> float:
    """Train with SGD, momentum and weight decay; return the mean loss of the last epoch."""
    optimiser = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)
    net.train()
    total = 0.0
    for _ in range(epochs):
        total = 0.0
        for x, y in data:
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(net(x), y)
            loss.backward()
            optimiser.step()
            total += loss.item() * len(y)
    return total / len(data.dataset)


def test(net: nn.Module, data: DataLoader) -> tuple[float, float]:
    """Return the mean loss and the accuracy."""
    net.eval()
    loss, correct = 0.0, 0
    with torch.no_grad():
        for x, y in data:
            outputs = net(x)
            loss += nn.functional.cross_entropy(outputs, y, reduction="sum").item()
            correct += int((outputs.argmax(1) == y).sum())
    return loss / len(data.dataset), correct / len(data.dataset)
