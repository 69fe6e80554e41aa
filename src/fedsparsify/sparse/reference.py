"""NumPy twins of the native kernels: slow, plain, and what the kernels are tested against.

The twins compute in the precision of their inputs, so that a test can run them in float64. Sparse values stand in the
order of the mask's true positions, row by row (C order), as in the native operators.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..state import Mask
from .plan import LayerPlan, NetworkPlan

__all__ = [
    "average_pool",
    "average_pool_input_gradient",
    "batch_norm",
    "batch_norm_gradients",
    "conv2d",
    "conv2d_input_gradient",
    "conv2d_value_gradient",
    "cross_entropy",
    "linear",
    "linear_input_gradient",
    "linear_value_gradient",
    "max_pool",
    "max_pool_input_gradient",
    "predict",
    "sgd_step",
    "squared_error",
    "train_epoch",
]

Array = NDArray[Any]
Pair = tuple[int, int]


def _dense(mask: Mask, values: Array) -> Array:
    weight = np.zeros(mask.shape, values.dtype)
    weight[mask] = values
    return weight


def linear(mask: Mask, values: Array, bias: Array | None, x: Array) -> Array:
    """y[N, out] = x W^T + bias.

    Args:
        mask: bool[out, in].
        values: float[nnz], the survivors of W.
        bias: float[out] or None.
        x: float[N, in].
    """
    y: Array = x @ _dense(mask, values).T
    return y if bias is None else y + bias


def linear_input_gradient(mask: Mask, values: Array, dy: Array) -> Array:
    """dx[N, in] = dy W."""
    dx: Array = dy @ _dense(mask, values)
    return dx


def linear_value_gradient(mask: Mask, x: Array, dy: Array) -> Array:
    """dL/dvalues[nnz]: for survivor (o, i), the sum over examples of dy[., o] * x[., i]."""
    o, i = np.nonzero(mask)
    gradient: Array = np.einsum("no,no->o", dy[:, o], x[:, i])
    return gradient


def _output_size(size: Pair, kernel: Pair, stride: Pair, padding: Pair) -> Pair:
    h, w = ((d + 2 * p - k) // s + 1 for d, k, s, p in zip(size, kernel, stride, padding, strict=True))
    return h, w


def _pad(x: Array, padding: Pair) -> Array:
    return np.pad(x, ((0, 0), (0, 0), (padding[0], padding[0]), (padding[1], padding[1])))


def _tap(x: Array, ky: int, kx: int, size: Pair, stride: Pair) -> Array:
    """View of a padded image: the pixel that tap (ky, kx) of each output pixel reads."""
    return x[:, :, ky : ky + size[0] * stride[0] : stride[0], kx : kx + size[1] * stride[1] : stride[1]][
        :, :, : size[0], : size[1]
    ]


def _taps(kernel: Pair) -> Iterator[Pair]:
    return ((ky, kx) for ky in range(kernel[0]) for kx in range(kernel[1]))


def conv2d(
    mask: Mask, values: Array, bias: Array | None, x: Array, stride: Pair = (1, 1), padding: Pair = (0, 0)
) -> Array:
    """2-D cross-correlation, as torch defines a convolution.

    Args:
        mask: bool[out, in, kh, kw].
        values: float[nnz].
        bias: float[out] or None.
        x: float[N, in, h, w].
        stride: vertical and horizontal step.
        padding: zeros above and below, left and right.
    """
    weight = _dense(mask, values)
    kernel = (mask.shape[2], mask.shape[3])
    size = _output_size((x.shape[2], x.shape[3]), kernel, stride, padding)
    padded = _pad(x, padding)
    y = np.zeros((x.shape[0], mask.shape[0], *size), x.dtype)
    for ky, kx in _taps(kernel):
        y += np.einsum("oi,nihw->nohw", weight[:, :, ky, kx], _tap(padded, ky, kx, size, stride))
    return y if bias is None else y + bias[:, None, None]


def conv2d_input_gradient(
    mask: Mask, values: Array, dy: Array, size: Pair, stride: Pair = (1, 1), padding: Pair = (0, 0)
) -> Array:
    """dL/dx[N, in, h, w] for an input of ``size`` = (h, w)."""
    weight = _dense(mask, values)
    dx = np.zeros((dy.shape[0], mask.shape[1], size[0] + 2 * padding[0], size[1] + 2 * padding[1]), dy.dtype)
    out = (dy.shape[2], dy.shape[3])
    for ky, kx in _taps((mask.shape[2], mask.shape[3])):
        view = _tap(dx, ky, kx, out, stride)
        view += np.einsum("oi,nohw->nihw", weight[:, :, ky, kx], dy)
    return dx[:, :, padding[0] : padding[0] + size[0], padding[1] : padding[1] + size[1]]


def conv2d_value_gradient(mask: Mask, x: Array, dy: Array, stride: Pair = (1, 1), padding: Pair = (0, 0)) -> Array:
    """dL/dvalues[nnz]."""
    gradient = np.zeros(mask.shape, x.dtype)
    padded = _pad(x, padding)
    size = (dy.shape[2], dy.shape[3])
    for ky, kx in _taps((mask.shape[2], mask.shape[3])):
        gradient[:, :, ky, kx] = np.einsum("nohw,nihw->oi", dy, _tap(padded, ky, kx, size, stride))
    survivors: Array = gradient[mask]
    return survivors


def max_pool(x: Array, kernel: Pair, stride: Pair) -> Array:
    """Largest value in each window of x[N, C, h, w]."""
    size = _output_size((x.shape[2], x.shape[3]), kernel, stride, (0, 0))
    largest: Array = np.max([_tap(x, ky, kx, size, stride) for ky, kx in _taps(kernel)], axis=0)
    return largest


def max_pool_input_gradient(x: Array, dy: Array, kernel: Pair, stride: Pair) -> Array:
    """The first of equal values in a window, row by row, takes the whole gradient."""
    size = (dy.shape[2], dy.shape[3])
    first = np.argmax([_tap(x, ky, kx, size, stride) for ky, kx in _taps(kernel)], axis=0)
    dx = np.zeros_like(x)
    for i, (ky, kx) in enumerate(_taps(kernel)):
        view = _tap(dx, ky, kx, size, stride)
        view += np.where(first == i, dy, 0)
    return dx


def average_pool(x: Array, kernel: Pair, stride: Pair) -> Array:
    """Mean of each window of x[N, C, h, w]."""
    size = _output_size((x.shape[2], x.shape[3]), kernel, stride, (0, 0))
    return np.mean([_tap(x, ky, kx, size, stride) for ky, kx in _taps(kernel)], axis=0, dtype=x.dtype)


def average_pool_input_gradient(x: Array, dy: Array, kernel: Pair, stride: Pair) -> Array:
    """Each value of a window takes an equal share of the gradient."""
    dx = np.zeros_like(x)
    for ky, kx in _taps(kernel):
        view = _tap(dx, ky, kx, (dy.shape[2], dy.shape[3]), stride)
        view += dy / (kernel[0] * kernel[1])
    return dx


def _per_channel(v: Array, like: Array) -> Array:
    return v.reshape(1, -1, *(1,) * (like.ndim - 2))


def batch_norm(x: Array, mean: Array, var: Array, scale: Array, shift: Array, eps: float) -> Array:
    """(x - mean) / sqrt(var + eps) * scale + shift, each of them float[C], over x[N, C, ...]."""
    inverse = 1 / np.sqrt(var + eps)
    y: Array = (x - _per_channel(mean, x)) * _per_channel(inverse * scale, x) + _per_channel(shift, x)
    return y


def batch_norm_gradients(x: Array, dy: Array, scale: Array, eps: float) -> tuple[Array, Array, Array]:
    """``(dx, dscale, dshift)`` where mean and biased variance are those of the batch itself."""
    axes = (0, *range(2, x.ndim))
    normal = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + eps)
    dshift, dscale = dy.sum(axes), (dy * normal).sum(axes)
    count = x.size // x.shape[1]
    inverse = 1 / np.sqrt(x.var(axes) + eps)
    dx = _per_channel(scale * inverse, x) * (
        dy - _per_channel(dshift, x) / count - normal * _per_channel(dscale, x) / count
    )
    return dx, dscale, dshift


def cross_entropy(logits: Array, labels: NDArray[np.int64]) -> tuple[float, Array]:
    """Mean over examples of -log softmax(logits)[label], and its gradient to the logits."""
    shifted = logits - logits.max(1, keepdims=True)
    log_total = np.log(np.exp(shifted).sum(1, keepdims=True))
    rows = np.arange(len(logits))
    loss = float(np.mean(log_total[:, 0] - shifted[rows, labels]))
    gradient = np.exp(shifted - log_total)
    gradient[rows, labels] -= 1
    return loss, gradient / len(logits)


def squared_error(outputs: Array, targets: Array) -> tuple[float, Array]:
    """Mean over examples and outputs of (output - target)^2, and its gradient to the outputs."""
    error = outputs - targets.reshape(outputs.shape)
    return float(np.mean(error**2)), 2 * error / error.size


def sgd_step(
    w: Array,
    gradient: Array,
    velocity: Array | None,
    anchor: Array,
    *,
    lr: float,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    proximal: float = 0.0,
) -> tuple[Array, Array]:
    """One step of ``torch.optim.SGD`` with a proximal term: ``(w, velocity)`` after it; velocity None at the first."""
    g = gradient + proximal * (w - anchor) + weight_decay * w
    velocity = g if velocity is None else momentum * velocity + g
    step = g + momentum * velocity if nesterov else velocity
    return w - lr * step, velocity


def _slices(layer: LayerPlan) -> dict[str, slice]:
    if layer.kind == "batchnorm":
        sizes = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), layer.in_shape[0])
    else:
        sizes = {"weight": layer.weight_size, "bias": layer.out_shape[0]}
    return {k: slice(getattr(layer, k), getattr(layer, k) + n) for k, n in sizes.items() if getattr(layer, k) >= 0}


def _weight_mask(layer: LayerPlan, mask: Mask) -> Mask:
    shape: tuple[int, ...] = (layer.out_shape[0], layer.in_shape[0])
    if layer.kind == "conv2d":
        shape += layer.kernel
    return mask[_slices(layer)["weight"]].reshape(shape)


def _affine(layer: LayerPlan, w: Array) -> tuple[Array, Array]:
    at = _slices(layer)
    channels = layer.in_shape[0]
    scale = w[at["weight"]] if "weight" in at else np.ones(channels, w.dtype)
    shift = w[at["bias"]] if "bias" in at else np.zeros(channels, w.dtype)
    return scale, shift


def _forward(layer: LayerPlan, w: Array, mask: Mask, buffers: Array, x: Array, training: bool) -> Array:
    at = _slices(layer) if layer.kind in ("linear", "conv2d", "batchnorm") else {}
    bias = w[at["bias"]] if "bias" in at else None
    match layer.kind:
        case "linear":
            kept = _weight_mask(layer, mask)
            return linear(kept, w[at["weight"]][kept.ravel()], bias, x)
        case "conv2d":
            kept = _weight_mask(layer, mask)
            return conv2d(kept, w[at["weight"]][kept.ravel()], bias, x, layer.stride, layer.padding)
        case "batchnorm":
            mean, var = buffers[at["running_mean"]], buffers[at["running_var"]]
            if training:
                axes = (0, *range(2, x.ndim))
                count = x.size // x.shape[1]
                old_mean, old_var = mean, var
                mean, var = x.mean(axes), x.var(axes)
                buffers[at["running_mean"]] += layer.momentum * (mean - old_mean)
                buffers[at["running_var"]] += layer.momentum * (var * count / (count - 1) - old_var)
            return batch_norm(x, mean, var, *_affine(layer, w), layer.eps)
        case "relu":
            return np.maximum(x, 0)
        case "maxpool2d":
            return max_pool(x, layer.kernel, layer.stride)
        case "avgpool2d":
            return average_pool(x, layer.kernel, layer.stride)
        case "flatten":
            return x.reshape(len(x), -1)
        case _:
            return x


def _backward(layer: LayerPlan, w: Array, mask: Mask, x: Array, y: Array, dy: Array, gradient: Array) -> Array:
    at = _slices(layer) if layer.kind in ("linear", "conv2d", "batchnorm") else {}
    if layer.kind in ("linear", "conv2d"):
        if "bias" in at:
            gradient[at["bias"]] = dy.sum((0, *range(2, dy.ndim)))
        kept = _weight_mask(layer, mask)
        values = w[at["weight"]][kept.ravel()]
        into = gradient[at["weight"]]
        if layer.kind == "linear":
            into[kept.ravel()] = linear_value_gradient(kept, x, dy)
            return linear_input_gradient(kept, values, dy)
        into[kept.ravel()] = conv2d_value_gradient(kept, x, dy, layer.stride, layer.padding)
        return conv2d_input_gradient(kept, values, dy, (x.shape[2], x.shape[3]), layer.stride, layer.padding)
    match layer.kind:
        case "batchnorm":
            dx, dscale, dshift = batch_norm_gradients(x, dy, _affine(layer, w)[0], layer.eps)
            if "weight" in at:
                gradient[at["weight"]] = dscale
            if "bias" in at:
                gradient[at["bias"]] = dshift
            return dx
        case "relu":
            return np.where(y > 0, dy, 0)
        case "maxpool2d":
            return max_pool_input_gradient(x, dy, layer.kernel, layer.stride)
        case "avgpool2d":
            return average_pool_input_gradient(x, dy, layer.kernel, layer.stride)
        case "flatten":
            return dy.reshape(x.shape)
        case _:
            return dy


def _input(plan: NetworkPlan, x: Array) -> Array:
    return x.reshape(len(x), *plan.native_input)


def predict(plan: NetworkPlan, w: Array, mask: Mask, buffers: Array, x: Array) -> Array:
    """Twin of :func:`fedsparsify.sparse.predict`."""
    y = _input(plan, x)
    for layer in plan.layers:
        y = _forward(layer, np.where(mask, w, 0), mask, buffers, y, training=False)
    return y


def train_epoch(
    plan: NetworkPlan,
    w: Array,
    mask: Mask,
    buffers: Array,
    x: Array,
    y: Array,
    *,
    batch_size: int,
    **settings: Any,
) -> tuple[Array, Array, float]:
    """Twin of one :meth:`fedsparsify.sparse.Trainer.epoch` from a fresh trainer; dropout is left out.

    Returns:
        ``(w, buffers, mean loss)`` after the epoch.
    """
    w = np.where(mask, w, 0).astype(w.dtype)
    buffers = buffers.copy()
    anchor, velocity, total = w, None, 0.0
    for begin in range(0, len(x), batch_size):
        xs, ys = x[begin : begin + batch_size], y[begin : begin + batch_size]
        values = [_input(plan, xs)]
        for layer in plan.layers:
            values.append(_forward(layer, w, mask, buffers, values[-1], training=True))
        loss, delta = cross_entropy(values[-1], ys) if plan.loss == "cross-entropy" else squared_error(values[-1], ys)
        total += loss * len(xs)
        gradient = np.zeros_like(w)
        for i in reversed(range(len(plan.layers))):
            delta = _backward(plan.layers[i], w, mask, values[i], values[i + 1], delta, gradient)
        w, velocity = sgd_step(w, np.where(mask, gradient, 0), velocity, anchor, **settings)
    return w, buffers, total / len(x)
