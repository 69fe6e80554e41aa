"""Settings -> objects, checked before anything is written; :mod:`fedsparsify.runs` runs them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from . import algorithms, data, models
from .algorithms import Method
from .config import Settings
from .data import Dataset, as_dataset, partition
from .errors import ArgumentError, ConfigError
from .federation.engine import check_federation, taking_part
from .layout import ParameterLayout
from .merge import MERGE_RULES
from .plugins import nearest
from .purge import CRITERIA, SCOPES, make_purge
from .randomness import derive
from .schedules import PolynomialSchedule
from .secure import CIPHERS, AnyScheme, FixedPoint, Limbs
from .state import Floats, ModelState
from .tune import Tuner, TuneSettings

__all__ = [
    "Experiment",
    "Split",
    "check_all",
    "check_encryption",
    "check_values",
    "deal",
    "given",
    "make_method",
    "prepare",
    "scheme_of",
    "upload_size",
]


@dataclass(frozen=True, eq=False)
class Split:
    """Who holds what.

    Attributes:
        clients: one data set a client.
        test: the whole test set.
        class_names: names of the classes; one column "examples" for regression.
        counts: examples by client (row) and class (column).
    """

    clients: Sequence[Dataset]
    test: Dataset
    class_names: tuple[str, ...]
    counts: list[list[int]]

    @property
    def unseen_groups(self) -> list[str]:
        """Names of the test set's groups of which no client has an example."""
        if self.test.groups is None:
            return []
        held = {c.group_names[group] for c in self.clients if c.groups is not None for group in np.unique(c.groups)}
        tested = [self.test.group_names[group] for group in np.unique(self.test.groups)]
        return [name for name in tested if name not in held]


@dataclass(frozen=True, eq=False)
class Experiment:
    """All objects of a run, checked, before anything is written.

    Attributes:
        settings: the complete settings.
        split: the clients' data and the test set.
        module: the network with its initial weights.
        method: the federated method.
        train: how clients train.
        clients: number of clients; in a deployment not all of them need have their data here.
    """

    settings: Settings
    split: Split
    module: nn.Module
    method: Method
    train: TuneSettings
    clients: int

    @property
    def initial(self) -> ModelState:
        """The model before training: all parameters survive."""
        return _initial_of(self.module)


def prepare(settings: Settings, place: str, *, progress: bool = True, deployed: bool = False) -> Experiment:
    """Make all objects that settings describe.

    Args:
        settings: validated settings.
        place: where they come from, for messages.
        progress: show a bar where data must be downloaded.
        deployed: this is one end of a deployment: with the partition ``sites``, the data that are here are one
            client's, and its test set is whatever is tested here.

    Raises:
        FedSparsifyError: a value is out of its range, or data or a named function cannot be used.
    """
    try:
        _check(settings)
        split = _own(settings, progress) if deployed else deal(settings, progress=progress)
        module = models.build(settings.model.name, settings.run.seed, **settings.model.options)
        return _assemble(settings, split, module)
    except (ArgumentError, ConfigError) as error:
        raise ConfigError(f"{place}: {error}") from error


def deal(settings: Settings, *, progress: bool = True) -> Split:
    """Load the data set and deal its training examples to the clients.

    Raises:
        ArgumentError: the partition is impossible.
        DataError: the data cannot be used.
    """
    train, test = _load(settings, progress)
    return _split([train.take(part) for part in _parts(settings, train)], test)


def _own(settings: Settings, progress: bool) -> Split:
    """Return what is here of a deployment's data: with the partition ``sites`` one client's, else everybody's."""
    if settings.partition.kind != "sites":
        return deal(settings, progress=progress)
    train, test = _load(settings, progress)
    return replace(_split([train], test), counts=[])  # how much others have is not known


def check_all(runs: Iterable[tuple[Settings, str]], *, progress: bool = True) -> None:
    """Refuse what :func:`prepare` and the start of a run would refuse, for many runs.

    Each data set is loaded once, each dealing of it made once, and each network tried once on each data set.

    Args:
        runs: settings and the place that they come from, for messages.
        progress: show a bar where data must be downloaded.

    Raises:
        FedSparsifyError: a value is out of its range, or data or a named function cannot be used.
    """
    runs = list(runs)
    loaded: dict[str, tuple[Dataset, Dataset]] = {}
    dealt: dict[str, int] = {}
    tried: dict[str, ParameterLayout] = {}
    for settings, place in runs:
        try:
            _check(settings)
        except (ArgumentError, ConfigError) as error:
            raise ConfigError(f"{place}: {error}") from error
    for settings, place in runs:
        which, network = settings.data.model_dump_json(), settings.model.model_dump_json()
        dealing = f"{which} {settings.partition} {settings.federation.clients} {settings.run.seed}"
        trial = f"{which} {network} {settings.train.backend} {settings.train.device}"
        try:
            if which not in loaded:
                loaded[which] = _load(settings, progress)
            train, test = loaded[which]
            if dealing not in dealt:
                dealt[dealing] = len(_parts(settings, train))
            _check_federation(settings, dealt[dealing])
            if trial not in tried:
                tried[trial] = _try_out(settings, test)
            check_encryption(settings, make_method(settings, tried[trial]), dealt[dealing])
        except (ArgumentError, ConfigError) as error:
            raise ConfigError(f"{place}: {error}") from error


