"""Watches a PyTorch network run, and notes each operation on its input and on what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from ..errors import ArgumentError
from .graph import Attribute, Node

__all__ = ["Recorder", "Recording", "State"]


@dataclass(frozen=True)
class State:
    """The states of an LSTM after its last step, on their way to being one row an example.

    Attributes:
        node: index of the last layer's node.
        form: what was done to torch's [layers * directions, B, H].
    """

    node: int
    form: str


class Recorder(TorchFunctionMode):
    """A context in which every operation on noted tensors becomes a node, or is refused.

    Args:
        module: the network, for the names of its tensors.
        calls: how each of PyTorch's functions is noted, by its name.

    Attributes:
        nodes: the nodes so far.
        values: the value that a tensor is, by the tensor's id.
        states: tensors that are an LSTM's states, likewise.
        alive: what must not be freed, so that no id is given twice.
    """

    def __init__(self, module: nn.Module, calls: Mapping[str, Recording]) -> None:
        super().__init__()
        self.calls = calls
        self.nodes: list[Node] = []
        self.values: dict[int, int] = {}
        self.states: dict[int, State] = {}
        self.alive: list[object] = []
        self.names = {id(t): name for name, t in (*module.named_parameters(), *module.named_buffers())}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        seen = [item for item in _flat((args, kwargs)) if id(item) in self.values or id(item) in self.states]
        name = getattr(func, "__name__", str(func))
        result = None
        if seen and name not in _QUESTIONS and not (name == "__get__" and func in _PROPERTIES):
            record = self.calls.get(name)
            if record is None:
                raise ArgumentError(
                    f"the network uses {resolve_name(func) or name}, which an exported model cannot express: take it"
                    " out of the network, or do it before or after"
                )
            result = func(*args, **kwargs)
            record(self, args, kwargs, result)
            self.alive.append(result)
            return result
        return func(*args, **kwargs)

    def value(self, x: object) -> int:
        """Return the number of a value."""
        if id(x) not in self.values:
            raise ArgumentError(
                f"the network mixes a value with {self.names.get(id(x), 'a constant')}, which an exported model cannot"
                " express"
            )
        return self.values[id(x)]

    def add(
        self,
        op: str,
        inputs: Sequence[object],
        result: Tensor,
        attributes: Mapping[str, Attribute] | None = None,
        tensors: Mapping[str, Tensor | None] | None = None,
    ) -> None:
        """Note a node whose value is ``result``."""
        present = {name: t for name, t in (tensors or {}).items() if t is not None}
        for name, tensor in present.items():
            if id(tensor) in self.values or id(tensor) in self.states:
                raise ArgumentError(f"the network computes the {name} of a {op} from its input")
        own = [self.names[id(t)] for t in present.values() if id(t) in self.names]
        layer = own[0].rpartition(".")[0] if own else ""
        arrays = {name: _array(t) for name, t in present.items()}
        self.nodes.append(Node(op, tuple(map(self.value, inputs)), dict(attributes or {}), arrays, layer))
        self.values[id(result)] = len(self.nodes)

    def same(self, x: object, result: Tensor) -> None:
        """Note that nothing was done."""
        self.values[id(result)] = self.value(x)


def _array(tensor: Tensor) -> NDArray[np.float32]:
    return np.array(tensor.detach().numpy(), np.float32)


def _flat(obj: Any) -> list[Any]:
    if isinstance(obj, list | tuple):
        return [leaf for item in obj for leaf in _flat(item)]
    if isinstance(obj, dict):
        return [leaf for item in obj.values() for leaf in _flat(item)]
    return [obj]


_PROPERTIES = {
    getattr(Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device", "requires_grad", "layout", "is_cuda")
}

# They say something of a tensor that its numbers do not change.
_QUESTIONS = {
    *("size", "dim", "numel", "__len__", "stride", "is_floating_point", "is_contiguous", "element_size", "nelement"),
    *("is_complex", "ndimension", "get_device", "is_same_size"),
}


Recording = Callable[[Recorder, tuple[Any, ...], Mapping[str, Any], Any], None]
"""Notes one call: its arguments, its named ones, and its result."""
