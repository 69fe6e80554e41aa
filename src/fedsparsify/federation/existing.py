"""FedSparsify inside a federation that has a loop, clients and training of its own.

Here is all of it that knows nothing of the framework around: the server's side of a round, what a server tells its
clients, and a guard that keeps pruned parameters at 0 under a training loop that has never heard of a mask. The
mathematics is the methods' own (:mod:`fedsparsify.algorithms`), replies are judged by the engine's own rules, and
messages are those of :mod:`fedsparsify.wire`.
"""

from __future__ import annotations

import copy
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from .. import algorithms
from ..algorithms import Method
from ..errors import ArgumentError, TooFewClientsError, WireError
from ..layout import ParameterLayout
from ..merge import MERGE_RULES
from ..plugins import nearest
from ..purge import CRITERIA, SCOPES, make_purge
from ..randomness import derive
from ..schedules import Schedule
from ..state import Floats, Mask, ModelState, ServerState
from ..wire import Kind, Message, Reference, decode, encode
from .engine import Round
from .links import Links
from .transport import Reply

__all__ = [
    "METHODS",
    "Guard",
    "LocalRound",
    "Orders",
    "SparseServer",
    "choose_nodes",
    "frozen_checksum",
    "largest_message",
]

METHODS = ("fedsparsify-global", "fedsparsify-local")
"""Methods that ask nothing of a client but to train: whoever owns the training loop can run them."""


@dataclass(frozen=True)
class Orders:
    """What a server tells a client beside the broadcast; plain values, so that any framework can carry them.

    Attributes:
        method: one of :data:`METHODS`.
        sparsity: s_t, the fraction that is pruned after this round, in [0, 1).
        client: the client's index in this round.
        frozen: :func:`frozen_checksum` of the server's network.
        scope: where parameters compete, a key of ``purge.SCOPES``.
        criterion: what they are scored by, a key of ``purge.CRITERIA``.
        prunable: ``"all"``, or ``"weights"`` to leave one-dimensional tensors alone.
        merge: rule of the local method, a key of ``merge.MERGE_RULES``.
    """

    method: str
    sparsity: float = 0.0
    client: int = 0
    frozen: int = 0
    scope: str = "global"
    criterion: str = "magnitude"
    prunable: str = "all"
    merge: str = "majority"

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Orders:
        """Read what the server wrote with :meth:`to_dict`.

        Raises:
            WireError: a value is missing, unknown or of another type.
        """
        wanted = asdict(cls(""))
        wrong = [name for name in {**wanted, **values} if type(values.get(name)) is not type(wanted.get(name))]
        if wrong:
            raise WireError(
                f"orders: {', '.join(wrong)}: missing, unknown or of another type; use one version at both ends"
            )
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return the values by name."""
        return asdict(self)

    def make_method(self, layout: ParameterLayout, schedule: Schedule | None = None) -> Method:
        """Build the method.

        Args:
            layout: the network's layout.
            schedule: t -> s_t; None for this round's sparsity, all that a client needs.

        Raises:
            ArgumentError: a name is unknown.
        """
        for what, name, known in (
            ("method", self.method, METHODS),
            ("scope", self.scope, SCOPES),
            ("criterion", self.criterion, CRITERIA),
            ("merge", self.merge, MERGE_RULES),
        ):
            if name not in known:
                raise ArgumentError(f'{what} = "{name}" is unknown{nearest(name, known)}; known are {", ".join(known)}')
        ingredients = {
            "schedule": schedule or (lambda t: self.sparsity),
            "purge": make_purge(layout, CRITERIA[self.criterion], SCOPES[self.scope], self.prunable),
            "merge": MERGE_RULES[self.merge],
        }
        return algorithms.build(self.method, ingredients, {})


class SparseServer:
    """The server's side, for a loop that calls :meth:`open` and :meth:`close` once a round.

    Clients are numbered anew in every round and hold nothing from one to the next, so each broadcast stands for itself.

    Args:
        module: the network with its initial weights; it is copied.
        orders: the method and its options; what depends on round and client is filled in.
        schedule: t -> s_t.
        min_clients: fewest usable updates that a round needs.
        weights: a state dict to start from, in the place of the module's own.

    Attributes:
        state: the merged model and the last finished round.
        layout: the network's layout.
        method: the federated method.
        failures: (client, why it was left out) of the round that was closed last.

    Raises:
        ArgumentError: an option is unknown, or the initial model cannot be trained.
    """

    def __init__(
        self,
        module: nn.Module,
        orders: Orders,
        schedule: Schedule,
        min_clients: int = 1,
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._module = copy.deepcopy(module)
        if weights is not None:
            try:
                self._module.load_state_dict(weights)
            except (RuntimeError, TypeError) as error:
                raise ArgumentError(f"the initial weights do not fit {type(module).__name__}: {error}") from error
        self.layout = ParameterLayout.of(self._module)
        self.method = orders.make_method(self.layout, schedule)
        self._orders, self._schedule = replace(orders, frozen=frozen_checksum(self._module)), schedule
        self.min_clients = max(1, min_clients)
        w, buffers = self.layout.read(self._module)
        if not (np.isfinite(w).all() and np.isfinite(buffers).all()):
            raise ArgumentError("the initial model holds NaN or infinite values: nothing can be trained from it")
        self.state = ServerState(0, ModelState(w, np.ones(w.shape, np.bool_), buffers))
        self.failures: list[tuple[int, str]] = []
        self._round: Round | None = None

    def open(self, clients: int) -> bytes:
        """Begin the next round and return its broadcast, the same for each of so many clients."""
        t, chosen = self.state.round + 1, range(clients)
        links = Links(self.layout, clients, memory=0, trends=False)
        self._round = Round(self, links, t, self.state.model, chosen)
        payload = links.broadcast(t, self.state.model, chosen)[0]
        self._round.bytes_down = len(payload) * clients
        return payload

    def orders(self, client: int = 0) -> dict[str, Any]:
        """Return what a client is told in the round that is open, or next."""
        return replace(self._orders, client=client, sparsity=float(self._schedule(self.state.round + 1))).to_dict()

    def close(self, replies: Iterable[Reply]) -> Round:
        """Merge and purge.

        Args:
            replies: one for each client, in ascending order.

        Returns:
            What was counted.

        Raises:
            TooFewClientsError: fewer than ``min_clients`` could be used; the state is as before.
        """
        finished, self._round = self._round, None
        assert finished is not None  # a loop closes what it has opened
        given, self.failures = list(replies), finished.failures
        finished.bytes_up = sum(len(reply.payload or b"") for reply in given)
        try:
            self.state = self.method.server_update(self.state, finished.usable_updates(given), finished.t)
        except TooFewClientsError as error:
            reasons = "; ".join(f"client {client}: {why}" for client, why in self.failures[:3])
            raise TooFewClientsError(
                f"round {finished.t}: {len(given) - len(self.failures)} of {len(given)} clients returned a usable"
                f" update, but {self.min_clients} are needed ({reasons}): mend the clients, or lower the minimum"
            ) from error
        return finished

    def evaluation(self) -> bytes:
        """Encode the merged model, for clients that evaluate it."""
        return encode(Message(Kind.BROADCAST, self.state.round, self.state.model), self.layout)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the merged model as ``module.state_dict()`` has it: dense, with what does not travel as at first."""
        self.layout.write(self._module, self.state.model.w, self.state.model.buffers)
        return self._module.state_dict()