def check_values(settings: Settings, place: str) -> None:
    """Refuse what can be refused without any data: values out of their range, unknown networks and methods.

    Args:
        settings: validated settings.
        place: where they come from, for messages.

    Raises:
        FedSparsifyError: a value is out of its range, or a named function cannot be used.
    """
    try:
        _check(settings)
        module = models.build(settings.model.name, settings.run.seed, **settings.model.options)
        method = make_method(settings, ParameterLayout.of(module))
        check_encryption(settings, method, settings.federation.clients)
    except (ArgumentError, ConfigError) as error:
        raise ConfigError(f"{place}: {error}") from error


def _initial_of(module: nn.Module) -> ModelState:
    w, buffers = ParameterLayout.of(module).read(module)
    return ModelState(w, np.ones(w.shape, np.bool_), buffers)


def _try_out(settings: Settings, test: Dataset) -> ParameterLayout:
    """Return a network's layout after it has judged two examples."""
    module = models.build(settings.model.name, settings.run.seed, **settings.model.options)
    tuner = Tuner(module, TuneSettings(**settings.train.model_dump()), test)
    try:
        tuner.evaluate(_initial_of(module), test.part(0, 2))
    except ArgumentError:
        raise
    except Exception as error:  # of torch, about shapes
        name = settings.model.name
        raise ConfigError(f'model.name = "{name}" fails on data.name = "{settings.data.name}": {error}') from error
    return tuner.layout


def given(
    settings: Settings, model: nn.Module | Callable[[], nn.Module], clients: Sequence[object], test: object
) -> Experiment:
    """Make an experiment of a network and data that are there already; see :func:`~fedsparsify.runs.federate`.

    Raises:
        FedSparsifyError: a setting or the data cannot be used.
    """
    try:
        _check(settings)
        split = _split(
            [as_dataset(c, f"the data of client {k}") for k, c in enumerate(clients)], as_dataset(test, "the test set")
        )
        if isinstance(model, nn.Module):
            module = copy.deepcopy(model)
        else:
            module = models.build_from(model, settings.run.seed)
        return _assemble(settings, split, module)
    except ArgumentError as error:
        raise ConfigError(f"settings: {error}") from error


def make_method(settings: Settings, layout: ParameterLayout) -> Method:
    """Return the method that settings name.

    Raises:
        ConfigError: a name or an option is unknown.
        ArgumentError: the schedule is impossible, or an option is out of its range.
    """
    p, scope = settings.purge, SCOPES[settings.purge.scope]
    ingredients = {
        "schedule": _schedule(settings),
        "purge": make_purge(layout, CRITERIA[p.criterion], scope, p.prunable),
        "select": make_purge(layout, _as_they_are, scope, p.prunable),
        "merge": MERGE_RULES[settings.method.merge],
        "layout": layout,
        "sparsity": settings.schedule.final,
        "rounds": settings.run.rounds,
        "seed": settings.run.seed,
    }
    return algorithms.build(settings.method.name, ingredients, settings.method.options)


def _assemble(settings: Settings, split: Split, module: nn.Module) -> Experiment:
    # How many clients there are may have been left to the data.
    clients = settings.federation.clients if settings.partition.kind == "sites" else len(split.clients)
    _check_federation(settings, clients)
    train = TuneSettings(**settings.train.model_dump())
    method = make_method(settings, ParameterLayout.of(module))
    check_encryption(settings, method, clients)
    return Experiment(settings, split, module, method, train, clients)


def check_encryption(settings: Settings, method: Method, clients: int) -> None:
    """Refuse an encrypted federation that would leak, or cannot work.

    Args:
        settings: validated settings.
        method: that they name.
        clients: how many there are.

    Raises:
        ConfigError: settings that exclude each other.
        ArgumentError: more participants than a sum can carry.
    """
    if not settings.encrypts:
        return
    here = f'encryption.scheme = "{settings.encryption.scheme}"'
    if method.merges != "models" and (
        method.starts != "dense" or any(map(method.sends, range(settings.run.rounds + 1)))
    ):
        raise ConfigError(
            f'{here}: method.name = "{settings.method.name}" says that it merges an average, but begins with a round of'
            ' its own or sends more than models: it needs Method(..., merges="models")'
        )
    if method.merges == "models":
        named = settings.method.name == "fedsparsify-local"
        variant = f' with method.merge = "{settings.method.merge}"' if named else ""
        raise ConfigError(
            f'{here}: the server of method.name = "{settings.method.name}"{variant} needs each client\'s model, not'
            " only their average: choose fedsparsify-global, fedsparsify-local or another that merges an average"
        )
    if settings.wire.uplink != "float32":
        raise ConfigError(f'{here} rounds updates in its own way: leave out wire.uplink = "{settings.wire.uplink}"')
    if settings.federation.min_clients < 2:
        raise ConfigError(
            f"{here} needs federation.min_clients of 2 or more, not {settings.federation.min_clients}: a sum of one"
            " shows all clients that one's model"
        )
    scheme = _scheme(settings, clients)
    try:
        FixedPoint(settings.encryption.bound, scheme.plain_modulus, scheme.participants)
    except ArgumentError as error:
        raise ConfigError(f"encryption.{error}") from error


