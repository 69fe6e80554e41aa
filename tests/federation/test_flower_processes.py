"""A real SuperLink and three SuperNodes, as processes on loopback over TLS: the simulator's model, and no stranger.

What happens to processes and networks is in ``test_flower_faults.py``.
"""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("flwr")  # the extra "flower"

from tests.federation.expected import DIGITS, failures, reasons, simulated, without_time
from tests.federation.processes import SITES, Deployment, wait_for

pytestmark = pytest.mark.slow


def test_five_rounds_of_fashion_mnist_give_the_simulators_model_and_records_bit_for_bit(
    deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sum(relay.bytes for relay in deployment.relays.values())
    run = deployment.run("five", settings="fashion.toml")
    run.finish()
    on_the_wire = sum(relay.bytes for relay in deployment.relays.values()) - before
    model, records = simulated(deployment.folder / "app" / "fashion.toml", tmp_path / "run", monkeypatch)
    assert run.model == model
    assert without_time(run.records) == without_time(records)
    assert failures(run.records) == {}
    payload = sum(record["bytes_up"] + record["bytes_down"] for record in records)
    assert payload < on_the_wire < 1.1 * payload


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
    run = deployment.run("rubbish", app="rubbish")
    run.finish()
    told = reasons(run.records, 2)
    assert "7 bytes are fewer" in told[1]
    assert "is nan, which is not a finite number" in told[2]
    assert "layout" in told[3] or "network" in told[3]
    assert "the update is of round 1, but this is round 4" in told[4]
    missing = {t: {2} for t in range(1, 5)}
    assert failures(run.records) == {t: [2] for t in missing}
    settings = deployment.folder / "app" / "settings.toml"
    model, _ = simulated(settings, tmp_path / "run", monkeypatch, missing)
    assert run.model == model


def supernode(deployment: Deployment, name: str, *arguments: str) -> str:
    """Start a SuperNode with arguments of one's own and return what it says until it ends, or for ten seconds."""
    command = [str(Path(sys.executable).parent / "flower-supernode"), "--superlink", f"127.0.0.1:{deployment.port}"]
    deployment.start(name, [*command, "--max-retries", "1", *arguments], deployment.base)
    words = ("not registered", "UNAUTHENTICATED", "CERTIFICATE_VERIFY_FAILED", "Unauthorized", "401", "403")
    with suppress(AssertionError):
        wait_for("it is refused", lambda: any(word in deployment.log(name) for word in words), 30)
    deployment.kill(name)
    return deployment.log(name)


def test_who_is_not_registered_or_trusts_another_authority_or_speaks_plainly_is_refused(
    deployment: Deployment, tmp_path: Path
) -> None:
    others = tmp_path / "others"
    (tmp_path / "settings.toml").write_text(DIGITS)
    config = str(tmp_path / "settings.toml")
    deployment.own("deploy", "init", str(others), "--config", config, "--site", "eve", "--site", "fay")
    key = str(others / "sites" / "eve" / "node.key")
    right, wrong = str(deployment.folder / "sites" / "ada" / "ca.pem"), str(others / "sites" / "eve" / "ca.pem")
    port = ("--port", str(9500 + os.getpid() % 400))
    unregistered = supernode(
        deployment, "eve", "--root-certificates", right, "--auth-supernode-private-key", key, *port
    )
    assert "Sent successfully" not in unregistered
    supernode(deployment, "mallory", "--root-certificates", wrong, "--auth-supernode-private-key", key, *port)
    supernode(deployment, "plain", "--insecure", *port)
    assert sum(node["status"] == "online" for node in deployment.nodes()) == len(SITES)
    for name in ("eve", "mallory", "plain"):
        assert "SuperNode ID" not in deployment.log(name), deployment.log(name)


def test_no_log_and_no_run_directory_holds_a_secret(deployment: Deployment) -> None:
    keys = list(deployment.folder.rglob("*.key"))
    assert len(keys) >= 2 + len(SITES)
    secrets = [line for key in keys for line in key.read_text().splitlines() if not line.startswith("-")]
    places = [*deployment.base.glob("*.log"), *(deployment.folder / "superlink").rglob("*.*")]
    # A key's file ends with its public half, which a certificate is there to show.
    texts = {path: path.read_bytes() for path in places if path.is_file() and path.suffix not in (".key", ".pem")}
    assert any(path.name == "metrics.jsonl" for path in texts)
    for path, text in texts.items():
        assert not any(secret.encode() in text for secret in secrets), path
