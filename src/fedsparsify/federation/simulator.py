"""A federation inside one machine: the same client function and the same bytes as a deployment."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from torch import nn

from ..algorithms import Method
from ..data import Dataset
from ..errors import ArgumentError, FederationError
from ..layout import ParameterLayout
from ..sparse import Calibration
from ..state import ModelState
from ..tune import Evaluation, Tuner, TuneSettings
from ..wire import Kind, Message, decode, encode
from .client import client_round
from .pool import JobFailure, Pool, can_fork, default_workers
from .transport import Reply

__all__ = ["Simulator"]

_TRAIN, _EVALUATE = 0, 1
_JOB = struct.Struct("<BI")
_EVALUATION = struct.Struct("<Qdd?")

# A fixed size, not one per worker: sums of floats must not depend on how many workers there are.
_SHARD = 2000


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
    ) -> None:
        if workers < 0:
            raise ArgumentError(f"run.workers = {workers} must be at least 0 (0 is one a core)")
        for index, data in enumerate(clients):
            if len(data) == 0:
                raise ArgumentError(f"client {index} has no example; leave it out or give it some")
        self._tuner = Tuner(module, settings, test, calibration)
        self._method = method
        self._clients = clients
        self._test = test
        self._seed = seed
        # Dense rounds come first and favour torch most: what is native there is native throughout.
        self.threads = self._tuner.choose(np.ones(self.layout.n, np.bool_)) is not None
        wanted = workers or min(default_workers(), max(len(clients), 1))
        self.workers = wanted if self.threads or (can_fork() and self._tuner.device.type == "cpu") else 1
        self._pool = Pool(self._handle, self.workers, threads=self.threads)

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

    def exchange(self, round: int, clients: Sequence[int], broadcast: bytes) -> Iterator[Reply]:
        """Train the chosen clients; see :class:`~fedsparsify.federation.transport.Transport`."""
        # Large clients first, so that no core waits long for the last one.
        order = sorted(clients, key=lambda k: (-len(self._clients[k]), k))
        for index, result in self._pool.run([_JOB.pack(_TRAIN, k) + broadcast for k in order]):
            if isinstance(result, JobFailure):
                yield Reply(order[index], None, str(result))
            else:
                yield Reply(order[index], result)

    def evaluate(self, model: ModelState) -> Mapping[str, float]:
        """Return ``accuracy`` (or ``mae``) and ``loss`` of a model on the whole test set.

        Raises:
            FederationError: the network fails on the test set.
        """
        message = encode(Message(Kind.MODEL, 0, model), self.layout)
        starts = range(0, len(self._test), _SHARD)
        parts: dict[int, Evaluation] = {}
        for index, result in self._pool.run([_JOB.pack(_EVALUATE, start) + message for start in starts]):
            if isinstance(result, JobFailure):
                raise FederationError(f"the merged model cannot be evaluated on the test set: {result}")
            parts[index] = Evaluation(*_EVALUATION.unpack(result))
        total = parts[0]
        for index in range(1, len(parts)):
            total += parts[index]
        return total.metrics

    def _handle(self, job: bytes) -> bytes:
        kind, which = _JOB.unpack_from(job)
        message = job[_JOB.size :]
        if kind == _TRAIN:
            return client_round(
                message,
                client=which,
                data=self._clients[which],
                method=self._method,
                tuner=self._tuner,
                seed=self._seed,
            )
        shard = self._test.part(which, which + _SHARD)
        sums = self._tuner.evaluate(decode(message, self.layout).model, shard)
        return _EVALUATION.pack(sums.examples, sums.loss, sums.score, sums.regression)
