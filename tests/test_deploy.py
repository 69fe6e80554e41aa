"""A deployment's folder: what is in it, who can read it, that certificates hold, and that nothing is left half done."""

from __future__ import annotations

import datetime
import http.client
import http.server
import ipaddress
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import tomllib
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import ClassVar

import pytest

pytest.importorskip("flwr")  # the extra "flower", of which cryptography is a part

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID

from fedsparsify import deploy
from fedsparsify.config import load_settings
from fedsparsify.errors import ArgumentError, FedSparsifyError, MissingExtraError, RunError
from tests.commands import CONFIG, call, contents, wait_until, write_config

SITES = ("north", "south_2", "West-3")
HOSTS = ("fl.example.org", "192.0.2.7", "2001:db8::7")
SITE_FILES = {"ca.pem", "node.key", "node.pub", "site.conf", "start.sh"}
FILES = {
    "README.md",
    "deployment.toml",
    *(f"app/{name}" for name in ("federation_app.py", "pyproject.toml", "settings.toml")),
    *(f"ca/{name}" for name in ("ca.key", "ca.pem")),
    *(f"superlink/{name}" for name in ("ca.pem", "gateway.conf", "gateway.sh", "server.key", "server.pem", "start.sh")),
    *(f"admin/{name}" for name in ("ca.pem", "flwr.sh", "register.sh", "resume.sh", "run.sh")),
    *(f"sites/{site}/{name}" for site in SITES for name in SITE_FILES),
}


