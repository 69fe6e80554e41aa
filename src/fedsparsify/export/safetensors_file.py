"""The parameters as a safetensors file: a PyTorch state dict that loads without running anything."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MissingExtraError
from .graph import Graph
from .passes import simplify

__all__ = ["dense_size", "encode_compact", "encode_state", "named_tensors"]


def encode_state(tensors: Mapping[str, NDArray[Any]], facts: Mapping[str, str] | None = None) -> bytes:
    """Return tensors as a safetensors file.

    Args:
        tensors: arrays by name, such as a state dict's.
        facts: texts to keep beside them.

    Raises:
        MissingExtraError: safetensors is not installed.
    """
    try:
        from safetensors.numpy import save
    except ImportError as error:
        raise MissingExtraError("safetensors files", "export") from error
    data: bytes = save({n: np.array(t, order="C") for n, t in tensors.items()}, dict(facts) if facts else None)
    return data


def encode_compact(graph: Graph, facts: Mapping[str, str] | None = None) -> bytes:
    """Return a graph's tensors without the units that do nothing, named as by :func:`named_tensors`.

    Raises:
        MissingExtraError: safetensors is not installed.
        ArgumentError: the graph breaks a rule.
    """
    return encode_state(named_tensors(simplify(graph)), facts)


def named_tensors(graph: Graph) -> dict[str, NDArray[np.float32]]:
    """Return a graph's tensors as ``LAYER.weight`` and so on.

    A layer goes by its name where it has one of its own, else by the number of its operation.
    """
    names = [node.name for node in graph.nodes]
    return {
        f"{node.name if node.name and names.count(node.name) == 1 else index}.{name}": tensor
        for index, node in enumerate(graph.nodes)
        for name, tensor in node.tensors.items()
    }


def dense_size(graph: Graph) -> int:
    """Return how many bytes a safetensors file of all of a graph's tensors takes, pruned values included."""
    at, header = 0, {}
    for name, tensor in sorted(named_tensors(graph).items()):
        size = 4 * tensor.size
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    text = len(json.dumps(header, separators=(",", ":")))
    return 8 + -(-text // 8) * 8 + at
