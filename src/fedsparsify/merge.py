"""Many models -> one: weighted average, nonzero average, majority vote.

Every rule is one pass over the contributions, in the order given (the engine gives them in client order), with sums
in float64: the result does not depend on the order in which updates arrived, and the server holds one decoded update
at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from .errors import ArgumentError
from .state import ClientUpdate, Floats, Mask, ModelState

__all__ = [
    "MERGE_RULES",
    "Contribution",
    "MergeRule",
    "VectorAverage",
    "average_of",
    "majority_nonzero",
    "majority_nonzero_of",
    "majority_of",
    "majority_vote",
    "merge_models",
    "nonzero_average",
    "nonzero_of",
    "weighted_average",
]

Contribution = tuple[Floats, Mask, int]
"""One client's (w_k: float32[n], m_k: bool[n], n_k)."""

MergeRule = Callable[[Iterable[Contribution]], tuple[Floats, Mask]]
"""Contributions -> (w: float32[n], m: bool[n]), with w exactly 0 where m is False."""


class _Sums:
    """Running sums over the contributions: sum n_k w_k, sum n_k, sum n_k m_k and the votes sum m_k."""

    def __init__(self, contributions: Iterable[Contribution], *, by_position: bool) -> None:
        self.count = 0
        self.examples = 0
        for w, mask, num_examples in contributions:
            if num_examples <= 0:
                raise ArgumentError(f"update {self.count} has {num_examples} examples; a weight must be more than 0")
            if self.count == 0:
                self.weights = np.zeros(w.shape, np.float64)
                self.examples_kept = np.zeros(w.shape, np.float64) if by_position else None
                self.votes = np.zeros(w.shape, np.int32)
            if w.shape != self.weights.shape or mask.shape != self.weights.shape:
                raise ArgumentError(
                    f"update {self.count} has {w.shape} weights and {mask.shape} mask positions"
                    f" where the first has {self.weights.shape}"
                )
            self.weights += np.multiply(w if mask.all() else np.where(mask, w, 0), num_examples, dtype=np.float64)
            if self.examples_kept is not None:
                self.examples_kept += float(num_examples) * mask  # a peer may declare more than int64 holds
            self.votes += mask
            self.examples += num_examples
            self.count += 1
        if self.count == 0:
            raise ArgumentError("there is no update to merge")

    def average(self) -> Floats:
        return (self.weights / self.examples).astype(np.float32)

    def average_of_kept(self) -> Floats:
        assert self.examples_kept is not None
        return (self.weights / np.maximum(self.examples_kept, 1)).astype(np.float32)

    @property
    def union(self) -> Mask:
        return self.votes > 0

    @property
    def majority(self) -> Mask:
        return 2 * self.votes >= self.count


def average_of(contributions: Iterable[Contribution]) -> tuple[Floats, Mask]:
    """Average: w = sum p_k w_k with p_k = n_k / sum n_j; zeros count; a parameter stays if anyone kept it."""
    sums = _Sums(contributions, by_position=False)
    return sums.average(), sums.union


def nonzero_of(contributions: Iterable[Contribution]) -> tuple[Floats, Mask]:
    """Average each parameter over those who kept it only; it stays if anyone kept it."""
    sums = _Sums(contributions, by_position=True)
    return sums.average_of_kept(), sums.union


def majority_of(contributions: Iterable[Contribution]) -> tuple[Floats, Mask]:
    """Keep what at least half of the participants kept; average with zeros counted (FedSparsify-Local)."""
    sums = _Sums(contributions, by_position=False)
    return np.where(sums.majority, sums.average(), np.float32(0)), sums.majority


def majority_nonzero_of(contributions: Iterable[Contribution]) -> tuple[Floats, Mask]:
    """Keep what at least half of the participants kept; average over those who kept it only."""
    sums = _Sums(contributions, by_position=True)
    return np.where(sums.majority, sums.average_of_kept(), np.float32(0)), sums.majority


def merge_models(updates: Iterable[ClientUpdate], rule: MergeRule, within: Mask) -> ModelState:
    """Merge whole models in one pass: parameters and masks by ``rule``, buffers by weighted average.

    A rule works position by position, so it is given the positions of ``within`` only, and costs O(survivors).

    Args:
        updates: usable updates in client order; may be a generator that decodes one at a time.
        rule: one of :data:`MERGE_RULES`, or a function like them.
        within: bool[n], positions that all updates stay within: the mask that was broadcast, or all.

    Raises:
        ArgumentError: there is no update, or one has another shape or survivors elsewhere.
    """
    survivors = np.flatnonzero(within)
    everywhere = np.ones(len(survivors), np.bool_)
    buffer_sum: np.ndarray[tuple[int, ...], np.dtype[np.float64]] | None = None
    examples = 0

    def contributions() -> Iterable[Contribution]:
        nonlocal buffer_sum, examples
        for update in updates:
            model = update.model
            if model.mask.shape != within.shape:
                raise ArgumentError(f"the update of client {update.client} has {model.mask.shape} parameters")
            weighted = update.num_examples * model.buffers.astype(np.float64)
            buffer_sum = weighted if buffer_sum is None else buffer_sum + weighted
            examples += update.num_examples
            if model.mask is within or np.array_equal(model.mask, within):
                yield model.values, everywhere, update.num_examples
                continue
            mask = model.mask[survivors]
            if np.count_nonzero(mask) != len(model.values):
                raise ArgumentError(f"the update of client {update.client} has survivors that were not broadcast")
            values = np.zeros(len(survivors), np.float32)
            values[mask] = model.values
            yield values, mask, update.num_examples

    values, kept = rule(contributions())
    assert buffer_sum is not None  # a rule refuses to merge nothing
    mask = within.copy()
    mask[survivors] = kept
    return ModelState.of_values(values[kept], mask, (buffer_sum / examples).astype(np.float32))


