"""A real deployment on loopback: SuperLink and SuperNodes as processes, over TLS, from what ``deploy init`` wrote.

Every SuperNode reaches the SuperLink through a relay of its own, which counts bytes and can be cut.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.commands import alive

SITES = ("ada", "bob", "cyd")
_LIBC = ctypes.CDLL(None)
# Limits are for what hangs, not for what a busy machine is slow at. This one: starting a SuperLink, or SuperNodes until
# they are connected.
PATIENCE = 1800.0
# A run until its end or a round of it; it waits for a lost reply for as long as ``deadline`` in ``expected.py``.
RUN = 1800.0
# From the end of ``flwr run`` to what a run leaves.
GRACE = 300.0


def free_port() -> int:
    """Return a port that is free, and that systems do not give out by themselves before it is used."""
    while True:
        port = random.randrange(20_000, 32_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def wait_for(what: str, ready: Callable[[], Any], seconds: float = PATIENCE, pause: float = 0.1) -> Any:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := ready():
            return found
        time.sleep(pause)
    raise AssertionError(f"{what} within {seconds:g} s")


def descendants(pid: int) -> list[int]:
    """Process ids of all that a process's threads have started, and what those have."""
    found: list[int] = []
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):
            for child in map(int, listed.read_text().split()):
                found += [child, *descendants(child)]
    return found


def end_with_parent() -> None:
    """Have this process be told to end when the tests are killed: nobody else would stop what starts itself again."""
    _LIBC.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


