"""A module's parameters as one flat vector: the only place that knows names and shapes.

PyTorch is imported only where a module is given, so that messages and exported models are read without it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import ArgumentError
from .state import Floats

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["ParameterLayout", "Slot"]


@dataclass(frozen=True)
class Slot:
    """One tensor's place in a flat vector.

    Attributes:
        name: the tensor's dotted name in the module, e.g. ``fc1.weight``.
        shape: the tensor's shape.
        offset: index of its first element in the flat vector.
    """

    name: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def span(self) -> slice:
        """The slice of the flat vector that holds this tensor."""
        return slice(self.offset, self.offset + self.size)


@dataclass(frozen=True)
class ParameterLayout:
    """Where each trainable tensor and each floating-point buffer of a module lies in its flat vector.

    The order is that of ``module.named_parameters()`` and ``module.named_buffers()``, each tensor in C order. A
    parameter that is shared by several layers appears once; frozen parameters (``requires_grad=False``) and integer
    buffers have no place: they never change, or carry nothing that training needs.

    Attributes:
        parameters: slots of the n trainable parameters.
        buffers: slots of the b buffer elements.

    >>> import torch
    >>> layout = ParameterLayout.of(torch.nn.Linear(3, 2))
    >>> [(s.name, s.shape, s.offset) for s in layout.parameters]
    [('weight', (2, 3), 0), ('bias', (2,), 6)]
    >>> layout.n
    8
    """

    parameters: tuple[Slot, ...]
    buffers: tuple[Slot, ...] = ()

    @classmethod
    def of(cls, module: nn.Module) -> ParameterLayout:
        """Read the layout off a module.

        Raises:
            ArgumentError: the module has no trainable parameter, or one that is not float32.
        """
        import torch

        for name, p in module.named_parameters():
            if p.requires_grad and p.dtype != torch.float32:
                raise ArgumentError(f"parameter {name} is {p.dtype}; FedSparsify trains float32: use module.float()")
        layout = cls(
            _slots((name, p) for name, p in module.named_parameters() if p.requires_grad),
            _slots((name, b) for name, b in module.named_buffers() if b.is_floating_point()),
        )
        if layout.n == 0:
            raise ArgumentError(f"{type(module).__name__} has no trainable parameter, so there is nothing to train")
        return layout

    @property
    def n(self) -> int:
        """Number of trainable parameters."""
        return sum(slot.size for slot in self.parameters)

    @property
    def b(self) -> int:
        """Number of buffer elements."""
        return sum(slot.size for slot in self.buffers)

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that two layouts share only if all names, shapes and offsets agree."""
        import hashlib  # its first import takes longer than all of this

        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]

    def read(self, module: nn.Module) -> tuple[Floats, Floats]:
        """Copy a module's tensors out: ``(w: float32[n], buffers: float32[b])``."""
        tensors = _tensors(module)
        return _gather(tensors, self.parameters), _gather(tensors, self.buffers)

    def write(self, module: nn.Module, w: Floats, buffers: Floats | None = None) -> None:
        """Copy flat vectors into a module's tensors.

        Args:
            module: a module of this layout.
            w: float32[n].
            buffers: float32[b], or None to leave the module's buffers as they are.

        Raises:
            ArgumentError: a vector has the wrong length, or the module lacks a tensor.
        """
        tensors = _tensors(module)
        _scatter(tensors, self.parameters, w, "parameters")
        if buffers is not None:
            _scatter(tensors, self.buffers, buffers, "buffers")

    def split(self, vector: np.ndarray[Any, np.dtype[Any]]) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
        """View a flat vector of n elements (weights or mask) as named tensors, without copying."""
        if vector.shape != (self.n,):
            raise ArgumentError(f"a vector of shape {vector.shape} does not fit a layout of {self.n} parameters")
        return {slot.name: vector[slot.span].reshape(slot.shape) for slot in self.parameters}

    def to_json(self) -> dict[str, Any]:
        """Return the layout as plain lists, for run directories and model files."""
        return {
            "parameters": [[slot.name, list(slot.shape)] for slot in self.parameters],
            "buffers": [[slot.name, list(slot.shape)] for slot in self.buffers],
        }


def _slots(tensors: Iterator[tuple[str, torch.Tensor]]) -> tuple[Slot, ...]:
    slots: list[Slot] = []
    offset = 0
    for name, tensor in tensors:
        slots.append(Slot(name, tuple(tensor.shape), offset))
        offset += slots[-1].size
    return tuple(slots)


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _gather(tensors: dict[str, torch.Tensor], slots: tuple[Slot, ...]) -> Floats:
    import torch

    flat = np.zeros(sum(slot.size for slot in slots), np.float32)
    for slot in slots:
        flat[slot.span] = tensors[slot.name].detach().to("cpu", torch.float32).reshape(-1).numpy()
    return flat


def _scatter(tensors: dict[str, torch.Tensor], slots: tuple[Slot, ...], flat: Floats, what: str) -> None:
    import torch

    total = sum(slot.size for slot in slots)
    if flat.shape != (total,):
        raise ArgumentError(f"{what} have shape {flat.shape}, but this network has {total} of them")
    with torch.no_grad():
        for slot in slots:
            tensor = tensors.get(slot.name)
            if tensor is None or tuple(tensor.shape) != slot.shape:
                found = "no such tensor" if tensor is None else f"shape {tuple(tensor.shape)}"
                raise ArgumentError(f"the network has {found} where {slot.name} {slot.shape} should be")
            tensor.copy_(torch.from_numpy(np.ascontiguousarray(flat[slot.span])).view(slot.shape))
