"""Data files: where they are looked for, how they are downloaded, and that they are what they should be."""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DataError

__all__ = ["Source", "locate", "read"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Where the files of one data set come from.

    Attributes:
        title: the data set's name, for messages.
        folders: folders inside a data directory that may hold the files, in order; ``.`` is the directory itself.
        md5: MD5 of each file's uncompressed content, by file name without ``.gz``; None where copies may differ and
            the loader checks the content instead.
        others: files or folders, each of which alone stands for all of ``md5``, such as an archive; in order.
        system: folder where a system package installs the files.
        package: that package, for messages.
        downloads: addresses that serve the files (or an entry of ``others``), each with the MD5 of what it serves, or
            None where ``md5`` says enough; empty if the data set has no public address.
    """

    title: str
    folders: tuple[str, ...]
    md5: Mapping[str, str | None]
    others: tuple[str, ...] = ()
    system: Path | None = None
    package: str = ""
    downloads: Mapping[str, str | None] = field(default_factory=dict)


def read(source: Source, data_dir: Path | None = None, progress: bool = True) -> dict[str, bytes]:
    """Return the verified, uncompressed content of each file of a data set, by name without ``.gz``.

    Args:
        source: the data set.
        data_dir: folder to look in first.
        progress: show a bar on standard error while downloading.

    Raises:
        DataError: as :func:`locate`; or a file is truncated, damaged or another one.
    """
    paths = locate(source, data_dir, progress)
    return {name: _verified(path, source, name) for name, path in paths.items()}


def locate(source: Source, data_dir: Path | None = None, progress: bool = True) -> dict[str, Path]:
    """Return the path of each file of a data set, by name without ``.gz``: all of ``md5``, or one of ``others``.

    Looked for, in order: ``data_dir``, the folder named by the environment variable ``FEDSPARSIFY_DATA``, the system
    folder, the user's cache; what is found nowhere is downloaded into that cache. A folder that holds one of the files
    must hold all of them, each with or without ``.gz``.

    Args:
        source: the data set.
        data_dir: folder to look in first.
        progress: show a bar on standard error while downloading.

    Raises:
        DataError: a folder that was asked for does not exist or holds some of the files only; a download is damaged;
            or the files are nowhere and cannot be downloaded.
    """
    searched: list[Path] = []
    for root, folders in _places(source, data_dir):
        for folder in dict.fromkeys(root / f for f in folders):
            searched.append(folder)
            paths = _complete(source, folder)
            if paths:
                _log.info("%s is read from %s", source.title, folder)
                return paths
    return _download(source, searched, progress)


def _places(source: Source, data_dir: Path | None) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Yield each root to look below; lazily, so that a later one is judged only if the earlier ones had nothing."""
    asked = {"data directory": data_dir, "FEDSPARSIFY_DATA =": os.environ.get("FEDSPARSIFY_DATA") or None}
    for name, root in asked.items():
        if root is not None:
            folder = Path(root).expanduser()
            if not folder.is_dir():
                raise DataError(
                    f"{name} {folder} is not a folder: create it with the files of {source.title}, or name another"
                )
            yield folder, source.folders
    if source.system is not None:
        yield source.system, (".",)


def _complete(source: Source, folder: Path) -> dict[str, Path]:
    """Return the path of every file in a folder that has them all, and nothing for one that has none."""
    found = {name: path for name in source.md5 for path in (folder / f"{name}.gz", folder / name) if path.is_file()}
    missing = sorted(set(source.md5) - set(found))
    if not missing:
        return found
    for name in source.others:
        for path in (folder / f"{name}.gz", folder / name):
            if path.exists():
                return {name: path}
    if found:
        raise DataError(
            f"{folder} holds only some files of {source.title}: add {', '.join(missing)} (or .gz), or remove all"
        )
    return {}


def _verified(path: Path, source: Source, name: str) -> bytes:
    again = f"get {source.title} again"
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is truncated or no gzip file ({error}): delete it and {again}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): check its permissions") from error
    expected = source.md5.get(name)
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest() if expected else expected
    if md5 != expected:
        raise DataError(
            f"{path} is damaged or not of {source.title}: the MD5 of its content is {md5} instead of {expected}; "
            f"delete it and {again}"
        )
    return content


def _download(source: Source, searched: list[Path], progress: bool) -> dict[str, Path]:
    # Imported here because it brings an HTTP client, which most runs never use.
    import pooch
    import requests

    cache = Path(pooch.os_cache("fedsparsify")) / source.folders[0]
    urls = {url.rsplit("/", 1)[1]: url for url in source.downloads}
    pooch.get_logger().setLevel(logging.WARNING)
    hashes = {name: source.downloads[url] for name, url in urls.items()}
    fetcher = pooch.create(
        path=cache,
        base_url="",
        registry={name: md5 and f"md5:{md5}" for name, md5 in hashes.items()},
        urls=urls,
        retry_if_failed=1,
    )
    for name, url in urls.items():
        try:
            downloader = pooch.HTTPDownloader(progressbar=_Bar(name) if progress else False)
            path = Path(fetcher.fetch(name, downloader=downloader))
        except (OSError, ValueError) as error:
            why = f"downloading {url} to {cache} failed ({error})"
            if isinstance(error, requests.ConnectionError | requests.Timeout):  # their words are long and say no more
                why = f"{url.split('/')[2]} cannot be reached"
            raise DataError(_nowhere(source, searched, why)) from error
        content = name.removesuffix(".gz")
        if content in source.md5:
            try:
                _verified(path, source, content)
            except DataError:
                path.unlink(missing_ok=True)  # else the damaged file would be found in the cache for ever
                raise
    paths = _complete(source, cache) if urls else {}
    if not paths:
        raise DataError(_nowhere(source, searched, "there is no public address to download it from"))
    _log.info("%s is read from %s", source.title, cache)
    return paths


def _nowhere(source: Source, searched: list[Path], why: str) -> str:
    """Say that a data set cannot be had, and every way in which it could."""
    names = f"its files {', '.join(source.md5)} (or .gz)"
    ways = [
        f"put {' or '.join((names, *source.others))} into a folder and name that with --data-dir or FEDSPARSIFY_DATA"
    ]
    if source.package:
        ways.append(f"install the Debian package {source.package}")
    if source.downloads:
        ways.append(f"run again where {next(iter(source.downloads)).rsplit('/', 1)[0]}/ can be reached")
    count = {1: "One way", 2: "Two ways", 3: "Three ways"}[len(ways)]
    nowhere = f"is not in {', '.join(map(str, searched))}" if searched else "is not here: no folder is named"
    if len(ways) > 1:
        ways[-1] = f"or {ways[-1]}"
    return f"{source.title} {nowhere}, and {why}. {count} to get it: {'; '.join(ways)}"


class _Bar:
    """A progress bar of the kind that pooch drives, drawn on standard error."""

    def __init__(self, description: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        self._progress: Any = Progress(*columns, console=Console(stderr=True))
        self._task = self._progress.add_task(description, total=None)
        self.total = 0

    def update(self, size: int) -> None:
        self._progress.start()
        self._progress.update(self._task, total=self.total, advance=size)

    def reset(self) -> None:
        self._progress.reset(self._task)

    def close(self) -> None:
        self._progress.stop()
