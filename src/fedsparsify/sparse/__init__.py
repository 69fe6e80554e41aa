"""Sparse layers on ordinary processors: native kernels, the compiled local trainer, torch modules, NumPy twins.

Nothing in here knows about rounds, clients or servers. Without a compiler the extension is missing: then
:func:`available` is False, :func:`choose` says ``torch``, and the torch modules compute with dense weights.
"""

from __future__ import annotations

from .calibration import Calibration, Choice, LayerBackend, LayerTimes, calibrate, choose, processor
from .modules import SparseConv2d, SparseLinear, densify, sparsify_module
from .native import available, targets
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
