"""GraSP: keep the connections that the flow of gradients needs, judged before training.

Wang, Zhang and Grosse, *Picking Winning Tickets Before Training by Preserving Gradient Flow*, arXiv 2002.07376.

Federated as in arXiv 2204.12430: one client scores the initial network. Deviations: the gradient is of the loss as it
is trained (GraSP divides the logits by a temperature of 200 first) on ordinary batches (GraSP draws ten examples a
class); over several batches H g is averaged, g being each batch's own; biases and normalisation parameters are kept
first (see :mod:`.saliency`).
"""

from __future__ import annotations

from ..layout import ParameterLayout
from ..purge import Purge
from ..state import Floats, ModelState
from .method import Local, Method
from .saliency import check_batches, mask_at_start

__all__ = ["grasp"]


def grasp(sparsity: float, select: Purge, layout: ParameterLayout, clients: str = "one", batches: int = 4) -> Method:
    """Return GraSP: score = w * (H g), so that what goes first is what the gradient's norm gains most without.

    Removing w_i changes half the squared norm of the gradient by about -w_i (H g)_i.

    Args:
        sparsity: S_T, from round 0 on.
        select: (scores, s, m) -> m'.
        layout: the network's layout.
        clients: ``"one"``, or the average over ``"all"`` that take part in a round.
        batches: how many batches of a client's data H g is taken over; 0 for all.

    Raises:
        ArgumentError: an option is out of its range.
    """
    used = check_batches(batches)

    def score(model: ModelState, local: Local) -> Floats:
        return model.w * local.curvature(model, batches=used)

    return mask_at_start("grasp", score, sparsity, select, layout, clients)
