"""A federation over Flower, from the settings in its app's folder: what SuperLink and SuperNodes call.

The app that ``fedsparsify deploy init`` writes is three lines::

    from fedsparsify import deployment

    client = deployment.client_app(__file__)
    server = deployment.server_app(__file__)

Both ends read the same settings and build the same objects as the simulator; the engine, the client function and the
bytes between them are the simulator's too. This module is imported by a process a message and must stay light.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ConfigError, FedSparsifyError

if TYPE_CHECKING:
    from .config import Settings
    from .federation.flower import FlowerTransport, Node, Task
    from .layout import ParameterLayout
    from .sparse import Calibration

__all__ = ["client_app", "server_app"]

# Seconds after which a site's worker that nobody asks lets go of its memory.
_IDLE = 6 * 3600.0


def client_app(file: str) -> Any:
    """Return the ClientApp of the app whose settings lie beside ``file``.

    A SuperNode's ``--node-config`` may say ``data-dir`` (folder with the site's data, instead of the settings'
    ``data.dir``), ``threads`` (of torch; 1 if not given, and more of them may change the last bits of a result) and
    ``key`` (file of the clients' key, where the settings encrypt).

    Returns:
        A ``flwr.clientapp.ClientApp``.

    Raises:
        MissingExtraError: Flower is not installed.
    """
    from .federation.flower import make_client_app
    from .federation.warm import ask, place

    folder = Path(file).resolve().parent

    def answer(task: Task, broadcast: bytes, node: Node) -> bytes:
        site = {
            "folder": str(folder),
            "settings": _text(node.run_config, "settings", "settings.toml"),
            # How sites are reached changes nothing for them, and need not start another worker.
            "set": [text for text in _overrides(node.run_config) if not text.startswith("deployment.")],
            "data-dir": str(node.node_config.get("data-dir", "")),
            "threads": node.node_config.get("threads", 1),
            "key": str(node.node_config.get("key", "")),
            # Flower starts this process from one that lives as long as the SuperNode.
            "watched": os.getppid(),
            "idle": _IDLE,
        }
        home = place(f"{os.getppid()} {node.id}")
        command = [sys.executable, "-m", "fedsparsify.site_worker", str(home), json.dumps(site)]
        reply = ask(home, command, json.dumps(asdict(task)).encode() + b"\n" + broadcast)
        if reply[:1] != b"\x00":
            raise FedSparsifyError(reply[1:].decode(errors="replace"))
        return reply[1:]

    return make_client_app(answer)


def server_app(file: str) -> Any:
    """Return the ServerApp of the app whose settings lie beside ``file``.

    The app's configuration (``flwr run --run-config``) has ``settings`` (a TOML file of the app), ``set`` (replaced
    settings, ``'train.lr=0.1 run.rounds=5'``), ``out`` (the run directory; a new one below ``runs/`` if empty) and
    ``resume`` (go on with the run in ``out``). Folders are relative to where the SuperLink was started.

    Returns:
        A ``flwr.serverapp.ServerApp``.

    Raises:
        MissingExtraError: Flower is not installed.
    """
    from .federation.flower import make_server_app

    folder = Path(file).resolve().parent
    return make_server_app(lambda connect, config: _serve(folder, connect, config))


def _serve(folder: Path, connect: Callable[..., FlowerTransport], config: Mapping[str, Any]) -> None:
    """Carry out a run, or go on with one."""
    from rich.console import Console

    from . import experiment, runs
    from .config import load_settings
    from .progress import ProgressDisplay
    from .report import write_report

    console = Console(file=sys.stdout, force_terminal=False, width=120)
    name = _text(config, "settings", "settings.toml")
    overrides = _overrides(config)
    settings = load_settings(folder / name, overrides)
    _check(settings, name)
    prepared = experiment.prepare(settings, f"{name} with set" if overrides else name, progress=False, deployed=True)
    out = Path(_text(config, "out", "")) if config.get("out") else None
    again = bool(config.get("resume", False))
    if again and out is None:
        raise ConfigError('resume = true needs the run\'s directory: add out="runs/NAME" to --run-config')
    path = out or runs.default_directory(settings.run.name)
    console.print(f"Run directory: {path.resolve()}", markup=False, highlight=False, soft_wrap=True)

    def transport(layout: ParameterLayout, calibration: Calibration | None) -> FlowerTransport:
        return connect(
            clients=settings.federation.clients,
            **settings.deployment.model_dump(),
            largest=_largest(layout) + experiment.upload_size(prepared, layout),
            calibration="" if calibration is None else json.dumps(asdict(calibration)),
        )

    display = ProgressDisplay(settings.run.rounds, console)
    begin = runs.go_on if again and (path / "config.toml").exists() else runs.start
    try:
        begin(prepared, path, [display], transport)
    except FedSparsifyError as error:
        going_on = ""
        if (path / "config.toml").exists():
            going_on = f"""; go on with: flwr run . --run-config 'out="{path}" resume=true'"""
        console.print(f"error: {error}{going_on}", markup=False, highlight=False, soft_wrap=True)
        raise
    page = write_report([path], path / "report.html")
    console.print(f"Report: {page.resolve()}", markup=False, highlight=False, soft_wrap=True)


def _largest(layout: ParameterLayout) -> int:
    """Return the bytes of the largest reply: a mask, and of each parameter a value and four vectors' values."""
    return 2 * (5 * 4 * layout.n + layout.n // 8 + 4 * layout.b) + (1 << 16)


def _check(settings: Settings, place: str) -> None:
    sites, clients = settings.deployment.sites, settings.federation.clients
    if sites and len(sites) != clients:
        raise ConfigError(
            f"{place}: federation.clients = {clients}, but deployment.sites names {len(sites)}: make them as many"
        )
    if settings.encryption.key:
        raise ConfigError(
            f"{place}: encryption.key names a file here, and the coordinator must have no key: leave it out; each site"
            " names its own in site.conf (KEY)"
        )
    if len(set(sites)) < len(sites):
        raise ConfigError(f"{place}: deployment.sites names a site twice: {', '.join(sites)}")
    if settings.partition.kind == "sites" and not sites:
        raise ConfigError(f'{place}: partition.kind = "sites" needs their names: deployment.sites = ["...", "..."]')


def _overrides(config: Mapping[str, Any]) -> list[str]:
    try:
        return shlex.split(_text(config, "set", ""))
    except ValueError as error:
        raise ConfigError(f"the run's set = {config['set']!r} is malformed ({error}): close its quotes") from error


def _text(config: Mapping[str, Any], key: str, default: str) -> str:
    value = config.get(key, default)
    if not isinstance(value, str):
        raise ConfigError(f"the run's {key} = {value!r} must be a text in quotes")
    return value or default
