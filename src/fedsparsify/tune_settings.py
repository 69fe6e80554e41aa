"""How a client trains in one round, as plain values."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import ArgumentError

__all__ = ["BACKENDS", "TuneSettings"]

BACKENDS = ("auto", "native", "torch")


@dataclass(frozen=True)
class TuneSettings:
    """SGD as ``torch.optim.SGD`` defines it.

    Attributes:
        lr: learning rate, more than 0.
        epochs: passes over the client's data in one round, at least 1.
        batch_size: examples a step, at least 1; an epoch's last batch may be smaller.
        momentum: in [0, 1); its buffer starts anew in every round, since clients are stateless.
        nesterov: Nesterov's momentum; needs ``momentum``.
        weight_decay: added as ``weight_decay * w`` to the gradient, at least 0.
        proximal: mu of the term ``mu/2 ||w - w_0||^2`` in the loss, w_0 being where training starts; at least 0.
        backend: ``"native"`` for the compiled trainer, ``"torch"`` for dense torch, or ``"auto"`` for the faster one as
            measured on this machine, round by round.
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
    proximal: float = 0.0
    backend: str = "auto"
    device: str = "auto"

    def __post_init__(self) -> None:
        if not 0 < self.lr < float("inf"):
            raise ArgumentError(f"train.lr = {self.lr} must be more than 0 and finite")
        if self.epochs < 1:
            raise ArgumentError(f"train.epochs = {self.epochs} must be at least 1")
        if self.batch_size < 1:
            raise ArgumentError(f"train.batch_size = {self.batch_size} must be at least 1")
        if not 0 <= self.momentum < 1:
            raise ArgumentError(f"train.momentum = {self.momentum} must be at least 0 and less than 1")
        if self.nesterov and self.momentum == 0:
            raise ArgumentError("train.nesterov = true needs train.momentum to be more than 0")
        if not 0 <= self.weight_decay < float("inf"):
            raise ArgumentError(f"train.weight_decay = {self.weight_decay} must be at least 0 and finite")
        if not 0 <= self.proximal < float("inf"):
            raise ArgumentError(f"the proximal term's factor = {self.proximal} must be at least 0 and finite")
        if self.backend not in BACKENDS:
            raise ArgumentError(f'train.backend = "{self.backend}" must be one of {", ".join(BACKENDS)}')