def write(folder: Path, sites: tuple[str, ...] = SITES, hosts: tuple[str, ...] = HOSTS, **options: int) -> Path:
    settings = load_settings(write_config(folder))
    deploy.init(folder / "net", settings, sites, hosts, **{"port": 8000, "days": 365, **options})
    return folder / "net"


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deployment that no test changes."""
    return write(tmp_path_factory.mktemp("deployment"))


def texts(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(folder).items() if content is not None}


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


# what is written


def test_it_holds_what_each_party_needs_and_only_the_owner_reads_private_keys(net: Path) -> None:
    assert set(texts(net)) == FILES
    for name in FILES:
        mode = (net / name).stat().st_mode & 0o777
        assert mode == (0o600 if name.endswith(".key") else 0o755 if name.endswith(".sh") else 0o644), name
    private = {name for name, content in texts(net).items() if b"PRIVATE KEY" in content}
    assert private == {name for name in FILES if name.endswith(".key")}


def test_modes_do_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        folder = write(tmp_path)
    finally:
        os.umask(before)
    assert (folder / "ca" / "ca.key").stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o755


def test_the_apps_settings_are_complete_and_their_clients_are_the_sites(net: Path) -> None:
    settings = load_settings(net / "app" / "settings.toml")
    assert settings.deployment.sites == list(SITES)
    assert settings.federation.clients == 3
    assert settings.run.name == "tiny"
    assert set(tomllib.loads((net / "app" / "settings.toml").read_text())) == set(type(settings).model_fields)


def test_no_file_names_a_place_of_the_machine_that_made_it(net: Path) -> None:
    for name, content in texts(net).items():
        assert str(net.parent).encode() not in content, name


def test_sites_share_no_key_and_their_local_ports_differ(net: Path) -> None:
    for name in ("node.key", "node.pub"):
        assert len({(net / "sites" / site / name).read_bytes() for site in SITES}) == 3
    ports = [re.findall(r"^LOCAL_PORT=(\d+)$", (net / "sites" / s / "site.conf").read_text(), re.M) for s in SITES]
    assert ports == [["9094"], ["9095"], ["9096"]]


def test_a_sites_local_port_is_not_the_servers(tmp_path: Path) -> None:
    folder = write(tmp_path, port=9094)
    ports = [re.findall(r"LOCAL_PORT=(\d+)", (folder / "sites" / site / "site.conf").read_text()) for site in SITES]
    assert ports == [["9096"], ["9097"], ["9098"]]  # 9094 is the gateway's, 9095 the SuperLink's


# certificates and keys


@pytest.mark.parametrize("host", [*HOSTS, "localhost", "127.0.0.1"])
def test_the_servers_certificate_is_valid_for_every_host_and_on_the_machine_itself(net: Path, host: str) -> None:
    try:
        subject: x509.DNSName | x509.IPAddress = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        subject = x509.DNSName(host)
    store = verification.Store([certificate(net / "sites" / "north" / "ca.pem")])
    verifier = verification.PolicyBuilder().store(store).build_server_verifier(subject)
    chain = verifier.verify(certificate(net / "superlink" / "server.pem"), [])
    assert len(chain) == 2


def test_another_host_or_another_authority_is_refused(net: Path, tmp_path: Path) -> None:
    server, own = certificate(net / "superlink" / "server.pem"), certificate(net / "ca" / "ca.pem")
    others = certificate(write(tmp_path) / "ca" / "ca.pem")
    for authority, host in ((own, "evil.example.org"), (others, "fl.example.org")):
        builder = verification.PolicyBuilder().store(verification.Store([authority]))
        with pytest.raises(verification.VerificationError):
            builder.build_server_verifier(x509.DNSName(host)).verify(server, [])


def test_the_authority_only_signs_and_the_server_only_serves(net: Path) -> None:
    authority, server = certificate(net / "ca" / "ca.pem"), certificate(net / "superlink" / "server.pem")
    for signed, signs in ((authority, True), (server, False)):
        constraints = signed.extensions.get_extension_for_class(x509.BasicConstraints)
        usage = signed.extensions.get_extension_for_class(x509.KeyUsage)
        assert (constraints.critical, constraints.value.ca, usage.critical) == (True, signs, True)
        assert (usage.value.key_cert_sign, usage.value.digital_signature) == (signs, not signs)
        assert isinstance(signed.public_key(), ec.EllipticCurvePublicKey)
    extended = server.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(extended) == [ExtendedKeyUsageOID.SERVER_AUTH]


@pytest.mark.parametrize("days", [1, 400])
def test_certificates_are_valid_from_now_for_as_many_days_as_asked(tmp_path: Path, days: int) -> None:
    folder, now = write(tmp_path, days=days), datetime.datetime.now(datetime.UTC)
    for name in ("ca/ca.pem", "superlink/server.pem"):
        begin, end = certificate(folder / name).not_valid_before_utc, certificate(folder / name).not_valid_after_utc
        assert now - datetime.timedelta(minutes=10) < begin < now
        assert end - begin == datetime.timedelta(days=days)


def test_a_certificate_is_refused_after_its_day(tmp_path: Path) -> None:
    folder, now = write(tmp_path, days=9), datetime.datetime.now(datetime.UTC)
    store = verification.Store([certificate(folder / "ca" / "ca.pem")])
    for days, valid in ((8, True), (10, False)):
        builder = verification.PolicyBuilder().store(store).time(now + datetime.timedelta(days=days))
        verifier = builder.build_server_verifier(x509.DNSName("localhost"))
        with nullcontext() if valid else pytest.raises(verification.VerificationError):
            verifier.verify(certificate(folder / "superlink" / "server.pem"), [])


@pytest.mark.parametrize(
    ("key", "public"), [("ca/ca.key", "ca/ca.pem"), ("superlink/server.key", "superlink/server.pem")]
)
def test_private_keys_belong_to_the_certificates(net: Path, key: str, public: str) -> None:
    private = serialization.load_pem_private_key((net / key).read_bytes(), None)
    assert private.public_key() == certificate(net / public).public_key()


def test_a_nodes_key_is_one_that_flower_reads_on_both_sides(net: Path) -> None:
    for site in SITES:
        private = serialization.load_ssh_private_key((net / "sites" / site / "node.key").read_bytes(), None)
        public = serialization.load_ssh_public_key((net / "sites" / site / "node.pub").read_bytes())
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        assert isinstance(private.curve, ec.SECP384R1)
        assert private.public_key() == public


# scripts and the app


def scripts(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.sh"))


def test_every_script_is_sound_for_a_plain_shell(net: Path) -> None:
    assert len(scripts(net)) == 6 + len(SITES)
    for script in scripts(net):
        assert script.read_text().startswith("#!/bin/sh\n")
        checked = subprocess.run(["sh", "-n", str(script)], capture_output=True, text=True)
        assert (checked.returncode, checked.stderr) == (0, ""), script
        assert "set -eu" in script.read_text()


def run_script(script: Path, tools: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script from elsewhere with programs of Flower's that only tell what they are asked to do."""
    tools.mkdir(exist_ok=True)
    for name in ("flwr", "flower-superlink", "fedsparsify", "nginx"):
        (tools / name).write_text('#!/bin/sh\npwd\nfor given in "$@"; do echo "<$given>"; done\n')
        (tools / name).chmod(0o755)
    environment = {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "RESTART": "", **variables}
    return subprocess.run(
        [str(script), *arguments], cwd=tools, env=environment, capture_output=True, text=True, timeout=1800
    )


