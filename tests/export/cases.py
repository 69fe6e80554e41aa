"""Small artifacts of every kind of network, for the tests beside this file and the fuzzer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedsparsify.export.artifact import Artifact
from fedsparsify.export.graph import BUFFERS, Graph, Node
from fedsparsify.recipe import Recipe

__all__ = ["ARTIFACTS", "pruned"]


def pruned(graph: Graph, density: float, seed: int = 0) -> Graph:
    """Return a graph of the same tensors with random values, of which a fraction is left."""
    rng = np.random.default_rng(seed)
    nodes = []
    for node in graph.nodes:
        tensors = {}
        for name, t in node.tensors.items():
            values = rng.normal(size=t.shape).astype(np.float32)
            if name in BUFFERS:
                tensors[name] = np.abs(values) + np.float32(0.5)
            else:
                tensors[name] = np.where(rng.random(t.shape) < density, values, np.float32(0))
        nodes.append(replace(node, tensors=tensors))
    return replace(graph, nodes=tuple(nodes))


def zeros(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.zeros(shape, np.float32)


_PICTURES = Graph(
    (1, 8, 8),
    "float32",
    (
        Node(
            "conv2d",
            (0,),
            {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1},
            {"weight": zeros(6, 1, 3, 3), "bias": zeros(6)},
            "conv",
        ),
        Node(
            "batchnorm",
            (1,),
            {"eps": 1e-5},
            {name: zeros(6) for name in ("weight", "bias", "running_mean", "running_var")},
            "bn",
        ),
        Node("relu", (2,)),
        Node("maxpool", (3,), {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0)}),
        Node("flatten", (4,)),
        Node("linear", (5,), {}, {"weight": zeros(40, 96), "bias": zeros(40)}, "fc1"),
        Node("relu", (6,)),
        Node("linear", (7,), {}, {"weight": zeros(3, 40), "bias": zeros(3)}, "fc2"),
    ),
)
_TEXTS = Graph(
    (5,),
    "int64",
    (
        Node("embedding", (0,), {}, {"weight": zeros(12, 4)}, "embedding"),
        Node(
            "lstm",
            (1,),
            {"bidirectional": 0, "last": 1},
            {"weight_ih": zeros(12, 4), "weight_hh": zeros(12, 3), "bias": zeros(12)},
            "lstm",
        ),
        Node("linear", (2,), {}, {"weight": zeros(1, 3), "bias": zeros(1)}, "fc"),
        Node("pad_channels", (3,), {"before": 1, "after": 0}),
    ),
)
_TABLES = Graph((4,), "float32", (Node("linear", (0,), {}, {"weight": zeros(1, 4), "bias": zeros(1)}, "fc"),))

_FACTS: dict[str, str | int | float] = {"version": "0.1.0", "dataset": "made up", "accuracy": 0.75, "rounds": 3}

ARTIFACTS = {
    "picture": Artifact(
        pruned(_PICTURES, 0.2),
        Recipe("picture", (8, 8), ("cat", "dog", "übrig"), brightest=255, scale=1 / 255, mean=(0.5,), deviation=(0.2,)),
        _FACTS,
    ),
    "text": Artifact(
        pruned(_TEXTS, 0.5),
        Recipe("text", labels=("bad", "good"), words=("a", "film", "it's", "süß"), length=5),
        _FACTS,
    ),
    "table": Artifact(
        pruned(_TABLES, 1.0),
        Recipe(
            *("table", (4,), (), ("sex", "a", "b", "c")),
            exact=True,
            mean=(0.0, 1.0, 2.0, 3.0),
            deviation=(1.0, 2.0, 1.0, 4.0),
            target_mean=30.0,
            target_scale=12.0,
        ),
    ),
}
