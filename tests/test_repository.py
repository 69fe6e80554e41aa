"""What is committed, and what the files around the code promise."""

from __future__ import annotations

import re
import socket
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import NetworkUsedError

ROOT = Path(__file__).parents[1]
LARGEST = 1_000_000  # bytes

# Results worth more than LARGEST, by path; and the only places for files that are no text.
LARGE_RESULTS: frozenset[str] = frozenset()
BINARY = re.compile(r"docs/.+\.png|tests/.+\.bin|results/sweeps/.+\.tar\.xz")

DATA = re.compile(r"\.(csv|gz|h5|ipynb|npy|npz|onnx|parquet|pickle|pkl|pt|pth|so|tar|whl|zip)$|-ubyte$")
# One machine's own folders. What follows a name, a dot or another slash is part of an address or a relative path.
MACHINE_PATH = re.compile(r"(?<![\w.:/~$})-])/(home|media|mnt|opt|root|tmp|Users|work)/|\b[A-Z]:\\\w")
REGISTRY = re.compile(
    r"pypi\.(org|io)|pythonhosted\.org|download\.pytorch|anaconda\.org|(deb|security)\.debian\.org", re.I
)


def committed() -> list[str]:
    """Return the files that are committed, or would be by adding everything."""
    # The checkout may belong to another user, as in a container.
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not in a git checkout")
    return sorted(path for path in listed.split("\0") if (ROOT / path).is_file())


def offences(path: str, content: bytes) -> list[str]:
    """Return what makes a file unfit for the repository."""
    found = []
    if len(content) > LARGEST and path not in LARGE_RESULTS:
        found.append(f"{path}: {len(content):,} bytes; the limit is {LARGEST:,}")
    if DATA.search(path):
        found.append(f"{path}: data, models, notebooks and binaries are not committed")
    try:
        lines = content.decode().splitlines()
    except UnicodeDecodeError:
        return found if BINARY.fullmatch(path) else [*found, f"{path}: is no text"]
    for number, line in enumerate(lines, 1):
        for what, pattern in (("a path of one machine", MACHINE_PATH), ("a registry's host", REGISTRY)):
            if match := pattern.search(line):
                found.append(f"{path}:{number}: {match[0]} is {what}")
    return found


def project() -> dict[str, Any]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)


def test_only_small_portable_text_is_committed() -> None:
    found = [offence for path in committed() for offence in offences(path, (ROOT / path).read_bytes())]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("docs/long.md", b"a" * (LARGEST + 1)),
        ("data/train-images-idx3-ubyte", b""),
        ("examples/demo.ipynb", b"{}"),
        ("src/fedsparsify/weights.bin", b"\xff\xfe"),
        ("README.md", b"see " + b"/" + b"home/me/run"),
        ("README.md", b"`" + b"/" + b"tmp/run`"),
        ("README.md", b"C:" + b"\\Users"),
        (".ci/run", b"--index-url https://" + b"pypi." + b"org/simple"),
    ],
)
def test_an_unfit_file_is_refused(path: str, content: bytes) -> None:
    assert len(offences(path, content)) == 1


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("docs/figure.png", b"\x89PNG"),
        ("README.md", b"runs/tmp/x, /usr/share/datasets, https://example.org/home/, ${DIR}/tmp/, http://x/opt/"),
    ],
)
def test_a_fit_file_is_accepted(path: str, content: bytes) -> None:
    assert offences(path, content) == []


def test_the_version_is_the_same_everywhere() -> None:
    version = project()["project"]["version"]
    changelog = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    citation = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.M)
    assert changelog is not None
    assert citation is not None
    assert [changelog[1], citation[1]] == [version, version]


def test_every_dependency_is_pinned_to_a_version_that_it_allows() -> None:
    settings = project()
    extras = settings["project"]["optional-dependencies"].values()
    wanted = [Requirement(r) for group in (settings["project"]["dependencies"], *extras) for r in group]
    wanted += [Requirement(r) for r in settings["build-system"]["requires"]]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pinned = {canonicalize_name(name): version for name, version in pins.items()}
    for requirement in wanted:
        if requirement.name != "fedsparsify":
            assert pinned.get(canonicalize_name(requirement.name), "0") in requirement.specifier, requirement


def test_every_target_of_the_makefile_is_explained() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.+)$", makefile, re.M)
    assert phony is not None
    assert set(phony[1].split()) == set(re.findall(r"^([a-z]+):.*## \S", makefile, re.M))


def test_the_readme_names_only_what_exists() -> None:
    readme = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    code = "\n".join(block or inline for block, inline in re.findall(r"```console\n(.*?)```|`([^`\n]+)`", readme, re.S))
    commands = set(re.findall(r"^\s*\$?\s*make ([a-z]+)", code, re.M))
    assert {"demo", "test"} <= commands <= targets
    for config in re.findall(r"configs/[\w./-]+\.toml", readme):
        assert (ROOT / config).is_file(), config


def test_links_between_documents_lead_somewhere() -> None:
    dead = [
        f"{path}: {target}"
        for path in committed()
        if path.endswith(".md")
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", (ROOT / path).read_text())
        if "://" not in target and not (ROOT / path).parent.joinpath(target).exists()
    ]
    assert not dead, "\n" + "\n".join(dead)


@pytest.mark.parametrize("address", [("192.0.2.1", 80), ("example.invalid", 80)])
def test_tests_cannot_reach_the_network(address: tuple[str, int]) -> None:
    with pytest.raises(NetworkUsedError, match=address[0]):
        socket.create_connection(address, timeout=1)


def test_tests_can_reach_their_own_machine() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