def test_a_supernode_that_has_ended_is_started_again_until_the_script_is_told_to_stop(tmp_path: Path) -> None:
    folder, tools = write(tmp_path), tmp_path / "tools"
    run_script(folder / "sites" / "north" / "start.sh", tools)
    (tools / "fedsparsify").write_text("#!/bin/sh\necho started >>started\nexec sleep 300\n")
    environment = {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "RESTART": "0.1"}
    site = folder / "sites" / "north"
    script = subprocess.Popen([str(site / "start.sh")], env=environment, stderr=subprocess.DEVNULL)

    def started(times: int) -> None:
        log = site / "started"
        wait_until(lambda: log.exists() and len(log.read_text().split()) >= times, f"start {times}", seconds=240)

    started(1)
    (child,) = subprocess.run(["pgrep", "-P", str(script.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(child), signal.SIGKILL)
    started(2)
    script.terminate()
    assert script.wait(240) == 143
    assert not subprocess.run(["pgrep", "-P", str(script.pid)], capture_output=True, text=True).stdout


def listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def moved(folder: Path, name: str = "it's a new place") -> Path:
    target = folder / name
    (folder / "net").rename(target)
    return target


def test_scripts_work_from_a_folder_that_was_moved(tmp_path: Path) -> None:
    folder, tools = moved(Path(write(tmp_path).parent), "a new place"), tmp_path / "tools"
    superlink = run_script(folder / "superlink" / "start.sh", tools)
    assert superlink.returncode == 0
    assert superlink.stdout.splitlines()[0] == str(folder / "superlink")
    assert "<--enable-supernode-auth>" in superlink.stdout and "<127.0.0.1>" in superlink.stdout
    assert "insecure" not in superlink.stdout
    gateway = run_script(folder / "superlink" / "gateway.sh", tools)
    assert gateway.stdout.splitlines()[1:] == [
        "<-p>",
        f"<{folder / 'superlink'}>",
        "<-c>",
        f"<{folder / 'superlink' / 'gateway.conf'}>",
    ]
    node = run_script(folder / "sites" / "north" / "start.sh", tools, "--trusted-entities", "who trusts.yaml")
    assert node.stdout.splitlines()[0] == str(folder / "sites" / "north")
    assert node.stdout.endswith("<--trusted-entities>\n<who trusts.yaml>\n")
    assert '<data-dir="" threads=1 key="">' in node.stdout
    assert run_script(folder / "admin" / "run.sh", tools, "--run-config", "a b").stdout.endswith(
        "<run>\n<../app>\n<--stream>\n<--run-config>\n<a b>\n"
    )
    assert '<out="runs/x y" resume=true>' in run_script(folder / "admin" / "resume.sh", tools, "runs/x y").stdout
    known = tomllib.loads((folder / "admin" / "flower" / "config.toml").read_text())["superlink"]
    assert known["deployment"] == {
        "address": "127.0.0.1:8001",
        "root-certificates": str(folder / "admin" / "ca.pem"),
    }
    every = run_script(folder / "admin" / "register.sh", tools).stdout
    assert re.findall(r"<--name>\n<(.+)>", every) == sorted(SITES, key=lambda site: site.encode())
    one = run_script(folder / "admin" / "register.sh", tools, "south_2").stdout
    assert re.findall(r"<(\.\./sites.+)>", one) == ["../sites/south_2/node.pub"]


@pytest.mark.parametrize(
    ("value", "code", "word"),
    [
        ("", 0, '"data-dir=""'),
        ("own data", 0, "own data"),
        ("no such", 2, "there is no folder"),
        ('a\\"b', 2, "quotes"),
    ],
)
def test_a_sites_data_folder_is_looked_at_before_anything_starts(
    tmp_path: Path, value: str, code: int, word: str
) -> None:
    site = write(tmp_path) / "sites" / "north"
    (site / "own data").mkdir()
    conf = site / "site.conf"
    conf.write_text(conf.read_text().replace('DATA=""', f'DATA="{value}"'))
    done = run_script(site / "start.sh", tmp_path / "tools")
    assert done.returncode == code
    assert word.strip('"') in done.stdout + done.stderr
    if value == "own data":
        assert f'<data-dir="{site / value}" threads=1 key="">' in done.stdout


@pytest.mark.parametrize(("value", "code"), [("clients.key", 0), ("no such", 2), ('a\\"b', 2)])
def test_a_sites_key_is_looked_at_before_anything_starts(tmp_path: Path, value: str, code: int) -> None:
    site = write(tmp_path) / "sites" / "north"
    (site / "clients.key").write_text("a key")
    conf = site / "site.conf"
    conf.write_text(conf.read_text().replace('KEY=""', f'KEY="{value}"'))
    done = run_script(site / "start.sh", tmp_path / "tools")
    assert done.returncode == code
    if code:
        assert "there is no file" in done.stderr or "KEY in site.conf must be without quotes" in done.stderr
    else:
        assert f'key="{site / value}"' in done.stdout


def test_scripts_warn_of_certificates_that_end_soon(tmp_path: Path) -> None:
    folder = write(tmp_path, days=20)
    for script, word in (("superlink/start.sh", "deploy renew"), ("sites/north/start.sh", "ask your coordinator")):
        done = run_script(folder / script, tmp_path / "tools")
        assert done.returncode == 0
        if done.stderr or Path("/usr/bin/openssl").exists():
            assert "less than 30 days" in done.stderr and word in done.stderr


def test_flower_accepts_the_app_and_packs_all_of_it(net: Path, tmp_path: Path) -> None:
    command = [str(Path(sys.executable).parent / "flwr"), "build", "--app", str(net / "app")]
    own = {"FLWR_HOME": str(tmp_path), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    built = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, **own}, capture_output=True, text=True, timeout=1800
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (bundle,) = tmp_path.glob("*.fab")
    assert {"federation_app.py", "pyproject.toml", "settings.toml"} <= set(zipfile.ZipFile(bundle).namelist())


# the SuperLink behind its gateway


def test_only_the_api_for_nodes_is_reached_from_elsewhere(net: Path) -> None:
    start, gateway = ((net / "superlink" / name).read_text() for name in ("start.sh", "gateway.conf"))
    assert "--host 127.0.0.1 --port 8001 " in start
    assert re.findall(r"listen (.+);", gateway) == ["8000 ssl", "[::]:8000 ssl"]
    assert re.findall(r"location (.+) \{\s+(\S+)", gateway) == [("/v1/fleet/", "proxy_pass"), ("/", "return")]
    assert re.findall(r"(?:return|proxy_pass) (.+);", gateway) == ["https://superlink/v1/fleet/", "403"]
    assert "server 127.0.0.1:8001;" in gateway
    assert "fl.example.org:8000" in (net / "sites" / "north" / "start.sh").read_text()


class Recorder(http.server.BaseHTTPRequestHandler):
    """Stands for the SuperLink: answers everything with 200, and remembers the paths."""

    protocol_version = "HTTP/1.1"
    asked: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.asked.append(self.path)
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, format: str, *arguments: object) -> None: ...


def neighbouring_ports() -> int:
    """Return a port that is free, and so is the next."""
    for _ in range(50):
        with socket.socket() as first, socket.socket() as second, suppress(OSError, OverflowError):
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            second.bind(("127.0.0.1", port + 1))
            return port
    raise AssertionError("no two free ports")


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Callable[[str, bytes], int]]:
    """A gateway before a recorder; returns the status of a request for a path."""
    if shutil.which("nginx") is None:
        pytest.skip("nginx is not installed")
    port = neighbouring_ports()
    superlink = write(tmp_path, hosts=("localhost", "fl.example.org"), port=port) / "superlink"
    upstream = http.server.ThreadingHTTPServer(("127.0.0.1", port + 1), Recorder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(superlink / "server.pem", superlink / "server.key")
    upstream.socket = context.wrap_socket(upstream.socket, server_side=True)
    threading.Thread(target=upstream.serve_forever, daemon=True).start()
    process = subprocess.Popen(["sh", str(superlink / "gateway.sh")], stderr=subprocess.DEVNULL)
    trusted = ssl.create_default_context(cafile=str(superlink / "ca.pem"))

    def ask(path: str, body: bytes) -> int:
        connection = http.client.HTTPSConnection("localhost", port, context=trusted, timeout=1800)
        try:
            connection.putrequest("POST", path, skip_accept_encoding=True)
            connection.putheader("content-length", str(len(body)))
            connection.endheaders(body)
            return connection.getresponse().status
        finally:
            connection.close()

    try:
        wait_until(lambda: listens(port), "nginx listens")
        Recorder.asked.clear()
        yield ask
    finally:
        process.terminate()
        process.wait(1800)
        upstream.shutdown()
        upstream.server_close()


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/control/register-node",
        "/v1/runtime/anything",
        "/",
        "/openapi.json",
        "/v1/fleet",
        "/v1/fleets/x",
        "//v1/control/start-run",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet/x/..%2f..%2fcontrol/start-run",
        "/v1%2fcontrol%2fstart-run",
        "/V1/FLEET/x",
        "/v1/control/start-run?/v1/fleet/",
        "/v1/control/start-run;/../../fleet/x/../../control/start-run",
    ],
)
def test_the_gateway_passes_on_nothing_but_the_api_for_nodes(gateway: Callable[[str, bytes], int], path: str) -> None:
    assert gateway(path, b"") in (301, 403)
    assert Recorder.asked == []


