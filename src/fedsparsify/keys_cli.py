"""``fedsparsify keys new | check | open``: the key that clients of an encrypted federation share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .errors import ConfigError, DataError, RunError, WireError
from .files import write_atomically
from .terminal import new_console

if TYPE_CHECKING:
    from .secure import Key

__all__ = ["keys"]

keys = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Make, check and use the key that clients of an encrypted federation share.",
)

SCHEME = "What encryption.scheme says in the settings."
File = Annotated[Path, typer.Argument(metavar="FILE", help="The key's file.", show_default=False)]


@keys.command()
def new(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A new file.", show_default=False)],
    participants: Annotated[
        int, typer.Option(help="Clients that take part in a round, at most; more need a larger encryption.", min=2)
    ],
    scheme: Annotated[str, typer.Option(help=SCHEME, metavar="bfv|ckks")] = "bfv",
) -> None:
    """Make a key, at one of the sites; its owner alone can read the file.

    [bold]fedsparsify keys new clients.key --participants 10[/bold]

    Give every site a copy by a way that the server does not see, and the server none (docs/encryption.md).
    """
    from .secure import CIPHERS

    cipher = CIPHERS[_known(scheme)]
    key = cipher.make_key(cipher.scheme(participants))
    key.save(file)
    _say(f"{file}: {_described(key)}")


@keys.command()
def check(
    file: File,
    participants: Annotated[
        int | None, typer.Option(help="Clients that take part in a round.", min=2, show_default=False)
    ] = None,
    scheme: Annotated[str | None, typer.Option(help=SCHEME, metavar="bfv|ckks", show_default=False)] = None,
) -> None:
    """Check that a key's file is whole, private and fit, and say the identifier that all sites' keys must share."""
    from .secure import CIPHERS, Key

    key = Key.load(file)
    wanted = _known(scheme or key.scheme.name)
    people = participants or key.scheme.participants
    if CIPHERS[wanted].scheme(people) != key.scheme:
        raise ConfigError(
            f"{file}: a {_described(key)}, does not fit: make one by fedsparsify keys new FILE --participants {people}"
            f" --scheme {wanted}"
        )
    _say(f"{file}: {_described(key)}")


def _known(scheme: str) -> str:
    from .secure import CIPHERS

    if scheme not in CIPHERS:
        raise ConfigError(f"--scheme {scheme} is unknown; known are {', '.join(CIPHERS)}")
    return scheme


def _described(key: Key) -> str:
    kind, people = key.scheme.name.upper(), key.scheme.participants
    return f"{kind} key {key.identifier.hex()}, for up to {people} participants in a round"


@keys.command("open")
def open_(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The run directory.", show_default=False)],
    key: Annotated[Path, typer.Option(metavar="FILE", help="The clients' key.", show_default=False)],
) -> None:
    """Make model.fsp of the model.locked that an encrypted deployment has left in its run directory.

    [bold]fedsparsify keys open runs/mine --key clients.key[/bold]

    Copy the run directory to where the key is, not the key to the server.
    """
    from . import models
    from .config import OWN, load_settings
    from .federation.encrypted import LockedStates, open_model
    from .layout import ParameterLayout
    from .secure import Key
    from .wire import Kind, Message, encode

    locked = directory / "model.locked"
    try:
        data = locked.read_bytes()
    except OSError as error:
        raise RunError(
            f"{locked} cannot be read ({error.strerror}): it is there when an encrypted deployment has finished"
        ) from error
    if not (directory / "config.toml").is_file():
        raise RunError(
            f"{directory} is no whole run directory: it holds no config.toml; copy all of it from the server"
        )
    settings = load_settings(directory / "config.toml")
    if settings.model.name == OWN:
        raise RunError(f"{directory} was started from Python, which has its network: open the model there")
    layout = ParameterLayout.of(models.build(settings.model.name, settings.run.seed, **settings.model.options))
    try:
        state = LockedStates(layout).read(data)
        opened = open_model(Key.load(key, retired=True), state.model, state.run, state.round, layout)
    except WireError as error:
        raise DataError(f"{locked} cannot be opened with {key}: {error}") from error
    path = directory / "model.fsp"
    write_atomically(path, encode(Message(Kind.MODEL, opened.round, opened.model), layout))
    _say(f"{path}: the model of round {opened.round}")


def _say(text: str) -> None:
    new_console().print(text, markup=False, highlight=False, soft_wrap=True)
