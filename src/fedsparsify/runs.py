"""Experiment -> run directory: what the command line, the Python API and a deployment's server do."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import nn

from .config import OWN, load_settings, settings_from
from .errors import CheckpointError, ConfigError, FederationError
from .experiment import Experiment, given, prepare, scheme_of
from .federation import Federation, Observer, RunDirectory, Simulator, Transport
from .federation.checkpoint import Form, States
from .federation.encrypted import (
    EncryptedClient,
    EncryptedFederation,
    EncryptedTransport,
    Keyring,
    LockedState,
    LockedStates,
    open_model,
)
from .federation.engine import taking_part
from .federation.pool import default_workers
from .layout import ParameterLayout
from .secure import CIPHERS
from .sparse import Calibration, processor, targets
from .state import ServerState
from .version import __version__
from .wire import Kind, Message, encode

__all__ = ["Connect", "default_directory", "federate", "go_on", "resume", "start"]

Connect = Callable[[ParameterLayout, Calibration | None], Transport]
"""Network and the figures that backends are chosen by -> the transport to clients that are elsewhere."""


def start(
    experiment: Experiment, out: Path, observers: Sequence[Observer] = (), connect: Connect | None = None
) -> Path:
    """Run an experiment in a new directory and return the directory.

    Args:
        experiment: from :func:`~fedsparsify.experiment.prepare`.
        out: a new directory.
        observers: are told of every round.
        connect: makes the transport; by default clients are simulated on this machine.

    Raises:
        FedSparsifyError: the network cannot be used on the data, the directory cannot be used, or too few clients
            remain; all rounds that were finished are kept.
    """
    with _simulator(experiment, alone=connect is not None) as simulator:
        state = ServerState(0, experiment.initial)
        settings = experiment.settings
        try:
            simulator.evaluate(state.model)  # before anything is written
        except FederationError as error:
            names = settings.model.name, settings.data.name
            named = "the network" if OWN in names else f'model.name = "{names[0]}"'
            raise FederationError(
                f'{error}; if {named} does not fit data.name = "{names[1]}", give it other inputs or classes'
                " (the keys of [model])"
            ) from error
        if settings.encryption.key:  # a resumed run must find it from anywhere
            path = str(Path(settings.encryption.key).expanduser().resolve())
            kept = settings.encryption.model_copy(update={"key": path})
            settings = settings.model_copy(update={"encryption": kept})
            experiment = replace(experiment, settings=settings)
        keyring = _keyring(experiment) if settings.encrypts and connect is None else None
        run = RunDirectory.create(
            out, settings.to_toml(), _info(experiment, simulator), _digest(experiment, simulator.layout)
        )
        if settings.encrypts:
            return _drive_encrypted(experiment, simulator, run, None, observers, connect, keyring)
        return _drive(experiment, simulator, run, state, observers, connect)


def resume(path: str | Path, observers: Sequence[Observer] = (), workers: int | None = None) -> Path:
    """Go on with a run after its last finished round; a finished run is left as it is.

    Raises:
        FedSparsifyError: the directory or its checkpoint cannot be used; nothing is changed.
    """
    path = Path(path)
    config = path / "config.toml"
    if not config.is_file():
        raise CheckpointError(f"{path} is no run directory: it holds no config.toml; name one that was begun")
    settings = load_settings(config)
    if OWN in (settings.data.name, settings.model.name):
        raise CheckpointError(f"{path} was started from Python: resume it there, with federate(..., resume=True)")
    if workers is not None:
        settings = settings.model_copy(update={"run": settings.run.model_copy(update={"workers": workers})})
    return go_on(prepare(settings, str(config)), path, observers)


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
    experiment = given(settings_from(tables, "settings"), model, clients, test)
    path = default_directory(experiment.settings.run.name or "federation") if out is None else Path(out)
    if resume and (path / "config.toml").exists():
        return go_on(experiment, path, observers)
    return start(experiment, path, observers)


def default_directory(name: str) -> Path:
    """Return ``runs/NAME``, or the first of ``runs/NAME-2``, ``runs/NAME-3``, ... that does not exist."""
    folder = candidate = Path("runs") / name
    number = 1
    while candidate.exists():
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate


def go_on(
    experiment: Experiment, path: Path, observers: Sequence[Observer] = (), connect: Connect | None = None
) -> Path:
    """Go on with an experiment in its directory, as :func:`resume` does; arguments as in :func:`start`.

    Raises:
        FedSparsifyError: the directory or its checkpoint cannot be used, or is another experiment's; nothing is
            changed.
    """
    calibration = _recorded_calibration(path)
    if calibration is None:
        experiment = replace(experiment, train=replace(experiment.train, backend="torch"))
    with _simulator(experiment, calibration, alone=connect is not None) as simulator:
        run = RunDirectory.open(path, _digest(experiment, simulator.layout))
        try:
            run.expect(_form(experiment, simulator.layout))
            state = run.load()
        except BaseException:
            run.close()
            raise
        if experiment.settings.encrypts:
            return _drive_encrypted(experiment, simulator, run, state, observers, connect)
        recorded = state is not None  # else it was killed before the initial model was recorded
        state = state or ServerState(0, experiment.initial)
        return _drive(experiment, simulator, run, state, observers, connect, recorded)


def _drive(
    experiment: Experiment,
    simulator: Simulator,
    run: RunDirectory,
    state: ServerState,
    observers: Sequence[Observer],
    connect: Connect | None,
    recorded: bool = False,
) -> Path:
    settings = experiment.settings
    federation = Federation(
        method=experiment.method,
        layout=simulator.layout,
        transport=simulator if connect is None else connect(simulator.layout, simulator.calibration),
        evaluate=simulator.evaluate,
        clients=experiment.clients,
        rounds=settings.run.rounds,
        seed=settings.run.seed,
        participation=settings.federation.participation,
        min_clients=settings.federation.min_clients,
        link_memory=settings.wire.link_memory << 20,
        trends=settings.wire.uplink == "float32",
    )
    with ExitStack() as stack:
        stack.callback(run.close)
        run.expect(_form(experiment, simulator.layout))
        final = federation.run(state, [run, *observers], recorded=recorded)
        run.finish(encode(Message(Kind.MODEL, final.round, final.model), simulator.layout))
    return run.path


def _drive_encrypted(
    experiment: Experiment,
    simulator: Simulator,
    run: RunDirectory,
    state: LockedState | None,
    observers: Sequence[Observer],
    connect: Connect | None,
    keyring: Keyring | None = None,
) -> Path:
    """Run under encryption.

    Args:
        experiment: as for :func:`start`.
        simulator: clients and evaluator on this machine.
        run: the run's directory.
        state: where to go on, None to begin.
        observers: as for :func:`start`.
        connect: as for :func:`start`.
        keyring: what a new simulation's clients use; that of an older one is in its directory.
    """
    settings, layout, form = experiment.settings, simulator.layout, _form(experiment, simulator.layout)
    cipher, scheme = CIPHERS[settings.encryption.scheme], scheme_of(experiment)
    with ExitStack() as stack:
        stack.callback(run.close)
        run.expect(form)
        finished = run.path / ("model.fsp" if connect is None else "model.locked")
        if state is not None and state.round == settings.run.rounds and finished.exists():
            return run.path
        if connect is None:
            keyring = _kept_keyring(experiment, run.path, state, keyring)
            transport: Transport = EncryptedTransport(simulator, _clients(experiment, simulator, keyring))
        else:
            cipher.prepare(scheme, taking_part(experiment.clients, settings.federation.participation))
            transport = connect(layout, simulator.calibration)
        federation = EncryptedFederation(
            method=experiment.method,
            layout=layout,
            transport=transport,
            cipher=cipher,
            scheme=scheme,
            metric="accuracy" if experiment.split.test.num_classes else "mae",
            clients=experiment.clients,
            rounds=settings.run.rounds,
            seed=settings.run.seed,
            participation=settings.federation.participation,
            min_clients=settings.federation.min_clients,
        )
        final = federation.run(state, [run, *observers])
        if keyring is None:
            run.finish(form.write(final), "model.locked")
        else:
            model = open_model(keyring.key, final.model, final.run, final.round, layout).model
            run.finish(encode(Message(Kind.MODEL, final.round, model), layout))
    return run.path


def _clients(experiment: Experiment, simulator: Simulator, keyring: Keyring) -> Callable[[int], EncryptedClient]:
    """Return what makes a simulated client's side of the encryption."""
    initial = experiment.initial
    shared = WeakValueDictionary[str, ServerState]()

    def client(k: int) -> EncryptedClient:
        return EncryptedClient(
            index=k,
            examples=len(experiment.split.clients[k]),
            method=experiment.method,
            layout=simulator.layout,
            initial=initial,
            keyring=keyring,
            evaluate=simulator.evaluate,
            least=experiment.settings.federation.min_clients,
            shared=shared,
        )

    return client


