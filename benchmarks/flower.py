"""What a round over Flower costs, and whose cost it is: ``PYTHONPATH=. python benchmarks/flower.py``.

One deployment on loopback (a SuperLink, three SuperNodes, TLS, node authentication) carries out, in turns,

- **ours**: 2-FC on FashionMNIST, as ``fedsparsify deploy init`` sets it up;
- **echo**: an app of a few lines that imports nothing of ours, is sent as many bytes and sends as many back at once.

Both take turns, so that other work on the machine meets both alike. The echo's round is what Flower costs. What we cost
is processor time, measured where it arises, since three sites, a server and Flower share this machine's cores here and
would not in a deployment: in the client's process from the import of our modules to the reply, and in the worker that
it asks, without the training; and at the server all of a round outside Flower's grid. The simulator's round, in the
same table, has training, coding, merging and evaluation too, and no Flower.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from fedsparsify import runs
from fedsparsify.config import load_settings
from fedsparsify.experiment import prepare
from tests.federation.processes import SITES, Deployment, wait_for

SETTINGS = """
[data]
name = "fashion-mnist"

[federation]
clients = 3

[model]
name = "2-fc"

[method]
name = "fedsparsify-global"

[schedule]
final = 0.95

[train]
lr = 0.02
epochs = 4

[run]
rounds = {rounds}
"""

# The app of "deploy init" with a clock around the client and its worker, and around Flower's grid at the server.
OURS = """
import time
began = time.process_time()
from fedsparsify import deployment
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
answer = deployment.client_app(__file__)
serve = deployment.server_app(__file__)
loaded = time.process_time() - began
client = ClientApp()
server = ServerApp()

def worker():
    # Processor seconds of the process that stays; 0 before there is one.
    import os
    from pathlib import Path
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_text()
            if "fedsparsify.site_worker" in command and f'"watched": {os.getppid()},' in command:
                fields = (process / "stat").read_text().rsplit(")", 1)[1].split()
                return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        except OSError:
            pass
    return 0.0

@client.train()
def train(message, context):
    before, started = worker(), time.process_time()
    reply = answer(message, context)
    seconds = loaded + time.process_time() - started + worker() - before
    with open("clock.txt", "a") as file:
        file.write(f"{context.run_id} {message.metadata.group_id} {seconds}\\n")
    return reply

class Clock:
    def __init__(self, grid):
        self.grid, self.spent, self.began, self.pushed = grid, 0.0, time.process_time(), False
    def timed(self, function, *arguments):
        started = time.process_time()
        try:
            return function(*arguments)
        finally:
            self.spent += time.process_time() - started
            with open("clock.txt", "w") as file:
                file.write(str(time.process_time() - self.began - self.spent))
    def get_nodes(self):
        return self.timed(lambda: list(self.grid.get_nodes()))
    def push_messages(self, messages):
        if not self.pushed:  # what comes before is the start: data, network, round 0
            self.began, self.spent, self.pushed = time.process_time(), 0.0, True
        return self.timed(lambda: list(self.grid.push_messages(messages)))
    def pull_messages(self, ids):
        return self.timed(lambda: list(self.grid.pull_messages(ids)))

@server.main()
def main(grid, context):
    serve(Clock(grid), context)
"""

ECHO = """
import json, os, time
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
client = ClientApp()
server = ServerApp()

def record(size):
    data = os.urandom(size)
    return ArrayRecord({"payload": Array(dtype="uint8", shape=(size,), stype="bytes", data=data)})

@client.train()
def train(message, context):
    return Message(RecordDict({"model": record(message.content["task"]["size"])}), reply_to=message)

@server.main()
def main(grid, context):
    for t, (down, up) in enumerate(json.loads(context.run_config["sizes"])):
        started = time.perf_counter()
        model, task = record(down), ConfigRecord({"size": up})
        messages = [
            Message(RecordDict({"model": model, "task": task}), node, "train", group_id=str(t))
            for node in grid.get_node_ids()
        ]
        waiting = set(grid.push_messages(messages))
        while waiting:
            for reply in grid.pull_messages(list(waiting)):
                waiting.discard(reply.metadata.reply_to_message_id)
            if waiting:
                time.sleep(0.2)
        with open("echo.jsonl", "a") as file:
            file.write(json.dumps(time.perf_counter() - started) + "\\n")
