"""One federated method a file, as pure functions; ``fedsparsify.py`` is the paper.

Nothing here trains, sends or evaluates: the engine owns the loop, and passes local training in as a function.
"""

from __future__ import annotations

from .fedavg import fedavg
from .fedsparsify import fedsparsify_global, fedsparsify_local
from .method import Method

__all__ = ["Method", "fedavg", "fedsparsify_global", "fedsparsify_local"]