def _keyring(experiment: Experiment, path: Path | None = None) -> Keyring:
    """Return the key of a simulation's clients: of the file that settings name, or of ``path``, or a new one."""
    settings = experiment.settings
    cipher, scheme = CIPHERS[settings.encryption.scheme], scheme_of(experiment)
    path = Path(settings.encryption.key) if settings.encryption.key else path
    if path is None:
        return Keyring(cipher, cipher.make_key(scheme), scheme, settings.encryption.bound)
    return Keyring.load(cipher, path, scheme, settings.encryption.bound)


def _kept_keyring(experiment: Experiment, folder: Path, state: LockedState | None, given: Keyring | None) -> Keyring:
    """Return the key of a simulation's clients after seeing to it that a resumed run will find it."""
    path = folder / "clients.key"
    named = bool(experiment.settings.encryption.key)
    if state is not None and not named and not path.exists():
        raise CheckpointError(
            f"{path} is missing, the key of this simulation's clients: restore it; if this is a deployment's run, its"
            " SuperLink goes on with it (docs/deployment.md)"
        )
    keyring = given or _keyring(experiment, path if path.exists() else None)
    if state is not None and keyring.key.identifier.hex() != state.key:
        raise CheckpointError(f"{keyring.path} is not the key that {folder} was begun with: restore that one")
    if keyring.path is None:
        keyring.key.save(path)
        keyring = replace(keyring, path=path)
    return keyring


def _form(experiment: Experiment, layout: ParameterLayout) -> Form:
    return LockedStates(layout) if experiment.settings.encrypts else States(layout)


def _simulator(experiment: Experiment, calibration: Calibration | None = None, *, alone: bool = False) -> Simulator:
    """Return the clients and the evaluator on this machine; ``alone``: the evaluator only."""
    settings = experiment.settings
    return Simulator(
        experiment.module,
        experiment.method,
        () if alone else experiment.split.clients,
        experiment.split.test,
        experiment.train,
        settings.run.seed,
        settings.run.workers or (default_workers() if alone else 0),
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
