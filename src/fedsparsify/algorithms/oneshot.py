"""OneShot pruning: dense federated training, pruned by magnitude once; without or with rounds of fine-tuning after it.

Baselines in arXiv 2204.12430. Both are FedSparsify-Global with a schedule of a single step.
"""

from __future__ import annotations

from dataclasses import replace

from ..errors import ArgumentError
from ..purge import Purge
from ..schedules import StepSchedule
from .fedsparsify import fedsparsify_global
from .method import Method

__all__ = ["oneshot", "oneshot_finetune"]


def oneshot(purge: Purge, sparsity: float, rounds: int) -> Method:
    """Return FedAvg whose last merged model is pruned: no training after it.

    Args:
        purge: (w, s, m) -> m'.
        sparsity: S_T.
        rounds: T.
    """
    return replace(fedsparsify_global(StepSchedule(sparsity, rounds), purge), name="oneshot")


def oneshot_finetune(purge: Purge, sparsity: float, rounds: int, round: int = 0) -> Method:
    """Return FedAvg whose merged model is pruned after one round and tuned in those that follow.

    Args:
        purge: (w, s, m) -> m'.
        sparsity: S_T.
        rounds: T.
        round: the round that prunes, from 1 to T; 0 is half of T, rounded up.

    Raises:
        ArgumentError: there is no such round.
    """
    if not 0 <= round <= rounds:
        raise ArgumentError(f"method.round = {round} must be a round from 1 to {rounds}, or 0 for half of them")
    schedule = StepSchedule(sparsity, round or (rounds + 1) // 2)
    return replace(fedsparsify_global(schedule, purge), name="oneshot-finetune")
