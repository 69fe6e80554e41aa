"""A sweep's runs: read from its directory, or from one small file that ``fedsparsify pack`` made of it.

The packed file is a plain ``.tar.xz`` with ``NAME/config.toml``, ``NAME/run.json`` and ``NAME/metrics.jsonl`` for every
finished run, and the grid. Unpacked by ``tar`` it is a sweep directory again. The same runs give the same bytes: no
times, owners or paths of the machine are in it. Reading never unpacks to disk, and takes nothing but those names, as
regular files, up to a bounded size.
"""

from __future__ import annotations

import io
import json
import lzma
import re
import tarfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from fedsparsify.errors import RunError
from fedsparsify.files import replace_file
from fedsparsify.report.records import Run, load_run, parse_run, printable

__all__ = ["PACKED", "Packed", "Sweep", "is_sweep", "load_sweep", "pack"]

PACKED = ".tar.xz"
"""How the name of a packed sweep ends."""

MAX_UNPACKED = 512 << 20
"""Bytes of a packed sweep's content; a hundred runs of 200 rounds take about 10 MB."""

MAX_FILES = 30_000
"""Files in a packed sweep, three a run and the grid."""

MAX_XZ_MEMORY = 128 << 20
"""Bytes that decompression may take; the highest preset needs 65 MB."""

GRID = "sweep.toml"
FILES = ("config.toml", "run.json", "metrics.jsonl")
NAME = re.compile(r"(?P<run>[A-Za-z0-9_+][A-Za-z0-9._+-]{0,199})/(?P<file>config\.toml|run\.json|metrics\.jsonl)")

EXACT = {"accuracy", "mae"}
"""Figures that are packed as they are; others keep seven digits, one more than the report's figures show."""


@dataclass(frozen=True)
class Sweep:
    """The runs of a sweep.

    Attributes:
        name: of the directory or file.
        runs: those that are finished, by name.
        unfinished: the names of the others.
    """

    name: str
    runs: tuple[Run, ...]
    unfinished: tuple[str, ...]


@dataclass(frozen=True)
class Packed:
    """What was packed: how many runs, into how many bytes, and the names of those that are not finished."""

    runs: int
    size: int
    unfinished: tuple[str, ...]


def is_sweep(path: Path) -> bool:
    """Whether a path is a sweep's directory or a packed sweep, and not a run's directory."""
    return path.name.endswith(PACKED) or (path / GRID).is_file()


def load_sweep(path: Path) -> Sweep:
    """Read a sweep's directory or a packed sweep.

    Raises:
        RunError: there is no such sweep, it has no finished run, or one of its files is damaged.
    """
    sweep = _load_packed(path) if path.name.endswith(PACKED) else _load_directory(path)
    if not sweep.runs:
        raise RunError(f"{path} holds no finished run yet: go on with fedsparsify sweep, then report")
    return sweep


def pack(folder: Path, out: Path) -> Packed:
    """Write the finished runs of a sweep's directory into one file.

    Raises:
        RunError: the directory is no sweep's or has no finished run, a file is damaged, or ``out`` cannot be written or
            is not called ``*.tar.xz``.
    """
    if not out.name.endswith(PACKED):
        raise RunError(f"{out} must end in {PACKED}, so that the report knows it")
    if folder.name.endswith(PACKED):
        raise RunError(f"{folder} is packed already: name the sweep's directory")
    sweep = load_sweep(folder)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        # Files of one kind side by side: most of what they hold is the same.
        if (folder / GRID).is_file():
            _add(archive, GRID, _portable_grid(folder / GRID).encode())
        for file in FILES:
            for run in sweep.runs:
                if not NAME.fullmatch(f"{run.path.name}/{file}"):
                    raise RunError(
                        f"{run.path}: a packed run's name has letters, digits and ._+- only: rename the directory"
                    )
                _add(archive, f"{run.path.name}/{file}", _portable(run, file).encode())
    content = lzma.compress(buffer.getvalue(), preset=9 | lzma.PRESET_EXTREME)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_file(out, content)
    except OSError as error:
        raise RunError(f"{out} cannot be written ({error.strerror}): choose another file") from error
    return Packed(len(sweep.runs), len(content), sweep.unfinished)


def _load_directory(path: Path) -> Sweep:
    if not path.is_dir():
        raise RunError(f"{path}: no such sweep; give the directory that fedsparsify sweep wrote, or a packed {PACKED}")
    finished, unfinished = [], []
    for folder in sorted(path.iterdir()):
        if not (folder / "run.json").is_file():
            continue
        if not (folder / "metrics.jsonl").is_file():
            unfinished.append(printable(folder.name))
            continue
        run = load_run(folder)
        if run.last.round < run.rounds_total:
            unfinished.append(printable(folder.name))
        else:
            finished.append(run)
    return Sweep(printable(path.resolve().name), tuple(finished), tuple(unfinished))


