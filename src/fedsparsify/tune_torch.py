"""Local training with dense torch: covers every network and every device, but multiplies the zeros too."""

from __future__ import annotations

import threading
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .data import Dataset
from .errors import ArgumentError
from .layout import ParameterLayout
from .state import Floats, ModelState
from .tune_settings import TuneSettings

__all__ = ["TorchTrainer"]

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

    def train(self, start: ModelState, epochs: Iterable[tuple[Dataset, Tensor]], seed: int) -> tuple[ModelState, float]:
        """Train from ``start`` under its mask.

        Args:
            start: where to begin.
            epochs: for each epoch the examples and int64[N], the order to visit them in.
            seed: of dropout.

        Returns:
            The trained model under the same mask, and the mean training loss of the last epoch.
        """
        mean_loss = 0.0
        # Dropout draws from torch's generator: lend it a seed of this client's own and give the old state back.
        with self._lock, torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layout.write(self._module, start.w, start.buffers)
            for counter, fresh in self._counters:
                counter.copy_(fresh)
            mask = None if start.mask.all() else torch.from_numpy(start.mask).to(self.device, torch.float32)
            self._module.train()
            momentum: Tensor | None = None
            for data, order in epochs:
                x = torch.from_numpy(data.x).to(self.device)[order.to(self.device)]
                y = torch.from_numpy(data.y).to(self.device)[order.to(self.device)]
                loss = torch.zeros((), device=self.device)
                size = self._settings.batch_size
                for x_batch, y_batch in zip(torch.split(x, size), torch.split(y, size), strict=True):
                    batch_loss = _loss(self._module(x_batch), y_batch)
                    gradients = torch.autograd.grad(batch_loss, self._parameters, materialize_grads=True)
                    momentum = self._step(gradients, mask, momentum)
                    loss.add_(batch_loss.detach(), alpha=len(x_batch))
                mean_loss = float(loss) / len(order)
            w, buffers = self.layout.read(self._module)
        return ModelState(w, start.mask, buffers), mean_loss

    def _step(self, gradients: tuple[Tensor, ...], mask: Tensor | None, momentum: Tensor | None) -> Tensor | None:
        """Take one step of SGD on the survivors and return the momentum buffer."""
        s = self._settings
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
