"""FedSparsify in a Flower project that exists: a strategy for its ServerApp and a helper for its ClientApp.

On the server ``FedSparsify(Net(), final_sparsity=0.9)`` takes the place of ``FedAvg()``. On a client ``sparse =
SparseModel.receive(msg, model)`` takes the place of ``model.load_state_dict(...)``, and ``sparse.reply(msg, ...)`` that
of the reply. Training stays the project's own.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result
from torch import Tensor, nn

from ...errors import ArgumentError, WireError
from ...schedules import PolynomialSchedule
from ..existing import LocalRound, Orders, SparseServer, choose_nodes, largest_message
from ..transport import Reply, clean
from .records import STYPE, opaque

__all__ = ["FedSparsify", "SparseModel"]

log = logging.getLogger("flwr")

_ORDERS, _METRICS = "fedsparsify", "metrics"


class FedSparsify(FedAvg):
    """A strategy in FedAvg's place that prunes the network a little more every round.

    Each client is sent one opaque array, our encoded broadcast, and answers with one; both shrink with the network.
    What :meth:`start` returns, and what ``evaluate_fn`` gets, is the ordinary dense state dict. A reply that is
    malformed, not finite, of another round or too large is logged and left out; so is a node that fails or is late.

    Args:
        model: the network; ``initial_arrays`` give its weights.
        final_sparsity: S_T, the fraction of parameters that is gone after the last round, in [0, 1).
        num_rounds: T; None to take it from :meth:`start`.
        method: ``"fedsparsify-global"``, the server purges; or ``"fedsparsify-local"``, clients do, and vote.
        initial_sparsity: S_0, at ``start_round``.
        start_round: t_0, the first round that prunes.
        frequency: F, rounds between two prunings.
        exponent: e; 1 prunes evenly, larger ones earlier.
        scope: ``"global"``, all parameters compete; or ``"per-layer"``.
        prunable: ``"all"``, or ``"weights"`` to leave biases and batch-norm scale and shift alone.
        merge: rule of the local method: ``"majority"``, ``"majority-nonzero"``, ``"nonzero"`` or ``"average"``.
        node_timeout: seconds that a round waits for nodes to connect.
        seed: of who takes part.
        options: FedAvg's own, e.g. ``fraction_train``; a round needs ``min_train_nodes`` usable replies.

    Attributes:
        history: for each finished round its sparsity, nodes, failures and the bytes of the payloads, down and up.

    Raises:
        ArgumentError: an option is out of its range.

    Source: arXiv 2204.12430.
    """

    def __init__(
        self,
        model: nn.Module,
        final_sparsity: float = 0.9,
        num_rounds: int | None = None,
        method: str = "fedsparsify-global",
        *,
        initial_sparsity: float = 0.0,
        start_round: int = 1,
        frequency: int = 1,
        exponent: float = 3,
        scope: str = "global",
        prunable: str = "all",
        merge: str = "majority",
        node_timeout: float = 600.0,
        seed: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.model, self.num_rounds, self.node_timeout, self.seed = model, num_rounds, node_timeout, seed
        self._nodes: list[int] = []
        self._first, self._last = (initial_sparsity, final_sparsity, start_round), (frequency, exponent)
        self._orders = Orders(method, scope=scope, prunable=prunable, merge=merge)
        self._begin(num_rounds or start_round)  # what is wrong is said here already

    @property
    def arrays(self) -> ArrayRecord:
        """The merged model so far, as the network's ordinary state dict."""
        return ArrayRecord(self._server.state_dict())

    def start(self, grid: Grid, initial_arrays: ArrayRecord, num_rounds: int = 3, *args: Any, **options: Any) -> Result:
        """Run all rounds as FedAvg does, and return dense arrays.

        Raises:
            ArgumentError: ``num_rounds`` is not the schedule's, or ``initial_arrays`` are not the network's.
            TooFewClientsError: too few nodes connected in time, or too few replies could be used; ``arrays`` has the
                model of the last finished round.
        """
        if self.num_rounds not in (None, num_rounds):
            raise ArgumentError(
                f"start(num_rounds={num_rounds}), but FedSparsify(num_rounds={self.num_rounds}): give the number once,"
                " for the sparsity of a round depends on it"
            )
        self._begin(num_rounds, initial_arrays.to_torch_state_dict())
        return super().start(grid, initial_arrays, num_rounds, *args, **options)

    def summary(self) -> None:
        """Log the settings."""
        super().summary()
        log.info("\t└──> %s: %s, %s", self._orders.method, self._orders, self._schedule)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Choose nodes and encode the round's broadcast; ``arrays`` is not used, the mask would be missing.

        Raises:
            TooFewClientsError: too few nodes connected in time.
        """
        self._nodes = self._choose(grid, server_round, "train", self.fraction_train, self.min_train_nodes)
        payload = self._server.open(len(self._nodes)) if self._nodes else b""
        return self._messages(payload, self._nodes, server_round, config, MessageType.TRAIN)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Merge and purge; return the dense state dict, and metrics with ``sparsity`` and bytes of all payloads.

        Raises:
            TooFewClientsError: fewer than ``min_train_nodes`` replies could be used.
        """
        if not self._nodes:
            return None, None
        answers = {message.metadata.src_node_id: message for message in replies}
        judged = [self._judge(k, answers.get(node)) for k, node in enumerate(self._nodes)]
        try:
            finished = self._server.close(judged)
        finally:
            failures = {self._nodes[k]: why for k, why in self._server.failures}
            self._log_failures("aggregate_train", server_round, failures)
        model = self._server.state.model
        sums = {"sparsity": model.sparsity, "bytes-down": finished.bytes_down, "bytes-up": finished.bytes_up}
        self.history.append({"round": server_round, "nodes": self._nodes, "failures": failures, **sums})
        usable = [answers[node].content for node in self._nodes if node not in failures]
        metrics = self.train_metrics_aggr_fn(self._alike(usable), self.weighted_by_key)
        return self.arrays, MetricRecord({**metrics, **sums})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Choose nodes and encode the merged model for them.

        Raises:
            TooFewClientsError: too few nodes connected in time.
        """
        nodes = self._choose(grid, server_round, "evaluate", self.fraction_evaluate, self.min_evaluate_nodes)
        payload = self._server.evaluation() if nodes else b""
        if self.history:
            self.history[-1]["bytes-evaluate"] = len(payload) * len(nodes)
        return self._messages(payload, nodes, server_round, config, MessageType.EVALUATE)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Average the metrics of the replies that have any; the others are logged."""
        judged = {m.metadata.src_node_id: (m, self._why_unusable(m)) for m in replies}
        self._log_failures("aggregate_evaluate", server_round, {node: why for node, (_, why) in judged.items() if why})
        usable = [message.content for message, why in judged.values() if not why]
        return self.evaluate_metrics_aggr_fn(self._alike(usable), self.weighted_by_key) if usable else None

    def _begin(self, rounds: int, weights: Mapping[str, Tensor] | None = None) -> None:
        self._schedule = PolynomialSchedule(*self._first, rounds, *self._last)
        self._server = SparseServer(self.model, self._orders, self._schedule, self.min_train_nodes, weights)
        self._nodes = []
        self.history: list[dict[str, Any]] = []

    def _choose(self, grid: Grid, t: int, purpose: str, fraction: float, least: int) -> list[int]:
        log.info("configure_%s: choosing nodes, for at most %g s", purpose, self.node_timeout)
        return choose_nodes(
            grid.get_node_ids,
            fraction=fraction,
            least=least,
            available=self.min_available_nodes,
            patience=self.node_timeout,
            seed=self.seed,
            t=t,
            purpose=purpose,
        )

    def _messages(
        self, payload: bytes, nodes: list[int], t: int, config: ConfigRecord, message_type: str
    ) -> list[Message]:
        config["server-round"] = t
        arrays = opaque(payload)
        orders = [ConfigRecord(self._server.orders(k)) for k in range(len(nodes))]
        contents = [
            RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: config, _ORDERS: o}) for o in orders
        ]
        return [
            Message(content, node, message_type, group_id=str(t)) for node, content in zip(nodes, contents, strict=True)
        ]

    def _judge(self, k: int, message: Message | None) -> Reply:
        if message is None:
            return Reply(k, None, "no reply in time")
        if why := self._why_unusable(message):
            return Reply(k, None, why)
        try:
            return Reply(k, _payload(message.content, largest_message(self._server.layout)))
        except WireError as error:
            return Reply(k, None, str(error))

    def _why_unusable(self, message: Message) -> str:
        if message.has_error():
            return clean(message.error.reason)
        records = list(message.content.metric_records.values())
        weight = records[0].get(self.weighted_by_key) if len(records) == 1 else None
        if isinstance(weight, int | float) and math.isfinite(weight) and weight > 0:
            return ""
        return f"metrics: one MetricRecord with {self.weighted_by_key} above 0 is due"

    def _log_failures(self, where: str, t: int, failures: Mapping[int, str]) -> None:
        for node, why in failures.items():
            log.warning("%s: round %d: node %d is left out: %s", where, t, node, why)

    def _alike(self, contents: list[RecordDict]) -> list[RecordDict]:
        """Return the replies that have the metrics that most have; Flower's averages take no others."""
        kinds = [{name: _kind(v) for r in c.metric_records.values() for name, v in r.items()} for c in contents]
        usual = max(kinds, key=kinds.count)
        alike = [content for content, kind in zip(contents, kinds, strict=True) if kind == usual]
        if len(alike) < len(contents):
            log.warning("%d replies have other metrics than most: averaged without", len(contents) - len(alike))
        return alike


