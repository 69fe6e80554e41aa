"""Data files: where they are looked for, how they are downloaded, and that they are what they should be."""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError

__all__ = ["Source", "read"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Where the files of one data set come from.

    Attributes:
        title: the data set's name, for messages.
        folders: folders inside a data directory that may hold the files, in order; ``.`` is the directory itself.
        system: folder where a system package installs them.
        package: that package, for messages.
        url: address that ends in ``/``, below which ``<file>.gz`` can be downloaded.
        md5: MD5 of each file's uncompressed content, by file name without ``.gz``.
    """

    title: str
    folders: tuple[str, ...]
    system: Path
    package: str
    url: str
    md5: Mapping[str, str]


def read(source: Source, data_dir: Path | None = None, progress: bool = True) -> dict[str, bytes]:
    """Return the verified, uncompressed content of each file of a data set.

    Looked for, in order: ``data_dir``, the folder named by the environment variable ``FEDSPARSIFY_DATA``, the system
    folder, the user's cache; what is found nowhere is downloaded into that cache. A folder that holds one of the files
    must hold all of them, each with or without ``.gz``.

    Args:
        source: the data set.
        data_dir: folder to look in first.
        progress: show a bar on standard error while downloading.

    Raises:
        DataError: a folder that was asked for does not exist; a file is truncated, damaged or another one; or the
            files are nowhere and cannot be downloaded.
    """
    searched: list[Path] = []
    for root, folders in _places(source, data_dir):
        for folder in dict.fromkeys(root / f for f in folders):
            searched.append(folder)
            paths = _complete(source, folder)
            if paths:
                _log.info("%s is read from %s", source.title, folder)
                return {name: _verified(path, source, name) for name, path in paths.items()}
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
    yield source.system, (".",)


def _complete(source: Source, folder: Path) -> dict[str, Path]:
    """Return the path of every file in a folder that has them all, and nothing for one that has none."""
    found = {name: path for name in source.md5 for path in (folder / f"{name}.gz", folder / name) if path.is_file()}
    missing = sorted(set(source.md5) - set(found))
    if found and missing:
        raise DataError(
            f"{folder} holds only some files of {source.title}: add {', '.join(missing)} (or .gz), or remove all"
        )
    return found


def _verified(path: Path, source: Source, name: str) -> bytes:
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path} is truncated or no gzip file ({error}): delete it and get {source.title} again"
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): check its permissions") from error
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if md5 != source.md5[name]:
        raise DataError(
            f"{path} is damaged or not of {source.title}: the MD5 of its content is {md5} instead of "
            f"{source.md5[name]}; delete it and get {source.title} again"
        )
    return content


def _download(source: Source, searched: list[Path], progress: bool) -> dict[str, bytes]:
    # Imported here because it brings an HTTP client, which most runs never use.
    import pooch

    cache = Path(pooch.os_cache("fedsparsify")) / source.folders[0]
    pooch.get_logger().setLevel(logging.WARNING)
    fetcher = pooch.create(
        path=cache, base_url=source.url, registry={f"{name}.gz": None for name in source.md5}, retry_if_failed=1
    )
    contents = {}
    for name in source.md5:
        try:
            downloader = pooch.HTTPDownloader(progressbar=_Bar(f"{name}.gz") if progress else False)
            path = Path(fetcher.fetch(f"{name}.gz", downloader=downloader))
        except (OSError, ValueError) as error:
            raise DataError(
                f"{source.title} is not in {', '.join(map(str, searched))}, and downloading {source.url}{name}.gz to "
                f"{cache} failed ({error}). Three ways to get it: put its files {', '.join(source.md5)} (or .gz) into "
                f"a folder and name that with --data-dir or FEDSPARSIFY_DATA; install the Debian package "
                f"{source.package}; or run again where {source.url} can be reached"
            ) from error
        try:
            contents[name] = _verified(path, source, name)
        except DataError:
            path.unlink(missing_ok=True)  # else the damaged file would be found in the cache for ever
            raise
    _log.info("%s is read from %s", source.title, cache)
    return contents


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