def test_the_gateway_passes_on_what_nodes_send_in_pieces_as_large_as_flowers(
    gateway: Callable[[str, bytes], int],
) -> None:
    assert gateway("/v1/fleet/push-object", bytes(6 << 20)) == 200
    assert gateway("/v1/fleet/pull-messages", b"") == 200
    # What could be understood in two ways is passed on as the gateway has understood it.
    assert gateway("/v1/control/%2e%2e/fleet/pull-messages", b"") == 200
    assert Recorder.asked == ["/v1/fleet/push-object", *["/v1/fleet/pull-messages"] * 2]


@pytest.mark.parametrize("hosts", [(), ("localhost",), ("127.0.0.1", "::1")])
def test_without_sites_elsewhere_there_is_no_gateway(tmp_path: Path, hosts: tuple[str, ...]) -> None:
    folder = write(tmp_path, hosts=hosts)
    assert not list(folder.rglob("gateway*"))
    assert "--host 127.0.0.1 --port 8000 " in (folder / "superlink" / "start.sh").read_text()
    assert "gateway" not in (folder / "README.md").read_text()


def test_an_ipv6_server_is_told_in_brackets(tmp_path: Path) -> None:
    folder = write(tmp_path, hosts=("2001:db8::7",), port=65535)
    assert "[2001:db8::7]:65535" in (folder / "sites" / "north" / "start.sh").read_text()
    assert "--port 65534 " in (folder / "superlink" / "start.sh").read_text()


