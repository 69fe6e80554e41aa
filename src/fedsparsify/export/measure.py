"""How fast a model is on this machine, beside the same network dense: calls that take turns on one thread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import MissingExtraError
from .fallback import NumpyNetwork
from .graph import Graph
from .model import SparseModel
from .onnx_file import encode_onnx

__all__ = ["Measured", "measure"]

_FEWEST = 5  # calls, however long they take


@dataclass(frozen=True)
class Measured:
    """The time that a program takes.

    Attributes:
        program: what ran.
        seconds: of a call, the median.
        baseline: whether others are compared with it.
    """

    program: str
    seconds: float
    baseline: bool


def measure(model: SparseModel, batch: int, seconds: float) -> tuple[list[Measured], str]:
    """Return the time of the sparse engine and of the same network dense, and a remark on what is not installed.

    Args:
        model: the model.
        batch: examples of a call.
        seconds: how long to measure all together.
    """
    graph = model.graph
    x: Any = np.random.default_rng(0).standard_normal((batch, *graph.input_shape), np.float32)
    if graph.input_dtype == "int64":
        x = np.random.default_rng(0).integers(0, len(graph.nodes[0].tensors["weight"]), x.shape)
    ours = "sparse engine" if model.backend == "native" else "our engine, in NumPy"
    calls: dict[str, Callable[[], object]] = {ours: lambda: model.forward(x)}
    remark = "" if model.backend == "native" else f"The sparse kernels do not run this network: {model.why}. "
    try:
        calls["ONNX Runtime, compact"] = _onnxruntime(graph, True, x)
        calls["ONNX Runtime, dense"] = _onnxruntime(graph, False, x)
        baseline = "ONNX Runtime, dense"
    except ImportError:
        remark += (
            "ONNX Runtime is not installed (pip install onnx onnxruntime): dense is NumPy here, with its own threads."
        )
        dense = NumpyNetwork(graph)
        calls["NumPy, dense"] = lambda: dense.run(x)
        baseline = "NumPy, dense"
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(taken[baseline]) < _FEWEST:
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            taken[name].append(time.perf_counter() - begin)
    return [Measured(name, statistics.median(times), name == baseline) for name, times in taken.items()], remark


def _onnxruntime(graph: Graph, compact: bool, x: Any) -> Callable[[], object]:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("ONNX Runtime", "benchmarks") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(encode_onnx(graph, compact), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"input": x})
