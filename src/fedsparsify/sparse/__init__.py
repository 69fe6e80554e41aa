"""Sparse layers on ordinary processors: native kernels, the compiled local trainer, torch modules, NumPy twins.

Nothing in here knows about rounds, clients or servers. Without a compiler the extension is missing: then
:func:`available` is False, :func:`choose` says ``torch``, and the torch modules compute with dense weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import on_first_use
from .native import available, targets

if TYPE_CHECKING:
    from .calibration import Calibration, Choice, LayerBackend, LayerTimes, calibrate, choose, processor
    from .modules import SparseConv2d, SparseLinear, densify, sparsify_module
    from .plan import LayerPlan, Loss, NetworkPlan, plan_network, why_uncovered
    from .trainer import Trainer, predict

__all__ = [
    "Calibration",
    "Choice",
    "LayerBackend",
    "LayerPlan",
    "LayerTimes",
    "Loss",
    "NetworkPlan",
    "SparseConv2d",
    "SparseLinear",
    "Trainer",
    "available",
    "calibrate",
    "choose",
    "densify",
    "plan_network",
    "predict",
    "processor",
    "sparsify_module",
    "targets",
    "why_uncovered",
]

_HOME = {
    "Calibration": "calibration",
    "Choice": "calibration",
    "LayerBackend": "calibration",
    "LayerPlan": "plan",
    "LayerTimes": "calibration",
    "Loss": "plan",
    "NetworkPlan": "plan",
    "SparseConv2d": "modules",
    "SparseLinear": "modules",
    "Trainer": "trainer",
    "calibrate": "calibration",
    "choose": "calibration",
    "densify": "modules",
    "plan_network": "plan",
    "predict": "trainer",
    "processor": "calibration",
    "sparsify_module": "modules",
    "why_uncovered": "plan",
}

# Imported on first use: the exported model runs on these kernels without torch.
__getattr__ = on_first_use(__name__, _HOME)