# what is refused


@pytest.mark.parametrize(
    ("sites", "words"),
    [
        ((), "give --site NAME once for each"),
        (("a b",), "'a b' must be up to 63 letters"),
        (("",), "'' must be"),
        (("..",), "'..' must be"),
        (("a/b",), "'a/b' must be"),
        (("-a",), "begin with a letter or digit"),
        (("a;reboot",), "must be"),
        (("é",), "must be"),
        (("a\n",), "must be"),
        (("x" * 64,), "must be"),
        (("a", "b", "a"), "a is named twice"),
        (("a", "A"), "a is named twice"),
    ],
)
def test_a_sites_name_that_cannot_be_used_is_refused(tmp_path: Path, sites: tuple[str, ...], words: str) -> None:
    refused(tmp_path, words, sites=sites)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "a b",
        "-a.org",
        "a-.org",
        "a..org",
        "*.example.org",
        "https://a.org",
        "a.org:8000",
        "$(reboot)",
        "10.0.0.300",
        "0.0.0.0",
        "::",
        "fe80::1%eth0",
        "fe80::1%$(reboot)",
        "a" * 64,
        ".".join(["a" * 60] * 5),
        "a.org\n",
    ],
)
def test_a_host_that_is_no_name_and_no_address_is_refused(tmp_path: Path, host: str) -> None:
    refused(tmp_path, "the host", hosts=("fl.example.org", host))