def scheme_of(experiment: Experiment) -> AnyScheme:
    """Return with which parameters an experiment encrypts: what its most participants in a round need."""
    return _scheme(experiment.settings, experiment.clients)


def _scheme(settings: Settings, clients: int) -> AnyScheme:
    return CIPHERS[settings.encryption.scheme].scheme(taking_part(clients, settings.federation.participation))


def upload_size(experiment: Experiment, layout: ParameterLayout) -> int:
    """Return how many bytes a client's encrypted values take at most; 0 where nothing is encrypted."""
    if not experiment.settings.encrypts:
        return 0
    scheme = scheme_of(experiment)
    limbs = Limbs(scheme.plain_modulus, scheme.participants)
    return CIPHERS[experiment.settings.encryption.scheme].upload(scheme, layout.n + limbs.each * layout.b)


def _check(settings: Settings) -> None:
    """Refuse what is wrong in any data set, before one is loaded."""
    if settings.federation.clients or settings.partition.kind != "groups":
        _check_federation(settings, settings.federation.clients)
    TuneSettings(**settings.train.model_dump())
    _schedule(settings)
    for name, known, place in (
        (settings.method.merge, MERGE_RULES, "method.merge"),
        (settings.purge.criterion, CRITERIA, "purge.criterion"),
        (settings.purge.scope, SCOPES, "purge.scope"),
    ):
        _choose(name, known, place)


def _check_federation(settings: Settings, clients: int) -> None:
    check_federation(clients, settings.federation.participation, settings.federation.min_clients)


def _schedule(settings: Settings) -> PolynomialSchedule:
    s = settings.schedule
    return PolynomialSchedule(s.initial, s.final, s.start_round, settings.run.rounds, s.frequency, s.exponent)


def _as_they_are(scores: Floats) -> Floats:
    return scores


def _load(settings: Settings, progress: bool) -> tuple[Dataset, Dataset]:
    folder = Path(settings.data.dir).expanduser() if settings.data.dir else None
    return data.load(settings.data.name, folder, progress, settings.data.options)


def _parts(settings: Settings, train: Dataset) -> list[Indices]:
    """Return the indices of the training examples of each client."""
    clients = settings.federation.clients
    rng = derive(settings.run.seed, "partition")
    if clients > len(train):
        raise ArgumentError(f"federation.clients = {clients} must be at most {len(train)}, the number of examples")
    kind = settings.partition.kind
    try:
        return _PARTITIONS[kind](train, clients, rng, settings)
    except ArgumentError as error:
        raise ArgumentError(f'partition.kind = "{kind}": {error}') from error


def _choose(name: str, known: Mapping[str, Any], place: str) -> Any:
    if name not in known:
        raise ConfigError(f'{place} = "{name}" is unknown{nearest(name, known)}; known are {", ".join(known)}')
    return known[name]


def _split(clients: Sequence[Dataset], test: Dataset) -> Split:
    for index, client in enumerate(clients):
        for what, ours, theirs in (("inputs", client.x, test.x), ("labels", client.y, test.y)):
            if ours.shape[1:] != theirs.shape[1:] or ours.dtype != theirs.dtype:
                raise ArgumentError(
                    f"the {what} of client {index} are {ours.dtype}{list(ours.shape[1:])}, those of the test set"
                    f" {theirs.dtype}{list(theirs.shape[1:])}: bring them to one shape and type"
                )
    classes = max(test.num_classes, *(c.num_classes for c in clients)) if len(clients) else 0
    if not classes:
        return Split(clients, test, ("examples",), [[len(c)] for c in clients])
    names = test.class_names or tuple(str(label) for label in range(classes))
    counts = [np.bincount(c.y.astype(np.int64), minlength=classes).tolist() for c in clients]
    return Split(clients, test, names, counts)


Indices = NDArray[np.int64]


def _refuse_sites(*_: object) -> list[Indices]:
    raise ArgumentError("each site has its own data, so this is for a deployment only (docs/deployment.md)")


_PARTITIONS: dict[str, Callable[[Dataset, int, np.random.Generator, Settings], list[Indices]]] = {
    "iid": lambda train, clients, rng, s: partition.iid(train.y, clients, rng),
    "classes": lambda train, clients, rng, s: partition.by_classes(
        train.y, clients, rng, s.partition.classes_per_client
    ),
    "dirichlet": lambda train, clients, rng, s: partition.dirichlet(train.y, clients, rng, s.partition.alpha),
    "groups": lambda train, clients, rng, s: partition.by_groups(train.groups, clients),
    "sites": _refuse_sites,
    "quantity": lambda train, clients, rng, s: partition.quantity_skew(train.y, clients, rng, s.partition.alpha),
}
