"""Graph, recipe and provenance as JSON, and back from strangers' JSON with every field checked (``FORMAT.md``)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NoReturn

from ..errors import WireError
from ..recipe import RAW_KINDS, Recipe
from .graph import Attribute, Graph, Node

__all__ = [
    "Facts",
    "Outline",
    "facts_json",
    "graph_json",
    "parse",
    "read_facts",
    "read_graph",
    "read_recipe",
    "recipe_json",
]

Facts = Mapping[str, str | int | float]
"""What is known of a model's origin, by name."""

Outline = tuple[tuple[int, ...], str, tuple[Node, ...], list[dict[str, tuple[int, ...]]]]
"""A graph before its tensors: input's shape and type, nodes without tensors, and their tensors' shapes by name."""

_MOST_FACTS, _MOST_TEXT = 64, 1024
_MOST_NAMES = 1 << 16


def graph_json(graph: Graph) -> Any:
    """Return a graph without its tensors' values."""
    return {
        "input": {"shape": list(graph.input_shape), "type": graph.input_dtype},
        "nodes": [
            {
                "op": node.op,
                "inputs": list(node.inputs),
                **({"name": node.name} if node.name else {}),
                **({"attributes": dict(node.attributes)} if node.attributes else {}),
                **({"tensors": [[name, list(t.shape)] for name, t in node.tensors.items()]} if node.tensors else {}),
            }
            for node in graph.nodes
        ],
    }


def read_graph(found: Any) -> Outline:
    """Read what :func:`graph_json` has made; whether it is a graph that can run is not looked at.

    Raises:
        WireError: a field is missing, unknown or of another type.
    """
    top = _fields(found, "graph", {"input", "nodes"})
    source = _fields(top["input"], "graph: input", {"shape", "type"})
    shape = _sizes(source["shape"], "graph: the input's shape")
    dtype = _text(source["type"], "graph: the input's type")
    nodes: list[Node] = []
    shapes: list[dict[str, tuple[int, ...]]] = []
    for index, item in enumerate(_list(top["nodes"], "graph: nodes")):
        where = f"graph: node {index}"
        node = _fields(item, where, {"op", "inputs"}, {"name", "attributes", "tensors"})
        attributes: dict[str, Attribute] = {}
        for name, value in _mapping(node.get("attributes", {}), f"{where}: attributes").items():
            attributes[name] = _sizes(value, f"{where}: {name}") if isinstance(value, list) else _number(value, where)
        tensors: dict[str, tuple[int, ...]] = {}
        for pair in _list(node.get("tensors", []), f"{where}: tensors"):
            if not isinstance(pair, list) or len(pair) != 2:
                raise WireError(f"{where}: a tensor is no pair of name and shape")
            name = _text(pair[0], f"{where}: a tensor's name")
            if name in tensors:
                raise WireError(f"{where}: two tensors are called {name!r}")
            tensors[name] = _sizes(pair[1], f"{where}: {name}")
        op, inputs = _text(node["op"], f"{where}: op"), _sizes(node["inputs"], f"{where}: inputs")
        nodes.append(Node(op, inputs, attributes, {}, _text(node.get("name", ""), f"{where}: name")))
        shapes.append(tensors)
    return shape, dtype, tuple(nodes), shapes


def recipe_json(recipe: Recipe) -> Any:
    """Return a recipe's fields that say something, but for the words, which have a section of their own."""
    named = {f.name: (getattr(recipe, f.name), f.default) for f in fields(recipe) if f.name != "words"}
    return {k: list(v) if isinstance(v, tuple) else v for k, (v, default) in named.items() if v != default}


