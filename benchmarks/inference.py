"""What inference costs: our engine beside ONNX Runtime, dense torch and torch.sparse, one thread each.

    python benchmarks/inference.py RUN...            # directories of finished runs, such as runs/global
    python benchmarks/inference.py RUN --part times --batch 1 --seconds 20 --json inference.json

For each run: a table of times by batch, medians of calls that take turns, so that whatever else the machine does
disturbs all of them alike; the bytes of the sparse file beside the dense one; import and load up to the first
prediction, and the memory that takes, in a process of its own; the multiply-adds that are left, layer by layer, and
what this processor does of them in a second at most; and the outputs on the whole test set beside torch's in float64.
Needs onnx, onnxruntime.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

from fedsparsify import models, sparse
from fedsparsify.config import load_settings
from fedsparsify.export.artifact import save_artifact
from fedsparsify.export.engine import Engine
from fedsparsify.export.graph import Graph
from fedsparsify.export.onnx_file import encode_onnx
from fedsparsify.export.operations import check_graph
from fedsparsify.export.passes import simplify
from fedsparsify.export.safetensors_file import dense_size
from fedsparsify.finished import Finished, load_finished
from fedsparsify.sparse.native import require_native

OURS, RIVAL = "fedsparsify", "ONNX Runtime, dense"

FIRST = """
import sys, time
start = time.perf_counter()
import numpy as np
numpy_done = time.perf_counter()
from fedsparsify.export.model import SparseModel
model = SparseModel.load(sys.argv[1])
model.forward(np.zeros((1, *model.graph.input_shape), np.float32))
end = time.perf_counter()
with open("/proc/self/status") as status:
    kilobytes = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
print(end - start, numpy_done - start, kilobytes * 1.024 / 1e3, "torch" in sys.modules)
"""
# The kernel's high-water mark of this program alone: getrusage counts the process that it was forked from.


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--part", choices=("work", "file", "accuracy", "times"), action="append", help="default: all")
    parser.add_argument("--batch", type=int, action="append", help="default: 1, 32 and 128")
    parser.add_argument("--seconds", type=float, default=10, help="of measuring a row, at least")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "Sparse CSR tensor support")
    figures = {}
    for run in arguments.runs:
        print(f"\n## {run.name}\n")
        finished = load_finished(run)
        parts: dict[str, Callable[[], Any]] = {
            "work": lambda f=finished: work(f.artifact.graph),  # type: ignore[misc]
            "file": lambda f=finished: files(f),  # type: ignore[misc]
            "accuracy": lambda r=run, f=finished: accuracy(r, f),  # type: ignore[misc]
            "times": lambda r=run, f=finished: times(  # type: ignore[misc]
                r, f, arguments.batch or [1, 32, 128], arguments.seconds
            ),
        }
        figures[run.name] = {part: parts[part]() for part in arguments.part or parts}
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


# What is there to do --------------------------------------------------------------------------------------------------


def work(graph: Graph) -> dict[str, float]:
    """Count the multiply-adds of one example, dense and left, and what a thread does at most."""
    simple = simplify(graph)
    left = {node.name: (node, shape) for node, shape in zip(simple.nodes, check_graph(simple)[1:], strict=True)}
    print("| layer | density | multiply-adds, dense | left | units | left |\n|---|---|---|---|---|---|")
    totals = [0, 0]
    for node, shape in zip(graph.nodes, check_graph(graph)[1:], strict=True):
        if "weight" not in node.tensors or node.op not in ("linear", "conv2d"):
            continue
        weight, positions = node.tensors["weight"], int(np.prod(shape[1:]))
        kept = left[node.name][0].tensors["weight"]
        counts = weight.size * positions, int(np.count_nonzero(kept)) * positions
        totals = [a + b for a, b in zip(totals, counts, strict=True)]
        density = np.count_nonzero(weight) / weight.size
        print(f"| {node.name} | {density:.1%} | {counts[0]:,} | {counts[1]:,} | {len(weight)} | {len(kept)} |")
    rate = require_native().peak("")[0]
    print(
        f"\nIn all {totals[0]:,} dense, {totals[1]:,} left, 1/{totals[0] / max(totals[1], 1):.1f}; a thread does at"
        f" most {rate / 1e9:.0f} billion a second ({sparse.targets()[0]}), so an example takes no less than"
        f" {totals[1] / rate * 1e6:,.2f} microseconds, dense {totals[0] / rate * 1e6:,.1f}."
    )
    return {"dense": totals[0], "left": totals[1], "peak": rate}


def files(finished: Finished) -> dict[str, float]:
    """Measure the file, and a process that loads it and predicts once."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.fsz"
        size, dense = save_artifact(finished.artifact, path), dense_size(finished.artifact.graph)
        # Compiled once, as Python does unless it is told not to; the first of these starts is not counted.
        known = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment = {**known, "PYTHONPYCACHEPREFIX": folder}
        command = [sys.executable, "-c", FIRST, str(path)]
        tries = []
        for start in range(8):
            out = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
            if start == 0:
                continue
            *numbers, with_torch = out.stdout.split()
            assert with_torch == "False"
            tries.append([float(n) for n in numbers])
    first, numpy_alone, memory = (statistics.median(column) for column in zip(*tries, strict=True))
    print(f"\nFile: {size:,} bytes, 1/{dense / size:.1f} of {dense:,} in dense float32 safetensors.")
    print(
        f"Import and load up to the first prediction: {first:.3f} s (NumPy's import is {numpy_alone:.3f} s of them), at"
        f" most {memory:.0f} MB resident."
    )
    return {"bytes": size, "dense_bytes": dense, "first_seconds": first, "numpy_seconds": numpy_alone, "mb": memory}


