"""A federation inside one machine: the same client function and the same bytes as a deployment."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from ..algorithms import Method
from ..data import Dataset
from ..errors import ArgumentError, FederationError, StaleReferenceError, WireError
from ..layout import ParameterLayout
from ..sparse import Calibration
from ..state import Floats, ModelState
from ..tune import Evaluation, Tuner, TuneSettings
from ..wire import Coding, Kind, Message, Reference, decode, encode, request_full
from .client import Client, Held, Received, receive
from .pool import JobFailure, Pool, can_fork, default_workers
from .transport import Reply

__all__ = ["Simulator"]

_TRAIN, _EVALUATE = 0, 1
_JOB = struct.Struct("<BI")
_EVALUATION = struct.Struct("<Qdd?")
_SIZE = struct.Struct("<Q")
_NO_BUFFERS = np.zeros(0, np.float32)

# A fixed size, not one per worker: sums of floats must not depend on how many workers there are.
_SHARD = 2000


@dataclass(frozen=True, eq=False)
class _Task:
    """One client's work in one round."""

    client: int
    received: Received
    held: Held

    def pack(self, layout: ParameterLayout) -> bytes:
        """Write down what a worker process needs of it."""
        m = self.received.message
        flags = {"remember": float(m.remember), "refers": float(m.refers)}
        kept = Message(Kind.CHECKPOINT, m.round, m.model, metrics=flags, memory=_vectors(self.held))
        return _JOB.pack(_TRAIN, self.client) + encode(kept, layout)

    @classmethod
    def unpack(cls, client: int, message: Message, layout: ParameterLayout) -> _Task:
        remember, refers = (bool(message.metrics[name]) for name in ("remember", "refers"))
        broadcast = Message(Kind.BROADCAST, message.round, message.model, remember=remember, refers=refers)
        return cls(client, Received(broadcast, Reference(message.model, layout)), _held(None, message.memory))


def _vectors(held: Held) -> dict[str, Floats]:
    vectors = {"trend": held.trend, "residual": held.residual}
    return {name: vector.w for name, vector in vectors.items() if vector is not None}


def _held(reference: Reference | None, vectors: Mapping[str, Floats]) -> Held:
    return Held(reference, **{name: ModelState(w, w != 0, _NO_BUFFERS) for name, w in vectors.items()})


