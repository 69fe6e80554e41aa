"""What both ends of the wire remember, so that messages say only what is new.

The server knows of each client the last broadcast that it certainly holds: the one it answered with a usable update.
The client holds that broadcast itself. On top of it both follow the same *trends*, running means of past changes: of
the broadcasts (for the next broadcast), and of this client's own changes (for its next update). A client's changes
resemble each other from round to round, so the trend saves a bit or more of every value (``docs/wire.md``).

Nothing here is trusted to be in step: every message names the checksum of what it builds on, and a client that does
not hold that asks for a full message (:class:`~fedsparsify.wire.BaseError`, :func:`~fedsparsify.wire.need_full`).
"""

from __future__ import annotations

import io
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
            if old is not None and old.values.any():  # before anything moved there is nothing to keep
                change = _KEPT * _over(old.indices, old.values, indices) + _NEW * change
        return cls(indices, np.nan_to_num(change, copy=False, posinf=0, neginf=0))

    def over(self, indices: Indices) -> Floats:
        """Return float32 at other positions; 0 where nothing is known."""
        return _over(self.indices, self.values, indices)


Arrays = dict[str, NDArray[np.generic]]


class ClientMemory:
    """What one client remembers between rounds. Without it a client still works: it is served in full.

    Args:
        layout: the network's layout.
        values: how its updates' values travel.
        initial: the network as this client built it; where the server starts from the same, it is not sent.
    """

    def __init__(
        self, layout: ParameterLayout, values: ValueCoding = "float32", initial: ModelState | None = None
    ) -> None:
        self._layout = layout
        self._values = values
        self._base = None if initial is None else Base.of(0, initial)
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
        held = Base(message.round, message.size, message.indices, message.values, message.buffers)
        if message.base_round is None:
            self._own = None
        elif self._base is not None:
            if self._base.round + 1 == held.round:
                old = None if self._base.trend is None else Trend(self._base.indices, self._base.trend)
                held = replace(held, trend=Trend.after(old, self._base, held.indices, held.values).values)
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
        arrays: Arrays = {"trend_known": np.array(self._trend_known)}
        if self._base is not None:
            _put_base(arrays, "base", self._base)
        for name, trend in (("own", self._own), ("residual", self._residual)):
            if trend is not None:
                _put_trend(arrays, name, trend)
        return _to_bytes(arrays)

    @classmethod
    def from_bytes(cls, data: bytes, layout: ParameterLayout, values: ValueCoding = "float32") -> ClientMemory:
        """Restore what :meth:`to_bytes` returned; ``data`` is this client's own and trusted."""
        memory = cls(layout, values)
        arrays = _from_bytes(data)
        memory._base = _get_base(arrays, "base", layout.n)
        memory._own, memory._residual = _get_trend(arrays, "own"), _get_trend(arrays, "residual")
        memory._trend_known = bool(arrays["trend_known"])
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

    def begin(self, initial: ModelState, clients: Sequence[int]) -> None:
        """Suppose that clients built the initial network themselves, from the same settings and seed.

        One that did not asks for a full message: the checksums differ.
        """
        self._sent[0] = Base.of(0, initial)
        self._holds.update(dict.fromkeys(clients, 0))
        self._since.update(dict.fromkeys(clients, 0))

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
        starts = sorted({self._since[k] for k in clients if self._since[k] < round}, reverse=True)[:_MOST_CHAINS]
        before = self._sent[round - 1] if starts else base
        self._chains = {
            start: Trend.after(self._chains.get(start), before, base.indices, base.values) for start in starts
        }
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

    def to_bytes(self) -> bytes:
        """Return all of it as bytes, so that a resumed run sends the very messages that it would have sent."""
        arrays: Arrays = {}
        for name, known in (("holds", self._holds), ("since", self._since)):
            arrays[name] = np.array(sorted(known.items()), np.int64).reshape(-1, 2)
        arrays["sent"] = np.array(sorted(self._sent), np.int64)
        for round, base in self._sent.items():
            _put_base(arrays, f"sent{round}", base)
        for name, trends in (("chains", self._chains), ("own", self._own)):
            arrays[name] = np.array(sorted(trends), np.int64)
            for key, trend in trends.items():
                _put_trend(arrays, f"{name}{key}", trend)
        return _to_bytes(arrays)

    @classmethod
    def from_bytes(cls, data: bytes, layout: ParameterLayout, values: ValueCoding = "float32") -> ServerMemory:
        """Restore what :meth:`to_bytes` returned; ``data`` is the run's own and trusted."""
        memory = cls(layout, values)
        arrays = _from_bytes(data)
        memory._holds = dict(arrays["holds"].tolist())
        memory._since = dict(arrays["since"].tolist())
        bases = {t: _get_base(arrays, f"sent{t}", layout.n) for t in arrays["sent"].tolist()}
        memory._sent = {t: base for t, base in bases.items() if base is not None}
        for name, trends in (("chains", memory._chains), ("own", memory._own)):
            for key in arrays[name].tolist():
                trend = _get_trend(arrays, f"{name}{key}")
                if trend is not None:
                    trends[key] = trend
        return memory

    def _base_of(self, client: int) -> Base | None:
        round = self._holds.get(client)
        return None if round is None else self._sent.get(round)

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


def _put_base(arrays: Arrays, name: str, base: Base) -> None:
    arrays[f"{name}.round"] = np.array(base.round)
    for part in ("indices", "values", "buffers", "trend"):
        if getattr(base, part) is not None:
            arrays[f"{name}.{part}"] = getattr(base, part)


def _get_base(arrays: Mapping[str, NDArray[np.generic]], name: str, size: int) -> Base | None:
    if f"{name}.round" not in arrays:
        return None
    parts = [arrays.get(f"{name}.{part}") for part in ("indices", "values", "buffers", "trend")]
    return Base(int(arrays[f"{name}.round"]), size, *parts)  # type: ignore[arg-type]


def _put_trend(arrays: Arrays, name: str, trend: Trend) -> None:
    arrays[f"{name}.indices"], arrays[f"{name}.values"] = trend.indices, trend.values


def _get_trend(arrays: Mapping[str, NDArray[np.generic]], name: str) -> Trend | None:
    if f"{name}.indices" not in arrays:
        return None
    return Trend(arrays[f"{name}.indices"], arrays[f"{name}.values"])  # type: ignore[arg-type]


def _to_bytes(arrays: Arrays) -> bytes:
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


def _from_bytes(data: bytes) -> Arrays:
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        return dict(archive)
