"""The compiled local trainer: a client's epochs as one native call, over the surviving parameters only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError
from ..state import Floats, Mask
from .calibration import Calibration, LayerBackend, choose
from .native import require_native
from .plan import NetworkPlan

__all__ = ["Trainer", "predict"]

Integers = NDArray[np.int64]
Backends = Literal["auto", "sparse", "dense"] | Sequence[LayerBackend]


class Trainer:
    """Stochastic gradient descent on one network under one mask, in native code.

    Parameters and optimiser state of a sparse layer are compact vectors of the survivors; a pruned position is exactly
    0 in :meth:`weights`, always. The update is that of ``torch.optim.SGD``, with the proximal term added to the loss:

        g = dL/dw + mu * (w - w_0) + weight_decay * w
        v = momentum * v + g                          (v = g in the first step)
        w = w - lr * (g + momentum * v if nesterov else v)

    One trainer runs on one thread, and gives the same bits for the same arguments, backends and target, whatever
    other threads do. Calls from several threads on one trainer wait for each other.

    Args:
        plan: the network, from :func:`plan_network`.
        w: float32[n], the parameters to start from; entries where ``mask`` is False count as 0. Also the anchor w_0
            of the proximal term.
        mask: bool[n], True for a surviving parameter.
        buffers: float32[b], batch-norm running statistics.
        lr: learning rate, finite and >= 0.
        momentum: in [0, 1).
        nesterov: look ahead along the momentum; needs ``momentum`` > 0.
        weight_decay: factor of w in the gradient, >= 0.
        proximal: mu of the proximal term mu/2 * ||w - w_0||^2, >= 0.
        batch_size: examples in a step, at least 1.
        seed: of the dropout masks, 0 <= seed < 2^64.
        backends: ``sparse`` or ``dense`` for each linear and convolution layer in order, one word for all of them, or
            ``auto``: what the calibration says is fastest. To repeat a run bit for bit, pass the recorded
            :attr:`layer_backends` back in.
        target: instruction set, one of :func:`targets`; empty for the best.
        calibration: measurements to choose from with ``auto``; by default those of this machine.

    Attributes:
        layer_backends: what is used for each linear and convolution layer.

    Raises:
        ArgumentError: an argument has the wrong shape, type or range, or the extension is not built.
    """

    def __init__(
        self,
        plan: NetworkPlan,
        w: Floats,
        mask: Mask,
        buffers: Floats,
        *,
        lr: float,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        proximal: float = 0.0,
        batch_size: int,
        seed: int = 0,
        backends: Backends = "auto",
        target: str = "",
        calibration: Calibration | None = None,
    ) -> None:
        native = require_native()
        _check_state(plan, w, mask, buffers)
        for name, value, most in (
            ("lr", lr, math.inf),
            ("momentum", momentum, 1.0),
            ("weight_decay", weight_decay, math.inf),
            ("proximal", proximal, math.inf),
        ):
            if not 0.0 <= value < most:
                raise ArgumentError(f"{name} = {value} must be at least 0 and below {most}")
        if nesterov and momentum == 0.0:
            raise ArgumentError("nesterov needs a momentum above 0")
        _check_whole("batch_size", batch_size, 1, 1 << 20)
        _check_whole("seed", seed, 0, (1 << 64) - 1)
        self._plan = plan
        self.layer_backends = _resolve(plan, mask, backends, batch_size, calibration)
        try:
            self._native: Any = native.Trainer(
                plan.native_layers(),
                list(plan.native_input),
                plan.loss == "squared-error",
                list(self.layer_backends),
                w,
                mask,
                buffers,
                lr=lr,
                momentum=momentum,
                nesterov=nesterov,
                weight_decay=weight_decay,
                proximal=proximal,
                batch_size=batch_size,
                seed=seed,
                target=target,
            )
        except ValueError as e:
            raise ArgumentError(str(e)) from e

    def epoch(self, x: Floats, y: Integers | Floats, order: Integers | None = None) -> float:
        """Train one pass, in consecutive batches; the last one may be smaller. Releases the GIL.

        Args:
            x: float32[N, ...], C-contiguous, one example a row; read in place, never copied as a whole.
            y: int64[N] class indices for cross-entropy, float32[N] or float32[N, outputs] for squared error.
            order: int64[M], the rows of ``x`` and ``y`` to visit, in order; by default all of them as they lie. Lets
                several clients share one data set, and shuffles without a copy.

        Returns:
            The mean over the visited examples of the loss each had in its step.

        Raises:
            ArgumentError: an array has the wrong shape or type, or a label or index is out of range.
        """
        _check_examples(self._plan, x)
        labels, targets = _check_answers(self._plan, y, len(x))
        if order is not None:
            _check_array("order", order, np.int64)
            if order.ndim != 1 or order.size == 0:
                raise ArgumentError(f"order of shape {order.shape} must be one non-empty list of rows")
            low, high = int(order.min()), int(order.max())
            if low < 0 or high >= len(x):
                raise ArgumentError(f"order has row {low if low < 0 else high}, but x has rows 0 to {len(x) - 1}")
        elif len(x) == 0:
            raise ArgumentError("x has no examples")
        try:
            return float(self._native.epoch(x, order, labels, targets))
        except ValueError as e:
            raise ArgumentError(str(e)) from e

    def weights(self) -> Floats:
        """Copy the parameters out: float32[n], exactly 0 where pruned."""
        out = np.empty(self._plan.n, np.float32)
        self._native.weights(out)
        return out

    def buffers(self) -> Floats:
        """Copy the batch-norm running statistics out: float32[b]."""
        out = np.empty(self._plan.b, np.float32)
        self._native.buffers(out)
        return out


def predict(
    plan: NetworkPlan,
    w: Floats,
    mask: Mask,
    buffers: Floats,
    x: Floats,
    *,
    backends: Backends = "auto",
    batch_size: int = 64,
    target: str = "",
    calibration: Calibration | None = None,
) -> Floats:
    """Outputs in evaluation mode: running statistics, no dropout. Releases the GIL.

    Args:
        plan: the network.
        w: float32[n].
        mask: bool[n].
        buffers: float32[b].
        x: float32[N, ...], C-contiguous.
        backends: as for :class:`Trainer`.
        batch_size: examples that pass through the network together; changes speed, not results.
        target: instruction set; empty for the best.
        calibration: as for :class:`Trainer`.

    Returns:
        float32[N, outputs]: logits, or the regression's outputs.

    Raises:
        ArgumentError: an argument has the wrong shape, type or range, or the extension is not built.
    """
    native = require_native()
    _check_state(plan, w, mask, buffers)
    _check_examples(plan, x)
    _check_whole("batch_size", batch_size, 1, 1 << 20)
    chosen = _resolve(plan, mask, backends, batch_size, calibration)
    try:
        out: Floats = native.predict(
            plan.native_layers(), list(plan.native_input), list(chosen), w, mask, buffers, x, batch_size, target
        )
    except ValueError as e:
        raise ArgumentError(str(e)) from e
    return out


def _resolve(
    plan: NetworkPlan, mask: Mask, backends: Backends, batch_size: int, calibration: Calibration | None
) -> tuple[LayerBackend, ...]:
    count = len(plan.weighted)
    if backends == "auto":
        return choose(plan, mask, batch_size, calibration=calibration).layers
    if backends == "sparse" or backends == "dense":
        return (backends,) * count
    chosen = tuple(backends)
    if len(chosen) != count or any(b not in ("sparse", "dense") for b in chosen):
        raise ArgumentError(f"backends = {list(chosen)} must be 'sparse' or 'dense' for each of {count} layers")
    return chosen


def _check_whole(name: str, value: int, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not least <= value <= most:
        raise ArgumentError(f"{name} = {value!r} must be a whole number from {least} to {most}")


def _check_array(name: str, array: Any, dtype: type) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != dtype or not array.flags.c_contiguous:
        found = f"{array.dtype} array" if isinstance(array, np.ndarray) else type(array).__name__
        raise ArgumentError(f"{name} must be a C-contiguous {np.dtype(dtype)} array, not a {found}")


def _check_state(plan: NetworkPlan, w: Floats, mask: Mask, buffers: Floats) -> None:
    for name, array, dtype, size in (
        ("w", w, np.float32, plan.n),
        ("mask", mask, np.bool_, plan.n),
        ("buffers", buffers, np.float32, plan.b),
    ):
        _check_array(name, array, dtype)
        if array.shape != (size,):
            raise ArgumentError(f"{name} has the shape {array.shape}, but the network needs ({size},)")


def _check_examples(plan: NetworkPlan, x: Floats) -> None:
    _check_array("x", x, np.float32)
    if x.ndim < 1 or math.prod(x.shape[1:]) != math.prod(plan.input_shape):
        raise ArgumentError(f"x of shape {x.shape} does not hold examples of shape {plan.input_shape}")


def _check_answers(plan: NetworkPlan, y: Integers | Floats, count: int) -> tuple[Integers | None, Floats | None]:
    if plan.loss == "cross-entropy":
        _check_array("y", y, np.int64)
        if y.shape != (count,):
            raise ArgumentError(f"y has the shape {y.shape}, but x has {count} examples")
        if count and (y.min() < 0 or y.max() >= plan.outputs):
            bad = y.min() if y.min() < 0 else y.max()
            raise ArgumentError(f"y has label {bad}, but the network has outputs 0 to {plan.outputs - 1}")
        return y, None  # type: ignore[return-value]
    _check_array("y", y, np.float32)
    if y.shape != (count, plan.outputs) and (plan.outputs != 1 or y.shape != (count,)):
        raise ArgumentError(f"y has the shape {y.shape}, but the network gives ({count}, {plan.outputs})")
    return None, y  # type: ignore[return-value]
