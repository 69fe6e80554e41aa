"""One deployment for all tests of a file: starting it takes half a minute."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.federation.expected import DIGITS, FASHION
from tests.federation.processes import SITES, Deployment


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    made = Deployment(tmp_path_factory.mktemp("flower"), DIGITS)
    (made.folder / "app" / "fashion.toml").write_text(
        FASHION + f"sites = [{', '.join(repr(site) for site in SITES)}]\n"
    )
    try:
        made.up()
        yield made
    finally:
        made.close()
