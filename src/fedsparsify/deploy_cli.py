"""``fedsparsify deploy``: get a deployment over Flower ready."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .config import load_settings
from .errors import ArgumentError
from .terminal import new_console

__all__ = ["deploy"]

deploy = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="Get a deployment over Flower ready.")


@deploy.callback()
def _deploy() -> None:
    """Keep ``init`` a command of its own."""


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
        typer.Option(metavar="HOST", help="Name or address of the SuperLink; by default this machine only."),
    ] = None,
    port: Annotated[int, typer.Option(help="The SuperLink's port.")] = 8000,
    days: Annotated[int, typer.Option(help="How long certificates are valid.")] = 365,
) -> None:
    """Write app, certificates, node keys and start scripts of a deployment, TLS and node authentication on.

    [bold]fedsparsify deploy init hospital-net --config mine.toml --site north --site south --host fl.example.org[/bold]

    docs/deployment.md takes an administrator through it.
    """
    from .deploy import init as write

    try:
        write(folder, load_settings(config), site, host or [], port, days)
    except ArgumentError as error:
        raise ArgumentError(f"{error} (nothing was written)") from error
    new_console().print(
        f"{folder}: a deployment of {len(site)} sites. Its README.md has the commands in order; certificates are valid"
        f" for {days} days, and ca/ca.key belongs off the network.",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
