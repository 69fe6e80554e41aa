"""What every test stands on: one thread for PyTorch, Ctrl-C that is heard, and no way to the network."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

# One thread a process: tests start worker processes, and the bits of a sum must not depend on the machine's cores.
torch.set_num_threads(1)

# Tests start hundreds of processes, which would compile all that they import where the environment forbids to keep it.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# A machine that does other things too must fail no test.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

# Shells start what they put into the background deaf to Ctrl-C, and commands started by tests would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


class NetworkUsedError(RuntimeError):
    """A test reached for the network. No OSError, so that code which handles failed downloads does not hide it."""


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("connect", "connect_ex"):
        original = getattr(socket.socket, name)

        def guarded(self: socket.socket, address: Any, original: Any = original) -> Any:
            if self.family in (socket.AF_INET, socket.AF_INET6):
                _refuse_unless_local(address[0])
            return original(self, address)

        monkeypatch.setattr(socket.socket, name, guarded)
    look_up = socket.getaddrinfo

    def guarded_look_up(host: Any, *args: Any, **kwargs: Any) -> Any:
        _refuse_unless_local(host)
        return look_up(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", guarded_look_up)


def _refuse_unless_local(host: Any) -> None:
    name = host.decode() if isinstance(host, bytes) else host
    if name in (None, "", "localhost"):
        return
    try:
        local = ipaddress.ip_address(name).is_loopback or ipaddress.ip_address(name).is_unspecified
    except ValueError:
        local = False
    if not local:
        raise NetworkUsedError(f"a test reached for {name}: tests must pass without a network")
