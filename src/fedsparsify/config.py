"""TOML -> validated, frozen settings.

One class a table, one documented field a key; types and unknown keys are checked here, ranges by the parts that use a
value, and :mod:`fedsparsify.experiment` makes objects of it all. ``docs/configuration.md``
explains the keys.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import ConfigError
from .plugins import nearest

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

__all__ = [
    "DataTable",
    "DeploymentTable",
    "EncryptionTable",
    "FederationTable",
    "MethodTable",
    "ModelTable",
    "PartitionTable",
    "PurgeTable",
    "RunTable",
    "ScheduleTable",
    "Settings",
    "TrainTable",
    "WireTable",
    "load_settings",
    "parse_overrides",
    "settings_from",
]

OWN = "<given in Python>"
"""Stands where a Python program gave an object instead of a name."""


class _Table(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class RunTable(_Table):
    """``[run]``: the run as a whole."""

    name: str = Field(default="", pattern=r"^[^/\\]*$")
    """Shown in reports; the configuration file's name if empty."""
    seed: int = Field(default=1, ge=0, le=2**63 - 1)
    """Fixes initial weights, partition, participants, order of examples and dropout."""
    rounds: int = Field(default=200, ge=1, le=1_000_000)
    """T, the number of rounds."""
    workers: int = Field(default=0, ge=0, le=1024)
    """How many clients train at once (threads or processes); 0 is one a core. Changes no result."""
    tensorboard: bool = False
    """Also log to the run directory for TensorBoard (extra ``tensorboard``)."""


class DataTable(_Table):
    """``[data]``: what is learned; keys besides these are passed to the function that loads it."""

    model_config = ConfigDict(extra="allow")

    name: str
    """``fashion-mnist``, ``imdb``, ... (docs/domains.md), or ``module:function`` returning (train, test)."""
    dir: str = ""
    """Folder with the data files; empty for FEDSPARSIFY_DATA, the system's place, or a download."""

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of the function that loads the data set."""
        return dict(self.model_extra or {})


class PartitionTable(_Table):
    """``[partition]``: how examples are dealt to clients."""

    kind: Literal["iid", "classes", "dirichlet", "quantity", "groups", "sites"] = "iid"
    """``iid``; ``classes``; ``dirichlet``, ``quantity`` (``alpha``); ``groups``; ``sites``: each site has its own."""
    classes_per_client: int = 2
    """For ``classes``: number of classes that each client has."""
    alpha: float = 0.5
    """For ``dirichlet`` (skewed labels) and ``quantity`` (skewed sizes): smaller is more unequal."""


class FederationTable(_Table):
    """``[federation]``: who takes part."""

    clients: int = 10
    """Number of clients; 0 for as many as there are groups, with the partition ``groups``."""
    participation: float = 1.0
    """Fraction of clients that take part in a round, drawn anew each round."""
    min_clients: int = 1
    """A round with fewer usable updates stops the run."""


class ModelTable(_Table):
    """``[model]``: the network; keys besides ``name`` are passed to the function that builds it."""

    model_config = ConfigDict(extra="allow")

    name: str
    """``2-fc``, ``6-cnn``, ... (docs/domains.md), or ``module:function`` returning a torch.nn.Module."""

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of the function that builds the network."""
        return dict(self.model_extra or {})


