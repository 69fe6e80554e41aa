"""What both ends of the wire remember, so that messages say only what is new.

The server knows of each client the last broadcast that it certainly holds: the one it answered with a usable update.
The client holds that broadcast itself. On top of it both follow the same *trends*, running means of past changes: of
the broadcasts (for the next broadcast), and of this client's own changes (for its next update). A client's changes
resemble each other from round to round, so the trend saves a bit or more of every value (``docs/wire.md``).

Nothing here is trusted to be in step: every message names the checksum of what it builds on, and a client that does
not hold that asks for a full message (:class:`~fedsparsify.wire.BaseError`, :func:`~fedsparsify.wire.need_full`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, WireError
from ..layout import ParameterLayout
from ..state import Floats, ModelState
from ..wire import Base, Kind, Message, SparseMessage, ValueCoding, decode_sparse, encode, rounded

__all__ = ["ClientMemory", "ServerMemory", "Trend"]

_KEPT = np.float32(0.6)
_NEW = np.float32(0.4)

_KEEP_ROUNDS = 20
_MOST_CHAINS = 4
_TREND_BYTES = 1 << 28

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Trend:
    """A running mean of changes, 0.6 of the old and 0.4 of the new, over some positions.

    Attributes:
        indices: int64[k], ascending.
        values: float32[k].
    """

    indices: Indices
    values: Floats

    @classmethod
    def after(cls, old: Trend | None, start: Base, indices: Indices, values: Floats) -> Trend:
        """Follow a change from ``start`` to float32[k] ``values`` at int64[k] ``indices``.

        Both ends compute this, so it rounds after each step and depends on nothing else.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            change = values - _over(start.indices, start.values, indices)
            if old is not None:
                change = _KEPT * _over(old.indices, old.values, indices) + _NEW * change
        return cls(indices, np.nan_to_num(change, copy=False, posinf=0, neginf=0))

    def over(self, indices: Indices) -> Floats:
        """Return float32 at other positions; 0 where nothing is known."""
        return _over(self.indices, self.values, indices)


class ClientMemory:
    """What one client remembers between rounds. Without it a client still works: it is served in full.

    Args:
        layout: the network's layout.
        values: how its updates' values travel.
    """

    def __init__(self, layout: ParameterLayout, values: ValueCoding = "float32") -> None:
        self._layout = layout
        self._values = values
        self._base: Base | None = None
        self._own: Trend | None = None
        self._residual: Trend | None = None
        self._trend_known = False

    def read(self, broadcast: bytes) -> SparseMessage:
        """Decode a broadcast and remember it.

        Raises:
            BaseError: it builds on what this client does not hold: answer with :func:`~fedsparsify.wire.need_full`.
            WireError: it is malformed, or no broadcast.
        """
        message = decode_sparse(broadcast, self._layout, self._base)
        if message.kind != Kind.BROADCAST:
            raise WireError(f"header: a client expects a broadcast, not a message of kind {message.kind.name.lower()}")
        held = _from_message(message)
        if message.full:
            self._own = None
        elif self._base is not None:
            held = _followed(self._base, held)
        self._base = held
        self._trend_known = message.trend_known
        return message

    def write(self, update: Message) -> bytes:
        """Encode the answer to the broadcast that was read last.

        Under a lossy coding, what rounding took away is added to the next update (error feedback).

        Raises:
            ArgumentError: the update is of another round.
            WireError: it holds a number that is not finite.
        """
        if self._base is None or update.round != self._base.round:
            raise ArgumentError(f"an update of round {update.round} answers no broadcast that this client has read")
        if not self._trend_known:
            self._own = None
        base = replace(self._base, trend=None if self._own is None else self._own.over(self._base.indices))
        if self._values != "float32":
            update = replace(update, model=self._with_residual(update.model))
        payload = encode(update, self._layout, base, self._values)
        arrives = rounded(update.model, base, self._values)
        indices = np.flatnonzero(arrives.mask)
        if self._values != "float32":
            self._residual = Trend(indices, (update.model.w - arrives.w)[indices])
        self._own = Trend.after(self._own, base, indices, arrives.w[indices])
        return payload

    def _with_residual(self, model: ModelState) -> ModelState:
        if self._residual is None:
            return model
        w = model.w.copy()
        w[model.mask] += self._residual.over(np.flatnonzero(model.mask))
        return ModelState(w, model.mask, model.buffers)

    def to_bytes(self) -> bytes:
        """Return all of it as bytes, for another process or a file."""
        return _pack(self._base, {"own": self._own, "residual": self._residual}, self._trend_known)

    @classmethod
    def from_bytes(cls, data: bytes, layout: ParameterLayout, values: ValueCoding = "float32") -> ClientMemory:
        """Restore what :meth:`to_bytes` returned; ``data`` is this client's own and trusted."""
        memory = cls(layout, values)
        memory._base, trends, memory._trend_known = _unpack(data, layout)
        memory._own, memory._residual = trends["own"], trends["residual"]
        return memory


