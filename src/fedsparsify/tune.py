"""Local training under a mask: only survivors move, a pruned parameter is exactly 0 after every step.

Two backends do the work, and give the same model up to rounding: dense torch, and the compiled trainer over the
survivors alone (:mod:`fedsparsify.sparse`). Which one a round uses depends on the mask and on figures that were
measured once on this machine, never on chance: the calibration is kept with a run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from . import sparse
from .data import Dataset
from .errors import ArgumentError
from .randomness import derive, derive_seed
from .state import Floats, Mask, ModelState
from .tune_settings import TuneSettings
from .tune_torch import Epoch, GradientOf, TorchTrainer

__all__ = ["Evaluation", "GradientOf", "TuneSettings", "Tuned", "Tuner", "epochs_of"]


@dataclass(frozen=True)
class Evaluation:
    """Sums over evaluated examples, so that shards add up to the same figures whoever computed them.

    Attributes:
        examples: how many.
        loss: sum of the losses (cross-entropy in nats, or squared error in the targets as they are).
        score: number of correct labels, or sum of absolute errors in the unit of ``Dataset.y_scale``.
        regression: which of the two.
        groups: the same number of examples and score for each group that has examples, by its index.
    """

    examples: int
    loss: float
    score: float
    regression: bool
    groups: Mapping[int, tuple[int, float]] = field(default_factory=dict)

    def __add__(self, other: Evaluation) -> Evaluation:
        nothing = (0, 0.0)
        parts = {
            g: (self.groups.get(g, nothing), other.groups.get(g, nothing)) for g in {**self.groups, **other.groups}
        }
        return Evaluation(
            self.examples + other.examples,
            self.loss + other.loss,
            self.score + other.score,
            self.regression,
            {g: (a[0] + b[0], a[1] + b[1]) for g, (a, b) in sorted(parts.items())},
        )

    @property
    def metrics(self) -> dict[str, float]:
        """``accuracy`` in [0, 1] or ``mae`` in the unit of ``Dataset.y_scale``, and the mean ``loss``."""
        name = "mae" if self.regression else "accuracy"
        return {name: self.score / self.examples, "loss": self.loss / self.examples}

    def by_group(self, names: Sequence[str]) -> dict[str, float]:
        """Return accuracy or mean absolute error of each group that was evaluated, by its name."""
        return {names[group]: score / examples for group, (examples, score) in self.groups.items()}


@dataclass(frozen=True, eq=False)
class Tuned:
    """What local training gives.

    Attributes:
        model: the trained model, under the mask that it started with.
        loss: mean training loss of the last epoch.
        backend: ``"torch"`` or ``"native"``.
    """

    model: ModelState
    loss: float
    backend: str


def epochs_of(data: Dataset, epochs: int, rng: np.random.Generator) -> Iterator[Epoch]:
    """Yield for each epoch the examples and int64[N], the order to visit them in; batches are consecutive slices of it.

    Augmented examples are made for a whole epoch, already in order. Every backend trains on exactly these, so that one
    seed means one order of examples.
    """
    for _ in range(epochs):
        order = rng.permutation(len(data))
        if data.augment is None:
            yield data, order
        else:
            shuffled = data.take(order)
            x = np.ascontiguousarray(data.augment(shuffled.x, rng), np.float32)
            yield Dataset(x, shuffled.y), np.arange(len(data))


class Tuner:
    """Trains and evaluates one network.

    Args:
        module: the network; it is taken over, its parameters are overwritten.
        settings: how to train.
        like: any data set of the kind it will be given: shapes and targets decide what the compiled trainer can do.
        calibration: measurements to choose the backend by; by default those of this machine.

    Attributes:
        settings: how to train.
        layout: the network's layout.
        device: where torch works.
        calibration: the measurements in use, None where there is nothing to choose.
        uncovered: why the compiled trainer is not used at all, in a sentence; empty if it can be.

    Raises:
        ArgumentError: ``settings.backend`` is ``"native"`` and cannot be had, or the device cannot be used.
    """

    def __init__(
        self,
        module: nn.Module,
        settings: TuneSettings,
        like: Dataset,
        calibration: sparse.Calibration | None = None,
    ) -> None:
        self._torch = TorchTrainer(module, settings)
        self.settings = settings
        self.layout = self._torch.layout
        self.device = self._torch.device
        self._plan: sparse.NetworkPlan | None = None
        self.uncovered = self._why_torch(module, like)
        if self.uncovered and settings.backend == "native":
            raise ArgumentError(f'train.backend = "native" cannot be used: {self.uncovered}; use "auto" or "torch"')
        self.calibration = (calibration or sparse.calibrate()) if self._plan is not None else None

    def _why_torch(self, module: nn.Module, like: Dataset) -> str:
        """Plan the network for the compiled trainer, or say why not."""
        if self.settings.backend == "torch":
            return 'train.backend = "torch"'
        if self.device.type != "cpu":
            return f"the compiled trainer is for CPUs, and this run uses {self.device}"
        if not sparse.available():
            return "the compiled trainer is not built (reinstall with a C++ compiler)"
        loss: sparse.Loss = "squared-error" if _is_regression(like) else "cross-entropy"
        self._plan = sparse.plan_network(module, loss, like.x.shape[1:])
        return "" if self._plan is not None else str(sparse.why_uncovered(module, loss, like.x.shape[1:]))

    def choose(self, mask: Mask) -> sparse.Choice | None:
        """Return the compiled trainer's backends for a mask, or None for dense torch."""
        if self._plan is None:
            return None
        choice = sparse.choose(self._plan, mask, self.settings.batch_size, calibration=self.calibration)
        return choice if choice.backend == "native" or self.settings.backend == "native" else None

    def tune(
        self,
        start: ModelState,
        data: Dataset,
        *,
        seed: int,
        round: int,
        client: int,
        again: int = 0,
        changes: Mapping[str, Any] | None = None,
    ) -> Tuned:
        """Train for the settings' epochs from ``start``, under its mask.

        Args:
            start: the broadcast model.
            data: the client's examples.
            seed: the run's seed; with ``round``, ``client`` and ``again`` it fixes the order of examples and dropout.
            round: from 1; 0 before training.
            client: index of the client.
            again: how many times the client has trained in this round before.
            changes: fields of the settings that are different this time, such as ``epochs``.
        """
        s = replace(self.settings, **(changes or {}))
        suffix = f" {again}" if again else ""
        epochs = epochs_of(data, s.epochs, derive(seed, f"batches{suffix}", round=round, client=client))
        dropout = derive_seed(seed, f"dropout{suffix}", round=round, client=client)
        choice = self.choose(start.mask)
        if choice is None or self._plan is None:
            model, loss = self._torch.train(start, epochs, dropout, s)
            return Tuned(model, loss, "torch")
        trainer = sparse.Trainer(
            self._plan,
            start.w,
            start.mask,
            start.buffers,
            lr=s.lr,
            momentum=s.momentum,
            nesterov=s.nesterov,
            weight_decay=s.weight_decay,
            proximal=s.proximal,
            batch_size=s.batch_size,
            seed=dropout,
            backends=choice.layers,
        )
        loss = 0.0
        for part, order in epochs:
            loss = trainer.epoch(part.x, part.y, order)
        return Tuned(ModelState(trainer.weights(), start.mask, trainer.buffers()), loss, "native")

    def gradient(
        self,
        model: ModelState,
        data: Dataset,
        *,
        seed: int,
        round: int,
        client: int,
        batches: int | None = None,
        of: GradientOf = "plain",
    ) -> Floats:
        """Return float32[n], a mean over batches in training mode, at all positions; always by torch.

        The same arguments give the same batches: their order, augmentation and dropout hang on (seed, round, client).

        Args:
            model: where to take it.
            data: the client's examples.
            seed: the run's seed.
            round: from 1; 0 before training.
            client: index of the client.
            batches: how many batches to use; None for all of the data.
            of: each batch's gradient g; its square; or H g, the gradient of half the squared norm of g.
        """
        (epoch,) = epochs_of(data, 1, derive(seed, "gradient", round=round, client=client))
        dropout = derive_seed(seed, "gradient dropout", round=round, client=client)
        return self._torch.gradient(model, epoch, dropout, batches, of)

    def layer_seconds(self) -> list[float]:
        """Return for each tensor of the layout the seconds that one survivor of it costs in a training step.

        As calibrated for the sparse kernels at a tenth of the parameters; a vector (bias, scale, shift) costs as little
        as the cheapest matrix. Where the kernels do not cover the network, nothing is known: 1 for all.
        """
        if self._plan is None or self.calibration is None:
            return [1.0] * len(self.layout.parameters)
        density = 0.1
        costs = {
            layer.weight: 1e-12
            * self.calibration.sparse_time(layer, density)
            / density
            * layer.pixels
            * self.settings.batch_size
            for layer in self._plan.weighted
        }
        return [costs.get(slot.offset, min(costs.values())) for slot in self.layout.parameters]

    def evaluate(self, model: ModelState, data: Dataset) -> Evaluation:
        """Return the sums of loss and score of ``model`` on ``data``, in evaluation mode."""
        choice = self.choose(model.mask)
        if choice is None or self._plan is None:
            outputs = self._torch.outputs(model, data.x)
        else:
            outputs = sparse.predict(self._plan, model.w, model.mask, model.buffers, data.x, backends=choice.layers)
        return _judge(outputs, data)


