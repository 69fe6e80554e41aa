"""How each of PyTorch's functions becomes a node of a graph: one entry of the table at the foot for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError
from .graph import Attribute, Node
from .recorder import Recorder, Recording, State

__all__ = ["BATCH", "CALLS"]

BATCH = 3
"""Examples that a network is watched with: a number that is hardly one of its sizes."""


def _bound(names: str, defaults: Mapping[str, Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {**defaults, **dict(zip(names.split(), args, strict=False)), **kwargs}


def _tuple(value: Any, dimensions: int) -> tuple[int, ...]:
    numbers = tuple(int(v) for v in value) if isinstance(value, list | tuple) else (int(value),)
    return numbers * dimensions if len(numbers) == 1 else numbers


def _linear(r: Recorder, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
    a = _bound("input weight bias", {"bias": None}, args, kwargs)
    r.add("linear", [a["input"]], result, {}, {"weight": a["weight"], "bias": a["bias"]})


def _conv(dimensions: int) -> Recording:
    def record(r: Recorder, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        defaults = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
        a = _bound("input weight bias stride padding dilation groups", defaults, args, kwargs)
        dilation, padding = _tuple(a["dilation"], dimensions), a["padding"]
        if padding == "valid":
            padding = 0
        elif padding == "same":
            around = [d * (k - 1) for d, k in zip(dilation, a["weight"].shape[2:], strict=True)]
            if any(n % 2 for n in around):
                raise ArgumentError('a convolution has padding="same" with an even kernel: pad it evenly')
            padding = tuple(n // 2 for n in around)
        attributes: dict[str, Attribute] = {
            "stride": _tuple(a["stride"], dimensions),
            "padding": _tuple(padding, dimensions),
            "dilation": dilation,
            "groups": int(a["groups"]),
        }
        r.add(f"conv{dimensions}d", [a["input"]], result, attributes, {"weight": a["weight"], "bias": a["bias"]})

    return record


def _batchnorm(r: Recorder, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
    defaults = {"weight": None, "bias": None, "training": False, "eps": 1e-5}
    a = _bound("input running_mean running_var weight bias training momentum eps", defaults, args, kwargs)
    if a["training"] or a["running_mean"] is None:
        raise ArgumentError("a batch normalisation has no running statistics: an exported model needs them")
    tensors = {name: a[name] for name in ("weight", "bias", "running_mean", "running_var")}
    r.add("batchnorm", [a["input"]], result, {"eps": float(a["eps"])}, tensors)


def _instancenorm(r: Recorder, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
    defaults = {"weight": None, "bias": None, "use_input_stats": True, "eps": 1e-5}
    a = _bound("input running_mean running_var weight bias use_input_stats momentum eps", defaults, args, kwargs)
    if not a["use_input_stats"]:
        raise ArgumentError("an instance normalisation uses running statistics, which an exported model cannot express")
    r.add("instancenorm", [a["input"]], result, {"eps": float(a["eps"])}, {"weight": a["weight"], "bias": a["bias"]})


def _plain(op: str, argument: str = "", default: float = 0.0, attribute: str = "") -> Recording:
    def record(r: Recorder, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        a = _bound(f"input {argument}", {argument: default}, args, kwargs)
        r.add(op, [a["input"]], result, {attribute: float(a[argument])} if attribute else {})

    return record


def _pool(op: str) -> Recording:
    def record(r: Recorder, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        defaults = {"stride": None, "padding": 0, "dilation": 1, "ceil_mode": False, "return_indices": False}
        names = "input kernel_size stride padding dilation ceil_mode return_indices"
        if op == "avgpool":
            defaults |= {"count_include_pad": True, "divisor_override": None}
            names = "input kernel_size stride padding ceil_mode count_include_pad divisor_override"
        a = _bound(names, defaults, args, kwargs)
        dimensions = a["input"].ndim - 2
        padding = _tuple(a["padding"], dimensions)
        unusual = [
            *(key for key in ("ceil_mode", "return_indices") if a[key]),
            *(["dilation"] if any(d != 1 for d in _tuple(a["dilation"], 1)) else []),
            *(["count_include_pad=False"] if any(padding) and a.get("count_include_pad") is False else []),
            *(["divisor_override"] if a.get("divisor_override") else []),
        ]
        if unusual:
            raise ArgumentError(f"a pooling uses {unusual[0]}, which an exported model cannot express")
        kernel = _tuple(a["kernel_size"], dimensions)
        stride = kernel if a["stride"] in (None, [], ()) else _tuple(a["stride"], dimensions)
        r.add(op, [a["input"]], result, {"kernel": kernel, "stride": stride, "padding": padding})

    return record


def _adaptive(r: Recorder, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
    a = _bound("input output_size", {}, args, kwargs)
    before, after = a["input"].shape[2:], result.shape[2:]
    if all(n == 1 for n in after):
        r.add("mean", [a["input"]], result)
    elif all(b % n == 0 for b, n in zip(before, after, strict=True)):
        kernel = tuple(b // n for b, n in zip(before, after, strict=True))
        r.add("avgpool", [a["input"]], result, {"kernel": kernel, "stride": kernel, "padding": (0,) * len(kernel)})
    else:
        raise ArgumentError(f"an adaptive pooling from {tuple(before)} to {tuple(after)} has windows of several sizes")


def _reshaped(r: Recorder, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
    x = args[0]
    if id(x) in r.states:
        state = r.states[id(x)]
        directions = 1 + int(r.nodes[state.node].attributes["bidirectional"] == 1)
        if state.form == "by example" and result.ndim == 2 and len(result) == BATCH:
            _last(r, state, result)
            return
        raise ArgumentError(f"the network reshapes the states of an LSTM of {directions} directions in an unknown way")
    if result.shape == x.shape:
        r.same(x, result)
    elif result.shape == (len(x), x[0].numel()):
        r.add("flatten", [x], result)
    else:
        raise ArgumentError(
            f"the network reshapes {list(x.shape)} to {list(result.shape)}: an exported model can only flatten examples"
        )


def _add(r: Recorder, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
    a = _bound("input other", {"alpha": 1}, args, kwargs)
    if a["alpha"] != 1:
        raise ArgumentError(f"the network adds with alpha = {a['alpha']}, which an exported model cannot express")
    r.add("add", [a["input"], a["other"]], result)


def _same(r: Recorder, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
    if id(args[0] if args else kwargs["input"]) in r.states:
        raise ArgumentError("the network converts the states of an LSTM, which an exported model cannot express")
    if isinstance(result, Tensor) and not result.is_floating_point() and r.value(args[0]) != 0:
        raise ArgumentError("the network rounds a value to whole numbers, which an exported model cannot express")
    r.same(args[0] if args else kwargs["input"], result)


def _dropout(r: Recorder, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
    a = _bound("input p training", {"training": True}, args, kwargs)
    if a["training"]:
        raise ArgumentError("the network drops values in evaluation mode too, so its outputs depend on chance")
    r.same(a["input"], result)


def _pad(r: Recorder, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
    a = _bound("input pad mode value", {"mode": "constant", "value": None}, args, kwargs)
    x, pads = a["input"], [int(p) for p in a["pad"]]
    pads += [0] * (2 * x.ndim - len(pads))
    before, after = pads[2 * (x.ndim - 2) : 2 * (x.ndim - 2) + 2]
    if (
        sum(map(abs, pads)) != abs(before) + abs(after)
        or min(before, after) < 0
        or a["mode"] != "constant"
        or a["value"]
    ):
        raise ArgumentError(
            f"the network pads by {pads} in mode {a['mode']}: an exported model can only add channels of 0"
        )
    if before or after:
        r.add("pad_channels", [x], result, {"before": before, "after": after})
    else:
        r.same(x, result)


def _embedding(r: Recorder, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
    defaults = {"max_norm": None}
    a = _bound("input weight padding_idx max_norm norm_type scale_grad_by_freq sparse", defaults, args, kwargs)
    if a["max_norm"] is not None:
        raise ArgumentError("an embedding has max_norm, which an exported model cannot express")
    r.add("embedding", [a["input"]], result, {}, {"weight": a["weight"]})


def _lstm(r: Recorder, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
    a = _bound("input hx weights biases layers dropout train bidirectional batch_first", {}, args, kwargs)
    if a["batch_first"] is not True or not isinstance(a["weights"], list | tuple):
        raise ArgumentError("an LSTM takes steps before examples: make it with batch_first=True")
    if any(bool(t.any()) or id(t) in r.values for t in a["hx"]):
        raise ArgumentError("an LSTM starts from another state than 0, which an exported model cannot express")
    directions = 2 if a["bidirectional"] else 1
    each = 4 if a["biases"] else 2
    if len(a["weights"]) != each * directions * a["layers"]:
        raise ArgumentError("an LSTM has projections (proj_size), which an exported model cannot express")
    output, states, _ = result
    x = a["input"]
    for layer in range(a["layers"]):
        tensors: dict[str, Tensor] = {}
        for direction in range(directions):
            start = (layer * directions + direction) * each
            own, suffix = a["weights"][start : start + each], ("", "_reverse")[direction]
            tensors |= {f"weight_ih{suffix}": own[0], f"weight_hh{suffix}": own[1]}
            if a["biases"]:
                tensors[f"bias{suffix}"] = own[2] + own[3]
        y = output if layer == a["layers"] - 1 else torch.empty(0)
        r.alive.append(y)
        r.add("lstm", [x], y, {"bidirectional": directions - 1, "last": 0}, tensors)
        x = y
    r.states[id(states)] = State(len(r.nodes) - 1, "by layer")


def _last(r: Recorder, state: State, result: Tensor) -> None:
    """Turn the last LSTM's node into one that returns its last states."""
    node = r.nodes[state.node]
    if state.node != len(r.nodes) - 1:
        raise ArgumentError("the network uses an LSTM's last states after something else was computed of it")
    r.nodes[state.node] = Node(node.op, node.inputs, {**node.attributes, "last": 1}, node.tensors, node.name)
    r.values = {key: value for key, value in r.values.items() if value != state.node + 1}
    r.values[id(result)] = state.node + 1