@pytest.mark.parametrize("options", [{"port": 0}, {"port": 65536}, {"days": 0}, {"days": 3651}])
def test_ports_and_days_out_of_range_are_refused(tmp_path: Path, options: dict[str, int]) -> None:
    refused(tmp_path, "the port" if "port" in options else "days", options=options)


def test_more_clients_a_round_than_sites_are_refused(tmp_path: Path) -> None:
    settings = load_settings(write_config(tmp_path), ["federation.min_clients=2"])
    with pytest.raises(ArgumentError, match="min_clients = 2, but the number of sites is 1"):
        deploy.init(tmp_path / "net", settings, ["one"], [], 8000, 365)


def test_a_coordinators_key_is_refused(tmp_path: Path) -> None:
    overrides = ["encryption.scheme=bfv", "encryption.key=clients.key"]
    with pytest.raises(ArgumentError, match=r"encryption\.key names a key's file, and the coordinator must have none"):
        deploy.init(tmp_path / "net", load_settings(write_config(tmp_path), overrides), ["one", "two"], [], 8000, 365)
    assert not (tmp_path / "net").exists()


def refused(
    folder: Path,
    words: str,
    sites: tuple[str, ...] = SITES,
    hosts: tuple[str, ...] = HOSTS,
    options: Mapping[str, int] | None = None,
) -> None:
    with pytest.raises(ArgumentError, match=re.escape(words)):
        write(folder, sites, hosts, **(options or {}))
    assert set(contents(folder)) == {"tiny.toml"}


# all or nothing


