"""What a small deployment over Flower needs, written into one folder: app, certificates, node keys, start scripts.

::

    app/            the Flower app: settings.toml and three lines of Python
    ca/             the authority that SuperNodes trust; ca.key signs certificates and belongs off the network
    superlink/      certificate, key and start script of the server
    sites/NAME/     all that is handed to one site: its node key, ca.pem, site.conf, start script
    admin/          scripts for whoever runs federations: register.sh, run.sh, resume.sh
    README.md       the commands in order

TLS and node authentication are always on. Private keys are readable by their owner only.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w

from .config import Settings
from .errors import ArgumentError, MissingExtraError, RunError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509 import Certificate

__all__ = ["init"]

_SITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_HOST = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")
_LOCAL = ("localhost", "127.0.0.1")
_FIRST_LOCAL_PORT = 9094


def init(folder: Path, settings: Settings, sites: Sequence[str], hosts: Sequence[str], port: int, days: int) -> None:
    """Write a deployment; all of it, or nothing.

    Args:
        folder: a new or empty folder.
        settings: of the federation; clients become as many as there are sites.
        sites: names, client 0 first.
        hosts: names and addresses that SuperNodes reach the SuperLink by; the first is the one they are told.
        port: the SuperLink's.
        days: how long certificates are valid.

    Raises:
        ArgumentError: a name, host, port or number of days cannot be used.
        MissingExtraError: the package ``cryptography`` is not installed.
        RunError: the folder is in use or cannot be written.
    """
    _check(settings, sites, hosts, port, days)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} is already in use: choose a new folder, or an empty one")
    files = _files(settings, sites, hosts or _LOCAL, port) | _secrets(sites, hosts, days)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            for name, content in files.items():
                path = made / name
                path.parent.mkdir(parents=True, exist_ok=True)
                mode = 0o600 if name.endswith(".key") else 0o755 if name.endswith(".sh") else 0o644
                with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                    file.write(content)
                path.chmod(mode)  # whatever the umask
            made.chmod(0o755)
            made.rename(folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    except OSError as error:
        raise RunError(f"{folder} cannot be written ({error.strerror}): choose another folder") from error


def _check(settings: Settings, sites: Sequence[str], hosts: Sequence[str], port: int, days: int) -> None:
    if not sites:
        raise ArgumentError("a deployment needs its sites' names: give --site NAME once for each")
    for site in sites:
        if not _SITE.fullmatch(site):
            raise ArgumentError(
                f"--site {site!r} must be letters, digits, - and _ only, and begin with one of the first"
            )
    twice = {site for site in sites if [other.lower() for other in sites].count(site.lower()) > 1}
    if twice:
        raise ArgumentError(f"--site {min(twice)} is given twice: names must differ, not only in upper and lower case")
    if settings.federation.min_clients > len(sites):
        raise ArgumentError(
            f"federation.min_clients = {settings.federation.min_clients}, but there are {len(sites)} sites: lower it,"
            " or name more sites"
        )
    for host in hosts:
        with suppress(ValueError):
            ipaddress.ip_address(host)
            continue
        if not _HOST.fullmatch(host) or len(host) > 253:
            raise ArgumentError(f"--host {host!r} is neither a host name nor an address, such as fl.example.org")
    if not 1 <= port <= 65535:
        raise ArgumentError(f"--port {port} must be from 1 to 65535")
    if not 1 <= days <= 3650:
        raise ArgumentError(f"--days {days} must be from 1 to 3650")


def _files(settings: Settings, sites: Sequence[str], hosts: Sequence[str], port: int) -> dict[str, bytes]:
    """Return name -> content of all that is no secret."""
    deployment = settings.deployment.model_copy(update={"sites": list(sites)})
    federation = settings.federation.model_copy(update={"clients": len(sites)})
    complete = settings.model_copy(update={"deployment": deployment, "federation": federation})
    address = f"[{hosts[0]}]:{port}" if ":" in hosts[0] else f"{hosts[0]}:{port}"
    local = all(host in _LOCAL for host in hosts)
    texts = {
        "app/pyproject.toml": tomli_w.dumps(_app()),
        "app/federation_app.py": _APP,
        "app/settings.toml": complete.to_toml(),
        "superlink/start.sh": _SUPERLINK.format(bind="127.0.0.1" if local else "0.0.0.0", port=port),
        "admin/flwr.sh": _FLWR.format(address=address),
        "admin/register.sh": _REGISTER.format(sites=" ".join(sites)),
        "admin/run.sh": _RUN,
        "admin/resume.sh": _RESUME,
        "README.md": _README.format(sites=", ".join(sites), first=sites[0], address=address, port=port),
    }
    for k, site in enumerate(sites):
        texts[f"sites/{site}/start.sh"] = _SUPERNODE.format(site=site, address=address)
        texts[f"sites/{site}/site.conf"] = _CONF.format(site=site, port=_FIRST_LOCAL_PORT + k)
    return {name: text.encode() for name, text in texts.items()}


def _secrets(sites: Sequence[str], hosts: Sequence[str], days: int) -> dict[str, bytes]:
    """Return name -> content of keys and certificates."""
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError as error:
        raise MissingExtraError("making certificates and keys", "flower") from error
    encoding, plain = serialization.Encoding, serialization.NoEncryption()

    def private(key: EllipticCurvePrivateKey, form: serialization.PrivateFormat) -> bytes:
        return key.private_bytes(encoding.PEM, form, plain)

    authority, server = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = _certificate("FedSparsify deployment", authority, None, authority, (), days)
    names = list(dict.fromkeys((*hosts, *_LOCAL)))
    ca = root.public_bytes(encoding.PEM)
    files = {
        "ca/ca.key": private(authority, serialization.PrivateFormat.PKCS8),
        "ca/ca.pem": ca,
        "superlink/ca.pem": ca,
        "superlink/server.key": private(server, serialization.PrivateFormat.PKCS8),
        "superlink/server.pem": _certificate("SuperLink", server, root, authority, names, days).public_bytes(
            encoding.PEM
        ),
    }
    for site in sites:
        node = ec.generate_private_key(ec.SECP384R1())
        files[f"sites/{site}/ca.pem"] = ca
        files[f"sites/{site}/node.key"] = private(node, serialization.PrivateFormat.OpenSSH)
        files[f"sites/{site}/node.pub"] = node.public_key().public_bytes(
            encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
    return files


def _certificate(
    name: str,
    key: EllipticCurvePrivateKey,
    issuer: Certificate | None,
    signer: EllipticCurvePrivateKey,
    hosts: Sequence[str],
    days: int,
) -> Certificate:
    """Return a certificate; its own authority's where there is no issuer, else a server's for ``hosts``."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    begin = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=5)  # clocks differ
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None if issuer else 0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .add_extension(_usage(authority=issuer is None), critical=True)
    )
    if issuer is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        builder = builder.add_extension(x509.SubjectAlternativeName([_general(host) for host in hosts]), critical=False)
    return builder.sign(signer, hashes.SHA256())


