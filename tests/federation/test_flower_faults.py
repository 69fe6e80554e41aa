"""Real processes that are killed, stopped, cut off or out of room: the event is named, and the run goes on.

Every test asserts the record and the final model, as in ``test_flower_processes.py``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("flwr")  # the extra "flower"

from tests.federation.expected import failures, simulated
from tests.federation.processes import Deployment

pytestmark = pytest.mark.slow


def test_killed_slow_and_returning_nodes_are_named_and_the_run_goes_on(
    deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = deployment.run("faults", set="deployment.deadline=45")
    run.wait(round=1)
    deployment.kill("cyd")  # in round 2; all that it held is lost
    run.wait(round=2)
    deployment.site("cyd")
    run.wait(round=3)
    deployment.signal("bob", signal.SIGSTOP)  # in round 4
    run.wait(round=4)
    deployment.signal("bob", signal.SIGCONT)
    run.finish()
    # Flower notices after a while that a SuperNode is gone; the deadline may come first. On a busy machine others may
    # be late too: whoever is named is taken out of the run that is compared with.
    why = {failure["reason"] for record in run.records for failure in record["failures"]}
    assert all("within 45 s (deployment.deadline)" in reason or "Node Unavailable" in reason for reason in why)
    missing = {t: set(clients) for t, clients in failures(run.records).items()}
    assert 2 in missing[2] and 1 in missing[4]
    assert 2 not in missing.get(5, ()) and 1 not in missing.get(3, ())
    settings = deployment.folder / "app" / "settings.toml"
    model, _ = simulated(settings, tmp_path / "run", monkeypatch, missing)
    assert run.model == model


def test_a_site_whose_network_was_cut_comes_back_and_the_run_loses_nothing_else(
    deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = deployment.run("cut")
    run.wait(round=1)
    deployment.relays["bob"].cut()
    time.sleep(10)
    deployment.relays["bob"].mend()
    run.finish()
    # Flower's SuperNode may give up and be started again; what it was working on is then lost, and named.
    missing = {t: set(clients) for t, clients in failures(run.records).items()}
    assert set(missing) <= {2, 3} and all(clients == {1} for clients in missing.values()), missing
    model, _ = simulated(deployment.folder / "app" / "settings.toml", tmp_path / "run", monkeypatch, missing)
    assert run.model == model


def test_a_server_that_is_killed_goes_on_bit_for_bit_after_its_restart(
    deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = deployment.run("killed")
    killed.wait(round=2)
    deployment.kill("superlink")
    kept = len(killed.records)
    assert 3 <= kept < 6
    deployment.superlink()
    deployment.wait_for_sites()
    run = deployment.run("killed", resume="true")
    run.finish()
    # The SuperLink takes a site back a minute after it last heard of it; who is not back in time is named.
    missing = {t: set(clients) for t, clients in failures(run.records).items()}
    assert set(missing) <= {kept}, missing
    settings = deployment.folder / "app" / "settings.toml"
    model, records = simulated(settings, tmp_path / "run", monkeypatch, missing)
    assert run.model == model
    assert [r["accuracy"] for r in run.records] == [r["accuracy"] for r in records]


@pytest.mark.skipif(os.geteuid() != 0, reason="a small file system can be mounted by root only")
def test_a_full_disk_stops_the_run_with_the_command_that_goes_on(
    deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        run = deployment.run(str(disk / "run"))
        run.wait(round=1)
        fill(disk / "filler")
        run.fail("go on with: flwr run")
        assert "No space left on device" in run.log
        kept = len(run.records)
        assert kept >= 2
        (disk / "filler").unlink()
        run = deployment.run(str(disk / "run"), resume="true")
        run.finish()
        assert failures(run.records) == {}
        model, _ = simulated(deployment.folder / "app" / "settings.toml", tmp_path / "run", monkeypatch)
        assert run.model == model
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def fill(path: Path) -> None:
    with suppress(OSError), open(path, "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
