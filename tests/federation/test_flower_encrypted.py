"""Encrypted merging among real processes: a SuperLink without the key, SuperNodes with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("flwr")  # the extra "flower"
pytest.importorskip("tenseal")  # the extra "encryption"

from tests.federation.expected import DIGITS, simulated, without_time
from tests.federation.processes import Deployment

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "clients.key"


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory, key: Path) -> Iterator[Deployment]:
    made = Deployment(tmp_path_factory.mktemp("encrypted"), DIGITS)
    made.own("keys", "new", str(key), "--participants", "3")
    made.give_key(key)
    try:
        made.up()
        yield made
    finally:
        made.close()


def test_encrypted_rounds_give_the_simulators_model_to_those_who_have_the_key(
    deployment: Deployment, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ("encryption.scheme=bfv", "run.rounds=2")
    run = deployment.run("encrypted", set=" ".join(overrides))
    run.finish()
    settings = deployment.folder / "app" / "settings.toml"
    model, records = simulated(settings, tmp_path / "run", monkeypatch, None, *overrides)
    assert without_time(run.records) == without_time(records)
    assert not (run.path / "model.fsp").exists()  # the server has none
    deployment.own("keys", "open", str(run.path), "--key", str(key))
    assert run.model == model


def test_no_log_and_no_run_directory_holds_a_secret(deployment: Deployment) -> None:
    deployment.check_secrets()
