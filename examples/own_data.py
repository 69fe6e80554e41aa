"""Federate your own network over your own data.

Three hospitals hold measurements of breast tumours (scikit-learn's breast_cancer data) and may not share them. They
train one network together, and nine in ten of its parameters are gone in the end.

Run, with scikit-learn installed: python examples/own_data.py
"""

import numpy as np
from sklearn.datasets import load_breast_cancer
from torch import nn

import fedsparsify


class Network(nn.Sequential):
    """Batch normalisation scales the raw measurements; its statistics are merged with the weights."""

    def __init__(self) -> None:
        super().__init__(nn.BatchNorm1d(30), nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 2))


x, y = load_breast_cancer(return_X_y=True)
shuffled = np.random.default_rng(1).permutation(len(x))
*hospitals, test = np.split(shuffled, [100, 250, 450])

run = fedsparsify.federate(
    model=Network,
    clients=[(x[rows], y[rows]) for rows in hospitals],
    test=(x[test], y[test]),
    settings={"run": {"rounds": 20}, "schedule": {"final": 0.9}, "train": {"lr": 0.1}},
)

last = fedsparsify.load_run(run).last
print(f"accuracy {last.score:.3f} with {last.nonzero} parameters left, {last.sparsity:.0%} are gone")
print("Report:", fedsparsify.write_report([run], run / "report.html"))
