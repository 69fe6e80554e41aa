"""How our bytes lie in Flower's records: the names at both ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import Array, ArrayRecord

__all__ = ["FAILURE", "MODEL", "PAYLOAD", "STYPE", "TASK", "Node", "Task", "opaque"]

MODEL, TASK, FAILURE = "model", "task", "failure"
"""Records of a message: the encoded model; what a client is told beside it; why there is no model."""

PAYLOAD, STYPE = "payload", "fedsparsify.message"
"""Name and type of the one array in a :data:`MODEL` record."""


@dataclass(frozen=True)
class Task:
    """What a client is told beside the broadcast.

    Attributes:
        client: its index.
        round: the round that it is to train in.
        calibration: by which figures all clients choose between kernels, as JSON; empty for its own.
    """

    client: int
    round: int
    calibration: str


@dataclass(frozen=True)
class Node:
    """What a client knows of where it runs.

    Attributes:
        id: Flower's identifier of the SuperNode.
        node_config: what the SuperNode was started with (``--node-config``).
        run_config: the app's configuration, as for this run.
    """

    id: int
    node_config: Mapping[str, Any]
    run_config: Mapping[str, Any]


def opaque(payload: bytes) -> ArrayRecord:
    """Return a record of one array of bytes, which nothing but we can read."""
    return ArrayRecord({PAYLOAD: Array(dtype="uint8", shape=(len(payload),), stype=STYPE, data=payload)})
