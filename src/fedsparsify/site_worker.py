"""The process that stays at a site between Flower's messages: it has torch, the data and what the client keeps.

Started by :func:`fedsparsify.deployment.client_app` as ``python -m fedsparsify.site_worker FOLDER SITE``, with a folder
from :func:`fedsparsify.federation.warm.place` and the site's facts as JSON.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from . import experiment
from .config import load_settings
from .errors import ArgumentError, ConfigError, FederationError, FedSparsifyError
from .experiment import Experiment, scheme_of
from .federation.client import Client, evaluate
from .federation.encrypted import EncryptedClient, EncryptedSite, Keyring
from .federation.site import Site
from .federation.warm import serve
from .secure import CIPHERS
from .sparse import Calibration
from .tune import Tuner

__all__ = ["main"]


def main() -> None:
    """Answer requests until the SuperNode ends."""
    site = json.loads(sys.argv[2])
    sys.path.insert(0, site["folder"])  # for loaders and networks that the app brings along
    torch.set_num_threads(int(site["threads"]))
    worker = _Worker(site)
    serve(Path(sys.argv[1]), worker.answer, watched=site["watched"], idle=site["idle"])


class _Worker:
    """Makes a site when it is first asked, and turns errors into answers."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self._facts = facts
        self._site: Site | EncryptedSite | None = None
        self._key: tuple[int, ...] = ()

    def answer(self, request: bytes) -> bytes:
        """Return 0 and the update, or 1 and why there is none."""
        head, _, broadcast = request.partition(b"\n")
        task = json.loads(head)
        try:
            if self._key != (key := _state_of(self._facts.get("key", ""))):  # it was replaced
                self._site, self._key = None, key
            self._site = self._site or self._make(task["calibration"])
            return b"\x00" + self._site.answer(task["client"], task["round"], broadcast)
        except FedSparsifyError as error:
            return b"\x01" + str(error).encode()
        except Exception as error:  # its text may hold what must not leave the site
            traceback.print_exc()
            return b"\x01" + f"{type(error).__name__}: the log of its SuperNode says more".encode()

    def _make(self, calibration: str) -> Site | EncryptedSite:
        facts = self._facts
        overrides = list(facts["set"])
        if facts["data-dir"]:
            overrides.append(f"data.dir={json.dumps(facts['data-dir'])}")
        settings = load_settings(Path(facts["folder"]) / facts["settings"], overrides)
        prepared = experiment.prepare(settings, facts["settings"], progress=False, deployed=True)
        figures = Calibration.from_json(json.loads(calibration)) if calibration else None
        tuner = Tuner(prepared.module, replace(prepared.train), prepared.split.test, figures)

        def make(client: int) -> Client:
            if not 0 <= client < prepared.clients:
                raise FederationError(f"there is no client {client}: there are {prepared.clients}")
            own = settings.partition.kind == "sites"
            data = prepared.split.clients[0 if own else client]
            if len(data) == 0:
                raise ArgumentError(f"client {client} has no example; leave it out or give it some")
            return Client(client, data, prepared.method, tuner, settings.run.seed, settings.wire.uplink)

        site = Site(make)
        if settings.encrypts:
            return _encrypted(site, make, prepared, facts.get("key", ""))
        if facts.get("key", ""):  # one word of the coordinator's must not undo it
            raise ConfigError(
                "this site has a key, but the settings do not encrypt (encryption.scheme): if that is meant, take KEY"
                " out of site.conf"
            )
        return site


def _state_of(key: str) -> tuple[int, ...]:
    """Return what tells a file from the one that took its place; nothing where there is none."""
    if not key:
        return ()
    try:
        found = Path(key).expanduser().stat()
    except OSError:
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_size


def _encrypted(site: Site, make: Callable[[int], Client], prepared: Experiment, key: str) -> EncryptedSite:
    settings = prepared.settings
    if not key:
        raise ConfigError(
            "this federation encrypts, and this site has no key: say where it is in site.conf (KEY), or start the"
            " SuperNode with key in its --node-config"
        )
    cipher, path = CIPHERS[settings.encryption.scheme], Path(key).expanduser()
    keyring = Keyring.load(cipher, path, scheme_of(prepared), settings.encryption.bound)
    initial = prepared.initial

    def encrypted(client: int) -> EncryptedClient:
        own = make(client)
        return EncryptedClient(
            index=client,
            examples=len(own.data),
            method=prepared.method,
            layout=own.tuner.layout,
            initial=initial,
            keyring=keyring,
            evaluate=partial(evaluate, own.tuner, test=prepared.split.test),
            least=settings.federation.min_clients,
        )

    return EncryptedSite(site, encrypted)


if __name__ == "__main__":
    main()
