"""Read a run directory into frozen records, checking every value on the way.

A run directory holds ``run.json`` (what was run), ``metrics.jsonl`` (one object a round, from round 0) and
``config.toml`` (the complete settings). Texts in them may come from a remote peer, such as a client's reason for
failing: they are cut to a printable line here, and escaped where they are shown.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from fedsparsify.errors import RunError

__all__ = ["Encryption", "Failure", "Layer", "Partition", "RoundRecord", "Run", "load_run", "parse_run", "printable"]

Metric = Literal["accuracy", "mae"]
T = TypeVar("T")

MAX_TABLES = 20
"""How deep the tables of a configuration may be nested; ours are two deep."""


@dataclass(frozen=True)
class Layer:
    """One named tensor of the network and how many parameters it has."""

    name: str
    size: int


@dataclass(frozen=True)
class Partition:
    """Which client holds how many examples of which class.

    Attributes:
        kind: name of the split, e.g. ``"iid"`` or ``"classes"``.
        class_names: one name a column of ``counts``; one column "examples" where the task has no classes.
        counts: examples by client (row) and class (column).
    """

    kind: str
    class_names: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Failure:
    """A client left out of a round, and why (one printable line of at most 300 characters)."""

    round: int
    client: str
    reason: str


@dataclass(frozen=True)
class Encryption:
    """What a round's encryption took; processor seconds, clients' summed.

    Attributes:
        ciphertext: bytes of encrypted values and sums, up and down.
        seconds_encrypt: of the clients.
        seconds_add: of the server.
        seconds_decrypt: of the clients.
        clipped: values that were beyond the bound.
    """

    ciphertext: int
    seconds_encrypt: float
    seconds_add: float
    seconds_decrypt: float
    clipped: int

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.seconds_encrypt + self.seconds_add + self.seconds_decrypt


@dataclass(frozen=True)
class RoundRecord:
    """One line of ``metrics.jsonl``.

    Attributes:
        round: 0 for the initial model.
        score: test accuracy (fraction) or mean absolute error (units of the target), see ``Run.metric``.
        sparsity: fraction of parameters that are pruned after the round.
        nonzero: number of parameters left.
        participants: how many clients took part.
        bytes_down: bytes of this round's messages to all clients.
        bytes_up: bytes of this round's messages from all clients.
        seconds_train: local training time of the round, summed over clients.
        seconds_round: wall time of the round.
        client_drift: mean pairwise cosine distance between the clients' updates.
        mask_overlap: mean pairwise Jaccard index of the clients' masks.
        layers_nonzero: parameters left in each layer, in the order of ``Run.layers``; empty where not recorded.
        groups: the score of each group of test examples; empty where the examples belong to none.
        encryption: what merging under encryption took; None where models were merged in the clear.
    """

    round: int
    score: float
    sparsity: float
    nonzero: int
    participants: int
    failures: tuple[Failure, ...]
    bytes_down: int
    bytes_up: int
    seconds_train: float
    seconds_round: float
    loss: float | None
    train_loss: float | None
    client_drift: float | None
    mask_overlap: float | None
    layers_nonzero: tuple[int, ...]
    groups: Mapping[str, float]
    encryption: Encryption | None = None


@dataclass(frozen=True)
class Run:
    """A run as its directory records it; ``rounds`` holds at least one record.

    Attributes:
        initial: digest of the initial weights; None where it is not recorded.
        rounds_total: the round the run was to end with; equals the last record's where the run does not say.
        parameters: n, trainable parameters of the dense network.
        metric: what ``RoundRecord.score`` measures.
        unseen_groups: names of the groups of which no client has an example.
        schedule: target sparsity of rounds 0..T, None for a dense method.
        config: the tables of ``config.toml``; empty where the file is missing.
        config_text: that file as it stands.
    """

    path: Path
    name: str
    method: str
    model: str
    dataset: str
    seed: int | None
    initial: str | None
    version: str
    rounds_total: int
    parameters: int
    metric: Metric
    layers: tuple[Layer, ...]
    partition: Partition | None
    unseen_groups: tuple[str, ...]
    schedule: tuple[float, ...] | None
    machine: Mapping[str, str]
    config: Mapping[str, Any]
    config_text: str
    rounds: tuple[RoundRecord, ...]

    @property
    def last(self) -> RoundRecord:
        """The newest record."""
        return self.rounds[-1]


def load_run(path: Path | str) -> Run:
    """Read the run directory ``path``.

    Raises:
        RunError: there is no such directory, it is not a run directory, it has no round yet, or one of its files is
            damaged; the message names the file and, in ``metrics.jsonl``, the line.
    """
    path = Path(path)
    if not path.is_dir():
        raise RunError(f"{path}: no such run directory; give the directory that `fedsparsify run` wrote")
    if not (path / "run.json").is_file():
        raise RunError(
            f"{path}: not a run directory, it has no run.json; give one that `fedsparsify run` wrote, or those in it by"
            f" {path}/*/"
        )
    config_text = _read(path / "config.toml") if (path / "config.toml").exists() else ""
    metrics = _read(path / "metrics.jsonl") if (path / "metrics.jsonl").exists() else ""
    return parse_run(path, _read(path / "run.json"), metrics, config_text)


def parse_run(path: Path, facts_text: str, metrics: str, config_text: str) -> Run:
    """Make a run of the texts of its files.

    Args:
        path: the directory that they are from, or would be in, for messages.
        facts_text: ``run.json``.
        metrics: ``metrics.jsonl``.
        config_text: ``config.toml``; empty where there is none.

    Raises:
        RunError: as :func:`load_run`.
    """
    facts = _Fields(_parse_json(facts_text, str(path / "run.json")), str(path / "run.json"))
    layers = tuple(_layer(item, facts.place) for item in facts.list("layers"))
    metric, rounds = _parse_rounds(metrics, path / "metrics.jsonl", len(layers))
    config = _parse_toml(config_text, str(path / "config.toml"))
    schedule = facts.list("schedule")
    return Run(
        path=path,
        name=facts.text("name", path.resolve().name),
        method=facts.text("method", "unknown"),
        model=facts.text("model", "unknown"),
        dataset=facts.text("dataset", "unknown"),
        seed=facts.integer("seed"),
        initial=facts.text("initial", "") or None,
        version=facts.text("version", "unknown"),
        rounds_total=max(facts.integer("rounds") or 0, rounds[-1].round),
        parameters=facts.integer("parameters")
        or sum(layer.size for layer in layers)
        or facts.need(facts.integer, "parameters"),
        metric=metric,
        layers=layers,
        partition=_partition(facts.value("partition"), facts.place),
        unseen_groups=tuple(printable(name, 80) for name in facts.list("unseen_groups")),
        schedule=tuple(_float(item, f"{facts.place}: schedule") for item in schedule) or None,
        machine=MappingProxyType({printable(key): printable(item) for key, item in facts.table("machine").items()}),
        config=MappingProxyType(config),
        config_text=config_text,
        rounds=rounds,
    )


def printable(value: object, limit: int = 300) -> str:
    r"""Return ``value`` as one line of at most ``limit`` printable characters.

    Control and direction-changing characters, and halves of surrogate pairs, which no file can be written with,
    become the replacement character.

    >>> printable("bad\n\x1b[31mnews")
    'bad \ufffd[31mnews'
    """
    text = " ".join(str(value)[: 4 * limit].split())
    text = "".join(character if character.isprintable() else "\ufffd" for character in text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _parse_rounds(text: str, path: Path, num_layers: int) -> tuple[Metric, tuple[RoundRecord, ...]]:
    # Not splitlines: that also splits at line separators that JSON allows inside a string.
    lines = text.removesuffix("\n").split("\n")
    if lines == [""]:
        raise RunError(f"{path.parent}: no rounds yet, metrics.jsonl is empty or missing; wait for the first round")
    metric: Metric | None = None
    rounds: list[RoundRecord] = []
    for number, line in enumerate(lines, start=1):
        fields = _Fields(_parse_json(line, f"{path}: line {number}"), f"{path}: line {number}")
        found: Metric = "mae" if "mae" in fields.values and "accuracy" not in fields.values else "accuracy"
        metric = metric or found
        if found != metric:
            raise RunError(f"{fields.place}: has {found} where the lines before have {metric}; one run has one of them")
        record = _round(fields, metric)
        if rounds and record.round <= rounds[-1].round:
            raise RunError(f"{fields.place}: round {record.round} follows round {rounds[-1].round}; rounds must rise")
        if record.layers_nonzero and len(record.layers_nonzero) != num_layers:
            count = len(record.layers_nonzero)
            raise RunError(f"{fields.place}: layers_nonzero has {count} counts for {num_layers} layers in run.json")
        rounds.append(record)
    assert metric is not None
    return metric, tuple(rounds)


def _round(fields: _Fields, metric: Metric) -> RoundRecord:
    number = fields.need(fields.integer, "round")
    failures = []
    for item in fields.list("failures"):
        entry = _Fields(item, f"{fields.place}: failures")
        failures.append(
            Failure(number, printable(entry.value("client"), 60), printable(entry.values.get("reason", "not recorded")))
        )
    return RoundRecord(
        round=number,
        # A diverged model has no number to show, but its run has a report all the same.
        score=math.nan if fields.values.get(metric, 0) is None else fields.need(fields.number, metric),
        sparsity=fields.need(fields.number, "sparsity"),
        nonzero=fields.need(fields.integer, "nonzero"),
        participants=len(fields.list("participants")),
        failures=tuple(failures),
        bytes_down=fields.integer("bytes_down") or 0,
        bytes_up=fields.integer("bytes_up") or 0,
        seconds_train=fields.number("seconds_train") or 0.0,
        seconds_round=fields.number("seconds_round") or 0.0,
        loss=fields.number("loss"),
        train_loss=fields.number("train_loss"),
        client_drift=fields.number("client_drift"),
        mask_overlap=fields.number("mask_overlap"),
        layers_nonzero=tuple(_int(item, f"{fields.place}: layers_nonzero") for item in fields.list("layers_nonzero")),
        groups=MappingProxyType(_groups(_Fields(fields.table("groups"), f"{fields.place}: groups"))),
        encryption=_encryption(_Fields(fields.table("encryption"), f"{fields.place}: encryption")),
    )


def _encryption(fields: _Fields) -> Encryption | None:
    if not fields.values:
        return None
    return Encryption(
        ciphertext=(fields.integer("ciphertext_down") or 0) + (fields.integer("ciphertext_up") or 0),
        seconds_encrypt=fields.number("seconds_encrypt") or 0.0,
        seconds_add=fields.number("seconds_add") or 0.0,
        seconds_decrypt=fields.number("seconds_decrypt") or 0.0,
        clipped=fields.integer("clipped") or 0,
    )


def _groups(fields: _Fields) -> dict[str, float]:
    # A diverged model's score is null.
    scores = {name: fields.number(name) for name in fields.values}
    return {printable(name, 80): math.nan if score is None else score for name, score in scores.items()}


def _layer(item: object, place: str) -> Layer:
    if not (isinstance(item, list) and len(item) == 2 and isinstance(item[1], list)):
        raise RunError(f"{place}: layers must be a list of [name, shape], not {printable(item, 60)}")
    size = math.prod(_int(size, f"{place}: layers") for size in item[1])
    return Layer(printable(item[0], 80), _int(size, f"{place}: layers: the size"))


def _partition(value: object, place: str) -> Partition | None:
    if value is None:
        return None
    fields = _Fields(value, f"{place}: partition")
    rows = [row if isinstance(row, list) else [row] for row in fields.list("counts")]
    counts = tuple(tuple(_int(count, fields.place) for count in row) for row in rows)
    columns = max(map(len, counts), default=0)
    if not columns:
        return None
    if any(len(row) != columns for row in counts):
        raise RunError(f"{fields.place}: the rows of counts are not of one length; each client needs a count a class")
    names = [printable(name, 40) for name in fields.list("class_names")]
    if len(names) != columns:
        names = ["examples"] if columns == 1 else [f"class {index}" for index in range(columns)]
    return Partition(fields.text("kind", "unknown"), tuple(names), counts)


class _Fields:
    """A JSON object whose values are fetched by the type they must have; a missing or null one is its default."""

    def __init__(self, value: object, place: str) -> None:
        if not isinstance(value, dict):
            raise RunError(f"{place}: must be a JSON object, not {printable(value, 60)}")
        self.values: dict[str, Any] = value
        self.place = place

    def value(self, key: str) -> Any:
        return self.values.get(key)

    def text(self, key: str, default: str) -> str:
        value = self.value(key)
        return default if value is None else printable(value, 120)

    def list(self, key: str) -> list[Any]:
        value = self.value(key)
        if not isinstance(value, list | None):
            raise RunError(f"{self.place}: {key} must be a list, not {printable(value, 60)}")
        return value or []

    def table(self, key: str) -> dict[str, Any]:
        value = self.value(key)
        return {} if value is None else _Fields(value, f"{self.place}: {key}").values

    def number(self, key: str) -> float | None:
        value = self.value(key)
        return None if value is None else _float(value, f"{self.place}: {key}")

    def integer(self, key: str) -> int | None:
        value = self.value(key)
        return None if value is None else _int(value, f"{self.place}: {key}")

    def need(self, kind: Callable[[str], T | None], key: str) -> T:
        value = kind(key)
        if value is None:
            raise RunError(f"{self.place}: {key} is missing; use a run that recorded it")
        return value


def _parse_toml(text: str, place: str) -> dict[str, Any]:
    try:
        tables = tomllib.loads(text)
    # ValueError for a number of too many digits, RecursionError for arrays nested too deep.
    except (ValueError, RecursionError) as error:
        raise RunError(
            f"{place}: not valid TOML ({printable(error, 120)}); restore the file as the run wrote it"
        ) from None
    level: list[Any] = [tables]
    for _ in range(MAX_TABLES):
        level = [value for table in level for value in table.values() if isinstance(value, dict)]
        if not level:
            return tables
    raise RunError(f"{place}: tables are nested more than {MAX_TABLES} deep; restore the file as the run wrote it")


def _float(value: object, place: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or (isinstance(value, int) and abs(value) > 2**63):
        raise RunError(f"{place} must be a number, not {printable(value, 60)}")
    # Sums of numbers near the largest float fail; nothing measured is so large, but a diverged loss may be infinite.
    return float(value) if abs(value) < 1e100 else math.nan


def _int(value: object, place: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 2**63:
        raise RunError(f"{place} must be a whole number from 0 on, not {printable(value, 60)}")
    return value


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise RunError(f"{path}: cannot be read ({reason})") from None


def _parse_json(text: str, place: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise RunError(
            f"{place}: not a complete JSON object; the file was cut off or edited, restore it as the run wrote it"
        ) from None
