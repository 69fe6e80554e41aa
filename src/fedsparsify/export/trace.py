"""Makes a graph of a PyTorch network, by running it once and noting what it does.

Ordinary Python may stand between the layers; what depends on the numbers themselves, and every operation that a graph
has no word for, is refused by its name.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import ArgumentError
from ..layout import ParameterLayout
from ..plugins import describe
from ..state import ModelState
from .graph import Graph, InputType
from .operations import check_graph
from .recorder import Recorder
from .reference import run
from .torch_calls import BATCH, CALLS

__all__ = ["trace"]

_TOLERANCE = 1e-4


def trace(module: nn.Module, input_shape: Sequence[int], model: ModelState | None = None) -> Graph:
    """Return what a network computes in evaluation mode.

    Args:
        module: a network of one input and one output; it is not changed.
        input_shape: shape of one example, without the batch.
        model: parameters and buffers to use in place of the module's own.

    Raises:
        ArgumentError: the network does something that a graph cannot express, which is named, or fails on an input of
            that shape; or what the graph computes is not what the network does.

    >>> graph = trace(nn.Sequential(nn.Linear(4, 2), nn.ReLU()), [4])
    >>> [(node.op, node.inputs) for node in graph.nodes]
    [('linear', (0,)), ('relu', (1,))]
    """
    module = copy.deepcopy(module).cpu().eval()
    if model is not None:
        ParameterLayout.of(module).write(module, model.w, model.buffers)
    recorder = Recorder(module, CALLS)
    x = torch.zeros(BATCH, *input_shape)
    recorder.values[id(x)] = 0
    recorder.alive.append(x)
    with torch.no_grad(), recorder:
        try:
            y = module(x)
        except ArgumentError:
            raise
        except Exception as error:
            raise ArgumentError(f"the network fails on an input of shape {list(x.shape)}: {describe(error)}") from error
    output = recorder.values.get(id(y)) if isinstance(y, Tensor) else None
    if output != len(recorder.nodes) or not recorder.nodes:
        raise ArgumentError(
            f"the network returns a {type(y).__name__} that is not the value of its last operation; it must return one"
            " tensor that depends on its input"
        )
    dtype: InputType = "int64" if any(node.op == "embedding" for node in recorder.nodes) else "float32"
    graph = Graph(tuple(input_shape), dtype, tuple(recorder.nodes))
    check_graph(graph)
    _compare(graph, module)
    return graph


def _compare(graph: Graph, module: nn.Module) -> None:
    """Run both on random inputs of two batches, so that a size that was taken for a constant is found."""
    rng = np.random.default_rng(0)
    for batch in (1, 2):
        x: NDArray[Any] = rng.normal(size=(batch, *graph.input_shape)).astype(np.float32)
        if graph.input_dtype == "int64":
            words = min(len(n.tensors["weight"]) for n in graph.nodes if n.op == "embedding")
            x = rng.integers(0, words, x.shape)
        with torch.no_grad():
            expected = module(torch.from_numpy(x.astype(np.float32))).numpy()
        found = run(graph, x)
        scale = float(np.abs(expected).max(initial=1e-6))
        if found.shape != expected.shape or not np.abs(found - expected).max(initial=0) <= _TOLERANCE * scale:
            raise ArgumentError(
                "the network does not compute what its operations say: it changes values in place, or depends on the"
                " batch or on chance"
            )
