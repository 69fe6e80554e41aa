"""A federation inside one machine: the same client function and the same bytes as a deployment."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ..algorithms import Method
from ..data import Dataset
from ..errors import ArgumentError, FederationError, StaleReferenceError, WireError
from ..layout import ParameterLayout
from ..sparse import Calibration
from ..state import Floats, Mask, ModelState
from ..tune import Evaluation, Tuner, TuneSettings
from ..wire import Coding, Kind, Message, Reference, request_full
from .client import SHARD, Client, Held, Received, receive, whole
from .pool import JobFailure, Pool, can_fork, default_workers
from .transport import Reply

__all__ = ["Simulator"]

_TRAIN, _EVALUATE = 0, 1
_EVALUATION, _GROUP = struct.Struct("<Qdd?"), struct.Struct("<QQd")
_VECTOR = struct.Struct("<?Q")


@dataclass(frozen=True, eq=False)
class _Task:
    """One client's work in one round."""

    client: int
    received: Received
    held: Held


def _pack(fields: Sequence[int], *vectors: NDArray[Any] | None) -> bytes:
    """Write down whole numbers and arrays for a worker process on this machine, which may take them as they are."""
    parts = [np.asarray([len(fields), *fields], np.int64).tobytes()]
    for vector in vectors:
        content = b"" if vector is None else vector.tobytes()
        parts += [_VECTOR.pack(vector is not None, len(content)), content]
    return b"".join(parts)


def _unpack(data: bytes) -> tuple[list[int], list[bytes | None]]:
    size = 8 * (1 + int(np.frombuffer(data, np.int64, 1)[0]))
    fields, at = np.frombuffer(data[8:size], np.int64).tolist(), size
    vectors: list[bytes | None] = []
    while at < len(data):
        there, length = _VECTOR.unpack_from(data, at)
        at += _VECTOR.size + length
        vectors.append(data[at - length : at] if there else None)
    return fields, vectors


def _sparse(values: bytes | None, mask: Mask) -> ModelState | None:
    return None if values is None else ModelState.of_values(np.frombuffer(values, np.float32), mask)


def _kept(held: Held, mask: Mask) -> list[Floats | None]:
    """What changes with a round, at the survivors of its broadcast: the rest of it can never matter again."""
    return [None if vector is None else vector.at(mask) for vector in (held.trend, held.residual)]


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
        packed = jobs if self.threads else [self._pack_task(task) for task in jobs]
        for index, result in self._pool.run(packed):
            task = jobs[index]
            if isinstance(result, JobFailure):
                yield Reply(task.client, None, str(result))
                continue
            update, held = result if self.threads else _unpack_answer(result, task.received)
            self._held[task.client] = held
            yield Reply(task.client, update)

    def carried(self) -> Mapping[str, Floats]:
        """Return the residuals of rounded updates, by client."""
        everywhere = np.ones(self.layout.n, np.bool_)
        residuals = {str(k): held.residual for k, held in self._held.items()}
        return {k: residual.at(everywhere) for k, residual in residuals.items() if residual is not None}

    def restore(self, carried: Mapping[str, Floats]) -> None:
        """Start anew, with these residuals: broadcasts come in full after a restart."""
        masks = {k: w.view(np.int32) != 0 for k, w in carried.items()}
        self._held = {int(k): Held(residual=ModelState.of_values(w[masks[k]], masks[k])) for k, w in carried.items()}

    def evaluate(self, model: ModelState) -> Mapping[str, Any]:
        """Return ``accuracy`` (or ``mae``) and ``loss`` of a model on the whole test set.

        Where the examples belong to groups, ``groups`` has each group's accuracy (or mean absolute error) by its name.

        Raises:
            FederationError: the network fails on the test set.
        """
        starts = range(0, len(self._test), SHARD)
        jobs: list[Any] = [(model, start) for start in starts]
        if not self.threads:
            arrays = (np.packbits(model.mask), model.values, model.buffers)
            jobs = [_pack((_EVALUATE, start), *arrays) for start in starts]
        parts: dict[int, Evaluation] = {}
        for index, result in self._pool.run(jobs):
            if isinstance(result, JobFailure):
                raise FederationError(f"the merged model cannot be evaluated on the test set: {result}")
            parts[index] = result if self.threads else _unpack_evaluation(result)
        return whole((parts[index] for index in range(len(parts))), self._test)

    def _work(self, job: Any) -> Any:
        """Do a job in a thread of this process."""
        if isinstance(job, _Task):
            return self._clients[job.client].answer(job.received, job.held)
        model, start = job
        return self._tuner.evaluate(model, self._test.part(start, start + SHARD))

    def _pack_task(self, task: _Task) -> bytes:
        m = task.received.message
        model, drift = m.model, task.received.reference.drift
        arrays = (np.packbits(model.mask), model.values, model.buffers, drift, *_kept(task.held, model.mask))
        return _pack((_TRAIN, task.client, m.round, m.remember, m.refers), *arrays)

    def _serve(self, job: bytes) -> bytes:
        """Do a job in a worker process: the same, between bytes."""
        (kind, which, *rest), (bits, values, buffers, *kept) = _unpack(job)
        assert bits is not None and values is not None and buffers is not None
        mask = np.unpackbits(np.frombuffer(bits, np.uint8), count=self.layout.n).view(np.bool_)
        # Copies, since what comes over a pipe cannot be written to, as torch wants it.
        model = ModelState.of_values(
            np.frombuffer(values, np.float32).copy(), mask, np.frombuffer(buffers, np.float32).copy()
        )
        if kind == _EVALUATE:
            sums = self._work((model, which))
            groups = [_GROUP.pack(group, *part) for group, part in sums.groups.items()]
            return b"".join([_EVALUATION.pack(sums.examples, sums.loss, sums.score, sums.regression), *groups])
        round, remember, refers = rest
        broadcast = Message(Kind.BROADCAST, round, model, remember=bool(remember), refers=bool(refers))
        drift = None if kept[0] is None else np.frombuffer(kept[0], np.float32)
        held = Held(None, *(_sparse(vector, mask) for vector in kept[1:]))
        update, held = self._work(_Task(which, Received(broadcast, Reference(model, self.layout, drift)), held))
        return _pack((), np.frombuffer(update, np.uint8), *_kept(held, mask))


def _unpack_evaluation(data: bytes) -> Evaluation:
    groups = {group: (examples, score) for group, examples, score in _GROUP.iter_unpack(data[_EVALUATION.size :])}
    examples, loss, score, regression = _EVALUATION.unpack_from(data)
    return Evaluation(examples, loss, score, regression, groups)


def _unpack_answer(answer: bytes, received: Received) -> tuple[bytes, Held]:
    _, (update, *kept) = _unpack(answer)
    assert update is not None
    mask = received.message.model.mask
    return update, Held(received.reference, *(_sparse(vector, mask) for vector in kept))