def read_recipe(found: Any, words: tuple[str, ...]) -> Recipe:
    """Read what :func:`recipe_json` has made.

    Raises:
        WireError: a field is unknown, of another type or out of its range.
    """
    kinds: dict[str, Any] = {
        **dict.fromkeys(("exact", "each"), _flag),
        **dict.fromkeys(("downsample", "length"), _whole),
        **dict.fromkeys(("brightest", "scale", "divisor", "target_mean", "target_scale"), _number),
        **dict.fromkeys(("labels", "columns"), _texts),
        **dict.fromkeys(("mean", "deviation"), _numbers),
        "kind": _text,
        "shape": _sizes,
    }
    given = _fields(found, "recipe", set(), set(kinds))
    recipe = Recipe(**{name: kinds[name](value, f"recipe: {name}") for name, value in given.items()}, words=words)
    along = recipe.shape[0] if recipe.shape else 1
    sound = {
        "kind": recipe.kind in RAW_KINDS,
        "shape": len(recipe.shape) <= 8 and min(recipe.shape, default=1) >= 1 and math.prod(recipe.shape) <= 1 << 30,
        "downsample": recipe.downsample >= 1 and all(n % recipe.downsample == 0 for n in recipe.shape),
        "divisor": recipe.divisor != 0,
        "brightest": recipe.brightest >= 0,
        "mean": len(recipe.mean) in (0, 1, along),
        "deviation": len(recipe.deviation) in (0, 1, along) and 0 not in recipe.deviation,
        "columns": len(recipe.columns) in (0, along),
        "length": 0 <= recipe.length <= 1 << 24 and (recipe.length > 0) == (recipe.kind == "text"),
    }
    for name, good in sound.items():
        if not good:
            raise WireError(f"recipe: {name} = {str(getattr(recipe, name))[:80]} is out of its range")
    if recipe.words and recipe.kind != "text":
        raise WireError("recipe: there are words, but examples are no texts")
    return recipe


def facts_json(facts: Facts) -> Any:
    """Return what is known of a model's origin."""
    return dict(facts)


def read_facts(found: Any) -> Facts:
    """Read what :func:`facts_json` has made.

    Raises:
        WireError: there are too many, or one is neither a short text nor a finite number.
    """
    facts: dict[str, str | int | float] = {}
    for name, value in _mapping(found, "provenance").items():
        read = _text if isinstance(value, str) else _number
        facts[name] = read(value, f"provenance: {name}")
    if len(facts) > _MOST_FACTS:
        raise WireError(f"provenance: {len(facts)} facts are more than {_MOST_FACTS}")
    return facts


def parse(data: bytes, section: str) -> Any:
    """Parse JSON.

    Raises:
        WireError: it is none, nested too deeply, or has a number that JSON does not have.
    """
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise WireError(f"{section}: it is no JSON ({reason})") from None


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _fields(found: Any, where: str, needed: set[str], optional: set[str] = frozenset()) -> dict[str, Any]:  # type: ignore[assignment]
    mapping = _mapping(found, where)
    if not needed <= set(mapping) <= needed | optional:
        raise WireError(f"{where}: its fields are {sorted(mapping)[:12]}, but must be {sorted(needed)}")
    return mapping


def _mapping(found: Any, where: str) -> dict[str, Any]:
    if not isinstance(found, dict) or any(len(name) > 64 or not name.isprintable() for name in found):
        raise WireError(f"{where}: it is no object with printable names of at most 64 characters")
    return found


def _list(found: Any, where: str) -> list[Any]:
    if not isinstance(found, list):
        raise WireError(f"{where}: it is no list")
    return found


def _text(found: Any, where: str) -> Any:
    # Texts are shown on terminals: no control characters, no halves of surrogate pairs.
    if not isinstance(found, str) or len(found) > _MOST_TEXT or not found.isprintable():
        raise WireError(f"{where} is no text of at most {_MOST_TEXT} printable characters")
    return found


def _texts(found: Any, where: str) -> tuple[str, ...]:
    items = _list(found, where)
    if len(items) > _MOST_NAMES:
        raise WireError(f"{where}: {len(items)} names are more than {_MOST_NAMES}")
    return tuple(_text(item, where) for item in items)


def _flag(found: Any, where: str) -> bool:
    if not isinstance(found, bool):
        raise WireError(f"{where} is neither true nor false")
    return found


def _whole(found: Any, where: str) -> int:
    if type(found) is not int or abs(found) > 1 << 53:
        raise WireError(f"{where} is no whole number")
    return found


def _number(found: Any, where: str) -> int | float:
    if type(found) is int:
        return _whole(found, where)
    if type(found) is not float or not math.isfinite(found):
        raise WireError(f"{where}: a number is none, or not finite")
    return found


def _numbers(found: Any, where: str) -> tuple[float, ...]:
    return tuple(_number(item, where) for item in _list(found, where))


def _sizes(found: Any, where: str) -> tuple[int, ...]:
    items = _list(found, where)
    if len(items) > 1024:
        raise WireError(f"{where}: it has {len(items)} numbers")
    return tuple(_whole(item, where) for item in items)
