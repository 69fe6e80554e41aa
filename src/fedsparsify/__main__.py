"""``python -m fedsparsify`` is the same as ``fedsparsify``."""

from __future__ import annotations

from .cli import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
