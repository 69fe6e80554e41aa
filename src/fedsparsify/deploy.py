"""What a small deployment over Flower needs, written into one folder: app, certificates, node keys, start scripts.

::

    deployment.toml   where the server is reached
    app/              the Flower app: settings.toml and three lines of Python
    ca/               the authority that SuperNodes trust; ca.key signs certificates and belongs off the network
    superlink/        certificate, key and start script of the server; a gateway before it where sites are elsewhere
    sites/NAME/       all that is handed to one site: its node key, ca.pem, site.conf, start script
    admin/            scripts for whoever runs federations: register.sh, run.sh, resume.sh, flwr.sh
    README.md         the commands in order

TLS and node authentication are always on. Private keys are readable by their owner only. The SuperLink listens on the
loopback interface, because Flower's Control API, which starts runs and registers nodes, asks for no credentials and
shares its port with the API for nodes (Flower 1.41); the gateway lets the latter through and nothing else.
"""

from __future__ import annotations

import datetime
import ipaddress
import itertools
import os
import re
import shutil
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from .config import Settings, load_settings
from .deploy_texts import Addresses, app_files, deployment_files, site_files
from .errors import ArgumentError, RunError
from .files import replace_file

__all__ = ["add_site", "init", "renew", "settle"]

_SITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_LABEL = r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)"
# The last label has a letter: 10.0.0.300 is a mistyped address and no name.
_HOST = re.compile(rf"({_LABEL}\.)*(?=[^.]*[A-Za-z]){_LABEL}")
_LOCAL = ("localhost", "127.0.0.1")
_FIRST_LOCAL_PORT = 9094


def settle(settings: Settings, sites: Sequence[str]) -> Settings:
    """Return settings whose clients are the sites, after a look at the sites' names.

    Args:
        settings: of the federation.
        sites: names, client 0 first.

    Raises:
        ArgumentError: there is no site, or a name cannot be used.
    """
    if not sites:
        raise ArgumentError("a deployment needs its sites' names: give --site NAME once for each")
    for site in sites:
        if not _SITE.fullmatch(site):
            raise ArgumentError(
                f"the site's name {site!r} must be up to 63 letters, digits, - and _, and begin with a letter or digit"
            )
    small = [site.lower() for site in sites]
    twice = [site for site in sites if small.count(site.lower()) > 1]
    if twice:  # folders of both could be one, where file systems ignore case
        raise ArgumentError(f"the site {twice[0]} is named twice: names must differ in more than upper and lower case")
    if settings.federation.min_clients > len(sites):
        raise ArgumentError(
            f"federation.min_clients = {settings.federation.min_clients}, but the number of sites is {len(sites)}:"
            " lower it, or name more sites"
        )
    if settings.encryption.key:
        raise ArgumentError(
            "encryption.key names a key's file, and the coordinator must have none: leave it out; each site names its"
            " own in site.conf (KEY)"
        )
    deployment = settings.deployment.model_copy(update={"sites": list(sites)})
    federation = settings.federation.model_copy(update={"clients": len(sites)})
    return settings.model_copy(update={"deployment": deployment, "federation": federation})


def init(
    folder: Path, settings: Settings, sites: Sequence[str], hosts: Sequence[str], port: int, days: int
) -> datetime.datetime:
    """Write a deployment; all of it, or nothing.

    Args:
        folder: a new or empty folder.
        settings: of the federation; clients become as many as there are sites.
        sites: names, client 0 first.
        hosts: names and addresses that sites reach the server by, the one that they are told first; none for sites on
            the server's own machine.
        port: the one that sites reach.
        days: how long certificates are valid.

    Returns:
        When the certificates expire, in UTC.

    Raises:
        ArgumentError: a name, host, port or number of days cannot be used.
        MissingExtraError: the package ``cryptography`` is not installed.
        RunError: the folder is in use or cannot be written.
    """
    settings = settle(settings, sites)
    addresses = _addresses(hosts or _LOCAL, port)
    _check_days(days)
    from .deploy_keys import expiry, new_authority_and_server, new_node

    keys = new_authority_and_server(_certified(addresses), days)
    expires = expiry(keys["ca.pem"])
    texts = deployment_files(addresses, sites, expires)
    texts |= {f"app/{name}": text for name, text in app_files(settings.to_toml()).items()}
    ca = keys["ca.pem"]
    files = {name: text.encode() for name, text in texts.items()}
    files |= {"ca/ca.key": keys["ca.key"], "ca/ca.pem": ca, "admin/ca.pem": ca, "superlink/ca.pem": ca}
    files |= {f"superlink/{name}": keys[name] for name in ("server.key", "server.pem")}
    for site, local_port in zip(sites, _local_ports(addresses), strict=False):
        handed = {name: text.encode() for name, text in site_files(site, addresses, local_port).items()}
        files |= {f"sites/{site}/{name}": content for name, content in (handed | new_node() | {"ca.pem": ca}).items()}
    _place(folder, files)
    return expires