def accuracy(run: Path, finished: Finished) -> dict[str, float]:
    """Compare outputs on the whole test set with torch's in float64."""
    x, y = np.asarray(finished.test.x), np.asarray(finished.test.y)
    engine, module = Engine(finished.artifact.graph), torch_module(run, finished).double()
    with torch.no_grad():
        expected = np.concatenate(
            [module(torch.from_numpy(x[i : i + 250]).double()).numpy() for i in range(0, len(x), 250)]
        )
    found = engine.run(x)
    relative = float(np.abs(found - expected).max() / np.abs(expected).max())
    scores = [float((outputs.argmax(1) == y).mean()) for outputs in (found, expected)]
    print(
        f"Test set: {len(x):,} examples, outputs within {relative:.1e} of torch's in float64, relative to the largest;"
        f" accuracy {scores[0]:.4f}, torch {scores[1]:.4f}."
    )
    return {"relative": relative, "accuracy": scores[0], "torch_accuracy": scores[1]}


# Times ----------------------------------------------------------------------------------------------------------------


def torch_module(run: Path, finished: Finished) -> nn.Module:
    """Return the run's network with its weights."""
    settings = load_settings(run / "config.toml")
    module = models.build(settings.model.name, settings.run.seed, **settings.model.options)
    module.load_state_dict({name: torch.from_numpy(np.array(t)) for name, t in finished.state.items()})
    return module.eval()


class SparseProduct(nn.Module):
    """A linear layer, or a convolution as a product with unfolded pixels, with weights in torch's CSR layout."""

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.layer = layer
        self.weight = layer.weight.detach().flatten(1).to_sparse_csr()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the layer returns."""
        layer = self.layer
        assert layer.bias is not None
        if isinstance(layer, nn.Linear):
            return (self.weight @ x.T).T + layer.bias
        columns = nn.functional.unfold(x, layer.kernel_size, padding=layer.padding, stride=layer.stride)
        batch, _, positions = columns.shape
        y = self.weight @ columns.permute(1, 0, 2).reshape(columns.shape[1], -1)
        y = y.reshape(-1, batch, positions).permute(1, 0, 2) + layer.bias[:, None]
        high = (x.shape[2] + 2 * layer.padding[0] - layer.kernel_size[0]) // layer.stride[0] + 1
        return y.reshape(batch, -1, high, positions // high)


def with_sparse_layers(module: nn.Module) -> nn.Module:
    """Replace linear layers and convolutions by their sparse products."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear | nn.Conv2d):
            setattr(module, name, SparseProduct(child))
        else:
            with_sparse_layers(child)
    return module


def session(graph: Graph, compact: bool) -> onnxruntime.InferenceSession:
    """Return ONNX Runtime with one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(encode_onnx(graph, compact), options, providers=["CPUExecutionProvider"])


def times(run: Path, finished: Finished, batches: list[int], seconds: float) -> list[dict[str, Any]]:
    """Let all of them run in turns, and print medians of wall and thread time."""
    graph = finished.artifact.graph
    engine, dense, compact = Engine(graph), session(graph, False), session(graph, True)
    masked, in_torch = torch_module(run, finished), with_sparse_layers(torch_module(run, finished))
    ratio_of = f"{RIVAL} / it"
    print(f"\n{engine.describe()}")
    print(f"| batch | engine | wall µs | thread µs | {ratio_of}, wall | {ratio_of}, thread |")
    print("|---|---|---|---|---|---|")
    rows: list[dict[str, Any]] = []
    for batch in batches:
        x = np.ascontiguousarray(finished.test.x[:batch], np.float32)

        calls = calls_on(x, engine, dense, compact, masked, in_torch)
        found = in_turns(calls, seconds)
        for name in calls:
            wall, cpu = (statistics.median(t[i] for t in found[name]) for i in (0, 1))
            by_wall, by_cpu = (
                statistics.median(r[i] / t[i] for r, t in zip(found[RIVAL], found[name], strict=True)) for i in (0, 1)
            )
            row = f"{wall * 1e6:,.1f} | {cpu * 1e6:,.1f}"
            print(f"| {batch} | {name} | {row} | {by_wall:.2f} | {by_cpu:.2f} |", flush=True)
            rows.append({"batch": batch, "engine": name, "wall": wall, "thread": cpu, "ratio": by_wall, "cpu": by_cpu})
    return rows


def calls_on(
    x: NDArray[np.float32],
    engine: Engine,
    dense: onnxruntime.InferenceSession,
    compact: onnxruntime.InferenceSession,
    masked: nn.Module,
    in_torch: nn.Module,
) -> dict[str, Callable[[], object]]:
    """Return what each engine does with a batch."""
    given = torch.from_numpy(x)

    def of_torch(module: nn.Module) -> Callable[[], object]:
        def call() -> object:
            with torch.inference_mode():
                return module(given)

        return call

    return {
        RIVAL: lambda: dense.run(None, {"input": x}),
        OURS: lambda: engine.run(x),
        "ONNX Runtime, dead units removed": lambda: compact.run(None, {"input": x}),
        "torch, masked dense": of_torch(masked),
        "torch.sparse": of_torch(in_torch),
    }


def in_turns(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, list[tuple[float, float]]]:
    """Return wall and thread seconds of a call, many times; short calls are repeated within a measurement."""
    repeats = {}
    for name, call in calls.items():
        call()
        start = time.perf_counter()
        call()
        repeats[name] = max(1, min(200, int(2e-3 / (time.perf_counter() - start))))
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(found[OURS]) < 5:
        for name, call in calls.items():
            start, cpu = time.perf_counter(), time.thread_time()
            for _ in range(repeats[name]):
                call()
            n = repeats[name]
            found[name].append(((time.perf_counter() - start) / n, (time.thread_time() - cpu) / n))
    return found


if __name__ == "__main__":
    main()
