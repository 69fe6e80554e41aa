"""FedSparsify, THE PAPER.

Stripelis, Gupta, Ver Steeg, Ambite, *Federated Progressive Sparsification (Purge, Merge, Tune)+*, arXiv 2204.12430.

Notation: w all n trainable parameters, m in {0,1}^n their mask, round t = 1..T, client k with n_k examples,
p_k = n_k / sum of n_j over the round's participants.

================================================================ ====================== =======================
equation                                                         function               test
================================================================ ====================== =======================
s_t = S_T + (S_0 - S_T) (1 - (F floor(t/F) - t_0) / (T - t_0))^e ``PolynomialSchedule`` ``test_schedules.py``
Purge: m_t = the n - floor(s_t n) largest abs(w) within m_(t-1)  ``purge.make_purge``   ``test_purge.py``
Tune: w <- w - eta m grad f_k(w), for E epochs                   ``tune.Tuner.tune``    ``test_tune.py``
Merge, Global: w = sum p_k w_k                                   ``merge.average_of``   ``test_merge.py``
Merge, Local: m_t(i) = 1 where at least half kept i, else 0;     ``merge.majority_of``  ``test_merge.py``
w = m_t sum p_k (w_k m_k)
(Purge, Merge, Tune)+, all together                              both functions below   ``test_conformance.py``
================================================================ ====================== =======================

Masks are nested, m_t <= m_(t-1): purge chooses among survivors only.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from ..merge import MergeRule, average_of, majority_of, merge_models
from ..purge import Purge
from ..schedules import Schedule
from ..state import ClientUpdate, ModelState, ServerState
from .method import Local, Method

__all__ = ["fedsparsify_global", "fedsparsify_local"]


def fedsparsify_global(schedule: Schedule, purge: Purge) -> Method:
    """Return FedSparsify-Global: the server purges the merged model.

    Args:
        schedule: t -> s_t.
        purge: (w, s_t, m_(t-1)) -> m_t.
    """

    def client_update(model: ModelState, t: int, local: Local) -> ModelState:
        return local.tune(model)

    def server_update(state: ServerState, updates: Iterable[ClientUpdate], t: int) -> ServerState:
        merged = merge_models(updates, average_of, state.model.mask)
        return ServerState(t, merged.under(purge(merged.w, schedule(t), state.model.mask)))

    return Method("fedsparsify-global", client_update, server_update, schedule, merges="average")


def fedsparsify_local(schedule: Schedule, purge: Purge, merge: MergeRule = majority_of) -> Method:
    """Return FedSparsify-Local: each client purges its own model, the server lets them vote.

    Args:
        schedule: t -> s_t.
        purge: (w_k, s_t, m_(t-1)) -> m_k.
        merge: the paper's majority vote, or one of the authors' variants in ``merge.MERGE_RULES``.
    """

    def client_update(model: ModelState, t: int, local: Local) -> ModelState:
        tuned = local.tune(model)
        return tuned.under(purge(tuned.w, schedule(t), model.mask))

    def server_update(state: ServerState, updates: Iterable[ClientUpdate], t: int) -> ServerState:
        return ServerState(t, merge_models(updates, merge, state.model.mask))

    merges: Literal["vote", "models"] = "vote" if merge is majority_of else "models"
    return Method("fedsparsify-local", client_update, server_update, schedule, exact=False, merges=merges)