class Guard:
    """Keeps the pruned parameters of a module at exactly 0 while somebody else trains it.

    Gradients of pruned parameters are made 0 as they arise, before anything is clipped, accumulated or stepped. An
    optimiser that starts from nothing then leaves a 0 where it is: momentum, weight decay and Adam's moments are all
    made of what is 0. Where one brings something of its own (moments of an earlier round, noise), :meth:`finish` ends
    it.

    Args:
        module: the network; a guard that it has already goes.
        layout: its layout.
        mask: bool[n], True for a surviving parameter.
    """

    _current: ClassVar[WeakKeyDictionary[nn.Module, Guard]] = WeakKeyDictionary()

    def __init__(self, module: nn.Module, layout: ParameterLayout, mask: Mask) -> None:
        self.release(module)
        parameters = dict(module.named_parameters())
        pruned = {name: torch.from_numpy(~kept) for name, kept in layout.split(mask).items() if not kept.all()}
        self._pruned = [(parameters[name], at) for name, at in pruned.items()]
        self._hooks = [p.register_hook(_without(at)) for p, at in self._pruned]  # type: ignore[no-untyped-call]
        self._current[module] = self

    @classmethod
    def release(cls, module: nn.Module) -> None:
        """Leave a module to itself again."""
        guard = cls._current.pop(module, None)
        for hook in guard._hooks if guard else ():
            hook.remove()

    def finish(self, module: nn.Module) -> None:
        """Set the pruned parameters to 0, whatever was done to them, and leave the module to itself."""
        with torch.no_grad():
            for parameter, at in self._pruned:
                parameter.masked_fill_(at.to(parameter.device), 0)
        self.release(module)


