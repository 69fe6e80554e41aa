"""Partitions: which client holds which examples.

Pure functions ``(labels, clients, rng, ...) -> parts``; part k holds client k's indices, int64 and ascending. Every
example belongs to exactly one client, and every client has at least one.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError

__all__ = ["Part", "by_classes", "by_groups", "dirichlet", "iid", "quantity_skew", "summary"]

Part = NDArray[np.int64]


def iid(labels: NDArray[Any], clients: int, rng: np.random.Generator) -> list[Part]:
    """Deal shuffled examples out evenly: sizes differ by at most one.

    Args:
        labels: [N, ...], of which only the length matters.
        clients: number of clients, at most N.
        rng: source of the shuffle.

    Raises:
        ArgumentError: fewer than one client, or more clients than examples.

    >>> [len(part) for part in iid(np.zeros(10), 4, np.random.default_rng(1))]
    [3, 3, 2, 2]
    """
    _check(labels, clients)
    return [np.sort(part) for part in np.array_split(rng.permutation(len(labels)), clients)]


def by_classes(labels: NDArray[Any], clients: int, rng: np.random.Generator, classes_per_client: int) -> list[Part]:
    """Sort examples by class and deal them out in chunks, so that each client has exactly c distinct classes.

    This is the paper's non-IID setting (arXiv 2204.12430, section 5). The ``clients * c`` chunks are spread over the
    classes so that their numbers differ by at most one; the examples of a class are cut into chunks whose sizes differ
    by at most one.

    Args:
        labels: int[N] class labels.
        clients: number of clients.
        rng: breaks ties, and shuffles the examples of each class.
        classes_per_client: c.

    Raises:
        ArgumentError: c is below 1 or above the number of classes, there are too few chunks for all classes, or a
            class has fewer examples than chunks.

    >>> labels = np.repeat(np.arange(4), 6)
    >>> parts = by_classes(labels, 6, np.random.default_rng(1), classes_per_client=2)
    >>> [len(set(labels[part])) for part in parts], [len(part) for part in parts]
    ([2, 2, 2, 2, 2, 2], [4, 4, 4, 4, 4, 4])
    """
    _check(labels, clients)
    classes, sizes = np.unique(_class_labels(labels), return_counts=True)
    c, found = classes_per_client, len(classes)
    if not 1 <= c <= found:
        raise ArgumentError(f"classes per client = {c} must be from 1 to {found}, the number of classes in the data")
    if clients * c < found:
        raise ArgumentError(
            f"{clients} clients with {c} classes each cannot hold all {found} classes: "
            f"use at least {math.ceil(found / clients)} classes per client or {math.ceil(found / c)} clients"
        )
    # Where chunks do not divide evenly, larger classes are cut once more.
    by_size = np.lexsort((rng.permutation(found), -sizes))
    chunks = np.full(found, clients * c // found)
    chunks[by_size[: clients * c % found]] += 1
    if np.any(sizes < chunks):
        k = int(np.argmax(chunks - sizes))
        raise ArgumentError(
            f"class {classes[k]} has {sizes[k]} examples, too few for the {chunks[k]} of {clients} clients that hold "
            f"it: use fewer clients or fewer classes per client"
        )
    dealt = [
        iter(np.array_split(rng.permutation(np.flatnonzero(labels == y)), k))
        for y, k in zip(classes, chunks, strict=True)
    ]
    parts = []
    for _ in range(clients):
        # Taking the classes with most chunks left never leaves a class with more chunks than clients to take them.
        chosen = np.lexsort((rng.permutation(found), -chunks))[:c]
        chunks[chosen] -= 1
        parts.append(np.sort(np.concatenate([next(dealt[k]) for k in chosen])))
    return parts


def by_groups(groups: NDArray[np.int64] | None, clients: int) -> list[Part]:
    """Make each group that has examples one client, in the order of their indices.

    Args:
        groups: int[N] group of each example, or None where the data set has no groups.
        clients: number of clients, which must be that of the groups; 0 takes it as it is.

    Raises:
        ArgumentError: there are no groups, or another number of them.

    >>> [part.tolist() for part in by_groups(np.array([3, 0, 3]), 0)]
    [[1], [0, 2]]
    """
    if groups is None:
        raise ArgumentError("the examples of this data set belong to no groups: choose another kind of partition")
    held = np.unique(groups)
    if clients not in (0, len(held)):
        raise ArgumentError(
            f"federation.clients = {clients}, but {len(held)} groups have training examples: write {len(held)}, or 0"
            " for as many as there are"
        )
    return [np.flatnonzero(groups == group) for group in held]


def dirichlet(labels: NDArray[Any], clients: int, rng: np.random.Generator, alpha: float) -> list[Part]:
    """Split each class over the clients in proportions drawn from a symmetric Dirichlet distribution.

    Small ``alpha`` gives each class to few clients, large ``alpha`` approaches IID. A client left without examples
    gets one from the client that has most. Source: Yurochkin et al., Bayesian Nonparametric Federated Learning of
    Neural Networks, ICML 2019.

    Args:
        labels: int[N] class labels.
        clients: number of clients.
        rng: source of proportions and of the shuffle.
        alpha: concentration, above 0.

    Raises:
        ArgumentError: fewer than one client, more clients than examples, or ``alpha`` not above 0.
    """
    _check(labels, clients)
    classes = np.unique(_class_labels(labels))
    split = [_proportional(np.flatnonzero(labels == y), clients, rng, alpha) for y in classes]
    return _none_empty([np.concatenate(pieces) for pieces in zip(*split, strict=True)], rng)


def quantity_skew(labels: NDArray[Any], clients: int, rng: np.random.Generator, alpha: float) -> list[Part]:
    """Deal shuffled examples out in sizes drawn from a symmetric Dirichlet distribution: IID classes, unequal sizes.

    A client left without examples gets one from the client that has most. Source: Li et al., Federated Learning on
    Non-IID Data Silos, ICDE 2022.

    Args:
        labels: [N, ...], of which only the length matters.
        clients: number of clients.
        rng: source of sizes and of the shuffle.
        alpha: concentration, above 0; small values give few clients nearly everything.

    Raises:
        ArgumentError: fewer than one client, more clients than examples, or ``alpha`` not above 0.
    """
    _check(labels, clients)
    return _none_empty(_proportional(np.arange(len(labels)), clients, rng, alpha), rng)


def summary(labels: NDArray[Any], parts: list[Part], classes: int) -> list[list[int]]:
    """Count examples by client and class: ``counts[client][class]``.

    Args:
        labels: int[N] class labels.
        parts: indices of each client.
        classes: number of classes.

    Raises:
        ArgumentError: a label is not below ``classes``.

    >>> summary(np.array([0, 1, 1, 2]), [np.array([0, 1]), np.array([2, 3])], 3)
    [[1, 1, 0], [0, 1, 1]]
    """
    if _class_labels(labels).size and (labels.min() < 0 or labels.max() >= classes):
        raise ArgumentError(f"labels go from {labels.min()} to {labels.max()}, outside 0 to {classes - 1}")
    return [np.bincount(labels[part], minlength=classes).tolist() for part in parts]


def _check(labels: NDArray[Any], clients: int) -> None:
    if clients < 1:
        raise ArgumentError(f"number of clients = {clients} must be at least 1")
    if clients > len(labels):
        raise ArgumentError(f"{clients} clients cannot share {len(labels)} examples: each needs at least one")


def _class_labels(labels: NDArray[Any]) -> NDArray[Any]:
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ArgumentError(
            f"labels of shape {list(labels.shape)} and type {labels.dtype} are no class labels, so they cannot be "
            "split by class: use an IID or quantity-skewed partition"
        )
    return labels


def _proportional(indices: Part, clients: int, rng: np.random.Generator, alpha: float) -> list[Part]:
    """Shuffle and cut indices in proportions ~ Dirichlet(alpha, ..., alpha)."""
    if not 0 < alpha < math.inf:
        raise ArgumentError(f"alpha = {alpha} must be a finite number above 0")
    bounds = np.cumsum(rng.dirichlet(np.full(clients, alpha)))[:-1]
    return np.split(rng.permutation(indices), (bounds * len(indices)).round().astype(np.int64))


def _none_empty(parts: list[Part], rng: np.random.Generator) -> list[Part]:
    """Give each empty part one example of the largest, and sort all."""
    for k, part in enumerate(parts):
        if not len(part):
            donor = max(range(len(parts)), key=lambda j: len(parts[j]))
            given = rng.integers(len(parts[donor]))
            parts[k] = parts[donor][given : given + 1]
            parts[donor] = np.delete(parts[donor], given)
    return [np.sort(part) for part in parts]
