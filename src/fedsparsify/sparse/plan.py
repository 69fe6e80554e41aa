"""Describes a torch module as a chain of layers that the compiled trainer understands."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import fx, nn

from ..errors import ArgumentError
from ..layout import ParameterLayout
from .calls import FUNCTIONS, METHODS, Pair, Uncovered, flatten_of, is_size, pair, rate_of, window_of

__all__ = ["LayerPlan", "Loss", "NetworkPlan", "plan_network", "why_uncovered"]

Loss = Literal["cross-entropy", "squared-error"]


@dataclass(frozen=True)
class LayerPlan:
    """One layer of the chain.

    Attributes:
        kind: ``linear``, ``conv2d``, ``batchnorm``, ``relu``, ``maxpool2d``, ``avgpool2d``, ``flatten`` or ``dropout``.
        name: the module's dotted name, or the name of the function that stands in the network's ``forward``.
        in_shape: shape of one example before the layer, (features,) or (channels, height, width).
        out_shape: shape of one example after it.
        weight: offset of the weight (of batch norm: the scale) in the flat vector, -1 where there is none.
        bias: offset of the bias (of batch norm: the shift), -1 where there is none.
        running_mean: offset of the running mean in the flat buffers, -1 where there is none.
        running_var: offset of the running variance, -1 where there is none.
        kernel: height and width of a convolution or pooling window, in pixels.
        stride: its vertical and horizontal step.
        padding: zeros on each side, above and left.
        eps: added to the variance by batch norm.
        momentum: weight of the new batch in the running statistics.
        rate: probability that dropout zeroes an activation.
    """

    kind: str
    name: str
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    weight: int = -1
    bias: int = -1
    running_mean: int = -1
    running_var: int = -1
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    eps: float = 1e-5
    momentum: float = 0.1
    rate: float = 0.0

    @property
    def weight_size(self) -> int:
        """Elements of the weight of a linear or convolution layer, 0 for any other."""
        if self.kind not in ("linear", "conv2d"):
            return 0
        return self.out_shape[0] * self.in_shape[0] * math.prod(self.kernel)

    @property
    def pixels(self) -> int:
        """Outputs that each weight takes part in, for one example."""
        return math.prod(self.out_shape[1:])


@dataclass(frozen=True)
class NetworkPlan:
    """A feed-forward network as the compiled trainer sees it; plain values, safe to share between threads.

    Attributes:
        layers: the chain, input first.
        input_shape: shape of one example.
        outputs: number of outputs.
        loss: what is minimised, as the mean over a batch.
        n: length of the flat parameter vector.
        b: length of the flat buffer vector.
    """

    layers: tuple[LayerPlan, ...]
    input_shape: tuple[int, ...]
    outputs: int
    loss: Loss
    n: int
    b: int

    @property
    def weighted(self) -> tuple[LayerPlan, ...]:
        """The linear and convolution layers, in order: those that a backend is chosen for."""
        return tuple(layer for layer in self.layers if layer.weight_size)

    @property
    def native_input(self) -> tuple[int, ...]:
        """Input shape as the native code takes it: flat, unless the first layer works on images."""
        if len(self.input_shape) == 3 and self.layers and self.layers[0].kind != "flatten":
            return self.input_shape
        return (math.prod(self.input_shape),)

    def native_layers(self) -> list[dict[str, Any]]:
        """The layers as dictionaries for the extension."""
        return [
            {
                "kind": layer.kind,
                "weight": layer.weight,
                "bias": layer.bias,
                "running_mean": layer.running_mean,
                "running_var": layer.running_var,
                "outputs": layer.out_shape[0],
                "kernel": layer.kernel,
                "stride": layer.stride,
                "padding": layer.padding,
                "eps": layer.eps,
                "momentum": layer.momentum,
                "rate": layer.rate,
            }
            for layer in self.layers
        ]


def plan_network(module: nn.Module, loss: Loss, input_shape: tuple[int, ...]) -> NetworkPlan | None:
    """Describe a network for the compiled trainer, or return None where it is not covered.

    Covered is a chain of linear, 2-D convolution (zero padding, no groups or dilation), batch norm, ReLU, max and
    average pooling, flatten and dropout, written as modules or as functions in ``forward``. Whatever else the network
    does, this returns None and :func:`why_uncovered` tells why. The module itself is not changed.

    Args:
        module: the network, its parameters in float32.
        loss: ``cross-entropy`` over logits, or ``squared-error``; both averaged over the batch as torch does.
        input_shape: shape of one example, without the batch.

    >>> plan = plan_network(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), "cross-entropy", (4,))
    >>> [(layer.kind, layer.weight, layer.bias) for layer in plan.layers]
    [('linear', 0, 12), ('relu', -1, -1), ('linear', 15, 21)]
    >>> plan_network(nn.Sequential(nn.Linear(4, 3), nn.Tanh()), "cross-entropy", (4,)) is None
    True
    """
    try:
        return _plan(module, loss, input_shape)
    except Uncovered:
        return None


def why_uncovered(module: nn.Module, loss: Loss, input_shape: tuple[int, ...]) -> str | None:
    """Return why :func:`plan_network` returns None for the same arguments, in one sentence; None where it does not.

    >>> why_uncovered(nn.Sequential(nn.Linear(4, 3), nn.Tanh()), "cross-entropy", (4,))
    'layer 1 is a Tanh, which the compiled trainer does not cover'
    """
    try:
        _plan(module, loss, input_shape)
    except Uncovered as e:
        return str(e)
    return None


def _plan(module: nn.Module, loss: Loss, input_shape: tuple[int, ...]) -> NetworkPlan:
    if loss not in ("cross-entropy", "squared-error"):
        raise Uncovered(f"the loss {loss!r} is not covered")
    shape = tuple(input_shape)
    if not shape or any(type(d) is not int or d < 1 for d in shape):
        raise Uncovered(f"the input shape {input_shape!r} is not a tuple of positive whole numbers")
    try:
        layout = ParameterLayout.of(module)
        # A network that is a single layer is wrapped: the tracer looks into its root, whatever that is.
        root = module if any(True for _ in module.children()) else nn.Sequential(module)
        training = _trace(copy.deepcopy(root).train())
        evaluation = _trace(copy.deepcopy(root).eval())
    except Uncovered:
        raise
    except ArgumentError as e:
        raise Uncovered(str(e)) from e
    except Exception as e:  # tracing runs the user's forward with stand-ins, which may fail in any way
        raise Uncovered(f"the network's forward cannot be traced: {e}") from e
    builder = _Builder(module, root, layout, shape)
    for node, twin in _chain(training, evaluation):
        builder.add(node, twin)
    layers, outputs = builder.finish()
    return NetworkPlan(layers, shape, outputs, loss, layout.n, layout.b)


def _trace(module: nn.Module) -> fx.Graph:
    return fx.Tracer().trace(module)


def _chain(training: fx.Graph, evaluation: fx.Graph) -> Iterator[tuple[fx.Node, fx.Node]]:
    """The nodes between input and output, each with its twin in evaluation mode; each takes the one before it."""
    nodes, twins = list(training.nodes), list(evaluation.nodes)
    if [(n.op, str(n.target)) for n in nodes] != [(n.op, str(n.target)) for n in twins]:
        raise Uncovered("the network's forward does different things in training and in evaluation")
    last: fx.Node | None = None
    for node, twin in zip(nodes, twins, strict=True):
        if node.op == "placeholder":
            if last is not None:
                raise Uncovered("the network takes more than one input")
            last = node
        elif node.op == "get_attr":
            raise Uncovered(f"the network's forward uses {node.target} outside a layer")
        elif node.op == "output":
            if node.args[0] is not last:
                raise Uncovered("the network's output is not one tensor at the end of a chain")
        elif not is_size(node):
            if not node.args or node.args[0] is not last:
                raise Uncovered(f"the network is not a chain at {node.name}")
            last = node
            yield node, twin


class _Builder:
    """Collects layers, following the shape of one example through them."""

    def __init__(self, module: nn.Module, root: nn.Module, layout: ParameterLayout, shape: tuple[int, ...]) -> None:
        self._modules = dict(root.named_modules())
        self._parameters = {id(p): name for name, p in module.named_parameters()}
        self._buffers = {id(b): name for name, b in module.named_buffers()}
        self._offsets = {slot.name: slot.offset for slot in layout.parameters}
        self._buffer_offsets = {slot.name: slot.offset for slot in layout.buffers}
        self._unused = set(self._offsets)
        self._shape = shape
        self._layers: list[LayerPlan] = []

    def add(self, node: fx.Node, twin: fx.Node) -> None:
        """Append the layer that a node stands for."""
        if node.op == "call_module":
            self._add_module(str(node.target), self._modules[str(node.target)])
            return
        read = FUNCTIONS.get(node.target) if node.op == "call_function" else METHODS.get(str(node.target))
        if read is None:
            raise Uncovered(f"{node.name} is a call that the compiled trainer does not cover")
        try:
            kind, settings = read(node, twin)
        except (TypeError, ValueError, IndexError, KeyError) as e:
            raise Uncovered(f"the arguments of {node.name} are not covered") from e
        self._append(kind, node.name, **settings)

    def finish(self) -> tuple[tuple[LayerPlan, ...], int]:
        """Return the layers and the number of outputs."""
        if self._unused:
            raise Uncovered(f"parameter {sorted(self._unused)[0]} is not used by a covered layer")
        if not any(layer.weight_size for layer in self._layers):
            raise Uncovered("the network has no linear or convolution layer")
        if len(self._shape) != 1:
            raise Uncovered(f"the network's output has the shape {self._shape}, not one dimension")
        if self._layers[0].kind == "relu":
            raise Uncovered("the network starts with ReLU")
        return tuple(self._layers), self._shape[0]

    def _add_module(self, name: str, m: nn.Module) -> None:
        kind = type(m)  # not isinstance: a subclass may compute something else
        if m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks:
            raise Uncovered(f"layer {name} has hooks")
        if isinstance(m, nn.Linear) and kind is nn.Linear:
            if len(self._shape) != 1 or self._shape[0] != m.in_features:
                raise Uncovered(f"layer {name} takes {m.in_features} features, not an input of shape {self._shape}")
            self._append("linear", name, (m.out_features,), **self._places(name, m.weight, m.bias))
        elif isinstance(m, nn.Conv2d) and kind is nn.Conv2d:
            self._add_conv(name, m)
        elif isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) and kind in (nn.BatchNorm1d, nn.BatchNorm2d):
            self._add_norm(name, m)
        elif kind is nn.Identity:
            pass
        elif isinstance(m, nn.Dropout) and kind is nn.Dropout:
            self._append("dropout", name, rate=rate_of(m.p))
        elif isinstance(m, nn.MaxPool2d) and kind is nn.MaxPool2d:
            if m.return_indices:
                raise Uncovered(f"layer {name} returns indices")
            self._append("maxpool2d", name, **window_of(m.kernel_size, m.stride, m.padding, m.ceil_mode, m.dilation))
        elif isinstance(m, nn.AvgPool2d) and kind is nn.AvgPool2d:
            if m.divisor_override is not None:
                raise Uncovered(f"layer {name} overrides its divisor")
            self._append("avgpool2d", name, **window_of(m.kernel_size, m.stride, m.padding, m.ceil_mode))
        elif isinstance(m, nn.AdaptiveAvgPool2d) and kind is nn.AdaptiveAvgPool2d:
            if m.output_size not in (1, (1, 1)) or len(self._shape) != 3:
                raise Uncovered(f"layer {name} averages to more than one pixel")
            self._append("avgpool2d", name, kernel=(self._shape[1], self._shape[2]), stride=(1, 1))
        elif kind is nn.ReLU:
            self._append("relu", name)
        elif isinstance(m, nn.Flatten) and kind is nn.Flatten:
            self._append("flatten", name, **flatten_of(m.start_dim, m.end_dim))
        else:
            raise Uncovered(f"layer {name} is a {kind.__name__}, which the compiled trainer does not cover")

    def _add_conv(self, name: str, m: nn.Conv2d) -> None:
        if len(self._shape) != 3 or self._shape[0] != m.in_channels:
            raise Uncovered(f"layer {name} takes {m.in_channels} channels, not an input of shape {self._shape}")
        if m.groups != 1 or m.dilation != (1, 1) or m.padding_mode != "zeros":
            raise Uncovered(f"layer {name} has groups, dilation or a padding other than zeros")
        kernel, stride = pair(m.kernel_size), pair(m.stride)
        if m.padding == "same":
            if kernel[0] % 2 == 0 or kernel[1] % 2 == 0:
                raise Uncovered(f"layer {name} pads one side more than the other")
            padding = (kernel[0] // 2, kernel[1] // 2)
        else:
            padding = (0, 0) if m.padding == "valid" else pair(m.padding)
        places = self._places(name, m.weight, m.bias)
        self._append("conv2d", name, (m.out_channels,), kernel=kernel, stride=stride, padding=padding, **places)

    def _add_norm(self, name: str, m: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
        wanted = 1 if isinstance(m, nn.BatchNorm1d) else 3
        if len(self._shape) != wanted or self._shape[0] != m.num_features:
            raise Uncovered(f"layer {name} takes {m.num_features} channels, not an input of shape {self._shape}")
        if m.running_mean is None or m.running_var is None or m.momentum is None:
            raise Uncovered(f"layer {name} keeps no running average of its statistics")
        places = self._places(name, m.weight, m.bias)
        for key, buffer in (("running_mean", m.running_mean), ("running_var", m.running_var)):
            places[key] = self._buffer_offsets[self._buffers[id(buffer)]]
        self._append("batchnorm", name, eps=float(m.eps), momentum=float(m.momentum), **places)

    def _places(self, name: str, weight: torch.Tensor | None, bias: torch.Tensor | None) -> dict[str, Any]:
        places: dict[str, Any] = {}
        for key, tensor in (("weight", weight), ("bias", bias)):
            if tensor is None:
                continue
            owner = self._parameters.get(id(tensor), "")
            if owner not in self._offsets:
                raise Uncovered(f"the {key} of layer {name} is not trained")
            if owner not in self._unused:
                raise Uncovered(f"parameter {owner} is used by more than one layer")
            self._unused.discard(owner)
            places[key] = self._offsets[owner]
        return places

    def _append(self, kind: str, name: str, outputs: tuple[int, ...] | None = None, **settings: Any) -> None:
        before = self._shape
        if kind == "squeeze":
            if before != (1,):
                raise Uncovered(f"{name} squeezes a shape of {before}")
            return
        if kind == "flatten":
            after: tuple[int, ...] = (math.prod(before),)
        elif kind == "conv2d" or kind.endswith("pool2d"):
            if len(before) != 3:
                raise Uncovered(f"{name} takes an image, not an input of shape {before}")
            kernel, stride, padding = settings["kernel"], settings["stride"], settings.get("padding", (0, 0))
            size = [
                (d + 2 * p - k) // s + 1 if s > 0 and d + 2 * p >= k > 0 else 0
                for d, k, s, p in zip(before[1:], kernel, stride, padding, strict=True)
            ]
            if min(size) < 1:
                raise Uncovered(f"{name} leaves nothing of an input of shape {before}")
            after = ((outputs or before)[0], *size)
        else:
            after = outputs or before
        if kind != "flatten" and len(before) not in (1, 3):
            raise Uncovered(f"{name} takes an input of shape {before}")
        self._layers.append(LayerPlan(kind, name, before, after, **settings))
        self._shape = after