class MethodTable(_Table):
    """``[method]``: the federated method; keys besides ``name`` and ``merge`` are options of the method."""

    model_config = ConfigDict(extra="allow")

    name: str
    """``fedavg``, ``fedsparsify-global``, ... (docs/methods.md), or ``module:function`` returning a Method."""
    merge: str = "majority"
    """For ``fedsparsify-local``: ``majority``, ``majority-nonzero``, ``nonzero`` or ``average``."""

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of the function that returns the method."""
        return dict(self.model_extra or {})


class ScheduleTable(_Table):
    """``[schedule]``: sparsity by round."""

    initial: float = 0.0
    """S_0, sparsity at the first pruning round."""
    final: float = 0.95
    """S_T, sparsity after the last round."""
    start_round: int = 1
    """t_0, the first round that prunes."""
    frequency: int = 1
    """F, rounds between prunings."""
    exponent: float = 3.0
    """e; larger prunes earlier."""


class PurgeTable(_Table):
    """``[purge]``: which parameters go."""

    criterion: str = "magnitude"
    """What ranks parameters."""
    scope: str = "global"
    """``global``: all compete with each other; ``per-layer``: within their tensor."""
    prunable: str = "all"
    """``all``, or ``weights`` to leave biases and batch-norm parameters alone."""


class WireTable(_Table):
    """``[wire]``: how models travel."""

    uplink: Literal["float32", "bfloat16", "int8"] = "float32"
    """How clients round their updates: not at all, or the change since the broadcast to ``bfloat16`` or ``int8``."""
    link_memory: int = Field(default=512, ge=0, le=2**20)
    """Megabytes the server may spend on remembering what clients hold; less of it makes messages larger."""


class EncryptionTable(_Table):
    """``[encryption]``: merging without a server that sees models (extra ``encryption``)."""

    scheme: Literal["none", "bfv", "ckks"] = "none"
    """``none``; ``bfv``: exact sums of encrypted changes, for few bytes; ``ckks``: the usual way, to compare with."""
    bound: float = Field(default=0.5, gt=0)
    """Largest absolute value of a parameter's change in a round; larger ones are clipped. Smaller rounds finer."""
    key: str = ""
    """In a simulation, the clients' key file; empty makes one in the run directory."""


class DeploymentTable(_Table):
    """``[deployment]``: a federation over Flower; of no effect in the simulator."""

    sites: list[str] = []
    """Names that SuperNodes are registered under: client k is the k-th. Empty: whichever are connected."""
    deadline: float = Field(default=3600.0, gt=0)
    """Seconds that a round's clients have to answer."""
    patience: float = Field(default=300.0, ge=0)
    """Seconds that a round waits for SuperNodes that are not connected."""


class TrainTable(_Table):
    """``[train]``: local training, SGD."""

    lr: float
    """Learning rate."""
    epochs: int = 4
    """Local epochs a round."""
    batch_size: int = 32
    """Examples a step."""
    momentum: float = 0.0
    """SGD momentum, anew every round."""
    nesterov: bool = False
    """Nesterov's form of momentum."""
    weight_decay: float = 0.0
    """L2 penalty's factor."""
    backend: str = "auto"
    """``native`` (compiled, sparse), ``torch`` (dense), or ``auto``: the faster one as measured, round by round."""
    device: str = "auto"
    """``auto`` takes an accelerator where there is one."""


class Settings(_Table):
    """All settings of a run."""

    run: RunTable = RunTable()
    data: DataTable
    partition: PartitionTable = PartitionTable()
    federation: FederationTable = FederationTable()
    model: ModelTable
    method: MethodTable
    schedule: ScheduleTable = ScheduleTable()
    purge: PurgeTable = PurgeTable()
    train: TrainTable
    wire: WireTable = WireTable()
    encryption: EncryptionTable = EncryptionTable()
    deployment: DeploymentTable = DeploymentTable()

    def to_toml(self) -> str:
        """Return the complete settings, defaults written out."""
        return tomli_w.dumps(self.model_dump())

    @property
    def digest(self) -> bytes:
        """32 bytes that two settings share only if the same results are expected of them.

        Where the data lie, how many workers there are, what the run is called, how much is remembered and how clients
        are reached change no result.
        """
        return hashlib.sha256(json.dumps(self.resulting(), sort_keys=True, default=str).encode()).digest()

    def resulting(self) -> dict[str, dict[str, Any]]:
        """Return table -> key -> value of all settings that change results, see :attr:`digest`."""
        return self.model_dump(
            exclude={
                "run": {"name", "workers", "tensorboard"},
                "data": {"dir"},
                "wire": {"link_memory"},
                "encryption": {"key"} if self.encrypts else True,
                "deployment": True,
            }
        )

    @property
    def encrypts(self) -> bool:
        """Whether models are merged under encryption."""
        return self.encryption.scheme != "none"


