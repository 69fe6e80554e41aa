"""``fedsparsify deploy init``: what it writes, and what it refuses."""

from __future__ import annotations

import datetime
import os
import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr")  # the extra "flower"

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from fedsparsify import deploy
from fedsparsify.config import Settings, load_settings
from fedsparsify.errors import ArgumentError, RunError

CONFIG = """
[data]
name = "digits"
[federation]
clients = 10
min_clients = 2
[model]
name = "2-fc"
inputs = 64
[method]
name = "fedsparsify-global"
[train]
lr = 0.1
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def settings(config: Path) -> Settings:
    return load_settings(config)


def make(folder: Path, settings: Settings, **changes: Any) -> Path:
    known: dict[str, Any] = {
        "sites": ["north", "south"],
        "hosts": ["fl.example.org", "10.0.0.7"],
        "port": 8123,
        "days": 9,
    }
    deploy.init(folder, settings, **known | changes)
    return folder


def test_the_app_has_the_complete_settings_and_as_many_clients_as_sites(tmp_path: Path, settings: Settings) -> None:
    app = make(tmp_path / "new" / "net", settings) / "app"
    written = load_settings(app / "settings.toml")
    assert written.deployment.sites == ["north", "south"] and written.federation.clients == 2
    assert written.run.name == "mine" and written.train == settings.train and written.method == settings.method
    components = tomllib.loads((app / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["components"]
    assert components == {"serverapp": "federation_app:server", "clientapp": "federation_app:client"}


def test_flower_accepts_the_app_and_bundles_its_settings(tmp_path: Path, settings: Settings) -> None:
    app = make(tmp_path / "net", settings) / "app"
    command = [str(Path(sys.executable).parent / "flwr"), "build", "--app", str(app)]
    environment = {
        **os.environ,
        "FLWR_HOME": str(tmp_path),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    (bundle,) = tmp_path.glob("*.fab")
    assert done.returncode == 0, done.stdout
    shutil.unpack_archive(bundle, tmp_path / "fab", "zip")
    assert {"settings.toml", "federation_app.py", "pyproject.toml"} <= {p.name for p in (tmp_path / "fab").iterdir()}


def test_private_keys_are_their_owners_only_and_scripts_are_sound(tmp_path: Path, settings: Settings) -> None:
    before = os.umask(0)
    try:
        folder = make(tmp_path / "net", settings)
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()}
    assert sorted(p.name for p in modes if modes[p] == 0o600) == ["ca.key", "node.key", "node.key", "server.key"]
    scripts = [path for path in modes if path.suffix == ".sh"]
    assert len(scripts) == 7 and all(modes[path] == 0o755 for path in scripts)
    assert not any(modes[path] & 0o022 for path in modes)
    for script in scripts:
        subprocess.run(["sh", "-n", str(script)], check=True)
        assert str(tmp_path) not in script.read_text()  # the folder may be moved
        assert "--insecure" not in script.read_text()


def test_the_servers_certificate_holds_for_its_hosts_and_this_machine_until_its_day(
    tmp_path: Path, settings: Settings
) -> None:
    folder = make(tmp_path / "net", settings)
    other = make(tmp_path / "other", settings)
    server = x509.load_pem_x509_certificate((folder / "superlink" / "server.pem").read_bytes())
    assert {path.read_bytes() for path in folder.rglob("ca.pem")} == {(folder / "ca" / "ca.pem").read_bytes()}

    def verify(host: str, ca: Path, days: int = 0) -> None:
        store = Store([x509.load_pem_x509_certificate((ca / "ca" / "ca.pem").read_bytes())])
        when = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
        PolicyBuilder().store(store).time(when).build_server_verifier(name_of(host)).verify(server, [])

    for host in ("fl.example.org", "10.0.0.7", "localhost", "127.0.0.1"):
        verify(host, folder)
    with pytest.raises(VerificationError):
        verify("elsewhere.example.org", folder)
    with pytest.raises(VerificationError):
        verify("localhost", other)
    verify("localhost", folder, days=8)
    with pytest.raises(VerificationError):
        verify("localhost", folder, days=10)


def name_of(host: str) -> Any:
    return deploy._general(host)


def test_each_site_has_a_key_of_its_own_that_belongs_to_its_public_one(tmp_path: Path, settings: Settings) -> None:
    folder = make(tmp_path / "net", settings) / "sites"
    public = set()
    for site in ("north", "south"):
        private = load_ssh_private_key((folder / site / "node.key").read_bytes(), None)
        assert load_ssh_public_key((folder / site / "node.pub").read_bytes()) == private.public_key()
        public.add((folder / site / "node.pub").read_bytes())
    assert len(public) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sites": []}, "give --site NAME once for each"),
        ({"sites": ["a b", "c"]}, r"--site 'a b' must be letters, digits"),
        ({"sites": ["../up", "c"]}, r"--site '\.\./up' must be letters"),
        ({"sites": ["$(id)", "c"]}, r"--site '\$\(id\)' must be letters"),
        ({"sites": ["-x", "c"]}, "begin with one of the first"),
        ({"sites": ["x" * 64, "c"]}, "must be letters"),
        ({"sites": ["same", "Same"]}, "--site (same|Same) is given twice"),
        ({"sites": ["one"]}, r"federation\.min_clients = 2, but there are 1 sites"),
        ({"hosts": ["not a host"]}, "--host 'not a host' is neither a host name nor an address"),
        ({"hosts": ["-bad.example.org"]}, "--host '-bad.example.org' is neither"),
        ({"hosts": ['x"; id; "']}, "is neither a host name"),
        ({"port": 0}, "--port 0 must be from 1 to 65535"),
        ({"port": 65536}, "--port 65536 must be"),
        ({"days": 0}, "--days 0 must be from 1 to 3650"),
    ],
)
def test_what_cannot_be_used_is_refused_and_nothing_written(
    tmp_path: Path, settings: Settings, changes: dict[str, Any], message: str
) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ArgumentError, match=message):
        make(tmp_path / "net", settings, **changes)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_in_use_is_left_as_it_is_and_an_empty_one_filled(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "net").mkdir()
    make(tmp_path / "net", settings)
    before = {path: path.read_bytes() for path in (tmp_path / "net").rglob("*") if path.is_file()}
    for taken in (tmp_path / "net", tmp_path / "mine.toml"):
        with pytest.raises(RunError, match=r"is already in use: choose a new folder"):
            make(taken, settings)
    assert {path: path.read_bytes() for path in (tmp_path / "net").rglob("*") if path.is_file()} == before


def test_a_failure_in_the_middle_leaves_nothing(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, written = sorted(tmp_path.rglob("*")), []

    def full(path: Path, mode: int) -> None:
        written.append(path)
        if len(written) == 9:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "chmod", full)
    with pytest.raises(RunError, match=r"net cannot be written \(No space left on device\): choose another folder"):
        make(tmp_path / "net", settings)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_command_line_says_what_it_wrote_and_what_is_wrong(tmp_path: Path, config: Path) -> None:
    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "fedsparsify", "deploy", "init", *arguments]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "COLUMNS": "200"}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)

    done = call("net", "--config", "mine.toml", "--site", "a", "--site", "b")
    assert done.returncode == 0 and "net: a deployment of 2 sites. Its README.md has the commands" in done.stdout
    assert "--host 127.0.0.1 --port 8000" in (tmp_path / "net" / "superlink" / "start.sh").read_text()
    for arguments, sentence in (
        (("net", "--config", "mine.toml", "--site", "a", "--site", "b"), "net is already in use"),
        (("other", "--config", "none.toml", "--site", "a"), "none.toml cannot be read"),
        (("other", "--config", "mine.toml", "--site", "a/b"), "--site 'a/b' must be letters"),
    ):
        wrong = call(*arguments)
        assert wrong.returncode == 2 and sentence in wrong.stderr and "Traceback" not in wrong.stderr
    assert not (tmp_path / "other").exists()
