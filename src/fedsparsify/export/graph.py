"""A trained network as data: a list of operations with their tensors, free of torch and of the code that trained it.

Value 0 is the network's input float32 or int64 [B, *input_shape]; value i + 1 is what node i returns; the last node's
value is the network's output. Shapes below are those of one example; every value has the batch B in front of them.

=============  ========================  ===========================  ====================================  ==========
operation      input -> output           attributes                   tensors (optional ones in brackets)   remarks
=============  ========================  ===========================  ====================================  ==========
linear         [.., in] -> [.., out]                                  weight [out, in], (bias [out])
conv1d/2d/3d   [C, *S] -> [out, *S']     stride, padding, dilation    weight [out, C / groups, *kernel],    zeros
                                         (one each a dimension),      (bias [out])                          around
                                         groups
batchnorm      [C, ..]                   eps                          running_mean, running_var [C],
                                                                      (weight, bias [C])
instancenorm   [C, *S]                   eps                          (weight, bias [C])                    own mean
bias_map       [C, *S]                                                bias [C, *S]                          x + bias
relu                                                                                                        max(x, 0)
leaky_relu                               slope
sigmoid, tanh
maxpool        [C, *S] -> [C, *S']       kernel, stride, padding                                            -inf
                                         (one each a dimension)                                             around
avgpool        [C, *S] -> [C, *S']       kernel, stride, padding                                            zeros
                                                                                                            counted
mean           [C, *S] -> [C, 1, ..]                                                                        over S
flatten        [..] -> [product]
add            two of one shape
subsample      [C, *S] -> [C, *S']       step (one each a dimension)                                        x[..::step]
pad_channels   [C, ..] -> [C', ..]       before, after                                                      zeros
embedding      int64 [T] -> [T, width]                                weight [words, width]
lstm           [T, in] -> [T, D * H],    bidirectional (0 or 1),      weight_ih [4H, in], weight_hh
               or [D * H] if last        last (0 or 1)                [4H, H], (bias [4H]); the same with
                                                                      _reverse if bidirectional
=============  ========================  ===========================  ====================================  ==========

An LSTM is one layer, with gates in the order input, forget, cell, output and one bias, the sum of torch's two. With
``last`` it returns the state after the last step (and, backwards, after the first one), without it those of all steps;
with two directions D = 2, the forward state comes first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["BUFFERS", "Attribute", "Graph", "InputType", "Node"]

Attribute = int | float | tuple[int, ...]
InputType = Literal["float32", "int64"]

BUFFERS = ("running_mean", "running_var")
"""Tensors that are measured, not trained: they are never pruned, and their zeros are numbers."""


@dataclass(frozen=True, eq=False)
class Node:
    """One operation.

    Attributes:
        op: what it does, a row of the table above.
        inputs: the values that it reads, all of them earlier ones.
        attributes: its numbers by name; tuples have one number a spatial dimension.
        tensors: float32 arrays by name; 0 where pruned.
        name: what the network's author called the layer, for people only; may be empty.
    """

    op: str
    inputs: tuple[int, ...]
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    tensors: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    name: str = ""


@dataclass(frozen=True, eq=False)
class Graph:
    """A network with one input and one output, ready for inference: dropout is left out.

    Attributes:
        input_shape: shape of one example.
        input_dtype: type of the input; ``int64`` for numbers of words.
        nodes: the operations in order; the last one's value is the output.
    """

    input_shape: tuple[int, ...]
    input_dtype: InputType
    nodes: tuple[Node, ...]

    @property
    def parameters(self) -> int:
        """Number of trained parameters, pruned ones included."""
        return sum(t.size for node in self.nodes for name, t in node.tensors.items() if name not in BUFFERS)

    @property
    def nonzero(self) -> int:
        """Number of trained parameters that are left."""
        return sum(
            int(np.count_nonzero(t)) for node in self.nodes for name, t in node.tensors.items() if name not in BUFFERS
        )
