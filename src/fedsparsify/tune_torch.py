"""Local training with dense torch: covers every network and every device, but multiplies the zeros too."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from .data import Dataset
from .errors import ArgumentError
from .layout import ParameterLayout
from .state import Floats, ModelState
from .tune_settings import TuneSettings

__all__ = ["Epoch", "GradientOf", "TorchTrainer"]

Epoch = tuple[Dataset, NDArray[np.int64]]
"""Examples, and int64[N], the order to visit them in."""

GradientOf = Literal["plain", "squared", "curvature"]

_EVALUATION_BATCH = 1000


class TorchTrainer:
    """Trains one module under a mask.

    The module's parameters are views of one flat tensor, so an optimiser step is a few operations on that tensor
    however many layers there are. Calls from several threads wait for each other.

    Args:
        module: the network; it is taken over, its parameters are overwritten.
        settings: how to train.
    """

    def __init__(self, module: nn.Module, settings: TuneSettings) -> None:
        self.layout = ParameterLayout.of(module)
        self.device = _device(settings.device)
        self._settings = settings
        self._module = module.to(self.device)
        self._lock = threading.Lock()
        trainable = dict(self._module.named_parameters())
        self._parameters = [trainable[slot.name] for slot in self.layout.parameters]
        self._flat = torch.cat([p.detach().reshape(-1) for p in self._parameters])
        # Counters, such as batch-norm's of batches seen, start anew in every round: clients are stateless.
        self._counters = [(b, b.clone()) for b in self._module.buffers() if not b.is_floating_point()]
        for parameter, slot in zip(self._parameters, self.layout.parameters, strict=True):
            parameter.data = self._flat[slot.span].view(slot.shape)

    def train(
        self, start: ModelState, epochs: Iterable[Epoch], seed: int, settings: TuneSettings | None = None
    ) -> tuple[ModelState, float]:
        """Train from ``start`` under its mask.

        Args:
            start: where to begin.
            epochs: for each epoch the examples and int64[N], the order to visit them in.
            seed: of dropout.
            settings: how to train, if otherwise than given at first; the device stays.

        Returns:
            The trained model under the same mask, and the mean training loss of the last epoch.
        """
        mean_loss = 0.0
        settings = settings or self._settings
        with self._at(start, seed):
            mask = None if start.mask.all() else torch.from_numpy(start.mask).to(self.device, torch.float32)
            momentum: Tensor | None = None
            anchor = self._flat.clone() if settings.proximal else None
            for data, order in epochs:
                loss = torch.zeros((), device=self.device)
                for x, y in self._batches(data, order, settings.batch_size):
                    batch_loss = _loss(self._module(x), y)
                    step = self._gradient(batch_loss)
                    if anchor is not None:
                        step.add_(self._flat - anchor, alpha=settings.proximal)
                    momentum = self._step(settings, step, mask, momentum)
                    loss.add_(batch_loss.detach(), alpha=len(x))
                mean_loss = float(loss) / len(order)
            w, buffers = self.layout.read(self._module)
        return ModelState(w, start.mask, buffers), mean_loss

    def gradient(self, model: ModelState, epoch: Epoch, seed: int, batches: int | None, of: GradientOf) -> Floats:
        """Return float32[n], a mean over batches in training mode, at all positions.

        Args:
            model: where to take it.
            epoch: the examples and int64[N], the order to visit them in.
            seed: of dropout.
            batches: how many to use; None for all.
            of: each batch's gradient g; its square; or H g, the gradient of half the squared norm of g.
        """
        data, order = epoch
        size = self._settings.batch_size
        used = order if batches is None else order[: batches * size]
        total = torch.zeros(self.layout.n, dtype=torch.float64, device=self.device)
        with self._at(model, seed):
            for x, y in self._batches(data, used, size):
                loss = _loss(self._module(x), y)
                if of == "curvature":
                    gradients = torch.autograd.grad(loss, self._parameters, create_graph=True, materialize_grads=True)
                    loss = torch.stack([g.square().sum() for g in gradients]).sum() / 2
                gradient = self._gradient(loss)
                total.add_(gradient.square() if of == "squared" else gradient, alpha=len(x))
        mean: Floats = (total / len(used)).to(torch.float32).cpu().numpy()
        return mean

    @contextmanager
    def _at(self, model: ModelState, seed: int) -> Iterator[None]:
        """Have the module to oneself, with a model's values, in training mode."""
        # Dropout draws from torch's generator: lend it a seed of this client's own and give the old state back.
        with self._lock, torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layout.write(self._module, model.w, model.buffers)
            for counter, fresh in self._counters:
                counter.copy_(fresh)
            self._module.train()
            yield

    def _batches(self, data: Dataset, order: NDArray[np.int64], size: int) -> Iterator[tuple[Tensor, Tensor]]:
        rows = torch.from_numpy(order).to(self.device)
        x = torch.from_numpy(data.x).to(self.device)[rows]
        y = torch.from_numpy(data.y).to(self.device)[rows]
        return zip(torch.split(x, size), torch.split(y, size), strict=True)

    def _gradient(self, loss: Tensor) -> Tensor:
        gradients = torch.autograd.grad(loss, self._parameters, materialize_grads=True)
        return torch.cat([gradient.reshape(-1) for gradient in gradients])

    def _step(self, s: TuneSettings, step: Tensor, mask: Tensor | None, momentum: Tensor | None) -> Tensor | None:
        """Take one step of SGD on the survivors, given the gradient, and return the momentum buffer."""
        if s.weight_decay:
            step.add_(self._flat, alpha=s.weight_decay)
        if mask is not None:
            step.mul_(mask)
        if s.momentum:
            momentum = step.clone() if momentum is None else momentum.mul_(s.momentum).add_(step)
            step = step.add_(momentum, alpha=s.momentum) if s.nesterov else momentum
        self._flat.sub_(step, alpha=s.lr)
        return momentum

    def outputs(self, model: ModelState, x: Floats) -> Floats:
        """Return the network's outputs float32[N, ...] in evaluation mode."""
        with self._lock, torch.no_grad():
            self.layout.write(self._module, model.w, model.buffers)
            self._module.eval()
            batches = torch.from_numpy(x).to(self.device).split(_EVALUATION_BATCH)  # type: ignore[no-untyped-call]
            computed: Floats = torch.cat([self._module(batch) for batch in batches]).cpu().numpy()
        return computed


def _loss(outputs: Tensor, y: Tensor) -> Tensor:
    if not y.is_floating_point():
        return F.cross_entropy(outputs, y)
    if outputs.shape != y.shape:
        raise ArgumentError(f"the network's outputs have shape {tuple(outputs.shape)}, its targets {tuple(y.shape)}")
    return F.mse_loss(outputs, y)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ArgumentError(f'train.device = "{name}" cannot be used here: {str(error).splitlines()[0]}') from error
