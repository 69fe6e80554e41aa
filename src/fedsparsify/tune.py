"""Local training under a mask: only survivors move, a pruned parameter is exactly 0 after every step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from .data import Dataset
from .errors import ArgumentError
from .layout import ParameterLayout
from .randomness import derive, derive_seed
from .state import Floats, ModelState

__all__ = ["Evaluation", "TuneSettings", "Tuner", "epochs_of"]

EVALUATION_BATCH = 1000


@dataclass(frozen=True)
class TuneSettings:
    """How a client trains in one round: SGD as ``torch.optim.SGD`` defines it.

    Attributes:
        lr: learning rate, more than 0.
        epochs: passes over the client's data in one round, at least 1.
        batch_size: examples a step, at least 1; an epoch's last batch may be smaller.
        momentum: in [0, 1); its buffer starts anew in every round, since clients are stateless.
        nesterov: Nesterov's momentum; needs ``momentum``.
        weight_decay: added as ``weight_decay * w`` to the gradient, at least 0.
        device: ``"cpu"``, another device of torch's, or ``"auto"`` for an accelerator where there is one.

    Raises:
        ArgumentError: a value is out of its range.
    """

    lr: float
    epochs: int = 4
    batch_size: int = 32
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    device: str = "auto"

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ArgumentError(f"train.lr = {self.lr} must be more than 0")
        if self.epochs < 1:
            raise ArgumentError(f"train.epochs = {self.epochs} must be at least 1")
        if self.batch_size < 1:
            raise ArgumentError(f"train.batch_size = {self.batch_size} must be at least 1")
        if not 0 <= self.momentum < 1:
            raise ArgumentError(f"train.momentum = {self.momentum} must be at least 0 and less than 1")
        if self.nesterov and self.momentum == 0:
            raise ArgumentError("train.nesterov = true needs train.momentum to be more than 0")
        if self.weight_decay < 0:
            raise ArgumentError(f"train.weight_decay = {self.weight_decay} must be at least 0")


@dataclass(frozen=True)
class Evaluation:
    """Sums over evaluated examples, so that shards add up to the same figures whoever computed them.

    Attributes:
        examples: how many.
        loss: sum of the losses (cross-entropy in nats, or squared error).
        score: number of correct labels, or sum of absolute errors.
        regression: which of the two.
    """

    examples: int
    loss: float
    score: float
    regression: bool

    def __add__(self, other: Evaluation) -> Evaluation:
        return Evaluation(
            self.examples + other.examples, self.loss + other.loss, self.score + other.score, self.regression
        )

    @property
    def metrics(self) -> dict[str, float]:
        """``accuracy`` in [0, 1] or ``mae`` in the target's unit, and the mean ``loss``."""
        name = "mae" if self.regression else "accuracy"
        return {name: self.score / self.examples, "loss": self.loss / self.examples}


def epochs_of(data: Dataset, epochs: int, rng: np.random.Generator) -> Iterator[Dataset]:
    """Yield the data once an epoch, freshly shuffled and augmented; batches are consecutive slices of it.

    Every backend trains on exactly these, so that one seed means one order of examples.
    """
    for _ in range(epochs):
        shuffled = data.take(rng.permutation(len(data)))
        if data.augment is not None:
            shuffled = Dataset(data.augment(shuffled.x, rng), shuffled.y)
        yield shuffled