def test_a_folder_in_use_is_left_as_it_is(tmp_path: Path) -> None:
    folder = write(tmp_path)
    before = contents(folder)
    with pytest.raises(RunError, match="is already in use"):
        write(tmp_path)
    assert contents(folder) == before
    (tmp_path / "other").write_text("mine")
    with pytest.raises(RunError, match="is already in use"):
        deploy.init(tmp_path / "other", load_settings(tmp_path / "tiny.toml"), SITES, (), 8000, 365)
    assert (tmp_path / "other").read_text() == "mine"


def test_an_empty_folder_may_be_used(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    assert set(texts(write(tmp_path))) == FILES


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_fails_half_way_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    count = 0

    def fsync(handle: int) -> None:
        nonlocal count
        count += 1
        if count == 20:
            raise error

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(RunError if isinstance(error, OSError) else KeyboardInterrupt) as caught:
        write(tmp_path)
    if isinstance(error, OSError):
        assert "net cannot be written (No space left on device)" in str(caught.value)
    assert set(contents(tmp_path)) == {"tiny.toml"}


def test_a_missing_package_is_told_with_the_line_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "fedsparsify.deploy_keys", raising=False)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fedsparsify\[flower\]'"):
        write(tmp_path)
    assert set(contents(tmp_path)) == {"tiny.toml"}


# add-site and renew


def test_a_site_is_added_and_nothing_else_is_touched(tmp_path: Path) -> None:
    folder = write(tmp_path)
    before = texts(folder)
    deploy.add_site(folder, "east")
    after = texts(folder)
    assert set(after) - set(before) == {f"sites/east/{name}" for name in SITE_FILES}
    assert {name for name in before if before[name] != after[name]} == {"app/settings.toml"}
    settings = load_settings(folder / "app" / "settings.toml")
    assert settings.deployment.sites == [*SITES, "east"]
    assert settings.federation.clients == 4
    assert "LOCAL_PORT=9097" in (folder / "sites" / "east" / "site.conf").read_text()
    assert (folder / "sites" / "east" / "node.key").stat().st_mode & 0o777 == 0o600
    assert (folder / "sites" / "east" / "ca.pem").read_bytes() == before["ca/ca.pem"]


@pytest.mark.parametrize("name", ["north", "NORTH", "a b"])
def test_a_site_that_cannot_be_added_changes_nothing(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path)
    before = contents(folder)
    with pytest.raises(ArgumentError):
        deploy.add_site(folder, name)
    assert contents(folder) == before


def test_a_site_whose_name_cannot_be_written_down_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path)
    before = contents(folder)

    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(deploy, "replace_file", full)
    with pytest.raises(RunError, match=r"settings\.toml cannot be written"):
        deploy.add_site(folder, "east")
    assert contents(folder) == before


def test_renewed_certificates_work_together_with_the_old_ones(tmp_path: Path) -> None:
    folder = write(tmp_path, days=30)
    old = texts(folder)
    expires = deploy.renew(folder, 400)
    new = texts(folder)
    assert {name for name in old if old[name] != new[name]} == {name for name in FILES if name.endswith(".pem")}
    assert expires == certificate(folder / "superlink" / "server.pem").not_valid_after_utc
    assert expires > datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=399)
    for ca in (old["ca/ca.pem"], new["sites/north/ca.pem"]):
        store = verification.Store([x509.load_pem_x509_certificate(ca)])
        verifier = verification.PolicyBuilder().store(store).build_server_verifier(x509.DNSName("fl.example.org"))
        for server in (old["superlink/server.pem"], new["superlink/server.pem"]):
            verifier.verify(x509.load_pem_x509_certificate(server), [])


def test_renewal_takes_the_hosts_that_are_written_down(tmp_path: Path) -> None:
    folder = write(tmp_path)
    record = folder / "deployment.toml"
    record.write_text(record.read_text().replace("fl.example.org", "new.example.org"))
    deploy.renew(folder, 30)
    names = certificate(folder / "superlink" / "server.pem").extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert names.value.get_values_for_type(x509.DNSName) == ["new.example.org", "localhost"]


