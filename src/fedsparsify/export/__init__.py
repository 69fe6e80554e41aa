"""The finished model for other programs: one sparse file, its engine, ONNX and safetensors.

Nothing here trains. ``trace`` alone imports torch; the sparse file is read, checked and run without it.
"""

from __future__ import annotations

from .artifact import Artifact, load_artifact, save_artifact
from .model import Prediction, SparseModel

__all__ = ["Artifact", "Prediction", "SparseModel", "load_artifact", "save_artifact"]