class VectorAverage:
    """The average sum p_k v_k of a vector that updates carry beside their models, taken in the pass that merges these.

    Args:
        name: of the vector, one that the method ``sends``.

    >>> mask = np.array([True])
    >>> score = VectorAverage("score")
    >>> for k, examples in enumerate((1, 3)):
    ...     model = ModelState.of_values(np.float32([0]), mask)
    ...     _ = list(score.of([ClientUpdate(k, 1, model, examples, {}, {"score": np.float32([k])})]))
    >>> score.value.tolist()
    [0.75]
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._sum: np.ndarray[tuple[int, ...], np.dtype[np.float64]] | None = None
        self._examples = 0

    def of(self, updates: Iterable[ClientUpdate]) -> Iterator[ClientUpdate]:
        """Yield the updates on, adding up their vectors."""
        for update in updates:
            weighted = np.multiply(update.vectors[self._name], update.num_examples, dtype=np.float64)
            self._sum = weighted if self._sum is None else self._sum + weighted
            self._examples += update.num_examples
            yield update

    @property
    def value(self) -> Floats:
        """float32[n].

        Raises:
            ArgumentError: no update has passed.
        """
        if self._sum is None:
            raise ArgumentError(f"there is no update to average {self._name} over")
        return (self._sum / self._examples).astype(np.float32)


def _zip(weights: Sequence[Floats], masks: Sequence[Mask], num_examples: Sequence[int]) -> Iterable[Contribution]:
    if not len(weights) == len(masks) == len(num_examples):
        raise ArgumentError(f"{len(weights)} weights, {len(masks)} masks and {len(num_examples)} sizes do not pair up")
    return zip(weights, masks, num_examples, strict=True)


def weighted_average(weights: Sequence[Floats], num_examples: Sequence[int]) -> Floats:
    """Return sum p_k w_k with p_k = n_k / sum n_j, as float32[n].

    Args:
        weights: a sequence of float32[n].
        num_examples: n_k for each of them, all more than 0.

    Raises:
        ArgumentError: nothing to merge, lengths or shapes differ, or a size is not positive.

    Source: McMahan et al., arXiv 1602.05629.

    >>> weighted_average([np.float32([1, 0]), np.float32([4, 3])], [1, 2]).tolist()
    [3.0, 2.0]
    """
    return average_of(_zip(weights, [np.ones(w.shape, np.bool_) for w in weights], num_examples))[0]


def nonzero_average(weights: Sequence[Floats], masks: Sequence[Mask], num_examples: Sequence[int]) -> Floats:
    """Return sum_k n_k m_k w_k / sum_k n_k m_k for each parameter, 0 where nobody kept it, as float32[n].

    Args:
        weights: a sequence of float32[n].
        masks: a sequence of bool[n].
        num_examples: n_k for each of them, all more than 0.

    Raises:
        ArgumentError: as :func:`weighted_average`.

    >>> kept = [np.array([True, False]), np.array([True, False])]
    >>> nonzero_average([np.float32([1, 0]), np.float32([4, 0])], kept, [1, 2]).tolist()
    [3.0, 0.0]
    """
    return nonzero_of(_zip(weights, masks, num_examples))[0]


def majority_vote(weights: Sequence[Floats], masks: Sequence[Mask], num_examples: Sequence[int]) -> tuple[Floats, Mask]:
    """Return (w, m): m where at least half of the participants kept a parameter, w = m * sum p_k w_k m_k.

    Args:
        weights: a sequence of float32[n].
        masks: a sequence of bool[n].
        num_examples: n_k for each of them, all more than 0; they weigh the average, not the vote.

    Raises:
        ArgumentError: as :func:`weighted_average`.

    Source: arXiv 2204.12430, FedSparsify-Local.

    >>> kept = [np.array([True, True]), np.array([True, False]), np.array([True, False])]
    >>> w, m = majority_vote([np.float32([1, 9]), np.float32([1, 0]), np.float32([4, 0])], kept, [1, 1, 1])
    >>> w.tolist(), m.tolist()
    ([2.0, 0.0], [True, False])
    """
    return majority_of(_zip(weights, masks, num_examples))


def majority_nonzero(
    weights: Sequence[Floats], masks: Sequence[Mask], num_examples: Sequence[int]
) -> tuple[Floats, Mask]:
    """Return (w, m): m as :func:`majority_vote`, w averaged over those who kept a parameter only."""
    return majority_nonzero_of(_zip(weights, masks, num_examples))


MERGE_RULES: dict[str, MergeRule] = {
    "average": average_of,
    "majority": majority_of,
    "majority-nonzero": majority_nonzero_of,
    "nonzero": nonzero_of,
}