class Relay:
    """Passes TCP connections on, counts what goes through, and can be cut like a cable."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.bytes = 0
        self._up = True
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._up = False
        with self._lock:
            for end in self._open:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._up = True

    def close(self) -> None:
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                if not self._up:
                    raise OSError
                far = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                near.close()
                continue
            with self._lock:
                self._open |= {near, far}
            for a, b in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=(a, b), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while part := source.recv(1 << 16):
                with self._lock:
                    self.bytes += len(part)
                sink.sendall(part)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
            with self._lock:
                self._open.discard(end)


class Deployment:
    """Three sites, their processes and logs.

    Attributes:
        folder: what ``fedsparsify deploy init`` wrote.
        relays: by site.
        stuck: a run did not do what its test waited for; the next ones would wait in vain too.
    """

    def __init__(self, base: Path, settings: str) -> None:
        self.base, self.folder, self.port = base, base / "deployment", free_port()
        base.mkdir(parents=True, exist_ok=True)
        (base / "settings.toml").write_text(settings)
        command = [
            "deploy",
            "init",
            str(self.folder),
            "--config",
            str(base / "settings.toml"),
            "--port",
            str(self.port),
        ]
        for site in SITES:
            command += ["--site", site]
        self.own(*command)
        for site in SITES:
            conf = self.folder / "sites" / site / "site.conf"
            conf.write_text(re.sub(r"LOCAL_PORT=\d+", f"LOCAL_PORT={free_port()}", conf.read_text()))
        self.relays = {site: Relay(self.port) for site in SITES}
        self.stuck = False
        self._runs: list[Run] = []
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def environment(self) -> dict[str, str]:
        bin_ = str(Path(sys.executable).parent)
        return {
            **os.environ,
            "PATH": f"{bin_}{os.pathsep}{os.environ.get('PATH', '')}",
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
        }

    def own(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "fedsparsify", *arguments]
        subprocess.run(command, env=self.environment, check=True, capture_output=True, timeout=PATIENCE)

    def log(self, name: str) -> str:
        path = self.base / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self, name: str, command: list[str], cwd: Path, **variables: str) -> None:
        with open(self.base / f"{name}.log", "ab") as log:
            self._processes[name] = subprocess.Popen(
                command,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment | variables,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )

    def signal(self, name: str, number: int) -> None:
        """Send a signal to a process and all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self._processes[name].pid, number)

    def ended(self, name: str) -> bool:
        return self._processes[name].poll() is not None

    def kill(self, name: str) -> None:
        """Kill a process and all that descends from it, as when its machine dies: Flower starts some in own groups."""
        process = self._processes.pop(name)
        below = descendants(process.pid)
        for pid in (process.pid, *below):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        wait_for(f"{name} and its processes are gone", lambda: not any(map(alive, below)))

    def superlink(self) -> None:
        self.start("superlink", ["sh", "start.sh"], self.folder / "superlink")

        def answers() -> bool:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return True
            return False

        wait_for("the SuperLink listens", answers)

    def register(self) -> None:
        command = ["sh", str(self.folder / "admin" / "register.sh")]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stdout + done.stderr

    def site(self, name: str, **variables: str) -> None:
        address = f"127.0.0.1:{self.relays[name].port}"
        self.start(name, ["sh", "start.sh"], self.folder / "sites" / name, SUPERLINK=address, **variables)

    def give_key(self, key: Path) -> None:
        """Start all sites anew with the clients' key, after which they train under encryption only."""
        for name in SITES:
            folder = self.folder / "sites" / name
            shutil.copy(key, folder / "clients.key")
            conf = folder / "site.conf"
            conf.write_text(conf.read_text().replace('KEY=""', 'KEY="clients.key"'))
            self.kill(name)
        self.wait_for_sites(0)
        for name in SITES:
            self.site(name)
        self.wait_for_sites()

    def check_secrets(self) -> None:
        """Assert that no log and no file of a run holds a secret key."""
        keys = list(self.folder.rglob("*.key"))
        assert len(keys) >= 2 + len(SITES)
        contents = [key.read_bytes() for key in keys]
        assert all(content[:4] == b"FSK1" or b"PRIVATE KEY" in content for content in contents)
        secrets = [content[start:][:32] for content in contents if content[:4] == b"FSK1" for start in (8, 40, 72)]
        pems = [content.splitlines() for content in contents if content[:4] != b"FSK1"]
        secrets += [line for lines in pems for line in lines if not line.startswith(b"-")]
        places = [*self.base.glob("*.log"), *(self.folder / "superlink").rglob("*.*")]
        # A key's file ends with its public half, which a certificate is there to show.
        texts = {path: path.read_bytes() for path in places if path.is_file() and path.suffix not in (".key", ".pem")}
        assert any(path.name == "metrics.jsonl" for path in texts)
        for path, text in texts.items():
            assert not any(secret in text for secret in secrets), path

    def up(self) -> None:
        for program in ("flwr-clientapp", "flwr-serverapp"):  # started slowly once, and fast from then on
            command = [str(Path(sys.executable).parent / program), "--help"]
            subprocess.run(command, env=self.environment, check=True, capture_output=True, timeout=PATIENCE)
        self.superlink()
        self.register()
        for name in SITES:
            self.site(name)
        self.wait_for_sites()

    def flwr(self, *arguments: str) -> str:
        command = ["sh", str(self.folder / "admin" / "flwr.sh"), *arguments]
        done = subprocess.run(
            command,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        return done.stdout

    def nodes(self) -> list[dict[str, Any]]:
        out = self.flwr("supernode", "list", "--format", "json")
        with suppress(ValueError, LookupError):
            return list(json.loads(out[out.index("{") :])["nodes"])
        return []

    def wait_for_sites(self, count: int = len(SITES)) -> None:
        def online() -> bool:
            nodes = self.nodes()  # none where Flower did not answer
            return bool(nodes) and [node.get("status") for node in nodes].count("online") == count

        wait_for(f"{count} SuperNodes are online", online, pause=2.0)

    def run(self, out: str, app: str = "app", **config: str) -> Run:
        """Start a run into a directory of the SuperLink's; ``resume="true"`` goes on with it."""
        assert not self.stuck, "a run before this one was stuck"
        given = {"out": out, **config}
        texts = [f"{key}={value}" if value == "true" else f'{key}="{value}"' for key, value in given.items()]
        name = f"run-{Path(out).name}-{len(list(self.base.glob('run-*')))}"
        self.start(
            name,
            ["sh", "flwr.sh", "run", str(self.folder / app), "--run-config", " ".join(texts), "--stream"],
            self.folder / "admin",
        )
        self._runs.append(Run(self, name, self.folder / "superlink" / out))
        return self._runs[-1]

    @property
    def slowest(self) -> float:
        """Seconds of the slowest round so far."""
        return max((record["seconds_round"] for run in self._runs for record in run.records), default=0.0)

    def close(self) -> None:
        for name in list(self._processes):
            self.signal(name, signal.SIGCONT)
            self.kill(name)
        for relay in self.relays.values():
            relay.close()


class Run:
    """A run that goes on."""

    def __init__(self, deployment: Deployment, log: str, path: Path) -> None:
        self._deployment, self._log, self.path = deployment, log, path

    @property
    def log(self) -> str:
        return self._deployment.log(self._log)

    @property
    def records(self) -> list[dict[str, Any]]:
        path = self.path / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def model(self) -> bytes:
        return (self.path / "model.fsp").read_bytes()

    def wait(self, round: int, seconds: float = RUN) -> None:
        """Wait until a round is recorded; the next one then begins."""
        self._wait(f"round {round} is recorded", lambda: len(self.records) > round, seconds)

    def finish(self, seconds: float = RUN) -> None:
        """Wait for the final model and the report."""
        self._wait("there is a report", (self.path / "report.html").exists, seconds)

    def fail(self, words: str, seconds: float = RUN) -> None:
        """Wait until the log says so."""
        self._wait(f"the log says {words!r}", lambda: words in self.log, seconds)

    def _wait(self, what: str, ready: Callable[[], Any], seconds: float) -> None:
        ended = float("inf")
        until = time.monotonic() + seconds
        while not ready():
            if self._deployment.ended(self._log):  # the run, or only who followed it
                ended = min(ended, time.monotonic())
            if time.monotonic() > min(until, ended + GRACE):
                self._deployment.stuck = True
                raise AssertionError(f"{what} within {seconds:g} s, or {GRACE:g} s after its end:\n{self.log[-3000:]}")
            time.sleep(0.1)
