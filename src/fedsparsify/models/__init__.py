"""The networks of the paper's domains, one a file, and the way to a user's own.

Only architectures and their initial weights live here; nothing that trains, and no import above errors, randomness
and plugins.
"""

from __future__ import annotations

from .registry import MODELS, build, build_from

__all__ = ["MODELS", "build", "build_from"]