class Tuner:
    """Trains and evaluates one network on one worker.

    The module's parameters are views of one flat tensor, so an optimiser step is a few operations on that tensor
    however many layers there are.

    Args:
        module: the network; it is taken over, its parameters are overwritten.
        settings: how to train.
    """

    def __init__(self, module: nn.Module, settings: TuneSettings) -> None:
        self.layout = ParameterLayout.of(module)
        self.settings = settings
        self.device = _device(settings.device)
        self._module = module.to(self.device)
        trainable = dict(self._module.named_parameters())
        self._parameters = [trainable[slot.name] for slot in self.layout.parameters]
        self._flat = torch.cat([p.detach().reshape(-1) for p in self._parameters])
        for parameter, slot in zip(self._parameters, self.layout.parameters, strict=True):
            parameter.data = self._flat[slot.span].view(slot.shape)

    def tune(
        self, start: ModelState, data: Dataset, *, seed: int, round: int, client: int
    ) -> tuple[ModelState, float]:
        """Train for the settings' epochs from ``start``, under its mask.

        Args:
            start: the broadcast model.
            data: the client's examples.
            seed: the run's seed; with ``round`` and ``client`` it fixes the order of examples, dropout and augmentation.
            round: from 1.
            client: index of the client.

        Returns:
            The trained model under the same mask, and the mean training loss of the last epoch.
        """
        rng = derive(seed, "batches", round=round, client=client)
        self.layout.write(self._module, start.w, start.buffers)
        mask = None if start.mask.all() else torch.from_numpy(start.mask).to(self.device, torch.float32)
        self._module.train()
        momentum: Tensor | None = None
        # Dropout draws from torch's generator: lend it a seed of this client's own and give the old state back.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "torch", round=round, client=client))
            for epoch in epochs_of(data, self.settings.epochs, rng):
                loss = torch.zeros((), device=self.device)
                for x, y in self._batches(epoch, self.settings.batch_size):
                    batch_loss = _loss(self._module(x), y)
                    gradients = torch.autograd.grad(batch_loss, self._parameters, materialize_grads=True)
                    momentum = self._step(gradients, mask, momentum)
                    loss.add_(batch_loss.detach(), alpha=len(x))
        w, buffers = self.layout.read(self._module)
        return ModelState(w, start.mask, buffers), float(loss) / len(data)

    def _step(self, gradients: tuple[Tensor, ...], mask: Tensor | None, momentum: Tensor | None) -> Tensor | None:
        """Take one step of SGD on the survivors and return the momentum buffer."""
        s = self.settings
        step = torch.cat([gradient.reshape(-1) for gradient in gradients])
        if s.weight_decay:
            step.add_(self._flat, alpha=s.weight_decay)
        if mask is not None:
            step.mul_(mask)
        if s.momentum:
            momentum = step.clone() if momentum is None else momentum.mul_(s.momentum).add_(step)
            step = step.add_(momentum, alpha=s.momentum) if s.nesterov else momentum
        self._flat.sub_(step, alpha=s.lr)
        return momentum

    def evaluate(self, model: ModelState, data: Dataset) -> Evaluation:
        """Return the sums of loss and score of ``model`` on ``data``, in evaluation mode."""
        self.layout.write(self._module, model.w, model.buffers)
        self._module.eval()
        regression = np.issubdtype(data.y.dtype, np.floating)
        total = Evaluation(0, 0.0, 0.0, regression)
        with torch.no_grad():
            for x, y in self._batches(data, EVALUATION_BATCH):
                outputs = self._module(x)
                score = (outputs - y).abs().mean(1).sum() if regression else (outputs.argmax(1) == y).sum()
                total += Evaluation(len(x), float(_loss(outputs, y)) * len(x), float(score), regression)
        return total

    def _batches(self, data: Dataset, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        x = torch.from_numpy(data.x).to(self.device)
        y = torch.from_numpy(cast(Floats, data.y)).to(self.device)
        return zip(x.split(size), y.split(size), strict=True)


def _loss(outputs: Tensor, y: Tensor) -> Tensor:
    if y.is_floating_point():
        if outputs.shape != y.shape:
            raise ArgumentError(f"the network's outputs have shape {tuple(outputs.shape)}, its targets {tuple(y.shape)}")
        return F.mse_loss(outputs, y)
    return F.cross_entropy(outputs, y)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ArgumentError(f'train.device = "{name}" cannot be used here: {str(error).splitlines()[0]}') from error
