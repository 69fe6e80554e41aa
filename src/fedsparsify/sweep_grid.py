"""GRID.toml -> the runs of a sweep, each with its name and its settings.

A grid is an ordinary configuration, the base, with ``[[sweep]]`` blocks of the same tables. In a block a list is an
axis and anything else replaces the base's value; a block stands for the product of its axes, the grid for all runs of
all blocks. ``docs/sweeps.md`` explains it with examples.
"""

from __future__ import annotations

import copy
import itertools
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .config import Settings, settings_from
from .errors import ConfigError

__all__ = ["Grid", "PlannedRun", "differing_keys", "load_grid"]

LONGEST_NAME = 200
"""Characters; file systems take 255, and a log's ending or a temporary file's comes on top."""

LARGEST_SWEEP = 100_000
"""Runs; more are a slip of the pen, and would fill the memory before a message could be given."""

Key = tuple[str, ...]  # a key within tables: ("schedule", "final")


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep.

    Attributes:
        name: of the run and of its directory, such as ``fedsparsify-global_final-0.95_seed-1``.
        settings: complete and of the right types; ranges are checked by :func:`~fedsparsify.experiment.check_all`.
        place: the file and block that it comes from, for messages.
    """

    name: str
    settings: Settings
    place: str


@dataclass(frozen=True)
class Grid:
    """A sweep as its file describes it.

    Attributes:
        path: the file.
        text: its content.
        runs: in the order of the file: blocks one after the other, within one the last axis changes fastest.
    """

    path: Path
    text: str
    runs: tuple[PlannedRun, ...]


def load_grid(path: Path, overrides: Mapping[tuple[str, str], Any] | None = None) -> Grid:
    """Read a grid and make the settings of all its runs.

    Args:
        path: a TOML file.
        overrides: (table, key) -> a value of the base to replace, as :func:`~fedsparsify.config.parse_overrides` gives.

    Raises:
        ConfigError: the file cannot be read, a key is unknown or of the wrong type, an axis is empty, or two runs
            that differ would have one name, or two names stand for one run.
    """
    try:
        text = path.read_text(encoding="utf-8")
        base = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}): name a TOML file with [[sweep]] blocks, such as"
            " configs/fashion-mnist/comparison.toml"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    blocks = base.pop("sweep", None)
    if not blocks:
        raise ConfigError(f"{path} holds no [[sweep]] block: add one, or run it with fedsparsify run {path}")
    if not (isinstance(blocks, list) and all(isinstance(block, dict) for block in blocks)):
        raise ConfigError(f"{path}: sweep must be written as blocks, each headed [[sweep]] with two brackets")
    for (table, key), value in (overrides or {}).items():
        _put(base, (table, key), value, str(path))
    _refuse_name(base, str(path))
    runs: dict[str, PlannedRun] = {}
    total = 0
    for number, block in enumerate(blocks, start=1):
        place = f"{path}: [[sweep]] block {number}"
        _refuse_name(block, place)
        axes = _axes(block, place)
        count = 1
        for values in axes.values():
            count *= len(values)
        total += count
        if total > LARGEST_SWEEP:
            raise ConfigError(f"{place} takes the sweep to {total:,} runs; at most {LARGEST_SWEEP:,} are taken")
        for choice in itertools.product(*axes.values()):
            run = _plan(base, dict(zip(axes, choice, strict=True)), place)
            known = runs.setdefault(run.name, run)
            if known.settings != run.settings:
                keys = ", ".join(differing_keys(known.settings, run.settings))
                if known.place == place:
                    raise ConfigError(
                        f"{place} makes two runs called {run.name}, which differ in {keys}: change one of the values;"
                        " a name keeps letters, digits and ._+- only"
                    )
                raise ConfigError(
                    f"{place} and {known.place.removeprefix(f'{path}: ')} both make a run {run.name}, but differ in"
                    f" {keys}: set that key in one of the blocks, so that it is part of the name"
                )
    _refuse_twins(runs.values(), path)
    return Grid(path, text, tuple(runs.values()))


def differing_keys(one: Settings, other: Settings) -> list[str]:
    """Return what two settings differ in, ``table.key = value, not value``, but for keys that change no result.

    >>> from fedsparsify.config import settings_from
    >>> tables = {"data": {"name": "digits"}, "model": {"name": "2-fc"}, "method": {"name": "fedavg"}}
    >>> one = settings_from({**tables, "train": {"lr": 0.1}}, "here")
    >>> differing_keys(one, settings_from({**tables, "train": {"lr": 0.2}, "run": {"workers": 3}}, "here"))
    ['train.lr = 0.1, not 0.2']
    """
    a, b = (dict(_leaves(settings.resulting())) for settings in (one, other))
    return [f"{'.'.join(key)} = {a.get(key)!r}, not {b.get(key)!r}" for key in a | b if a.get(key) != b.get(key)]


def _plan(base: Mapping[str, Any], choice: Mapping[Key, Any], place: str) -> PlannedRun:
    tables = copy.deepcopy(dict(base))
    for key, value in choice.items():
        _put(tables, key, value, place)
    settings = settings_from(tables, place)
    name = _name(settings.method.name, choice)
    if len(name) > LONGEST_NAME:
        raise ConfigError(
            f"{place}: the name {name[:60]}... would have {len(name)} characters of at most {LONGEST_NAME}: set fewer"
            " keys in the block, or shorter texts"
        )
    settings = settings.model_copy(update={"run": settings.run.model_copy(update={"name": name})})
    return PlannedRun(name, settings, place)


def _name(method: str, choice: Mapping[Key, Any]) -> str:
    keys = [key for key in choice if key != ("method", "name")]
    namesakes = Counter(key[-1] for key in keys)
    parts = [method]
    for key in sorted(keys, key=lambda key: (key[-1], key)):
        label = key[-1] if namesakes[key[-1]] == 1 else "-".join(key)
        value = choice[key]
        parts.append(f"{label}-{str(value).lower() if isinstance(value, bool) else value}")
    # No dot or dash leads, so that the name is neither hidden nor taken for an option.
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", "_".join(parts)).lstrip(".-") or "run"


def _axes(block: Mapping[str, Any], place: str) -> dict[Key, list[Any]]:
    axes = {}
    for key, value in _leaves(block):
        if value == []:
            raise ConfigError(f"{place}: {'.'.join(key)} = [] is an axis without values: give it one, or take it out")
        if isinstance(value, list) and any(isinstance(item, dict) for item in value):
            raise ConfigError(f"{place}: {'.'.join(key)} is a list of tables; an axis is a list of plain values")
        axes[key] = value if isinstance(value, list) else [value]
    return axes


def _leaves(tables: Mapping[str, Any], prefix: Key = ()) -> Iterator[tuple[Key, Any]]:
    for key, value in tables.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*prefix, key))
        else:
            yield (*prefix, key), value


def _put(tables: dict[str, Any], key: Key, value: Any, place: str) -> None:
    for index, table in enumerate(key[:-1], start=1):
        inner = tables.setdefault(table, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{place}: {'.'.join(key[:index])} = {inner!r} must be a table")
        tables = inner
    tables[key[-1]] = value


def _refuse_name(tables: Mapping[str, Any], place: str) -> None:
    run = tables.get("run")
    if isinstance(run, Mapping) and "name" in run:
        raise ConfigError(
            f"{place}: run.name = {run['name']!r} has no place in a sweep, whose runs are named by what they vary:"
            " take it out"
        )


def _refuse_twins(runs: Iterable[PlannedRun], path: Path) -> None:
    first: dict[bytes, PlannedRun] = {}
    for run in runs:
        known = first.setdefault(run.settings.digest, run)
        if known is not run:
            remedy = "set the same keys in both blocks, or take one out"
            if known.place == run.place:
                remedy = "take one of the values out"
            raise ConfigError(f"{path}: {known.name} and {run.name} are the same run under two names: {remedy}")