def load_settings(path: Path, overrides: Sequence[str] = ()) -> Settings:
    """Read a configuration file.

    Args:
        path: a TOML file.
        overrides: ``table.key=value`` texts that replace or add keys; values are TOML, bare words are texts.

    Raises:
        ConfigError: the file cannot be read, is no TOML, is a sweep's, or a key is unknown or of the wrong type.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}): name a TOML file, such as configs/*/*.toml"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    if "sweep" in tables:
        raise ConfigError(
            f"{path} holds [[sweep]] blocks, which fedsparsify sweep {path} runs: for one run leave them out"
        )
    given = parse_overrides(overrides)
    for (table, key), value in given.items():
        if not isinstance(tables.setdefault(table, {}), dict):
            raise ConfigError(f"{path}: {table} = {tables[table]!r} must be a table")
        tables[table][key] = value
    settings = settings_from(tables, str(path), given)
    if not settings.run.name:
        settings = settings.model_copy(update={"run": settings.run.model_copy(update={"name": path.stem})})
    return settings


def parse_overrides(overrides: Sequence[str]) -> dict[tuple[str, str], Any]:
    """Parse ``table.key=value`` texts.

    Raises:
        ConfigError: a text has another form.

    >>> parse_overrides(["train.lr=0.1", "model.name=2-fc", "run.tensorboard=true"])
    {('train', 'lr'): 0.1, ('model', 'name'): '2-fc', ('run', 'tensorboard'): True}
    """
    parsed = {}
    for text in overrides:
        place, equals, value = text.partition("=")
        table, dot, key = place.strip().partition(".")
        if not (equals and dot and table and key):
            raise ConfigError(f'--set "{text}" must have the form table.key=value, as in train.lr=0.01')
        try:
            parsed[table, key] = tomllib.loads(f"value = {value.strip()}")["value"]
        except tomllib.TOMLDecodeError:
            parsed[table, key] = value.strip()
    return parsed


def settings_from(
    tables: Mapping[str, Any], place: str, overridden: Mapping[tuple[str, str], Any] | None = None
) -> Settings:
    """Validate plain tables.

    Args:
        tables: table -> key -> value.
        place: where they come from, for messages.
        overridden: the (table, key) pairs that came from ``--set`` instead.

    Raises:
        ConfigError: a key is unknown, missing or of the wrong type; one such key is named.
    """
    try:
        return Settings.model_validate(dict(tables))
    except ValidationError as error:
        # A mistyped key is unknown and leaves another one missing: the first of the two says more.
        worst = min(error.errors(), key=lambda e: (e["type"] == "missing", e["type"] != "extra_forbidden"))
        where = tuple(str(part) for part in worst["loc"])
        ours = overridden or {}
        table = tables.get(where[0])
        alone = isinstance(table, Mapping) and table and all((where[0], key) in ours for key in table)
        source = "--set" if where[:2] in ours or (len(where) == 1 and alone) else place
        raise ConfigError(f"{source}: {_sentence(where, worst)}") from error


def _sentence(where: tuple[str, ...], error: ErrorDetails) -> str:
    key = ".".join(where)
    if error["type"] == "extra_forbidden":
        return _unknown(where, is_table=isinstance(error["input"], Mapping))
    if error["type"] == "missing":
        return f"{key} is missing: {'add the table' if len(where) == 1 else 'give it a value'}"
    bounds = error.get("ctx", {})
    expected = _EXPECTED.get(error["type"], error["msg"].removeprefix("Input should be ")).format(**bounds)
    return f"{key} = {json.dumps(error['input'], default=str)} must be {expected}"


_EXPECTED = {
    "bool_type": "true or false",
    "finite_number": "a finite number",
    "float_type": "a number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "int_type": "a whole number",
    "list_type": 'a list, as in ["a", "b"]',
    "less_than_equal": "at most {le}",
    "model_type": "a table, written [name] above its keys",
    "string_pattern_mismatch": "without slashes",
    "string_type": "a text in quotes",
}
"""What a value must be, by pydantic's name of the error."""


def _unknown(where: tuple[str, ...], *, is_table: bool) -> str:
    key, tables, known = ".".join(where), list(Settings.model_fields), list(_keys())
    elsewhere = next((f"; did you mean {k}?" for k in known if k.split(".")[1] == where[-1]), "")
    if len(where) == 1 and is_table:
        return f"[{key}] is an unknown table{nearest(key, tables)}; known are {', '.join(tables)}"
    if len(where) == 1:
        return f"{key} is in no table{elsewhere or nearest(key, known)}; tables are {', '.join(tables)}"
    inside = [k for k in known if k.startswith(where[0] + ".")]
    hint = elsewhere or nearest(key, inside) or nearest(key, known)
    return f"{key} is an unknown key{hint}; known are {', '.join(inside)}"


def _keys() -> Iterator[str]:
    for table, info in Settings.model_fields.items():
        for key in getattr(info.annotation, "model_fields", {}):
            yield f"{table}.{key}"
