"""A graph that breaks a rule is refused, with the node and what is wrong in one sentence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedsparsify.errors import ArgumentError
from fedsparsify.export.graph import Graph, Node
from fedsparsify.export.operations import MOST_NODES, OPERATIONS, check_graph
from fedsparsify.export.reference import run


def zeros(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.zeros(shape, np.float32)


def ones(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.ones(shape, np.float32)


CONV = Node(
    "conv2d",
    (0,),
    {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2), "groups": 2},
    {"weight": ones(4, 1, 3, 2), "bias": ones(4)},
)
POOL = Node("maxpool", (0,), {"kernel": (2, 2), "stride": (2, 2), "padding": (1, 0)})
NORM = Node("batchnorm", (0,), {"eps": 1e-5}, {"running_mean": zeros(2), "running_var": ones(2)})
LINEAR = Node("linear", (0,), {}, {"weight": ones(3, 6)})
LSTM = Node("lstm", (0,), {"bidirectional": 0, "last": 1}, {"weight_ih": ones(8, 6), "weight_hh": ones(8, 2)})


def graph(*nodes: Node, shape: tuple[int, ...] = (2, 5, 6), dtype: Any = "float32") -> Graph:
    return Graph(shape, dtype, nodes)


def test_shapes_follow_from_the_input() -> None:
    nodes = (CONV, replace(POOL, inputs=(1,)), Node("flatten", (2,)))
    assert check_graph(graph(*nodes)) == ((2, 5, 6), (4, 3, 4), (4, 2, 2), (16,))
    assert check_graph(graph(LSTM, shape=(5, 6)))[-1] == (2,)


def test_values_by_hand() -> None:
    assert run(graph(LINEAR, shape=(6,)), np.arange(6.0)[None]).tolist() == [[15.0, 15.0, 15.0]]
    window = Node(
        "conv1d", (0,), {"stride": (1,), "padding": (1,), "dilation": (1,), "groups": 1}, {"weight": ones(1, 1, 3)}
    )
    assert run(graph(window, shape=(1, 4)), np.array([[[1.0, 2, 3, 4]]])).tolist() == [[[3, 6, 9, 7]]]
    assert run(
        graph(replace(POOL, attributes={**POOL.attributes, "padding": (0, 0)}), shape=(1, 2, 2)),
        np.array([[[[1.0, 2], [3, 4]]]]),
    ).tolist() == [[[[4.0]]]]
    norm = replace(NORM, tensors={"running_mean": ones(2), "running_var": 4 * ones(2), "weight": 2 * ones(2)})
    np.testing.assert_allclose(run(graph(norm, shape=(2,)), np.array([[3.0, 1]])), [[2, 0]], rtol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (graph(), "0 nodes"),
        (graph(*[Node("relu", (0,))] * (MOST_NODES + 1)), "4097 nodes"),
        (graph(Node("launch", (0,))), r"node 0 \(launch\): the operation is unknown"),
        (graph(Node("relu", (1,))), r"its inputs \(1,\)"),
        (graph(Node("relu", (-1,))), r"its inputs \(-1,\)"),
        (graph(Node("add", (0,))), "must be 2 of the values"),
        (graph(Node("relu", (0,), {"slope": 1.0})), "its attributes"),
        (graph(Node("relu", (0,), {}, {"weight": ones(1)})), "its tensors"),
        (graph(Node("linear", (0,))), "its tensors"),
        (graph(replace(LINEAR, tensors={"weight": ones(3, 5)})), r"weight \(3, 5\) does not take"),
        (graph(replace(LINEAR, tensors={"weight": ones(3, 6), "bias": ones(2)})), r"bias has shape \(2,\)"),
        (graph(CONV, shape=(3, 5, 6)), "2 groups does not take 3 channels"),
        (graph(CONV, shape=(2, 5)), "does not take values"),
        (graph(replace(CONV, attributes={**CONV.attributes, "stride": (0, 1)})), r"stride = \(0, 1\)"),
        (graph(replace(CONV, attributes={**CONV.attributes, "stride": (1,)})), "must have 2 numbers"),
        (graph(replace(CONV, attributes={**CONV.attributes, "stride": 1})), "whole number a dimension"),
        (graph(replace(CONV, attributes={**CONV.attributes, "groups": True})), "groups = True"),
        (graph(replace(CONV, attributes={**CONV.attributes, "dilation": (9, 9)})), "does not fit"),
        (graph(replace(CONV, attributes={**CONV.attributes, "padding": (1 << 20, 1 << 20)})), "more than"),
        (graph(replace(POOL, attributes={**POOL.attributes, "padding": (2, 0)})), "more than half"),
        (graph(replace(NORM, attributes={"eps": 0.0})), "eps"),
        (graph(replace(NORM, attributes={"eps": float("nan")})), "finite"),
        (graph(NORM, shape=(3,)), "running_mean has shape"),
        (graph(Node("mean", (0,)), shape=(3,)), "channels and positions"),
        (graph(Node("relu", (0,)), Node("flatten", (1,)), Node("add", (1, 2))), "cannot be added"),
        (graph(Node("pad_channels", (0,), {"before": 1 << 30, "after": 0})), "from 0 to 1048576"),
        (graph(Node("subsample", (0,), {"step": (2,)})), "steps"),
        (graph(replace(LSTM, attributes={"bidirectional": 1, "last": 1}), shape=(5, 6)), "weight_ih_reverse"),
        (graph(replace(LSTM, attributes={"bidirectional": 2, "last": 1}), shape=(5, 6)), "bidirectional = 2"),
        (graph(replace(LSTM, tensors={**LSTM.tensors, "bias_reverse": ones(8)}), shape=(5, 6)), "has not"),
        (graph(Node("relu", (0,)), dtype="int64"), "only an embedding takes"),
        (graph(Node("embedding", (0,), {}, {"weight": ones(3, 2)})), "must be int64"),
        (graph(Node("relu", (0,)), dtype="object"), "neither float32 nor int64"),
        (graph(Node("relu", (0,)), shape=(0,)), "positive sizes"),
        (graph(Node("relu", (0,)), shape=(1,) * 9), "at most 8"),
        (graph(Node("relu", (0,)), shape=(1 << 20, 1 << 20)), "more than"),
    ],
)
def test_a_broken_graph_is_refused(wrong: Graph, message: str) -> None:
    with pytest.raises(ArgumentError, match=message) as caught:
        check_graph(wrong)
    assert len(str(caught.value)) < 600 and "\n" not in str(caught.value)


def test_every_operation_has_its_row_in_the_documentation() -> None:
    from fedsparsify.export import graph as module

    assert module.__doc__ is not None
    rows = module.__doc__.replace("conv1d/2d/3d", "conv1d conv2d conv3d").replace(",", " ").split()
    assert set(OPERATIONS) <= set(rows)


def test_an_input_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ArgumentError, match="does not fit"):
        run(graph(LINEAR, shape=(6,)), np.zeros((2, 5)))
    words = Graph((2,), "int64", (Node("embedding", (0,), {}, {"weight": ones(3, 2)}),))
    with pytest.raises(ArgumentError, match="there are 3 words"):
        run(words, np.array([[0, 3]]))