"""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="of each turn")
    parser.add_argument("--turns", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        deployment = Deployment(Path(folder), SETTINGS.format(rounds=arguments.rounds))
        try:
            deployment.up()
            compare(deployment, arguments.turns, Path(folder))
        finally:
            deployment.close()


def compare(deployment: Deployment, turns: int, base: Path) -> None:
    """Take turns and print what they cost."""
    settings = deployment.folder / "app" / "settings.toml"
    simulated = runs.start(prepare(load_settings(settings), "here"), base / "simulated")
    simulator = records(simulated)
    (deployment.folder / "app" / "federation_app.py").write_text(OURS)
    echo = deployment.folder / "echo"
    echo.mkdir()
    app = (deployment.folder / "app" / "pyproject.toml").read_text()
    sizes = [[r["bytes_down"] // len(SITES), r["bytes_up"] // len(SITES)] for r in simulator[1:]]
    (echo / "pyproject.toml").write_text(
        app.replace('name = "federation"', 'name = "echo"').replace(
            'set = ""', f"sizes = '{json.dumps(sizes)}'\nset = \"\""
        )
    )
    (echo / "federation_app.py").write_text(ECHO)
    superlink = deployment.folder / "superlink"
    rounds: dict[str, list[float]] = {"ours": [], "echo": [], "client": [], "server": []}
    training: list[float] = []
    on_the_wire = payload = 0
    for turn in range(turns):
        counted = sum(relay.bytes for relay in deployment.relays.values())
        run = deployment.run(f"turn-{turn}")
        run.finish(60.0 * len(sizes))
        on_the_wire += sum(relay.bytes for relay in deployment.relays.values()) - counted
        payload += sum(r["bytes_up"] + r["bytes_down"] for r in run.records)
        assert run.model == (simulated / "model.fsp").read_bytes()
        # The first round is left out: every site loads torch and its data there, once.
        seconds = [r["seconds_round"] for r in run.records[2:]]
        rounds["ours"] += seconds
        training += [r["seconds_train"] / len(SITES) for r in run.records[2:]]
        # The clock stops when the last reply is there: one merge less than there are rounds.
        rounds["server"].append(float((superlink / "clock.txt").read_text()) / (len(sizes) - 1))
        before = len(echoes(superlink))
        deployment.run("echo", app="echo")
        wait_for("the echo ends", lambda: len(echoes(superlink)) >= before + len(sizes), 60.0 * len(sizes))  # noqa: B023
        rounds["echo"] += echoes(superlink)[before + 1 :]
        time.sleep(2)
    trained = statistics.fmean(training)
    for path in (deployment.folder / "sites").glob("*/clock.txt"):
        seconds = [float(line.split()[2]) for line in path.read_text().splitlines()]
        # Means: the system counts a process's time in hundredths of a second.
        own = [s for k, s in enumerate(seconds) if k % len(sizes)]
        rounds["client"].append(statistics.fmean(own) - trained)
    show(rounds, simulator, on_the_wire / payload, trained)


def show(
    rounds: dict[str, list[float]], simulator: Sequence[dict[str, float]], bytes_ratio: float, training: float
) -> None:
    """Print medians over rounds."""
    median = {name: statistics.median(values) for name, values in rounds.items()}
    ours = median["client"] + median["server"]
    print(f"a round over Flower            {median['ours']:7.2f} s   (median of {len(rounds['ours'])})")
    print(f"  an echo of as many bytes     {median['echo']:7.2f} s   what Flower costs")
    print(f"  training at a client         {training:7.3f} s")
    print(f"  ours, a client               {median['client']:7.3f} s   import, worker, decode, encode")
    print(f"  ours, server                 {median['server']:7.3f} s   encode, decode, merge, purge, evaluate, record")
    print(f"  ours of the round            {ours / median['ours']:7.1%}")
    print(f"a round in the simulator       {statistics.median([r['seconds_round'] for r in simulator[2:]]):7.3f} s")
    print(f"bytes on the sites' sockets    {bytes_ratio:7.3f}   of bytes_up + bytes_down")


def records(run: Path) -> list[dict[str, float]]:
    """Read a run's records."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def echoes(folder: Path) -> list[float]:
    """Read how long each of the echo's rounds took."""
    path = folder / "echo.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


if __name__ == "__main__":
    main()
