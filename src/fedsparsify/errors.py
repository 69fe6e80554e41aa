"""Every error that FedSparsify raises on purpose, in the user's words.

::

    FedSparsifyError
    |-- ArgumentError (also ValueError)       a value given to a function is out of its range
    |-- ConfigError                           a configuration key is unknown, mistyped or out of range
    |-- DataError                             a data file is missing, truncated or not what it should be
    |-- WireError                             a message is malformed, or belongs to another model or round
    |   |-- StaleReferenceError               a message refers to a model that its receiver does not hold
    |   `-- TamperedError                     an encrypted sum is not what clients have encrypted
    |-- RunError                              a run directory cannot be used or written
    |   `-- CheckpointError                   a checkpoint is missing, damaged or of another configuration
    |-- FederationError                       a round cannot go on
    |   `-- TooFewClientsError                fewer than ``min_clients`` usable updates came back
    `-- MissingExtraError (also ImportError)  an optional part is not installed

Each message names the value, the place (file, key, client, round) and the remedy in one sentence. The command line
prints it and exits with code 2, without a traceback.
"""

from __future__ import annotations

__all__ = [
    "ArgumentError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "FedSparsifyError",
    "FederationError",
    "MissingExtraError",
    "RunError",
    "StaleReferenceError",
    "TamperedError",
    "TooFewClientsError",
    "WireError",
]


class FedSparsifyError(Exception):
    """Root of all errors that a user or a peer can cause."""


class ArgumentError(FedSparsifyError, ValueError):
    """A value given to a function is of the wrong shape, type or range."""


class ConfigError(FedSparsifyError):
    """A configuration cannot be used; the message names file and key."""


class DataError(FedSparsifyError):
    """A data set cannot be read; the message names the file and where to get it."""


class WireError(FedSparsifyError):
    """A message cannot be decoded; the message names the section and what is wrong in it."""


class StaleReferenceError(WireError):
    """A message refers to a model that its receiver does not hold, or no longer; one that refers to nothing helps."""


class TamperedError(WireError):
    """An encrypted sum is not that of what clients have encrypted: its key must not be used again."""


class RunError(FedSparsifyError):
    """A run directory cannot be created, read or written."""


class CheckpointError(RunError):
    """A checkpoint is missing, damaged, or was written by another configuration."""


class FederationError(FedSparsifyError):
    """A federation cannot go on."""


class TooFewClientsError(FederationError):
    """A round ended with fewer usable updates than ``min_clients``."""


class MissingExtraError(FedSparsifyError, ImportError):
    """An optional dependency is missing; the message holds the pip line that installs it."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an optional dependency: pip install 'fedsparsify[{extra}]'")