def _load_packed(path: Path) -> Sweep:
    texts: dict[str, dict[str, str]] = {}
    seen: set[str] = set()
    for name, content in _members(path, _decompress(path)):
        match = NAME.fullmatch(name)
        if not match and name != GRID:
            raise RunError(f"{path}: {printable(name, 80)!r} is no file of a packed sweep; make it by fedsparsify pack")
        if name in seen:
            raise RunError(f"{path}: {name} is in it twice; make it anew by fedsparsify pack")
        seen.add(name)
        if len(seen) > MAX_FILES:
            raise RunError(f"{path} holds more than {MAX_FILES:,} files; restore it, or make it by fedsparsify pack")
        if not match:
            continue
        try:
            texts.setdefault(match["run"], {})[match["file"]] = content.decode("utf-8")
        except UnicodeDecodeError:
            raise RunError(f"{path}: {name} is not UTF-8 text; make it anew by fedsparsify pack") from None
    runs = []
    for name, files in sorted(texts.items()):
        if missing := [file for file in FILES if file not in files]:
            raise RunError(f"{path}: {name} lacks its {' and '.join(missing)}; make it anew by fedsparsify pack")
        runs.append(parse_run(path / name, files["run.json"], files["metrics.jsonl"], files["config.toml"]))
    return Sweep(
        printable(path.name.removesuffix(PACKED)),
        tuple(run for run in runs if run.last.round >= run.rounds_total),
        tuple(run.path.name for run in runs if run.last.round < run.rounds_total),
    )


def _decompress(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}); name a file that fedsparsify pack wrote") from error
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_XZ_MEMORY)
    try:
        plain = decompressor.decompress(content, max_length=MAX_UNPACKED)
    except lzma.LZMAError as error:
        raise RunError(
            f"{path} is damaged or no .xz file ({error}); restore it, or make it by fedsparsify pack"
        ) from None
    if not decompressor.eof:
        what = f"holds more than {MAX_UNPACKED:,} bytes" if len(plain) == MAX_UNPACKED else "is cut off"
        raise RunError(f"{path} {what}; restore it, or make it by fedsparsify pack")
    if decompressor.unused_data:
        raise RunError(f"{path} goes on after its end; restore it, or make it by fedsparsify pack")
    return plain


def _members(path: Path, content: bytes) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            for member in archive:
                # A sparse file may claim any size; links and devices have no content of their own.
                if member.type != tarfile.REGTYPE or member.issparse() or not 0 <= member.size <= len(content):
                    name = printable(member.name, 80)
                    raise RunError(f"{path}: {name!r} is no plain file; a packed sweep holds nothing else")
                file = archive.extractfile(member)
                assert file is not None
                yield member.name, file.read()
            # tarfile takes a header that it cannot read for the end.
            if content[archive.offset :].strip(b"\0"):
                raise RunError(f"{path} is damaged after a part of it; restore it, or make it by fedsparsify pack")
    # RecursionError: a header may extend the next one, which extends the next one, and so on.
    except (tarfile.TarError, ValueError, EOFError, OverflowError, RecursionError) as error:
        raise RunError(
            f"{path} is damaged ({printable(error, 120)}); restore it, or make it by fedsparsify pack"
        ) from None


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # its times and owners are zero, its mode 0644
    member.size = len(content)
    try:
        archive.addfile(member, io.BytesIO(content))
    except ValueError:  # ustar takes a folder's name of 155 bytes
        raise RunError(f"{name}: the name is too long to be packed: rename the directory") from None


def _portable_grid(path: Path) -> str:
    """Return a grid without the place of the data on the machine's disk, which a block may set too."""
    try:
        text = path.read_text(encoding="utf-8")
        tables = tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} is no grid ({printable(error, 120)}); restore it") from None
    blocks = tables.get("sweep", [])
    found = False
    for block in (tables, *(blocks if isinstance(blocks, list) else [])):
        data = block.get("data") if isinstance(block, dict) else None
        if isinstance(data, dict) and data.get("dir"):
            data["dir"] = ""
            found = True
    return tomli_w.dumps(tables) if found else text


def _portable(run: Run, file: str) -> str:
    """Return a file of a run without what is of the machine's disk only, and with seven digits of what is measured."""
    path = run.path / file
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if file == "config.toml":
        tables = tomllib.loads(text)
        if isinstance(tables.get("data"), dict) and tables["data"].get("dir"):
            tables["data"]["dir"] = ""
            return tomli_w.dumps(tables)
        return text
    if file == "run.json":
        facts = json.loads(text)
        facts.pop("calibration", None)  # of use to a resume only
        return _dump(facts)
    # Not splitlines: that also splits at line separators that JSON allows inside a string.
    return "".join(_dump(_rounded(json.loads(line))) + "\n" for line in text.removesuffix("\n").split("\n"))


def _rounded(record: dict[str, Any]) -> dict[str, Any]:
    return {
        key: float(f"{value:.7g}") if isinstance(value, float) and key not in EXACT else value
        for key, value in record.items()
    }


def _dump(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