class ServerMemory:
    """What the server remembers of its clients.

    Args:
        layout: the network's layout.
        values: how values of broadcasts travel: lossless for ``float32`` and ``int8`` (whose rounding depends on what
            each receiver holds, so that receivers would differ), rounded alike for all with ``bfloat16``.
        keep_rounds: broadcasts older than this are forgotten; a client that holds none of the others is served in full.
        trend_bytes: most memory for the clients' trends; clients beyond it do without.
    """

    def __init__(
        self,
        layout: ParameterLayout,
        values: ValueCoding = "float32",
        keep_rounds: int = _KEEP_ROUNDS,
        trend_bytes: int = _TREND_BYTES,
    ) -> None:
        self._layout = layout
        self._values: ValueCoding = "float32" if values == "int8" else values
        self._keep_rounds = keep_rounds
        self._trend_bytes = trend_bytes
        self._sent: dict[int, Base] = {}  # broadcasts by round, without trends
        self._holds: dict[int, int] = {}  # client -> round of the last broadcast it certainly holds
        self._since: dict[int, int] = {}  # client -> first round of its unbroken chain of broadcasts up to that
        self._chains: dict[int, Trend] = {}  # first round of a chain -> trend of the broadcasts since
        self._own: dict[int, Trend] = {}  # client -> trend of its updates
        self._uses_own: set[int] = set()

    def write(self, round: int, model: ModelState, clients: Sequence[int]) -> dict[int, bytes]:
        """Encode a round's broadcast, once for each distinct base, and return each client's message.

        Args:
            round: t, more than that of any broadcast before.
            model: what to send.
            clients: who takes part.

        Raises:
            WireError: the model holds a number that is not finite.
        """
        self._forget_before(round - self._keep_rounds)
        model = rounded(model, None, self._values)
        message = Message(Kind.BROADCAST, round, model)
        self._uses_own = {k for k in clients if k in self._own and self._base_of(k) is not None}
        made: dict[tuple[int | None, int | None, bool], bytes] = {}
        messages = {}
        for k in clients:
            held = self._base_of(k)
            chain = self._since.get(k) if held is not None and held.round == round - 1 else None
            key = (None if held is None else held.round, chain if chain in self._chains else None, k in self._uses_own)
            if key not in made:
                if held is not None and key[1] is not None:
                    held = replace(held, trend=self._chains[key[1]].over(held.indices))
                made[key] = encode(replace(message, trend_known=key[2]), self._layout, held, self._values)
            messages[k] = made[key]
            if held is None or held.round != round - 1:
                self._since[k] = round
        base = Base.of(round, model)
        before = self._sent.get(round - 1)
        self._chains = (
            {}
            if before is None
            else {
                start: Trend.after(self._chains.get(start), before, base.indices, base.values)
                for start in self._starts(round)
            }
        )
        self._sent[round] = base
        return messages

    def base(self, round: int, client: int) -> Base:
        """Return what a client's update of this round may refer to."""
        base = self._sent[round]
        if client in self._uses_own:
            return replace(base, trend=self._own[client].over(base.indices))
        return base

    def accepted(self, client: int, indices: Indices, values: Floats, round: int) -> None:
        """Note that a client's update was usable: it holds this round's broadcast, and its trend goes on.

        Args:
            client: index of the client.
            indices: int64[k], the update's surviving positions.
            values: float32[k], as decoded.
            round: the round.
        """
        old = self._own.pop(client, None) if client in self._uses_own else None
        self._own.pop(client, None)
        self._holds[client] = round
        if sum(t.values.nbytes + t.indices.nbytes for t in self._own.values()) < self._trend_bytes:
            self._own[client] = Trend.after(old, self._sent[round], indices, values)

    def lost(self, client: int) -> None:
        """Note that a client failed, or asked for a full message: it may hold nothing."""
        for known in (self._holds, self._since, self._own):
            known.pop(client, None)
        self._uses_own.discard(client)

    def _base_of(self, client: int) -> Base | None:
        round = self._holds.get(client)
        return None if round is None else self._sent.get(round)

    def _starts(self, round: int) -> list[int]:
        """Return the chains that clients of this round's broadcast are in, the most common first."""
        starts = [s for s in self._since.values() if s < round]
        return sorted(set(starts), key=lambda s: (-starts.count(s), s))[:_MOST_CHAINS]

    def _forget_before(self, round: int) -> None:
        wanted = set(self._holds.values())
        self._sent = {t: base for t, base in self._sent.items() if t >= round and (t in wanted or t == max(self._sent))}


def _over(indices: Indices, values: Floats, wanted: Indices) -> Floats:
    if wanted is indices or np.array_equal(wanted, indices):
        return values
    if indices.size == 0:
        return np.zeros(wanted.shape, np.float32)
    at = np.minimum(np.searchsorted(indices, wanted), indices.size - 1)
    return np.where(indices[at] == wanted, values[at], np.float32(0))