def _getitem(r: Recorder, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
    x, index = args
    if id(x) in r.states:
        state = r.states[id(x)]
        directions = 1 + int(r.nodes[state.node].attributes["bidirectional"] == 1)
        if state.form == "by layer" and directions == 1 and index in (-1, x.shape[0] - 1):
            _last(r, state, result)
        elif state.form == "by layer" and index == slice(-directions, None):
            r.states[id(result)] = State(state.node, "of last layer")
        else:
            raise ArgumentError(
                f"the network takes {index} of an LSTM's states: take the last layer's, [-{directions}:]"
            )
        return
    steps = index if isinstance(index, tuple) else (index,)
    whole = slice(None)
    if len(steps) <= x.ndim and all(isinstance(s, slice) and s.start in (None, 0) and s.stop is None for s in steps):
        steps = (*steps, *(whole for _ in range(x.ndim - len(steps))))
        factors = tuple(1 if s.step is None else int(s.step) for s in steps)
        if factors[:2] == (1, 1) and min(factors) >= 1:
            if max(factors) == 1:
                r.same(x, result)
            else:
                r.add("subsample", [x], result, {"step": factors[2:]})
            return
    raise ArgumentError(
        f"the network takes the part {index} of a value: an exported model can only skip positions evenly"
    )


def _transpose(r: Recorder, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
    state = r.states.get(id(args[0]))
    if state is None or state.form != "of last layer" or result.shape[0] != BATCH:
        raise ArgumentError("the network transposes a value, which an exported model cannot express")
    r.states[id(result)] = State(state.node, "by example")


CALLS: Mapping[str, Recording] = {
    "linear": _linear,
    **{f"conv{d}d": _conv(d) for d in (1, 2, 3)},
    "batch_norm": _batchnorm,
    "instance_norm": _instancenorm,
    **dict.fromkeys(("relu", "relu_"), _plain("relu")),
    **dict.fromkeys(("leaky_relu", "leaky_relu_"), _plain("leaky_relu", "negative_slope", 0.01, "slope")),
    **dict.fromkeys(("sigmoid", "sigmoid_"), _plain("sigmoid")),
    **dict.fromkeys(("tanh", "tanh_"), _plain("tanh")),
    **{name: _pool("maxpool") for name in ("max_pool1d", "max_pool2d", "max_pool3d", "boolean_dispatch")},
    **{f"avg_pool{d}d": _pool("avgpool") for d in (1, 2, 3)},
    **{f"adaptive_avg_pool{d}d": _adaptive for d in (1, 2, 3)},
    **dict.fromkeys(("flatten", "view", "reshape", "squeeze"), _reshaped),
    **dict.fromkeys(("add", "add_", "__add__", "__radd__", "__iadd__"), _add),
    **dict.fromkeys(("long", "float", "contiguous", "clone", "detach", "to"), _same),
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout"), _dropout),
    **dict.fromkeys(("pad", "_pad"), _pad),
    "embedding": _embedding,
    "lstm": _lstm,
    "__getitem__": _getitem,
    "transpose": _transpose,
}
"""What can be exported, by the names of PyTorch's functions and methods."""
