"""Small files that ask for much: they are refused or run, and never crash, hang, or take memory without end.

Each is tried in a process of its own, for a crash would end this one.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsparsify.errors import ArgumentError
from fedsparsify.export.artifact import Artifact, encode_artifact
from fedsparsify.export.graph import Graph, Node
from fedsparsify.recipe import Recipe

TRY = """
import resource, sys
import numpy as np
from fedsparsify.errors import FedSparsifyError
from fedsparsify.export import SparseModel
from fedsparsify.errors import ArgumentError
from fedsparsify.export.artifact import load_artifact
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
try:
    model = SparseModel.load(sys.argv[1])
    model.forward(np.zeros((1, *model.graph.input_shape), np.float32))
except FedSparsifyError as error:
    print("refused:", error)
"""


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def conv(weight: np.ndarray, **attributes: Any) -> Node:
    plain: dict[str, Any] = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
    return Node("conv2d", (0,), {**plain, **attributes}, {"weight": weight})


def line(weight: np.ndarray, source: int, padding: int, **tensors: np.ndarray) -> Node:
    plain: dict[str, Any] = {"stride": (1,), "padding": (padding,), "dilation": (1,), "groups": 1}
    return Node("conv1d", (source,), plain, {"weight": weight, **tensors})


LAST = Node("linear", (7,), {}, {"weight": ones(1, 1)})
RELUS = tuple(Node("relu", (i + 1,)) for i in range(20))

GRAPHS = {
    "a stride that overflows": Graph((1, 128, 1), "float32", (conv(ones(1, 1, 128, 1), stride=(1, 95325)),)),
    "a stride of a million": Graph((8, 3, 1), "float32", (conv(ones(1, 8, 3, 1), stride=(1, 2**20)),)),
    "forty thousand groups": Graph((40000, 1, 1), "float32", (conv(ones(40000, 1, 1, 1), groups=40000),)),
    "a vast window": Graph(
        (1, 1, 1), "float32", (conv(ones(1, 1, 2, 2), padding=(20000, 20000), dilation=(40000, 40000)),)
    ),
    "a wide window": Graph(
        (1, 1, 1), "float32", (conv(ones(1, 1, 2, 2), padding=(4000, 4000), dilation=(8000, 8000)),)
    ),
    "values that are vast together": Graph((1, 2**27), "float32", (Node("flatten", (0,)), *RELUS)),
    "a vast value": Graph((1, 2**24), "float32", (Node("flatten", (0,)), *RELUS[:5], Node("mean", (0,)), LAST)),
    "a map of a vast kernel": Graph(
        (1, 2**20),
        "float32",
        (line(np.zeros((1, 1, 1), np.float32), 0, 0, bias=ones(1)), line(ones(1, 1, 2**11), 1, 2**10)),
    ),
}


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_a_small_file_takes_no_more_than_it_may(graph: Graph, tmp_path: Path) -> None:
    path = tmp_path / "hostile.fsz"
    refused = ""
    try:
        path.write_bytes(encode_artifact(Artifact(graph, Recipe(shape=graph.input_shape))))
    except ArgumentError as error:  # where it is made, by the rules by which it is read
        refused = str(error)
    if refused:
        assert "more than" in refused
        return
    assert path.stat().st_size < 200_000
    done = subprocess.run([sys.executable, "-c", TRY, str(path)], capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr


def test_a_number_beyond_any_window_is_refused() -> None:
    with pytest.raises(ArgumentError, match="from 1 to 1048576"):
        encode_artifact(
            Artifact(Graph((1, 4, 4), "float32", (conv(ones(1, 1, 1, 1), stride=(2**31, 1)),)), Recipe(shape=(1, 4, 4)))
        )