def _usage(*, authority: bool) -> Any:
    from cryptography import x509

    none = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only"), False
    )
    return x509.KeyUsage(
        digital_signature=not authority, key_cert_sign=authority, crl_sign=authority, decipher_only=False, **none
    )


def _general(host: str) -> Any:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _app() -> Mapping[str, Any]:
    """Return the app's pyproject.toml."""
    return {
        "build-system": {"requires": ["hatchling"], "build-backend": "hatchling.build"},
        "project": {
            "name": "federation",
            "version": "1.0.0",
            "description": "A FedSparsify federation",
            "license": "Apache-2.0",
            "dependencies": ["fedsparsify[flower]"],
        },
        "tool": {
            "flwr": {
                "app": {
                    "publisher": "fedsparsify",
                    "components": {"serverapp": "federation_app:server", "clientapp": "federation_app:client"},
                    "config": {"settings": "settings.toml", "set": "", "out": "", "resume": False},
                }
            }
        },
    }


_APP = '''"""The Flower app of this deployment: both ends read settings.toml, which lies beside this file."""

from fedsparsify import deployment

client = deployment.client_app(__file__)
server = deployment.server_app(__file__)
'''

_PREAMBLE = """#!/bin/sh
# {what}
set -eu
cd "$(dirname "$0")"
export FLWR_TELEMETRY_ENABLED="${{FLWR_TELEMETRY_ENABLED:-0}}"
"""

