"""A client under encryption: it holds what is the server's elsewhere, the model, and makes the next one of a sum.

Nothing else about a client changes: :mod:`..client` trains on a broadcast and answers with an update, and this stands
between it and the server. Every client that takes part carries out the method's ``server_update`` on the average that
it has decrypted. Integers are exact, so all of them arrive at the same bits, and say so in a digest.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from ...algorithms import Method
from ...errors import ArgumentError, ConfigError, DataError, FederationError, TamperedError, WireError
from ...layout import ParameterLayout
from ...secure import AnyScheme, Cipher, FixedPoint, Key, Limbs, digest, lock, unlock
from ...state import ClientUpdate, Mask, ModelState, ServerState
from ...wire import Kind, Message, Reference, decode, encode
from ...wire.masks import decode_mask, encode_mask
from ..engine import Evaluate, finite, next_state
from .messages import Answer, AnswerKind, Order, Verdict, figure, read, write

__all__ = ["EncryptedClient", "Keyring", "Training", "open_model", "read_mask", "write_mask"]

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Keyring:
    """What all clients of an encrypted federation share.

    Attributes:
        cipher: how this run encrypts, one of :data:`~fedsparsify.secure.CIPHERS`.
        key: the clients' key.
        scheme: parameters that this run needs.
        bound: largest absolute value of a parameter's mean change in a round.
        path: the key's file, which is marked when the key must not be used again; None where there is none.
        retired: a sum was altered, and nobody here uses the key any more.
    """

    cipher: Cipher
    key: Key
    scheme: AnyScheme
    bound: float
    path: Path | None = None
    retired: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if type(self.key.scheme) is not type(self.scheme):
            raise ArgumentError(
                "the key is for another encryption than this run's: make one by fedsparsify keys new FILE --scheme"
            )
        if self.key.scheme != self.scheme:
            raise ArgumentError(
                f"the key is of the size for up to {self.key.scheme.participants} participants in a round, and this run"
                f" needs that for up to {self.scheme.participants}: make one by fedsparsify keys new FILE"
                f" --participants {self.scheme.participants}"
            )

    @classmethod
    def load(cls, cipher: Cipher, path: Path, scheme: AnyScheme, bound: float) -> Keyring:
        """Return what is shared by those who have the key in a file.

        Raises:
            DataError: the file is missing, damaged, no key, or can be read by others than its owner.
            ConfigError: the key is for another encryption, or number of participants.
        """
        key = Key.load(path)
        try:
            return cls(cipher, key, scheme, bound, path)
        except ArgumentError as error:
            raise ConfigError(f"{path}: {error}") from error

    def retire(self) -> None:
        """Use the key no more, and leave a mark beside its file."""
        self.retired = True
        if self.path is not None:
            try:
                self.key.retire(self.path)
            except DataError as error:  # for those at this site only: whoever altered the sum must learn nothing more
                log.error("%s", error)

    @property
    def parameters(self) -> FixedPoint:
        """How changes of parameters are rounded."""
        return FixedPoint(self.bound, self.scheme.plain_modulus, self.scheme.participants)

    @property
    def buffers(self) -> Limbs:
        """How buffers are written."""
        return Limbs(self.scheme.plain_modulus, self.scheme.participants)


@dataclass(frozen=True)
class Training:
    """A broadcast to train on; its update goes to :meth:`EncryptedClient.close`."""

    broadcast: bytes


class EncryptedClient:
    """One client's side of the encryption, and the models that it holds: the last two rounds'.

    Args:
        index: which client it is.
        examples: n_k, how many examples it has.
        method: the federated method, which must say what it ``merges``.
        layout: the network's layout.
        initial: the model before training, which everybody makes of the settings.
        keyring: from whoever runs the client, never from the server.
        evaluate: judges a model on the test set that is here.
        least: fewest participants of a sum that is read.
        shared: where clients of one process find each other's models by digest, so that equal ones are held once.
    """

    def __init__(
        self,
        index: int,
        examples: int,
        method: Method,
        layout: ParameterLayout,
        initial: ModelState,
        keyring: Keyring,
        evaluate: Evaluate,
        least: int = 2,
        shared: WeakValueDictionary[str, ServerState] | None = None,
    ) -> None:
        self._index, self._examples = index, examples
        self._method, self._layout = method, layout
        self._keyring, self._evaluate = keyring, evaluate
        self._least = least
        self._shared = WeakValueDictionary[str, ServerState]() if shared is None else shared
        self._initial = ServerState(0, initial)
        self._states: dict[int, ServerState] = {0: self._initial}
        self._open: tuple[Order, ServerState] | None = None
        self._encrypted: dict[bytes, bytes | None] = {}  # context of a sum -> what was encrypted for it, if it is kept

    def open(self, message: bytes) -> bytes | Training:
        """Carry out an order: return the answer, or what to train on first.

        Raises:
            WireError: the order is malformed, or not for this client.
        """
        order, parts = read(message, Order)
        if self._keyring.retired:
            return self._answer(order, "refused")
        if order.kind == "begin":
            return self._ready(order)
        if order.attempt is None or order.state is None:
            raise WireError("message: attempt and state are due")
        asked = dict(order.examples)
        if self._index not in asked:
            raise WireError(f"message: client {self._index} is not among those who are asked")
        if asked[self._index] != self._examples:
            return self._answer(order, "changed", examples=self._examples)
        if order.kind == "train" and (context := _context(order)) in self._encrypted:
            known = self._encrypted[context]
            if known is None:
                raise WireError("message: that attempt was answered long ago, and nothing is encrypted twice for one")
            return known
        before = self._base(order, parts)
        if before is None:
            return self._answer(order, "lacking")
        if order.kind == "train":
            self._open = (order, before)
            return Training(encode(Message(Kind.BROADCAST, order.round, before.model), self._layout))
        try:
            return self._merge(order, before, parts)
        except TamperedError:  # whoever altered a sum must not learn where
            self._keyring.retire()
            return self._answer(order, "refused")

    def close(self, update: bytes) -> bytes:
        """Return the encrypted form of an update, the answer to a ``train`` order.

        Raises:
            WireError: the update is not one of the model that was to be trained.
            ArgumentError: it holds values that are not finite.
        """
        if self._open is None:
            raise FederationError("there is an update where none was asked for")
        (order, before), self._open = self._open, None
        start, context = before.model, _context(order)
        message = decode(update, self._layout, Reference(start, self._layout), Kind.UPDATE)
        trained, weight = message.model, self._examples / _total(order)
        started = time.thread_time()
        change = trained.at(start.mask) - start.values
        parameters, clipped = self._keyring.parameters.integers(change, weight)
        buffers, too_large = self._keyring.buffers.integers(trained.buffers, weight)
        values = self._keyring.cipher.encrypt(
            self._keyring.key,
            np.concatenate([parameters, buffers]),
            client=self._index,
            round=order.round,
            context=context,
        )
        seconds = time.thread_time() - started
        parts = {"values": values}
        if self._method.merges == "vote":
            parts["mask"] = write_mask(trained.mask, start.mask, self._layout)
        training = {name: figure(value) for name, value in message.metrics.items()}
        counted = {"clipped": clipped + too_large, "seconds": figure(seconds)}
        answer = self._answer(order, "update", parts, training=training, **counted)
        self._encrypted = dict.fromkeys(self._encrypted) | {context: answer}
        return answer

    def release(self, round: int) -> None:
        """Let go of models that no order of this round or a later one starts from."""
        self._states = {t: state for t, state in self._states.items() if t >= round - 1}

    def _ready(self, order: Order) -> bytes:
        if order.round > 0:  # only the initial model is everybody's
            return self._answer(order, "ready", key=self._keyring.key.identifier.hex(), examples=self._examples)
        self._states = {0: self._initial}  # it may be another run, for a site's process stays
        return self._has(order, "ready", self._initial)

    def _base(self, order: Order, parts: Mapping[str, bytes]) -> ServerState | None:
        """Return the model that an order starts from, None if it is not held."""
        round = order.round - 1
        held = self._states.get(round)
        if held is not None and self._digest(held) == order.state:
            return held
        if "model" not in parts:
            return None
        sent = open_model(self._keyring.key, parts["model"], order.run, round, self._layout)
        if sent.round != round or self._digest(sent) != order.state:
            raise WireError(f"message: its model is not the one that round {order.round} starts from")
        self._keep(sent)
        return sent

    def _merge(self, order: Order, before: ServerState, parts: Mapping[str, bytes]) -> bytes:
        """Make the round's model of the sum."""
        if "sum" not in parts:
            raise WireError("message: part sum is missing")
        start, buffers = before.model, self._keyring.buffers
        count = start.nonzero
        started = time.thread_time()
        total, who = self._keyring.cipher.decrypt(
            self._keyring.key,
            parts["sum"],
            round=order.round,
            count=count + buffers.each * self._layout.b,
            context=_context(order),
            least=self._least,
        )
        seconds = time.thread_time() - started
        known = dict(order.examples)
        if not all(known.get(k) for k in who):
            raise WireError("message: somebody is in the sum who was not asked, or has no examples")
        examples = sum(known[k] for k in who)
        weight = examples / _total(order)
        mask = start.mask
        if self._method.merges == "vote":
            mask = read_mask(parts.get("mask", b""), start.mask, self._layout)
        values = start.values + self._keyring.parameters.reals(total[:count], weight)
        merged = ModelState.of_values(values[mask[start.survivors]], mask, buffers.reals(total[count:], weight))
        update = ClientUpdate(who[0], order.round, merged, examples)
        after = next_state(self._method, self._layout, before, iter([update]), order.round)
        self._keep(after)
        return self._has(order, "merged", after, seconds=figure(seconds))

    def _keep(self, state: ServerState) -> None:
        """Hold a state beside the one before it: a server that was killed may ask for its last round again."""
        state = self._shared.setdefault(self._digest(state), state)
        self._states = {t: held for t, held in self._states.items() if t == state.round - 1} | {state.round: state}

    def _has(self, order: Order, kind: AnswerKind, state: ServerState, **figures: Any) -> bytes:
        masks = self._layout.split(state.model.mask).values()
        parts = {}
        if order.judge == self._index:
            content = encode(Message(Kind.CHECKPOINT, state.round, state.model, memory=state.memory), self._layout)
            parts["model"] = lock(self._keyring.key, content, _about(order.run, state.round))
            figures["test"] = Verdict.of(finite(self._evaluate(state.model)))
        return self._answer(
            order,
            kind,
            parts,
            key=self._keyring.key.identifier.hex(),
            examples=self._examples,
            state=self._digest(state),
            layers=[int(np.count_nonzero(mask)) for mask in masks],
            **figures,
        )

    def _answer(self, order: Order, kind: AnswerKind, parts: Mapping[str, bytes] | None = None, **fields: Any) -> bytes:
        return write(Answer(kind=kind, round=order.round, client=self._index, **fields), parts)

    def _digest(self, state: ServerState) -> str:
        model = state.model
        vectors: list[NDArray[Any]] = [np.packbits(model.mask), model.values, model.buffers]
        vectors += [vector for _, vector in sorted(state.memory.items())]
        content = b"".join([state.round.to_bytes(8, "little"), *(vector.tobytes() for vector in vectors)])
        return digest(self._keyring.key, content)


