"""What the files of a deployment say that are no secrets: the app, scripts in POSIX sh, the gateway, a README.

Scripts find everything from where they lie, so that a folder may be moved or handed on.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

import tomli_w

__all__ = ["Addresses", "app_files", "deployment_files", "site_files"]


@dataclass(frozen=True)
class Addresses:
    """Who listens where.

    Attributes:
        hosts: names and addresses that sites reach the server by; the first is the one that they are told.
        port: the one port that sites reach.
    """

    hosts: tuple[str, ...]
    port: int

    @property
    def local(self) -> bool:
        """Whether all sites are on the server's own machine, so that nothing needs to be reached from outside."""
        return all(_is_loopback(host) for host in self.hosts)

    @property
    def inner(self) -> int:
        """The SuperLink's port, on the loopback interface; the gateway has the other one, unless all is local."""
        return self.port if self.local else self.port + 1 if self.port < 65535 else self.port - 1

    @property
    def told(self) -> str:
        """Host and port that sites are told."""
        host = self.hosts[0]
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


def app_files(settings: str) -> dict[str, str]:
    """Return the Flower app.

    Args:
        settings: the text of settings.toml.
    """
    project = {
        "build-system": {"requires": ["hatchling"], "build-backend": "hatchling.build"},
        "project": {
            "name": "federation",
            "version": "1.0.0",
            "description": "A FedSparsify federation",
            "license": "Apache-2.0",
            "dependencies": [],  # each party installs what it runs; Flower must not fetch anything for a run
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
    return {"pyproject.toml": tomli_w.dumps(project), "federation_app.py": _APP, "settings.toml": settings}


def deployment_files(addresses: Addresses, sites: Sequence[str], expires: datetime.datetime) -> dict[str, str]:
    """Return what the server and its administrator get."""
    a = addresses
    files = {
        "deployment.toml": _RECORD + tomli_w.dumps({"hosts": list(a.hosts), "port": a.port}),
        "superlink/start.sh": _SUPERLINK.format(port=a.inner),
        "admin/flwr.sh": _FLWR.format(port=a.inner),
        "admin/register.sh": _REGISTER,
        "admin/run.sh": _RUN,
        "admin/resume.sh": _RESUME,
        "README.md": _readme(a, sites, expires),
    }
    if not a.local:
        ipv6 = f"        listen [::]:{a.port} ssl;\n" if any(":" in host for host in a.hosts) else ""
        files["superlink/gateway.sh"] = _GATEWAY_SCRIPT
        files["superlink/gateway.conf"] = _GATEWAY % {"port": a.port, "ipv6": ipv6, "inner": a.inner}
    return files


def site_files(site: str, addresses: Addresses, local_port: int) -> dict[str, str]:
    """Return what a site gets.

    Args:
        site: its name.
        addresses: of the server.
        local_port: of the SuperNode, for its own processes.
    """
    return {
        "start.sh": _SUPERNODE.format(site=site, address=addresses.told),
        "site.conf": _CONF.format(site=site, port=local_port),
    }


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


_RECORD = "# Where the server is reached; fedsparsify deploy add-site and renew read it.\n"

_APP = '''"""The Flower app of this deployment: both ends read settings.toml, which lies beside this file."""

from fedsparsify import deployment

client = deployment.client_app(__file__)
server = deployment.server_app(__file__)
'''

_HEAD = """#!/bin/sh
# {what}
set -eu
CDPATH= cd -- "$(dirname -- "$0")"
"""

_FLOWER = """umask 077
export FLWR_TELEMETRY_ENABLED="${{FLWR_TELEMETRY_ENABLED:-0}}"
"""

_PROCESS = (
    _FLOWER
    + """export FLWR_HOME="${{FLWR_HOME:-$PWD/flower}}"
# Seconds between two looks for work: Flower takes 1, which adds to every round; much less costs processor time.
export FLWR_SUPEREXEC_TASK_POLL_INTERVAL="${{FLWR_SUPEREXEC_TASK_POLL_INTERVAL:-0.5}}"
"""
)

_WARNING = """if command -v openssl >/dev/null && ! openssl x509 -checkend 2592000 -noout -in {file} >/dev/null; then
    echo "$0: {file} is valid for less than 30 days ($(openssl x509 -enddate -noout -in {file})): {remedy}" >&2
fi
"""


def _head(what: str) -> str:
    return _HEAD.replace("{what}", what)


def _warning(file: str, remedy: str) -> str:
    return _WARNING.format(file=file, remedy=remedy)


_SUPERLINK = (
    _head("The SuperLink. It is reached from this machine only: its Control API starts runs for whoever asks.")
    + _PROCESS
    + _warning("server.pem", "fedsparsify deploy renew")
    + """exec flower-superlink --host 127.0.0.1 --port {port} \\
    --ssl-certfile server.pem --ssl-keyfile server.key --ssl-ca-certfile ca.pem \\
    --enable-supernode-auth --disable-runtime-dependency-installation --database superlink.db "$@"
"""
)

_GATEWAY_SCRIPT = (
    _head("The one port that sites reach, from which only Flower's Fleet API is passed on to the SuperLink.")
    + """umask 077
command -v nginx >/dev/null || { echo "$0: nginx is not installed" >&2; exit 2; }
mkdir -p gateway.tmp
exec nginx -p "$PWD" -c "$PWD/gateway.conf" "$@"
"""
)

# proxy_pass with a path sends the path as nginx has understood it, so that there are no two opinions about it.
_GATEWAY = """\
# nginx: passes on Flower's Fleet API, which asks for a registered node's signature, and nothing else. The Control API
# (start a run, register a node, read logs) asks for no credentials, and must not be reached from outside.
# Paths are relative to this folder; gateway.sh starts it.
daemon off;
pid gateway.pid;
error_log stderr warn;
events {}
http {
    access_log off;
    server_tokens off;
    client_body_temp_path gateway.tmp/body;
    proxy_temp_path gateway.tmp/proxy;
    fastcgi_temp_path gateway.tmp/fastcgi;
    uwsgi_temp_path gateway.tmp/uwsgi;
    scgi_temp_path gateway.tmp/scgi;
    upstream superlink {
        server 127.0.0.1:%(inner)d;
        keepalive 16;
    }
    server {
        listen %(port)d ssl;
%(ipv6)s        ssl_certificate server.pem;
        ssl_certificate_key server.key;
        ssl_protocols TLSv1.2 TLSv1.3;
        client_max_body_size 64m;
        location /v1/fleet/ {
            proxy_pass https://superlink/v1/fleet/;
            proxy_ssl_trusted_certificate ca.pem;
            proxy_ssl_verify on;
            proxy_ssl_name localhost;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_request_buffering off;
            proxy_buffering off;
            proxy_read_timeout 300s;
        }
        location / {
            return 403;
        }
    }
}
"""

_SUPERNODE = (
    _head("The SuperNode of {site}; site.conf says where its data are. Arguments are passed to flower-supernode.")
    + _PROCESS
    + _warning("ca.pem", "ask your coordinator for a new one")
    + """. ./site.conf
absolute() {{
    case $2 in
        *[\\"\\\\]*) echo "$0: $1 in site.conf must be without quotes and backslashes" >&2; exit 2 ;;
        "" | /*) echo "$2" ;;
        *) echo "$PWD/$2" ;;
    esac
}}
DATA=$(absolute DATA "$DATA")
KEY=$(absolute KEY "${{KEY:-}}")
if [ -n "$DATA" ] && ! [ -d "$DATA" ]; then
    echo "$0: there is no folder $DATA: correct DATA in site.conf" >&2
    exit 2
fi
if [ -n "$KEY" ] && ! [ -f "$KEY" ]; then
    echo "$0: there is no file $KEY: correct KEY in site.conf" >&2
    exit 2
fi
# Flower's SuperNode (1.41) gives up when a connection breaks off in the middle of a handshake: it is started again.
child=none
stop() {{
    trap - INT TERM
    [ "$child" = none ] || kill "${{child:-${{!-}}}}" 2>/dev/null || :
    wait
    exit 143
}}
trap stop INT TERM
while :; do
    child=  # $! until it is known
    fedsparsify deploy supernode --superlink "${{SUPERLINK:-{address}}}" --root-certificates ca.pem \\
        --auth-supernode-private-key node.key --port "$LOCAL_PORT" \\
        --node-config "data-dir=\\"$DATA\\" threads=$THREADS key=\\"$KEY\\"" "$@" &
    child=$!
    status=0
    wait "$child" || status=$?
    [ -n "$RESTART" ] || exit "$status"
    echo "$0: the SuperNode has ended with code $status and is started again in $RESTART s; Ctrl-C stops this" >&2
    child=
    sleep "$RESTART" &
    child=$!
    wait "$child"
done
"""
)

_CONF = """# Settings of {site}, read by start.sh.

# Folder with this site's data; empty for what the app's settings or FEDSPARSIFY_DATA say.
DATA=""

# File of the key that all sites share, where the app's settings encrypt (fedsparsify keys); never the server's.
KEY=""

# Threads of torch. Several are faster for large networks, and may change the last bits of a result.
THREADS=1

# A free port of this machine, reached from this machine only.
LOCAL_PORT={port}

# Seconds after which a SuperNode that has ended is started again; empty for never, where something else does it.
RESTART="${{RESTART-5}}"
"""

_FLWR = (
    _head("Flower's command line, connected to this deployment: ./flwr.sh supernode list.")
    + _FLOWER
    + """# Flower wants an absolute path, and this folder may have been moved.
export FLWR_HOME="$PWD/flower"
mkdir -p "$FLWR_HOME"
cat >"$FLWR_HOME/config.toml.$$" <<END
[superlink]
default = "deployment"

[superlink.deployment]
address = "${{SUPERLINK:-127.0.0.1:{port}}}"
root-certificates = '$PWD/ca.pem'
END
mv "$FLWR_HOME/config.toml.$$" "$FLWR_HOME/config.toml"
exec flwr "$@"
"""
)

_REGISTER = (
    _head("Tell the SuperLink which node keys to accept: all sites', or those of the sites named.")
    + """[ $# -gt 0 ] || set -- ../sites/*/
failed=0
for site in "$@"; do
    name=$(basename -- "$site")
    ./flwr.sh supernode register "../sites/$name/node.pub" --name "$name" || failed=1
done
exit "$failed"
"""
)

_RUN = (
    _head("""Start a run and follow it, e.g. ./run.sh --run-config 'set="run.rounds=5" out="runs/try"'.""")
    + """exec ./flwr.sh run ../app --stream "$@"
"""
)

_RESUME = (
    _head("Go on with a run that was stopped: ./resume.sh runs/NAME, as the SuperLink's folder has it.")
    + """[ $# -eq 1 ] || { echo "Usage: $0 runs/NAME" >&2; exit 2; }
exec ./flwr.sh run ../app --stream --run-config "out=\\"$1\\" resume=true"
"""
)


def _readme(a: Addresses, sites: Sequence[str], expires: datetime.datetime) -> str:
    first = sites[0]
    steps = [
        f"On the server: `superlink/start.sh`. It listens on 127.0.0.1:{a.inner}, for this machine only.",
        (
            f"Also there: `superlink/gateway.sh`, which needs nginx. Open port {a.port} in the firewall, and no other:"
            " the gateway passes on what registered nodes send, and nothing else."
        ),
        "Once, on the server: `admin/register.sh`. Then move `ca/ca.key` to where no network reaches it.",
        (
            f"Hand each site its folder, e.g. `sites/{first}`, over a way that you trust, and delete your copy of its"
            " `node.key` (keep `node.pub`)."
        ),
        "At each site: set `DATA` in `site.conf`, and run `start.sh`. Sites need no open port.",
        (
            "On the server: `admin/flwr.sh supernode list` shows who is online; `admin/run.sh` starts a run and follows"
            " it. Its records lie in `superlink/runs/`."
        ),
        "`admin/resume.sh runs/NAME` goes on with a run that was stopped.",
    ]
    if a.local:
        del steps[1]
    numbered = "\n".join(f"{number}. {step}" for number, step in enumerate(steps, 1))
    return f"""# A FedSparsify deployment

Sites reach the server at {a.told}, over TLS with node authentication. The names of the sites are in
`app/settings.toml`; client 0 is the first.

{numbered}

**Certificates are valid until {expires:%Y-%m-%d}.** Before that day: bring `ca/ca.key` back, give
`fedsparsify deploy renew` this folder's name, start the SuperLink{"" if a.local else " and the gateway"} anew, and hand
each site the new `ca.pem`.

`fedsparsify deploy add-site` adds a site. Whoever has an account on the server's machine can start runs, which are
programs, at every site: give no account to anyone who should not. FedSparsify's docs/deployment.md and docs/security.md
explain it all.
"""