_PROCESS = """export FLWR_HOME="${{FLWR_HOME:-$PWD/flower}}"
# How often Flower looks for work; its default of a second adds that to every round.
export FLWR_SUPEREXEC_TASK_POLL_INTERVAL="${{FLWR_SUPEREXEC_TASK_POLL_INTERVAL:-0.1}}"
"""

_SUPERLINK = (
    _PREAMBLE.replace("{what}", "The server: SuperNodes and administrators reach it on one port, over TLS.")
    + _PROCESS
    + """exec flower-superlink --host {bind} --port {port} \\
    --ssl-certfile server.pem --ssl-keyfile server.key --ssl-ca-certfile ca.pem \\
    --enable-supernode-auth --disable-runtime-dependency-installation --database superlink.db
"""
)

_SUPERNODE = (
    _PREAMBLE.replace("{what}", "The SuperNode of {site}; site.conf says where its data are.")
    + _PROCESS
    + """. ./site.conf
exec flower-supernode --superlink "${{SUPERLINK:-{address}}}" --root-certificates ca.pem \\
    --auth-supernode-private-key node.key --port "$LOCAL_PORT" \\
    --node-config "data-dir=\\"$DATA\\" threads=$THREADS"
"""
)

_CONF = """# Settings of {site}, read by start.sh.

# Folder with this site's data; empty for what the app's settings or FEDSPARSIFY_DATA say.
DATA=""

# Threads of torch. Several are faster for large networks, and may change the last bits of a result.
THREADS=1

# A free port of this machine, reached from this machine only.
LOCAL_PORT={port}
"""

_FLWR = (
    _PREAMBLE.replace("{what}", "Flower's command line, connected to this deployment: ./flwr.sh supernode list.")
    + """# Flower wants an absolute path, and this folder may have been moved.
export FLWR_HOME="$PWD/flower"
mkdir -p "$FLWR_HOME"
cat >"$FLWR_HOME/config.toml" <<END
[superlink]
default = "deployment"

[superlink.deployment]
address = "{address}"
root-certificates = "$(cd ../ca && pwd)/ca.pem"
END
exec flwr "$@"
"""
)

_REGISTER = """#!/bin/sh
# Tell the SuperLink which node keys to accept: all sites', or those of the sites named.
set -eu
cd "$(dirname "$0")"
failed=0
for site in ${{*:-{sites}}}; do
    ./flwr.sh supernode register "../sites/$site/node.pub" --name "$site" || failed=1
done
exit $failed
"""

_RUN = """#!/bin/sh
# Start a run and follow it, e.g. ./run.sh --run-config 'set="run.rounds=5" out="runs/try"'.
cd "$(dirname "$0")" && exec ./flwr.sh run ../app --stream "$@"
"""

_RESUME = """#!/bin/sh
# Go on with a run that was stopped: ./resume.sh runs/NAME, as the SuperLink's folder has it.
[ $# -eq 1 ] || { echo "Usage: $0 runs/NAME" >&2; exit 2; }
cd "$(dirname "$0")" && exec ./flwr.sh run ../app --stream --run-config "out=\\"$1\\" resume=true"
"""

_README = """# A FedSparsify deployment

Sites: {sites}. SuperLink: {address}, TLS and node authentication on. FedSparsify's docs/deployment.md explains it all.

1. On the server: `superlink/start.sh` (port {port} must be reachable; nothing else is).
2. Once: `admin/register.sh`. Then move `ca/ca.key` to where no network reaches it.
3. Hand each site its folder, e.g. `sites/{first}`, over a way that you trust, and delete your copy of its `node.key`.
   There: set `DATA` in `site.conf`, and run `start.sh`. Sites need no open port.
4. `admin/run.sh` starts a run and follows it; its records lie in `superlink/runs/`.
5. `admin/resume.sh runs/NAME` goes on with one that was stopped.
"""