def add_site(folder: Path, site: str) -> None:
    """Add a site to a deployment: its folder, and its name as the last of the settings' list.

    Args:
        folder: what :func:`init` wrote.
        site: its name.

    Raises:
        ArgumentError: the name cannot be used, or is in use.
        ConfigError: the settings cannot be used.
        RunError: this is no deployment's folder, or it cannot be written; nothing is changed.
    """
    addresses = _recorded(folder)
    place = folder / "app" / "settings.toml"
    settings = load_settings(place)
    sites = settings.deployment.sites
    settings = settle(settings, [*sites, site])
    from .deploy_keys import new_node

    ca = _read(folder / "ca" / "ca.pem")
    local_port = next(itertools.islice(_local_ports(addresses), len(sites), None))
    handed = {name: text.encode() for name, text in site_files(site, addresses, local_port).items()}
    _place(folder / "sites" / site, handed | new_node() | {"ca.pem": ca})
    try:
        replace_file(place, settings.to_toml().encode())
    except OSError as error:
        shutil.rmtree(folder / "sites" / site, ignore_errors=True)
        raise RunError(f"{place} cannot be written ({error.strerror}): mend it, and give the command again") from error


def renew(folder: Path, days: int) -> datetime.datetime:
    """Write new certificates of the same keys, for the hosts in deployment.toml.

    A mixture of old and new ones works until the old ones expire, so that sites may get theirs one after another.

    Args:
        folder: what :func:`init` wrote, with its ca/ca.key.
        days: how long they are valid.

    Returns:
        When they expire, in UTC.

    Raises:
        ArgumentError: the number of days cannot be used.
        RunError: this is no deployment's folder, a file in it is missing or damaged, or it cannot be written.
    """
    _check_days(days)
    addresses = _recorded(folder)
    from .deploy_keys import expiry, renewed

    key = folder / "ca" / "ca.key"
    if not key.exists():
        raise RunError(f"{key} is not there: bring it back from where it is kept, and move it away again afterwards")
    old = _read(folder / "ca" / "ca.pem"), _read(folder / "superlink" / "server.pem")
    new = renewed(_read(key), *old, _certified(addresses), days)
    places = {folder / "superlink" / "server.pem": new["server.pem"], folder / "ca" / "ca.pem": new["ca.pem"]}
    for holder in (folder / "superlink", folder / "admin", *sorted((folder / "sites").glob("*/"))):
        places[holder / "ca.pem"] = new["ca.pem"]
    for path, content in places.items():
        try:
            replace_file(path, content)
        except OSError as error:
            raise RunError(
                f"{path} cannot be written ({error.strerror}): mend it, and give the command again; until then old and"
                " new certificates work together"
            ) from error
    return expiry(new["ca.pem"])


def _addresses(hosts: Sequence[str], port: int) -> Addresses:
    for host in hosts:
        with suppress(ValueError):
            address = ipaddress.ip_address(host)
            if address.is_unspecified or getattr(address, "scope_id", None):
                raise ArgumentError(f"the host {host!r} is no address that a site could reach, such as 192.0.2.7")
            continue
        if not _HOST.fullmatch(host) or len(host) > 253:
            raise ArgumentError(f"the host {host!r} is neither a host name nor an address, such as fl.example.org")
    if not 1 <= port <= 65535:
        raise ArgumentError(f"the port {port} must be from 1 to 65535")
    return Addresses(tuple(hosts), port)


def _check_days(days: int) -> None:
    if not 1 <= days <= 3650:
        raise ArgumentError(f"certificates can be valid for 1 to 3650 days, not {days}")


def _certified(addresses: Addresses) -> list[str]:
    """Return the hosts that the server's certificate is for; its administrator comes over the loopback interface."""
    return list(dict.fromkeys((*addresses.hosts, *_LOCAL)))


def _local_ports(addresses: Addresses) -> itertools.filterfalse[int]:
    """Return the sites' local ports, which differ so that all of them can be on one machine."""
    return itertools.filterfalse({addresses.port, addresses.inner}.__contains__, itertools.count(_FIRST_LOCAL_PORT))


def _recorded(folder: Path) -> Addresses:
    path = folder / "deployment.toml"
    try:
        record = tomllib.loads(path.read_text(encoding="utf-8"))
        hosts, port = record["hosts"], record["port"]
        if not (isinstance(hosts, list) and hosts and all(isinstance(host, str) for host in hosts)):
            raise ValueError("hosts must be a list of texts")
        if not isinstance(port, int):
            raise ValueError("port must be a whole number")
        return _addresses(hosts, port)
    except OSError as error:
        raise RunError(
            f"{path} cannot be read ({error.strerror}): name a folder that fedsparsify deploy init has written"
        ) from error
    except KeyError as error:
        raise RunError(f"{path} does not say {error.args[0]}: bring it back from a backup") from error
    except ValueError as error:  # of TOML, and of what stands in it
        raise RunError(f"{path} cannot be used ({error})") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}): bring it back from a backup") from error


def _place(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a new folder, all of it or nothing."""
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise RunError(f"{folder} is already in use: choose another, or empty it")
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            for name, content in files.items():
                path = made / name
                path.parent.mkdir(parents=True, exist_ok=True)
                mode = 0o600 if name.endswith(".key") else 0o755 if name.endswith(".sh") else 0o644
                with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                path.chmod(mode)  # whatever the umask
            made.chmod(0o755)
            made.rename(folder)  # fails where another process has put something there meanwhile
        finally:
            shutil.rmtree(made, ignore_errors=True)
    except OSError as error:
        raise RunError(f"{folder} cannot be written ({error.strerror}): choose another folder") from error