class Simulator:
    """A transport whose clients are jobs on this machine's cores, and an evaluator on the same cores.

    Args:
        module: the network, already built.
        method: the federated method.
        clients: one data set a client.
        test: the whole test set.
        settings: how clients train.
        seed: the run's seed.
        workers: how many clients train at once; 0 is one a core. Threads where the compiled trainer does all the work,
            else processes; on an accelerator, or where processes cannot be forked, one. The number changes no result.
        calibration: measurements to choose the backend by, to repeat a run's choices; by default this machine's.
        coding: how clients round their updates.

    Raises:
        ArgumentError: ``workers`` is negative, or a client has no example.
    """

    def __init__(
        self,
        module: nn.Module,
        method: Method,
        clients: Sequence[Dataset],
        test: Dataset,
        settings: TuneSettings,
        seed: int,
        workers: int = 0,
        calibration: Calibration | None = None,
        coding: Coding = "float32",
    ) -> None:
        if workers < 0:
            raise ArgumentError(f"run.workers = {workers} must be at least 0 (0 is one a core)")
        for index, data in enumerate(clients):
            if len(data) == 0:
                raise ArgumentError(f"client {index} has no example; leave it out or give it some")
        self._tuner = Tuner(module, settings, test, calibration)
        self._clients = [Client(k, data, method, self._tuner, seed, coding) for k, data in enumerate(clients)]
        self._held: dict[int, Held] = {}
        self._test = test
        # Dense rounds come first and favour torch most: what is native there is native throughout.
        self.threads = self._tuner.choose(np.ones(self.layout.n, np.bool_)) is not None
        wanted = workers or min(default_workers(), max(len(clients), 1))
        self.workers = wanted if self.threads or (can_fork() and self._tuner.device.type == "cpu") else 1
        self._pool = Pool(self._work if self.threads else self._serve, self.workers, threads=self.threads)

    @property
    def layout(self) -> ParameterLayout:
        """The network's layout."""
        return self._tuner.layout

    @property
    def calibration(self) -> Calibration | None:
        """The measurements by which the backend is chosen."""
        return self._tuner.calibration

    @property
    def uncovered(self) -> str:
        """Why the compiled trainer is not used; empty if it can be."""
        return self._tuner.uncovered

    @property
    def device(self) -> str:
        """Where clients train, e.g. ``"cpu"``."""
        return str(self._tuner.device)

    def __enter__(self) -> Simulator:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()

    def exchange(self, round: int, broadcasts: Mapping[int, bytes]) -> Iterator[Reply]:
        """Train the chosen clients; see :class:`~fedsparsify.federation.transport.Transport`."""
        jobs: list[_Task] = []
        once: dict[tuple[bytes, int], Received] = {}  # clients that hold the same and are sent the same share it
        # Large clients first, so that no core waits long for the last one.
        for k in sorted(broadcasts, key=lambda k: (-len(self._clients[k].data), k)):
            held = self._held.get(k, Held())
            key = (broadcasts[k], id(held.reference))
            try:
                received = once.get(key) or receive(broadcasts[k], held.reference, self.layout)
            except StaleReferenceError:
                yield Reply(k, request_full(self.layout, round, k))
                continue
            except WireError as error:
                yield Reply(k, None, str(error))
                continue
            once[key] = received
            jobs.append(_Task(k, received, held))
        for index, result in self._pool.run(jobs if self.threads else [task.pack(self.layout) for task in jobs]):
            task = jobs[index]
            if isinstance(result, JobFailure):
                self._held.pop(task.client, None)
                yield Reply(task.client, None, str(result))
                continue
            update, held = result if self.threads else self._unpack_answer(result, task.received.reference)
            self._held[task.client] = held
            yield Reply(task.client, update)

    def carried(self) -> Mapping[str, Floats]:
        """Return the residuals of rounded updates, by client."""
        return {str(k): held.residual.w for k, held in self._held.items() if held.residual is not None}

    def restore(self, carried: Mapping[str, Floats]) -> None:
        """Start anew, with these residuals: broadcasts come in full after a restart."""
        self._held = {int(k): _held(None, {"residual": w}) for k, w in carried.items()}

    def evaluate(self, model: ModelState) -> Mapping[str, float]:
        """Return ``accuracy`` (or ``mae``) and ``loss`` of a model on the whole test set.

        Raises:
            FederationError: the network fails on the test set.
        """
        starts = range(0, len(self._test), _SHARD)
        jobs: list[Any] = [(model, start) for start in starts]
        if not self.threads:
            message = encode(Message(Kind.MODEL, 0, model), self.layout)
            jobs = [_JOB.pack(_EVALUATE, start) + message for start in starts]
        parts: dict[int, Evaluation] = {}
        for index, result in self._pool.run(jobs):
            if isinstance(result, JobFailure):
                raise FederationError(f"the merged model cannot be evaluated on the test set: {result}")
            parts[index] = result if self.threads else Evaluation(*_EVALUATION.unpack(result))
        total = parts[0]
        for index in range(1, len(parts)):
            total += parts[index]
        return total.metrics

    def _work(self, job: Any) -> Any:
        """Do a job in a thread of this process."""
        if isinstance(job, _Task):
            return self._clients[job.client].answer(job.received, job.held)
        model, start = job
        return self._tuner.evaluate(model, self._test.part(start, start + _SHARD))

    def _serve(self, job: bytes) -> bytes:
        """Do a job in a worker process: the same, between bytes."""
        kind, which = _JOB.unpack_from(job)
        message = decode(job[_JOB.size :], self.layout)
        if kind == _EVALUATE:
            sums = self._work((message.model, which))
            return _EVALUATION.pack(sums.examples, sums.loss, sums.score, sums.regression)
        update, held = self._work(_Task.unpack(which, message, self.layout))
        kept = Message(Kind.CHECKPOINT, message.round, message.model, memory=_vectors(held))
        return bytes(_SIZE.pack(len(update)) + update) + encode(
            kept, self.layout, Reference(message.model, self.layout)
        )

    def _unpack_answer(self, answer: bytes, reference: Reference) -> tuple[bytes, Held]:
        (size,) = _SIZE.unpack_from(answer)
        update, kept = answer[_SIZE.size : _SIZE.size + size], answer[_SIZE.size + size :]
        sent = Reference(reference.model, self.layout)
        return update, _held(reference, decode(kept, self.layout, sent).memory)
