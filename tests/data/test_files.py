"""Data files: the order of places, the ways they can be wrong, and the download (from a server of the test's own)."""

from __future__ import annotations

import functools
import gzip
import hashlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fedsparsify.data.files import Source, read
from fedsparsify.errors import DataError

CONTENT = {"one": b"first file" * 50, "two": b"second file" * 50}
# Port 1 of this machine: refused at once, so that "no network" is the same on every machine.
CLOSED = "http://127.0.0.1:1/"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    """Two tiny files that are nowhere yet: no data directory, no system folder, no server, an empty cache."""
    monkeypatch.delenv("FEDSPARSIFY_DATA", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("pooch.os_cache", lambda name: tmp_path / "cache" / name)
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in CONTENT.items()}
    return Source(
        title="Tiny",
        folders=("tiny", ".", "Tiny/raw"),
        md5=md5,
        system=tmp_path / "system",
        package="dataset-tiny",
        downloads=_served_at(CLOSED),
    )


def _served_at(url: str) -> dict[str, str | None]:
    return {f"{url}{name}.gz": None for name in CONTENT}


def _system(source: Source) -> Path:
    assert source.system is not None
    return source.system


def _write(folder: Path, compressed: bool = True, **changed: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in {**CONTENT, **changed}.items():
        (folder / f"{name}.gz" if compressed else folder / name).write_bytes(
            gzip.compress(content) if compressed else content
        )
    return folder


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A web server on this machine: the folder it serves, and its address."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{httpd.server_address[1]}/"
        httpd.shutdown()


@pytest.mark.parametrize("folder", ["tiny", ".", "Tiny/raw"])
@pytest.mark.parametrize("compressed", [True, False])
def test_files_are_found_in_each_folder_compressed_or_not(
    source: Source, tmp_path: Path, folder: str, compressed: bool
) -> None:
    _write(tmp_path / "mine" / folder, compressed)
    assert read(source, tmp_path / "mine") == CONTENT


def test_the_order_is_argument_then_environment_then_system(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each place in turn is the only undamaged one, so what is read tells which place was chosen.
    argument, environment = tmp_path / "argument", tmp_path / "environment"
    argument.mkdir()
    environment.mkdir()
    monkeypatch.setenv("FEDSPARSIFY_DATA", str(environment))

    _write(_system(source))
    assert read(source, argument) == CONTENT

    _write(_system(source), one=b"damaged", two=b"damaged")
    _write(environment)
    assert read(source, argument) == CONTENT

    _write(environment, one=b"damaged", two=b"damaged")
    _write(argument)
    assert read(source, argument) == CONTENT


def test_a_data_directory_that_does_not_exist_is_no_silent_fall_through(source: Source, tmp_path: Path) -> None:
    _write(_system(source))
    with pytest.raises(DataError, match=r"data directory .*absent is not a folder"):
        read(source, tmp_path / "absent")


def test_an_environment_variable_that_names_no_folder_is_refused(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(_system(source))
    monkeypatch.setenv("FEDSPARSIFY_DATA", str(tmp_path / "absent"))
    with pytest.raises(DataError, match=r"FEDSPARSIFY_DATA = .*absent is not a folder"):
        read(source)


def test_an_empty_environment_variable_counts_as_unset(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(_system(source))
    monkeypatch.setenv("FEDSPARSIFY_DATA", "")
    assert read(source) == CONTENT


def test_a_folder_with_some_of_the_files_is_refused_with_what_is_missing(source: Source, tmp_path: Path) -> None:
    (_write(tmp_path / "mine") / "two.gz").unlink()
    with pytest.raises(DataError, match="mine holds only some files of Tiny: add two"):
        read(source, tmp_path / "mine")


def test_a_truncated_file_is_named(source: Source, tmp_path: Path) -> None:
    path = _write(tmp_path / "mine") / "two.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"two\.gz is truncated .*: delete it and get Tiny again"):
        read(source, tmp_path / "mine")


@pytest.mark.parametrize("content", [b"", b"no gzip at all", gzip.compress(b"x" * 99, mtime=0)[:10] + b"\xff" * 20])
def test_a_file_that_is_no_gzip_file_is_named(source: Source, tmp_path: Path, content: bytes) -> None:
    (_write(tmp_path / "mine") / "one.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"one\.gz is (truncated or no gzip file|damaged)"):
        read(source, tmp_path / "mine")


@pytest.mark.parametrize("compressed", [True, False])
def test_other_content_is_refused_by_its_checksum(source: Source, tmp_path: Path, compressed: bool) -> None:
    _write(tmp_path / "mine", compressed, two=b"second film")
    with pytest.raises(DataError, match=rf"two(\.gz)? is damaged or not of Tiny: .* instead of {source.md5['two']}"):
        read(source, tmp_path / "mine")


def test_where_all_ways_fail_one_error_lists_all_three(source: Source, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(DataError) as caught:
        read(source, tmp_path / "mine", progress=False)
    message = str(caught.value)
    for part in (
        "Tiny is not in",
        str(tmp_path / "mine" / "tiny"),
        str(source.system),
        "--data-dir",
        "FEDSPARSIFY_DATA",
        "dataset-tiny",
        CLOSED,
    ):
        assert part in message


@pytest.mark.parametrize("progress", [True, False])
def test_a_download_is_verified_and_kept(
    source: Source, server: tuple[Path, str], capfd: pytest.CaptureFixture[str], progress: bool
) -> None:
    folder, url = server
    _write(folder)
    assert read(replace(source, downloads=_served_at(url)), progress=progress) == CONTENT
    out, err = capfd.readouterr()
    assert out == "" and ("two.gz" in err) == progress
    assert read(source) == CONTENT, "the second time the cache serves, without a network"


def test_a_damaged_download_is_refused_and_not_kept(source: Source, server: tuple[Path, str]) -> None:
    folder, url = server
    _write(folder, two=b"damaged")
    with pytest.raises(DataError, match=r"two\.gz is damaged"):
        read(replace(source, downloads=_served_at(url)), progress=False)
    _write(folder)
    assert read(replace(source, downloads=_served_at(url)), progress=False) == CONTENT