def _judge(outputs: Floats, data: Dataset) -> Evaluation:
    wide = outputs.astype(np.float64)
    if _is_regression(data):
        if outputs.shape != data.y.shape:
            raise ArgumentError(f"the network's outputs have shape {outputs.shape}, its targets {data.y.shape}")
        errors = wide - data.y
        return _sums((errors**2).mean(1), np.abs(errors).mean(1) * data.y_scale, data, True)
    rows = np.arange(len(data))
    if outputs.ndim != 2 or outputs.shape[1] <= data.y.max():
        raise ArgumentError(f"the network gives outputs {outputs.shape[1:]}, but there is a label {data.y.max()}")
    wide -= wide.max(1, keepdims=True)
    losses = np.log(np.exp(wide).sum(1)) - wide[rows, data.y]
    return _sums(losses, (outputs.argmax(1) == data.y).astype(np.float64), data, False)


def _sums(losses: NDArray[np.float64], scores: NDArray[np.float64], data: Dataset, regression: bool) -> Evaluation:
    groups = {}
    if data.groups is not None:
        examples, sums = np.bincount(data.groups), np.bincount(data.groups, scores)
        groups = {int(g): (int(examples[g]), float(sums[g])) for g in np.flatnonzero(examples)}
    return Evaluation(len(data), float(losses.sum()), float(scores.sum()), regression, groups)


def _is_regression(data: Dataset) -> bool:
    return bool(np.issubdtype(data.y.dtype, np.floating))