def open_model(key: Key, locked: bytes, run: str, round: int, layout: ParameterLayout) -> ServerState:
    """Return what a client has locked.

    Args:
        key: the clients' key.
        locked: the model as the server keeps it.
        run: which run it is of.
        round: which round.
        layout: the network's layout.

    Raises:
        WireError: the key is another one, or the model is of another run, round or network.
    """
    message = decode(unlock(key, locked, _about(run, round)), layout, expected=Kind.CHECKPOINT)
    return ServerState(message.round, message.model, message.memory)


def write_mask(mask: Mask, within: Mask, layout: ParameterLayout) -> bytes:
    """Return a mask for whoever knows that it lies within another."""
    encoding, data = encode_mask(mask, layout, _mask_alone(within, layout))
    return bytes([encoding]) + data


def read_mask(part: bytes, within: Mask, layout: ParameterLayout) -> Mask:
    """Return the mask that :func:`write_mask` was given.

    Raises:
        WireError: it is malformed, or does not lie within the other.
    """
    if not part:
        raise WireError("message: part mask is missing")
    mask = decode_mask(part[0], part[1:], layout, _mask_alone(within, layout))
    if np.any(mask & ~within):
        raise WireError("mask: parameters that were pruned before have come back")
    return mask


def _mask_alone(mask: Mask, layout: ParameterLayout) -> Reference:
    values: NDArray[np.float32] = np.zeros(int(np.count_nonzero(mask)), np.float32)
    return Reference(ModelState.of_values(values, mask, np.zeros(layout.b, np.float32)), layout)


def _total(order: Order) -> int:
    return sum(examples for _, examples in order.examples)


def _context(order: Order) -> bytes:
    """Return what tells a sum from all others under the key: run, attempt, the model it starts from, and weights."""
    assert order.attempt is not None and order.state is not None  # as open has seen to
    told = bytes.fromhex(order.run + order.attempt + order.state)  # of fixed sizes
    weights = np.array(order.examples, "<u4").tobytes()
    return hashlib.sha256(b"fedsparsify sum 1" + told + weights).digest()


def _about(run: str, round: int) -> bytes:
    return f"model of round {round} of run {run}".encode()