class LocalRound:
    """A client's side of one round, around training that is not ours.

    Args:
        payload: a broadcast, trusted in nothing.
        module: the client's network; it gets the broadcast's weights and buffers and, to be trained, a guard.
        orders: what the server tells.
        train: whether it is to be trained; else the model is only loaded.

    Attributes:
        start: the model that was broadcast.
        round: the round that it belongs to.

    Raises:
        ArgumentError: the module has no trainable parameter, or one that is not float32.
        WireError: the broadcast is malformed or of another network, or frozen parameters differ from the server's.
    """

    def __init__(self, payload: bytes, module: nn.Module, orders: Orders, *, train: bool) -> None:
        self._layout = ParameterLayout.of(module)
        if len(payload) > largest_message(self._layout):
            raise WireError(f"message: {len(payload)} bytes are more than a model of this network can take")
        message = decode(payload, self._layout, expected=Kind.BROADCAST)
        if frozen_checksum(module) != orders.frozen:
            raise WireError(
                "frozen parameters: those of the server's network have other values, and they do not travel: load the"
                " same weights into both before they are frozen"
            )
        self._module, self._orders = module, orders
        self.start, self.round = message.model, message.round
        self._layout.write(module, self.start.w, self.start.buffers)
        self._guard = Guard(module, self._layout, self.start.mask) if train else None
        if not train:
            Guard.release(module)

    def answer(self, num_examples: int) -> bytes:
        """Encode what training has made of the module.

        Args:
            num_examples: n_k, size of the client's data, its weight in the merge.

        Raises:
            ArgumentError: the round is for evaluation, the number is not positive, or a weight is NaN where the client
                purges.
        """
        if self._guard is None:
            raise ArgumentError("this model was sent to be evaluated: there is nothing to send back but metrics")
        if num_examples < 1:
            raise ArgumentError(f"num_examples = {num_examples} must be at least 1: it is the client's weight")
        self._guard.finish(self._module)
        w, buffers = self._layout.read(self._module)
        trained = _Trained(ModelState(w, self.start.mask, buffers))
        result = self._orders.make_method(self._layout).client_update(self.start, self.round, trained)
        assert isinstance(result, ModelState)  # METHODS send nothing beside it
        message = Message(Kind.UPDATE, self.round, result, self._orders.client, num_examples)
        return encode(message, self._layout, Reference(self.start, self._layout))


def largest_message(layout: ParameterLayout) -> int:
    """Return the bytes that a broadcast or update of this network takes at most, with room to spare.

    >>> largest_message(ParameterLayout.of(nn.Linear(100, 10)))
    10358
    """
    dense = 4 * (layout.n + layout.b) + layout.n // 8
    return dense + 16 * len(layout.parameters) + 6160


def frozen_checksum(module: nn.Module) -> int:
    """Return the CRC-32 of names and values of the parameters that are not trained, 0 if there are none.

    >>> frozen_checksum(nn.Linear(2, 2))
    0
    """
    crc = 0
    for name, p in module.named_parameters():
        if not p.requires_grad:
            flat = p.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
            crc = zlib.crc32(flat.numpy().tobytes(), zlib.crc32(name.encode(), crc))
    return crc


def choose_nodes(
    connected: Callable[[], Iterable[int]],
    *,
    fraction: float,
    least: int,
    available: int,
    patience: float,
    seed: int,
    t: int,
    purpose: str,
) -> list[int]:
    """Wait until enough nodes are connected, and draw who takes part.

    Args:
        connected: returns the identifiers of the nodes that are there.
        fraction: of them that take part, rounded down; 0 for nobody.
        least: how many take part at least.
        available: how many must be connected before.
        patience: seconds to wait for them.
        seed: fixes the draw, with ``t`` and ``purpose``.
        t: the round.
        purpose: ``"train"`` or ``"evaluate"``.

    Returns:
        Identifiers, ascending.

    Raises:
        TooFewClientsError: there are still too few.
    """
    if fraction == 0:
        return []
    until = time.monotonic() + patience
    needed = max(least, available, 1)
    while len(nodes := sorted(connected())) < needed:
        if time.monotonic() >= until:
            raise TooFewClientsError(
                f"round {t}: {len(nodes)} nodes are connected after {patience:g} s, but {needed} are needed to"
                f" {purpose}: start more, or lower min_available_nodes and min_{purpose}_nodes"
            )
        time.sleep(min(1.0, patience))
    drawn = derive(seed, purpose, round=t).permutation(len(nodes))[: max(int(len(nodes) * fraction), least, 1)]
    return [nodes[k] for k in sorted(drawn.tolist())]


def _without(pruned: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a gradient hook that puts 0 at the pruned positions, also where the gradient is NaN."""

    def hook(gradient: Tensor) -> Tensor:
        nonlocal pruned
        if pruned.device != gradient.device:
            pruned = pruned.to(gradient.device)
        if not gradient.is_sparse:
            return gradient.masked_fill(pruned, 0)
        rows = gradient.coalesce()  # of an embedding
        values = rows.values().masked_fill(pruned[tuple(rows.indices())], 0)
        return torch.sparse_coo_tensor(rows.indices(), values, rows.shape, is_coalesced=True, check_invariants=False)

    return hook


class _Trained:
    """A client whose training is done already, see :class:`~fedsparsify.algorithms.Local`."""

    epochs = 0

    def __init__(self, model: ModelState) -> None:
        self._model = model

    def tune(
        self, model: ModelState, *, epochs: int | None = None, proximal: float = 0.0, momentum: float | None = None
    ) -> ModelState:
        if epochs is not None or proximal or momentum is not None:
            raise ArgumentError("the method wants to say how clients train, but here their own loop does")
        return self._model

    def gradient(self, model: ModelState, *, batches: int | None = None, squared: bool = False) -> Floats:
        raise self._refusal()

    def curvature(self, model: ModelState, *, batches: int | None = None) -> Floats:
        raise self._refusal()

    def random(self) -> np.random.Generator:
        raise self._refusal()

    def layer_seconds(self) -> list[float]:
        raise self._refusal()

    def _refusal(self) -> ArgumentError:
        return ArgumentError("the method asks more of a client than to train, which its own loop cannot give")
