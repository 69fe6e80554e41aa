"""Random progressive pruning: FedSparsify-Global that purges whichever parameters chance says, on the same schedule.

A control in arXiv 2204.12430: what remains of the accuracy is due to the schedule, not to what magnitude knows.
"""

from __future__ import annotations

from dataclasses import replace

from ..layout import ParameterLayout
from ..purge import Purge
from ..randomness import derive
from ..schedules import Schedule
from ..state import Floats, Mask
from .fedsparsify import fedsparsify_global
from .method import Method

__all__ = ["random"]


def random(schedule: Schedule, select: Purge, layout: ParameterLayout, seed: int) -> Method:
    """Return random progressive pruning.

    Each parameter draws its rank once a run, so that a mask depends on nothing but the seed and the sparsity.

    Args:
        schedule: t -> s_t.
        select: (scores, s_t, m_(t-1)) -> m_t.
        layout: the network's layout.
        seed: the run's seed.
    """
    ranks = derive(seed, "random purge").random(layout.n, dtype="float32")

    def purge(w: Floats, sparsity: float, mask: Mask) -> Mask:
        return select(ranks, sparsity, mask)

    return replace(fedsparsify_global(schedule, purge), name="random")
