"""Sparse layers as torch modules, for networks and optimisers that the compiled trainer does not cover."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..errors import ArgumentError
from ..state import Mask
from .native import available, require_native

__all__ = ["SparseConv2d", "SparseLinear", "densify", "sparsify_module"]

Pair = tuple[int, int]


class _SparseFunction(torch.autograd.Function):
    """y = op(x) with gradients to the values, the bias and the input, all by native kernels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, op: Any) -> Tensor:
        ctx.save_for_backward(x, values)
        ctx.op = op
        ctx.has_bias = bias is not None
        return torch.from_numpy(op.forward(_array(values), None if bias is None else _array(bias), _array(x)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, values = ctx.saved_tensors
        out = _array(dy)
        needs_x, needs_values, needs_bias, _ = ctx.needs_input_grad
        dx = torch.from_numpy(ctx.op.input_gradient(_array(values), out)) if needs_x else None
        dvalues = torch.from_numpy(ctx.op.value_gradient(_array(x), out)) if needs_values else None
        dbias = dy.sum((0, *range(2, dy.dim()))) if ctx.has_bias and needs_bias else None
        return dx, dvalues, dbias, None


def _apply(x: Tensor, values: Tensor, bias: Tensor | None, op: Any) -> Tensor:
    return cast(Tensor, _SparseFunction.apply(x, values, bias, op))  # type: ignore[no-untyped-call]


def _array(t: Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    return t.detach().contiguous().numpy()


class _SparseLayer(nn.Module):
    """What both layers share: the mask, the compact values, and the native operators made from them."""

    mask: Tensor
    index: Tensor
    values: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, mask: Mask, values: Tensor | None, bias: Tensor | bool, fan_in: int) -> None:
        super().__init__()
        kept = torch.from_numpy(np.ascontiguousarray(mask, np.bool_))
        count = int(kept.sum())
        bound = 1 / math.sqrt(fan_in)
        if values is None:
            values = torch.empty(count).uniform_(-bound, bound)
        if values.shape != (count,):
            raise ArgumentError(f"values of shape {tuple(values.shape)} do not fit a mask with {count} survivors")
        if isinstance(bias, Tensor) and bias.shape != (kept.shape[0],):
            raise ArgumentError(f"a bias of shape {tuple(bias.shape)} does not fit {kept.shape[0]} outputs")
        self.register_buffer("mask", kept)
        self.register_buffer("index", kept.flatten().nonzero().flatten(), persistent=False)
        self.values = nn.Parameter(values.detach().clone())
        if isinstance(bias, Tensor):
            self.bias = nn.Parameter(bias.detach().clone())
        elif bias:
            self.bias = nn.Parameter(torch.empty(kept.shape[0]).uniform_(-bound, bound))
        else:
            self.register_parameter("bias", None)
        self._operators: dict[Any, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Native operators can be neither copied nor pickled; they are made anew at the next call.
        return {**self.__dict__, "_operators": {}}

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.index = self.mask.flatten().nonzero().flatten()
        self._operators = {}
        if self.index.numel() != self.values.numel():
            raise ArgumentError(
                f"the loaded mask has {self.index.numel()} survivors, but the layer has {self.values.numel()} values"
            )

    def dense_weight(self) -> Tensor:
        """The weight with zeros at pruned positions, differentiable with respect to ``values``."""
        flat = torch.zeros(self.mask.numel(), dtype=self.values.dtype, device=self.values.device)
        return flat.index_put((self.index,), self.values).view(self.mask.shape)

    def _native(self, x: Tensor) -> bool:
        tensors = [x, self.values] + ([] if self.bias is None else [self.bias])
        return available() and all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors)

    def _operator(self, key: Any, make: Callable[[np.ndarray[Any, np.dtype[np.bool_]]], Any]) -> Any:
        if key not in self._operators:
            self._operators[key] = make(self.mask.cpu().numpy())
        return self._operators[key]

    def extra_repr(self) -> str:
        """Shape and density, for ``print(module)``."""
        density = self.values.numel() / self.mask.numel() if self.mask.numel() else 0.0
        return f"{tuple(self.mask.shape)}, density={density:.4f}, bias={self.bias is not None}"


class SparseLinear(_SparseLayer):
    """y = x W^T + b, with W kept as the compact vector of its survivors.

    On CPU tensors in float32 the native kernels compute it; on others, or without the extension, a dense weight is made
    for the call, with the same result.

    Args:
        mask: bool[out, in], True for a survivor.
        values: float32[survivors] in row order; by default drawn as ``nn.Linear`` draws its weight.
        bias: float32[out], or whether to have one.

    Raises:
        ArgumentError: the mask is not two-dimensional, or values or bias do not fit it.

    >>> layer = SparseLinear(np.eye(3, dtype=bool), torch.tensor([1.0, 2.0, 3.0]), bias=False)
    >>> layer(torch.ones(1, 3)).tolist()
    [[1.0, 2.0, 3.0]]
    """

    def __init__(self, mask: Mask, values: Tensor | None = None, bias: Tensor | bool = True) -> None:
        if mask.ndim != 2 or 0 in mask.shape:
            raise ArgumentError(f"the mask of a linear layer must have the shape (out, in), not {mask.shape}")
        super().__init__(mask, values, bias, mask.shape[1])

    def forward(self, x: Tensor) -> Tensor:
        """x: float32[..., in] -> float32[..., out]."""
        if not self._native(x):
            return F.linear(x, self.dense_weight(), self.bias)
        inputs = self.mask.shape[1]
        if x.dim() < 1 or x.shape[-1] != inputs:
            raise ArgumentError(f"an input of shape {tuple(x.shape)} does not end in {inputs} features")
        op = self._operator((), lambda mask: require_native().LinearOperator(mask))
        y = _apply(x.reshape(-1, inputs), self.values, self.bias, op)
        return y.view(*x.shape[:-1], self.mask.shape[0])


class SparseConv2d(_SparseLayer):
    """A 2-D convolution with its weight kept as the compact vector of its survivors.

    Args:
        mask: bool[out, in, kh, kw].
        values: float32[survivors] in row order; by default drawn as ``nn.Conv2d`` draws its weight.
        bias: float32[out], or whether to have one.
        stride: vertical and horizontal step, each at least 1.
        padding: zeros above and below, left and right.

    Raises:
        ArgumentError: the mask is not four-dimensional, or another argument does not fit it.
    """

    def __init__(
        self,
        mask: Mask,
        values: Tensor | None = None,
        bias: Tensor | bool = True,
        stride: Pair = (1, 1),
        padding: Pair = (0, 0),
    ) -> None:
        if mask.ndim != 4 or 0 in mask.shape:
            raise ArgumentError(f"the mask of a convolution must have the shape (out, in, kh, kw), not {mask.shape}")
        if min(stride) < 1 or min(padding) < 0:
            raise ArgumentError(f"stride {stride} must be at least 1 and padding {padding} at least 0")
        super().__init__(mask, values, bias, math.prod(mask.shape[1:]))
        self.stride, self.padding = stride, padding

    def forward(self, x: Tensor) -> Tensor:
        """x: float32[N, in, h, w] -> float32[N, out, h', w']."""
        if not self._native(x):
            return F.conv2d(x, self.dense_weight(), self.bias, self.stride, self.padding)
        if x.dim() != 4 or x.shape[1] != self.mask.shape[1]:
            channels = self.mask.shape[1]
            raise ArgumentError(f"an input of shape {tuple(x.shape)} does not hold images of {channels} channels")
        image = (int(x.shape[1]), int(x.shape[2]), int(x.shape[3]))

        def make(mask: np.ndarray[Any, np.dtype[np.bool_]]) -> Any:
            try:
                return require_native().ConvOperator(mask, self.stride, self.padding, image)
            except ValueError as e:
                raise ArgumentError(f"an input of shape {tuple(x.shape)} cannot be convolved: {e}") from e

        return _apply(x, self.values, self.bias, self._operator(image, make))


def sparsify_module(module: nn.Module, masks: Mapping[str, Mask]) -> nn.Module:
    """Copy a network, with its masked linear and convolution layers as sparse ones.

    Swapped are ``nn.Linear`` and ``nn.Conv2d`` with a mask for their weight, except convolutions with groups, dilation
    or a padding other than zeros, and weights that several layers share. Those, and all other masked parameters
    (biases, normalisation, embeddings, recurrent weights), stay dense: their pruned elements are set to 0, and a hook
    zeroes their gradient, so that they stay 0 under any optimiser that leaves a parameter without gradient at rest.
    The hooks belong to the returned module and are not taken along when it is copied.

    Args:
        module: the network; it is not changed.
        masks: bool arrays by parameter name, in the parameter's shape. A parameter without a mask is left alone.

    Raises:
        ArgumentError: a name is unknown, or a mask has the wrong shape or type.
    """
    module = copy.deepcopy(module)
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for name, mask in masks.items():
        if name not in parameters:
            raise ArgumentError(f"masks has {name!r}, but the network has no such parameter")
        if mask.dtype != np.bool_ or mask.shape != tuple(parameters[name].shape):
            raise ArgumentError(
                f"the mask of {name} is {mask.dtype}{list(mask.shape)}, but must be bool{list(parameters[name].shape)}"
            )
    users: dict[int, int] = {}
    for p in parameters.values():
        users[id(p)] = users.get(id(p), 0) + 1
    owners: dict[int, int] = {}
    for _, child in module.named_modules(remove_duplicate=False):
        owners[id(child)] = owners.get(id(child), 0) + 1
    swapped: set[str] = set()
    for name, layer in list(module.named_modules()):
        key = f"{name}.weight" if name else "weight"
        if key not in masks or owners[id(layer)] > 1 or users[id(parameters[key])] > 1:
            continue
        sparse = _sparse_twin(layer, masks[key])
        if sparse is not None:
            sparse.train(layer.training)
            module = _replace(module, name, sparse)
            swapped.add(key)
    for name, parameter in module.named_parameters():
        if name in masks and name not in swapped:
            kept = torch.from_numpy(np.ascontiguousarray(masks[name])).to(parameter.device)
            with torch.no_grad():
                parameter.masked_fill_(~kept, 0.0)
            if parameter.requires_grad:
                parameter.register_hook(_Gate(kept))  # type: ignore[no-untyped-call]
    return module


class _Gate:
    """Gradient hook that zeroes pruned positions."""

    def __init__(self, kept: Tensor) -> None:
        self._pruned = ~kept

    def __call__(self, gradient: Tensor) -> Tensor:
        return gradient.masked_fill(self._pruned, 0.0)


def densify(module: nn.Module) -> nn.Module:
    """Copy a network, with its sparse layers as plain ``nn.Linear`` and ``nn.Conv2d`` again.

    The copy's ``state_dict()`` has the names and shapes of the network before :func:`sparsify_module`, with exact
    zeros at pruned positions.
    """
    module = copy.deepcopy(module)
    for name, layer in list(module.named_modules()):
        if not isinstance(layer, _SparseLayer):
            continue
        out, inputs = layer.mask.shape[:2]
        dense: nn.Linear | nn.Conv2d
        has_bias = layer.bias is not None
        if isinstance(layer, SparseConv2d):
            kernel = (layer.mask.shape[2], layer.mask.shape[3])
            dense = nn.Conv2d(inputs, out, kernel, layer.stride, layer.padding, bias=has_bias, device="meta")
        else:
            dense = nn.Linear(inputs, out, bias=has_bias, device="meta")
        dense.weight = nn.Parameter(layer.dense_weight().detach())
        dense.bias = layer.bias
        dense.train(layer.training)
        module = _replace(module, name, dense)
    return module


def _sparse_twin(layer: nn.Module, mask: Mask) -> _SparseLayer | None:
    if type(layer) is nn.Linear:
        kept = torch.from_numpy(np.ascontiguousarray(mask))
        return SparseLinear(mask, layer.weight.detach()[kept], False if layer.bias is None else layer.bias)
    if type(layer) is not nn.Conv2d or layer.groups != 1 or layer.dilation != (1, 1) or layer.padding_mode != "zeros":
        return None
    kernel = layer.kernel_size
    if isinstance(layer.padding, str):
        if layer.padding == "same" and (kernel[0] % 2 == 0 or kernel[1] % 2 == 0):
            return None
        padding = (kernel[0] // 2, kernel[1] // 2) if layer.padding == "same" else (0, 0)
    else:
        padding = (layer.padding[0], layer.padding[1])
    kept = torch.from_numpy(np.ascontiguousarray(mask))
    bias = False if layer.bias is None else layer.bias
    return SparseConv2d(mask, layer.weight.detach()[kept], bias, (layer.stride[0], layer.stride[1]), padding)


def _replace(module: nn.Module, name: str, child: nn.Module) -> nn.Module:
    """Put ``child`` at a dotted name; the empty name is the module itself."""
    if not name:
        return child
    parent, _, last = name.rpartition(".")
    setattr(module.get_submodule(parent), last, child)
    return module
