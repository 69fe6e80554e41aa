"""Settings -> objects -> a run: what the command line and the Python API both do."""

from __future__ import annotations

import copy
import hashlib
import json
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from . import algorithms, data, models
from .algorithms import Method
from .config import OWN, Settings, load_settings, settings_from
from .data import Dataset, as_dataset, partition
from .errors import ArgumentError, CheckpointError, ConfigError
from .federation import Federation, Observer, RunDirectory, Simulator
from .federation.engine import check_federation
from .layout import ParameterLayout
from .merge import MERGE_RULES
from .plugins import nearest
from .purge import CRITERIA, SCOPES, make_purge
from .randomness import derive
from .schedules import PolynomialSchedule
from .sparse import Calibration, processor, targets
from .state import Floats, ModelState, ServerState
from .tune import TuneSettings
from .version import __version__

__all__ = [
    "Experiment",
    "Split",
    "check_all",
    "deal",
    "default_directory",
    "federate",
    "make_method",
    "prepare",
    "resume",
    "start",
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
    """

    settings: Settings
    split: Split
    module: nn.Module
    method: Method
    train: TuneSettings


def prepare(settings: Settings, place: str, *, progress: bool = True) -> Experiment:
    """Make all objects that settings describe.

    Args:
        settings: validated settings.
        place: where they come from, for messages.
        progress: show a bar where data must be downloaded.

    Raises:
        FedSparsifyError: a value is out of its range, or data or a named function cannot be used.
    """
    try:
        _check(settings)
        split = deal(settings, progress=progress)
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


def check_all(runs: Iterable[tuple[Settings, str]], *, progress: bool = True) -> None:
    """Refuse what :func:`prepare` would refuse, for many runs: each data set is loaded, and each network built, once.

    Args:
        runs: settings and the place that they come from, for messages.
        progress: show a bar where data must be downloaded.

    Raises:
        FedSparsifyError: a value is out of its range, or data or a named function cannot be used.
    """
    runs = list(runs)
    loaded: dict[str, Dataset] = {}
    dealt: set[str] = set()
    layouts: dict[str, ParameterLayout] = {}
    for settings, place in runs:
        try:
            _check(settings)
        except (ArgumentError, ConfigError) as error:
            raise ConfigError(f"{place}: {error}") from error
    for settings, place in runs:
        which, network = settings.data.model_dump_json(), settings.model.model_dump_json()
        dealing = f"{which} {settings.partition} {settings.federation.clients} {settings.run.seed}"
        try:
            if network not in layouts:
                layouts[network] = ParameterLayout.of(
                    models.build(settings.model.name, settings.run.seed, **settings.model.options)
                )
            make_method(settings, layouts[network])
            if which not in loaded:
                loaded[which] = _load(settings, progress)[0]
            if dealing not in dealt:
                _parts(settings, loaded[which])
                dealt.add(dealing)
        except (ArgumentError, ConfigError) as error:
            raise ConfigError(f"{place}: {error}") from error


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


def start(experiment: Experiment, out: Path, observers: Sequence[Observer] = ()) -> Path:
    """Run an experiment in a new directory and return the directory.

    Raises:
        FedSparsifyError: the network cannot be used on the data, the directory cannot be used, or too few clients
            remain; all rounds that were finished are kept.
    """
    with _simulator(experiment) as simulator:
        state = _initial(experiment, simulator.layout)
        simulator.evaluate(state.model)  # a network that does not fit the data fails here, before anything is written
        settings = experiment.settings
        run = RunDirectory.create(
            out, settings.to_toml(), _info(experiment, simulator), _digest(experiment, simulator.layout)
        )
        return _drive(experiment, simulator, run, state, observers)


def resume(path: str | Path, observers: Sequence[Observer] = (), workers: int | None = None) -> Path:
    """Go on with a run after its last finished round; a finished run is left as it is.

    Raises:
        FedSparsifyError: the directory or its checkpoint cannot be used; nothing is changed.
    """
    path = Path(path)
    config = path / "config.toml"
    if not config.is_file():
        raise CheckpointError(f"{path} is no run directory: it holds no config.toml")
    settings = load_settings(config)
    if OWN in (settings.data.name, settings.model.name):
        raise CheckpointError(f"{path} was started from Python: resume it there, with federate(..., resume=True)")
    if workers is not None:
        settings = settings.model_copy(update={"run": settings.run.model_copy(update={"workers": workers})})
    return _resume(prepare(settings, str(config)), path, observers)


def federate(
    *,
    model: nn.Module | Callable[[], nn.Module],
    clients: Sequence[object],
    test: object,
    settings: Mapping[str, Mapping[str, Any]],
    out: str | Path | None = None,
    resume: bool = False,
    observers: Sequence[Observer] = (),
) -> Path:
    """Federate your own network over your own data, and return the run directory.

    Args:
        model: a class or function that returns a new network, whose initial weights then depend on ``run.seed`` only;
            or a network, which is copied and starts from the weights that it has.
        clients: one data set a client: an (x, y) pair of arrays or tensors, a map-style torch data set, or a
            :class:`~fedsparsify.data.Dataset`.
        test: the test set, likewise.
        settings: tables and keys as in a configuration file (``docs/configuration.md``), but for those that say what
            the other arguments do; ``{"train": {"lr": 0.1}}`` is the least. The method is ``fedsparsify-global`` if
            none is named.
        out: a new directory for the run; by default ``runs/NAME`` with the name in the settings, numbered if taken.
        resume: go on with the run in ``out``, if there is one.
        observers: are told of every round.

    Raises:
        FedSparsifyError: a setting, the data or the directory cannot be used.
    """
    for table in ("data", "model", "partition"):
        if table in settings:
            raise ConfigError(f"settings: [{table}] has no place here: federate() has it from its other arguments")
    tables: dict[str, Any] = {
        "method": {"name": "fedsparsify-global"},
        **settings,
        "data": {"name": OWN},
        "model": {"name": OWN},
    }
    federation = tables.get("federation", {})
    if isinstance(federation, Mapping):  # else it is refused below
        tables["federation"] = {**federation, "clients": len(clients)}
        if federation.get("clients", len(clients)) != len(clients):
            raise ConfigError(f"settings: federation.clients = {federation['clients']}, but {len(clients)} are given")
    validated = settings_from(tables, "settings")
    try:
        _check(validated)
        split = _split(
            [as_dataset(c, f"the data of client {k}") for k, c in enumerate(clients)], as_dataset(test, "the test set")
        )
        if isinstance(model, nn.Module):
            module = copy.deepcopy(model)
        else:
            module = models.build_from(model, validated.run.seed)
        experiment = _assemble(validated, split, module)
    except ArgumentError as error:
        raise ConfigError(f"settings: {error}") from error
    path = default_directory(validated.run.name or "federation") if out is None else Path(out)
    if resume and (path / "config.toml").exists():
        return _resume(experiment, path, observers)
    return start(experiment, path, observers)


def default_directory(name: str) -> Path:
    """Return ``runs/NAME``, or the first of ``runs/NAME-2``, ``runs/NAME-3``, ... that does not exist."""
    folder = candidate = Path("runs") / name
    number = 1
    while candidate.exists():
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate


def _resume(experiment: Experiment, path: Path, observers: Sequence[Observer]) -> Path:
    calibration = _recorded_calibration(path)
    if calibration is None:
        experiment = replace(experiment, train=replace(experiment.train, backend="torch"))
    with _simulator(experiment, calibration) as simulator:
        run = RunDirectory.open(path, _digest(experiment, simulator.layout))
        try:
            run.expect(simulator.layout)
            state = run.load()
        except BaseException:
            run.close()
            raise
        if state is None:  # killed before the initial model was recorded
            return _drive(experiment, simulator, run, _initial(experiment, simulator.layout), observers)
        return _drive(experiment, simulator, run, state, observers, recorded=True)


def _initial(experiment: Experiment, layout: ParameterLayout) -> ServerState:
    w, buffers = layout.read(experiment.module)
    return ServerState(0, ModelState(w, np.ones(w.shape, np.bool_), buffers))


def _drive(
    experiment: Experiment,
    simulator: Simulator,
    run: RunDirectory,
    state: ServerState,
    observers: Sequence[Observer],
    recorded: bool = False,
) -> Path:
    settings = experiment.settings
    federation = Federation(
        method=experiment.method,
        layout=simulator.layout,
        transport=simulator,
        evaluate=simulator.evaluate,
        clients=len(experiment.split.clients),
        rounds=settings.run.rounds,
        seed=settings.run.seed,
        participation=settings.federation.participation,
        min_clients=settings.federation.min_clients,
        link_memory=settings.wire.link_memory << 20,
        trends=settings.wire.uplink == "float32",
    )
    with ExitStack() as stack:
        stack.callback(run.close)
        run.expect(simulator.layout)
        final = federation.run(state, [run, *observers], recorded=recorded)
        run.finish(final)
    return run.path


def _simulator(experiment: Experiment, calibration: Calibration | None = None) -> Simulator:
    settings = experiment.settings
    return Simulator(
        experiment.module,
        experiment.method,
        experiment.split.clients,
        experiment.split.test,
        experiment.train,
        settings.run.seed,
        settings.run.workers,
        calibration,
        settings.wire.uplink,
    )


def _recorded_calibration(path: Path) -> Calibration | None:
    """Return the figures that a run chose its backends by, None for torch alone; others could change its bits."""
    try:
        recorded = json.loads((path / "run.json").read_text())["calibration"]
        calibration = None if recorded is None else Calibration.from_json(recorded)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path / 'run.json'} cannot be used ({error}): restore it, or start a new run"
        ) from error
    if calibration is not None and calibration.target != (targets() or ("none",))[0]:
        raise CheckpointError(
            f"{path} was trained by native kernels for {calibration.target}, but this machine has"
            f" {(targets() or ('none',))[0]}: go on where it was started, or start a new run"
        )
    return calibration


def _assemble(settings: Settings, split: Split, module: nn.Module) -> Experiment:
    _check_federation(settings, len(split.clients))  # how many there are may have been left to the data
    train = TuneSettings(**settings.train.model_dump())
    return Experiment(settings, split, module, make_method(settings, ParameterLayout.of(module)), train)


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


def _digest(experiment: Experiment, layout: ParameterLayout) -> bytes:
    own = bytes.fromhex(layout.digest) + json.dumps(experiment.split.counts).encode()
    return hashlib.sha256(experiment.settings.digest + own).digest()


def _info(experiment: Experiment, simulator: Simulator) -> dict[str, Any]:
    settings = experiment.settings
    layout = simulator.layout
    schedule = experiment.method.schedule
    return {
        "version": __version__,
        "name": settings.run.name or "federation",
        "method": settings.method.name,
        "model": settings.model.name,
        "dataset": settings.data.name,
        "seed": settings.run.seed,
        "rounds": settings.run.rounds,
        "initial": hashlib.sha256(layout.read(experiment.module)[0].tobytes()).hexdigest(),
        "parameters": layout.n,
        "layers": [[slot.name, list(slot.shape)] for slot in layout.parameters],
        "partition": {
            "kind": settings.partition.kind if settings.data.name != OWN else "given",
            "class_names": list(experiment.split.class_names),
            "counts": experiment.split.counts,
        },
        "unseen_groups": experiment.split.unseen_groups,
        "calibration": None if simulator.calibration is None else asdict(simulator.calibration),
        "schedule": None if schedule is None else [schedule(t) for t in range(settings.run.rounds + 1)],
        "machine": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cpu": processor(),
            "workers": simulator.workers,
            "workers_are": "threads" if simulator.threads else "processes",
            "backend": simulator.uncovered or "native where it is faster",
            "device": simulator.device,
        },
    }


Indices = NDArray[np.int64]

_PARTITIONS: dict[str, Callable[[Dataset, int, np.random.Generator, Settings], list[Indices]]] = {
    "iid": lambda train, clients, rng, s: partition.iid(train.y, clients, rng),
    "classes": lambda train, clients, rng, s: partition.by_classes(
        train.y, clients, rng, s.partition.classes_per_client
    ),
    "dirichlet": lambda train, clients, rng, s: partition.dirichlet(train.y, clients, rng, s.partition.alpha),
    "groups": lambda train, clients, rng, s: partition.by_groups(train.groups, clients),
    "quantity": lambda train, clients, rng, s: partition.quantity_skew(train.y, clients, rng, s.partition.alpha),
}
