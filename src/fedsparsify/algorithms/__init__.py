"""One federated method a file, as pure functions; ``fedsparsify.py`` is the paper.

Nothing here trains, sends or evaluates: the engine owns the loop, and passes a client's abilities in as an object.
"""

from __future__ import annotations

from .method import Local, Method, Result
from .registry import METHODS, build

__all__ = ["METHODS", "Local", "Method", "Result", "build"]
