"""A real SuperLink and three SuperNodes, as processes on loopback over TLS: the simulator's model, whatever happens.

Every test asserts the record and the final model. One deployment serves all of them: a second one beside it would leave
two cores no time for either.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("flwr")  # the extra "flower"

from tests.federation.expected import DIGITS, failures, reasons, simulated, without_time
from tests.federation.processes import Deployment, free_port, wait_for

pytestmark = pytest.mark.slow

SHORT = "run.rounds=3"


def test_five_rounds_of_fashion_mnist_give_the_simulators_model_and_records_bit_for_bit(
    deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_the_wire() -> int:
        return sum(relay.bytes for relay in deployment.relays.values())

    before = on_the_wire()
    time.sleep(10)
    a_second = (on_the_wire() - before) / 10  # SuperNodes ask for work, and say that they live
    before, started = on_the_wire(), time.monotonic()
    run = deployment.run("five", settings="fashion.toml")
    run.finish()
    whole = on_the_wire() - before
    asking = a_second * (time.monotonic() - started)
    model, records = simulated(deployment.folder / "app" / "fashion.toml", tmp_path / "run", monkeypatch)
    assert run.model == model
    assert without_time(run.records) == without_time(records)
    assert failures(run.records) == {}
    payload = sum(record["bytes_up"] + record["bytes_down"] for record in records)
    assert payload < whole < 1.1 * payload + asking


RUBBISH = '''
from fedsparsify import deployment
from flwr.app import ArrayRecord, Array, Message, RecordDict
from flwr.clientapp import ClientApp

server = deployment.server_app(__file__)
honest = deployment.client_app(__file__)
client = ClientApp()


def rubbish(round, broadcast):
    """What client 2 sends in rounds 1 to 4: garbage, NaN, another network's update, an old round's."""
    import numpy as np
    from fedsparsify import models
    from fedsparsify.layout import ParameterLayout
    from fedsparsify.state import ModelState
    from fedsparsify.wire import Kind, Message, decode, encode

    layout = ParameterLayout.of(models.build("2-fc", 1, inputs=64))
    if round == 1:
        return b"garbage"
    # What comes after a bad update is no longer coded against anything.
    m = decode(broadcast, layout, expected=Kind.BROADCAST).model
    if round == 2:
        return encode(Message(Kind.UPDATE, 2, ModelState(m.w + np.float32("nan"), m.mask, m.buffers), 2, 9), layout)
    if round == 3:
        other = ParameterLayout.of(models.build("2-fc", 1, inputs=65))
        w = np.zeros(other.n, np.float32)
        return encode(Message(Kind.UPDATE, 3, ModelState(w, w == 0, m.buffers), 2, 9), other)
    return encode(Message(Kind.UPDATE, 1, m, 2, 9), layout)


@client.train()
def train(message, context):
    task = message.content["task"]
    if task["client"] != 2 or task["round"] > 4:
        return honest(message, context)
    data = rubbish(task["round"], message.content["model"]["payload"].data)
    array = Array(dtype="uint8", shape=(len(data),), stype="fedsparsify.message", data=data)
    return Message(RecordDict({"model": ArrayRecord({"payload": array})}), reply_to=message)
'''


def test_a_node_that_sends_rubbish_is_named_in_each_round_and_left_out(
    deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(deployment.folder / "app", deployment.folder / "rubbish")
    (deployment.folder / "rubbish" / "federation_app.py").write_text(RUBBISH)
    run = deployment.run("rubbish", app="rubbish", set="run.rounds=4")
    run.finish()
    told = reasons(run.records, 2)
    assert "7 bytes are fewer" in told[1]
    assert "is nan, which is not a finite number" in told[2]
    assert "layout" in told[3] or "network" in told[3]
    assert "the update is of round 1, but this is round 4" in told[4]
    missing = {t: {2} for t in range(1, 5)}
    assert failures(run.records) == {t: [2] for t in missing}
    settings = deployment.folder / "app" / "settings.toml"
    model, _ = simulated(settings, tmp_path / "run", monkeypatch, missing, "run.rounds=4")
    assert run.model == model


def test_killed_slow_and_returning_nodes_are_named_and_the_run_goes_on(
    deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = ("federation.min_clients=1", "run.rounds=4")  # two of three are lost in one round
    deadline = round(max(60.0, 3 * deployment.slowest))
    run = deployment.run("faults", set=" ".join((f"deployment.deadline={deadline}", *alone)))
    run.wait(round=1)
    deployment.signal("bob", signal.SIGSTOP)  # in round 2
    deployment.kill("cyd")  # all that it held is lost
    run.wait(round=2)
    deployment.signal("bob", signal.SIGCONT)
    deployment.site("cyd")
    run.finish()
    # Flower notices after a while that a SuperNode is gone; the deadline may come first. On a busy machine others may
    # be late too: whoever is named is taken out of the run that is compared with.
    why = {failure["reason"] for record in run.records for failure in record["failures"]}
    assert all(f"within {deadline} s (deployment.deadline)" in reason or "Node Unavailable" in reason for reason in why)
    missing = {t: set(clients) for t, clients in failures(run.records).items()}
    assert missing[2] >= {1, 2}
    assert all(any(client not in missing.get(t, ()) for t in (3, 4)) for client in (1, 2)), "they are back"
    settings = deployment.folder / "app" / "settings.toml"
    model, _ = simulated(settings, tmp_path / "run", monkeypatch, missing, *alone)
    assert run.model == model


def test_a_site_whose_network_was_cut_comes_back_and_the_run_loses_nothing_else(
    deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = deployment.run("cut", set=SHORT)
    run.wait(round=1)
    deployment.relays["bob"].cut()
    time.sleep(10)
    deployment.relays["bob"].mend()
    run.finish()
    # Flower's SuperNode may give up and be started again; what it was working on is then lost, and named.
    missing = {t: set(clients) for t, clients in failures(run.records).items()}
    assert missing in ({}, {2: {1}})
    model, _ = simulated(deployment.folder / "app" / "settings.toml", tmp_path / "run", monkeypatch, missing, SHORT)
    assert run.model == model


def test_a_server_that_is_killed_goes_on_bit_for_bit_after_its_restart(
    deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = deployment.run("killed", set=SHORT)
    killed.wait(round=1)
    deployment.kill("superlink")
    kept = len(killed.records)
    assert 2 <= kept < 4
    deployment.superlink()
    deployment.wait_for_sites()
    run = deployment.run("killed", resume="true", set=SHORT)
    run.finish()
    # The SuperLink takes a site back a minute after it last heard of it; who is not back in time is named.
    missing = {t: set(clients) for t, clients in failures(run.records).items()}
    assert set(missing) <= {kept}, missing
    settings = deployment.folder / "app" / "settings.toml"
    model, records = simulated(settings, tmp_path / "run", monkeypatch, missing, SHORT)
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
        run = deployment.run(str(disk / "run"), set=SHORT)
        run.wait(round=1)
        fill(disk / "filler")
        run.fail("go on with: flwr run")
        assert "No space left on device" in run.log
        kept = len(run.records)
        assert kept >= 2
        (disk / "filler").unlink()
        run = deployment.run(str(disk / "run"), resume="true", set=SHORT)
        run.finish()
        missing = {t: set(clients) for t, clients in failures(run.records).items()}
        settings = deployment.folder / "app" / "settings.toml"
        model, _ = simulated(settings, tmp_path / "run", monkeypatch, missing, SHORT)
        assert run.model == model
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def fill(path: Path) -> None:
    with suppress(OSError), open(path, "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_who_is_not_registered_or_trusts_another_authority_or_speaks_plainly_is_refused(
    deployment: Deployment, tmp_path: Path
) -> None:
    others = tmp_path / "others"
    (tmp_path / "settings.toml").write_text(DIGITS)
    config = str(tmp_path / "settings.toml")
    deployment.own("deploy", "init", str(others), "--config", config, "--site", "eve", "--site", "fay")
    key = str(others / "sites" / "eve" / "node.key")
    right, wrong = str(deployment.folder / "sites" / "ada" / "ca.pem"), str(others / "sites" / "eve" / "ca.pem")
    strangers = {
        "eve": ("--root-certificates", right, "--auth-supernode-private-key", key),
        "mallory": ("--root-certificates", wrong, "--auth-supernode-private-key", key),
        "plain": ("--insecure",),
    }
    program = [str(Path(sys.executable).parent / "flower-supernode"), "--superlink", f"127.0.0.1:{deployment.port}"]
    for name, arguments in strangers.items():
        port = ("--port", str(free_port()))
        deployment.start(name, [*program, "--max-retries", "1", *arguments, *port], deployment.base)
    tried = "Starting Flower SuperNode"
    wait_for("they try", lambda: all(tried in deployment.log(name) for name in strangers))
    words = ("not registered", "UNAUTHENTICATED", "CERTIFICATE_VERIFY_FAILED", "Unauthorized", "401", "403")
    with suppress(AssertionError):  # not all of them say so
        wait_for("they are refused", lambda: all(any(w in deployment.log(n) for w in words) for n in strangers), 30)
    deployment.wait_for_sites()  # and nobody else
    for name in strangers:
        deployment.kill(name)
        assert "SuperNode ID" not in deployment.log(name), deployment.log(name)


def test_encrypted_rounds_give_the_simulators_model_to_those_who_have_the_key(
    deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = deployment.base / "clients.key"
    deployment.own("keys", "new", str(key), "--participants", "3")
    deployment.give_key(key)
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