def test_renewal_says_what_is_missing_and_changes_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (tmp_path / "others").mkdir()
    others = write(tmp_path / "others")
    key = folder / "ca" / "ca.key"
    own = key.read_bytes()
    for content, words in (
        (None, "is not there: bring it back"),
        (b"rubbish", "is damaged"),
        ((others / "ca" / "ca.key").read_bytes(), "not of one authority"),
    ):
        key.unlink(missing_ok=True)
        if content is not None:
            key.write_bytes(content)
        before = contents(folder)
        with pytest.raises(RunError, match=words):
            deploy.renew(folder, 30)
        assert contents(folder) == before
    key.write_bytes(own)
    deploy.renew(folder, 30)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (None, "name a folder that fedsparsify deploy init has written"),
        ("port = 1", "does not say hosts"),
        ('hosts = ["a"]', "does not say port"),
        ('hosts = "a"\nport = 1', "hosts must be a list"),
        ('hosts = ["a"]\nport = "1"', "port must be a whole number"),
        ('hosts = ["$(x)"]\nport = 1', "neither a host name nor an address"),
        ("hosts = [", "cannot be used"),
    ],
)
def test_a_folder_that_is_no_deployment_is_refused(tmp_path: Path, record: str | None, words: str) -> None:
    if record is not None:
        (tmp_path / "deployment.toml").write_text(record)
    for change in (lambda: deploy.add_site(tmp_path, "a"), lambda: deploy.renew(tmp_path, 30)):
        with pytest.raises(FedSparsifyError, match=re.escape(words)):
            change()


# the command line


def test_the_command_writes_a_deployment_and_says_when_certificates_end(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    given = ("--site", "a", "--site", "b", "--host", "fl.example.org", "--port", "9999", "--days", "90")
    outcome = call("deploy", "init", tmp_path / "net", "--config", config, *given)
    assert (outcome.code, outcome.err) == (0, "")
    end = certificate(tmp_path / "net" / "ca" / "ca.pem").not_valid_after_utc
    assert f"Certificates expire on {end:%Y-%m-%d}; before that: " in outcome.out
    assert "move ca/ca.key to where no network reaches it" in outcome.out
    assert f"valid until {end:%Y-%m-%d}" in (tmp_path / "net" / "README.md").read_text()
    assert load_settings(tmp_path / "net" / "app" / "settings.toml").deployment.sites == ["a", "b"]
    added = call("deploy", "add-site", tmp_path / "net", "c")
    assert (added.code, added.err) == (0, "")
    assert "register.sh c" in added.out
    renewed = call("deploy", "renew", tmp_path / "net", "--days", "100")
    assert (renewed.code, renewed.err) == (0, "")
    assert "Certificates expire on" in renewed.out


@pytest.mark.parametrize(
    ("config", "site", "words"),
    [
        (CONFIG.replace("lr = 0.1", "lr = -1"), "a", "train.lr"),
        (CONFIG.replace("lr = 0.1", 'lr = "fast"'), "a", "train.lr"),
        (CONFIG.replace("fedsparsify-global", "fedsparsify-globl"), "a", "did you mean fedsparsify-global"),
        (CONFIG.replace('"2-fc"', '"3-fc"'), "a", "model.name"),
        ("[", "a", "is not valid TOML"),
        (CONFIG, "a b", "(nothing was written)"),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(tmp_path: Path, config: str, site: str, words: str) -> None:
    path = write_config(tmp_path, config)
    outcome = call("deploy", "init", tmp_path / "net", "--config", path, "--site", site)
    assert outcome.code == 2
    assert words in outcome.err and outcome.err.count("\n") == 1
    assert set(contents(tmp_path)) == {"tiny.toml"}


def test_there_is_no_way_to_write_an_insecure_deployment(net: Path) -> None:
    assert "insecure" not in call("deploy", "init", "--help").out
    for name, content in texts(net).items():
        assert b"--insecure" not in content, name