class SparseModel:
    """A round on a client: :meth:`receive` the model, train or evaluate it as ever, :meth:`reply`.

    Attributes:
        round: the round.
        sparsity: fraction of the parameters that are pruned: they stay exactly 0 while the model is trained.
    """

    def __init__(self, local: LocalRound) -> None:
        self._local = local
        self.round, self.sparsity = local.round, local.start.sparsity

    @classmethod
    def receive(cls, message: Message, model: nn.Module) -> SparseModel:
        """Load what the server sent into ``model``: weights, buffers and, in a training round, the mask.

        Raises:
            WireError: the message does not come from :class:`FedSparsify`, is malformed, or is of another network.
        """
        if _ORDERS not in message.content.config_records:
            raise WireError("the message holds no orders of FedSparsify: use it as the ServerApp's strategy")
        orders = Orders.read(message.content.config_records[_ORDERS])
        payload = _payload(message.content)
        return cls(LocalRound(payload, model, orders, train=message.metadata.message_type != MessageType.EVALUATE))

    def reply(self, message: Message, num_examples: int, metrics: Mapping[str, Any] | None = None) -> Message:
        """Return the reply to the server: the trained model's survivors and the metrics.

        Args:
            message: what was received.
            num_examples: size n_k of the client's training data, its weight in the merge.
            metrics: numbers to be averaged over clients, as in a MetricRecord.

        Raises:
            ArgumentError: the message was to evaluate, or there are no examples.
        """
        arrays = opaque(self._local.answer(int(num_examples)))
        record = MetricRecord({**(metrics or {}), "num-examples": int(num_examples)})
        return Message(RecordDict({"arrays": arrays, _METRICS: record}), reply_to=message)


def _payload(content: RecordDict, largest: float = math.inf) -> bytes:
    """Return the one array's bytes, of which nothing is believed but that they are few enough.

    Raises:
        WireError: there is none, or it is something else or too large.
    """
    arrays = [array for record in content.array_records.values() for array in record.values()]
    if len(arrays) != 1 or arrays[0].stype != STYPE:
        raise WireError(f"arrays: one payload of FedSparsify is due, not {len(arrays)} arrays: use SparseModel.reply()")
    if len(arrays[0].data) > largest:
        raise WireError(f"message: {len(arrays[0].data)} bytes are more than the {largest} of this network's largest")
    return arrays[0].data


def _kind(value: object) -> int:
    return len(value) if isinstance(value, list) else -1
