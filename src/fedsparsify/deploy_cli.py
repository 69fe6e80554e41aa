"""``fedsparsify deploy init | add-site | renew``: get a deployment over Flower ready, and keep it so."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated

import typer

from .config import load_settings
from .errors import ArgumentError
from .terminal import new_console, own_command

__all__ = ["deploy"]

deploy = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="Get a deployment over Flower ready.")

Days = Annotated[int, typer.Option(help="How long certificates are valid.")]
Folder = Annotated[
    Path, typer.Argument(metavar="DIR", help="What [bold]deploy init[/bold] has written.", show_default=False)
]


@deploy.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.", show_default=False)],
    config: Annotated[
        Path, typer.Option(metavar="CONFIG", help="The federation's settings, a TOML file.", show_default=False)
    ],
    site: Annotated[
        list[str], typer.Option(metavar="NAME", help="A site; once for each, client 0 first.", show_default=False)
    ],
    host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST",
            help="Name or address that sites reach the server by; by default all are on this machine.",
            show_default=False,
        ),
    ] = None,
    port: Annotated[int, typer.Option(help="The one port that sites reach.")] = 8000,
    days: Days = 365,
) -> None:
    """Write app, certificates, node keys and start scripts of a deployment, TLS and node authentication on.

    [bold]fedsparsify deploy init hospital-net --config mine.toml --site north --site south --host fl.example.org[/bold]

    docs/deployment.md takes an administrator through it, docs/security.md says what it protects from.
    """
    from . import deploy as deployment
    from .experiment import check_values

    settings = load_settings(config)
    try:
        check_values(deployment.settle(settings, site), str(config))
        expires = deployment.init(folder, settings, site, host or [], port, days)
    except ArgumentError as error:
        raise ArgumentError(f"{error} (nothing was written)") from error
    _say(
        f"{folder}: a deployment of {len(site)} sites. Its README.md has the commands in order; move ca/ca.key to where"
        " no network reaches it."
    )
    _warn(expires, folder)


@deploy.command()
def add_site(
    folder: Folder,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new site.", show_default=False)],
) -> None:
    """Add a site: its key and folder, and its name in app/settings.toml.

    Runs that were begun before cannot be resumed with it: they are another federation's.
    """
    from . import deploy as deployment

    deployment.add_site(folder, name)
    _say(
        f"{folder / 'sites' / name}: hand it to the site. Register it with {folder / 'admin' / 'register.sh'} {name},"
        " and delete node.key here."
    )


@deploy.command()
def renew(folder: Folder, days: Days = 365) -> None:
    """Write new certificates, for the same keys and the hosts in deployment.toml.

    Old and new ones work together until the old ones expire. It needs ca/ca.key back for as long as it takes.
    """
    from . import deploy as deployment

    expires = deployment.renew(folder, days)
    _say("New certificates. Start the SuperLink (and the gateway) anew, hand each site the ca.pem in its folder.")
    _warn(expires, folder)


@deploy.command(hidden=True, add_help_option=False, context_settings={"ignore_unknown_options": True})
def supernode(arguments: Annotated[list[str] | None, typer.Argument()] = None) -> None:
    """Run Flower's SuperNode, for a site's start.sh: flower-supernode's own does not end when it has given up."""
    from .supernode import run

    run(arguments or [])


def _warn(expires: datetime.datetime, folder: Path) -> None:
    _say(f"Certificates expire on {expires:%Y-%m-%d}; before that: {own_command('deploy', 'renew', str(folder))}")


def _say(text: str) -> None:
    new_console().print(text, markup=False, highlight=False, soft_wrap=True)
