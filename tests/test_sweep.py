"""Sweeps through the command line: what runs, what is skipped, what a kill leaves, and what is refused.

Each run of a sweep is a process of its own. Here those are forked from one that has torch loaded, which is
quick; one test starts them as users do.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import commands
from tests.commands import CONFIG, ROOT, Launcher, alive, call, children, contents, records, wait_until, write_config

FORKED = """
import os, signal, subprocess, sys, time, traceback, types
import fedsparsify.cli, fedsparsify.sweep

class Forked:
    # What subprocess.Popen does for this program, without starting Python anew.
    def __init__(self, command, *, stdin, stdout, stderr, start_new_session, env):
        assert command[1:3] == ["-m", "fedsparsify"] and start_new_session
        self.returncode = None
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid:
            return
        code = 99
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.setsid()
            os.dup2(stdout.fileno(), 1)
            os.dup2(stdout.fileno(), 2)
            os.closerange(3, 1024)  # the sweep's lock among them
            fedsparsify.cli.main(command[3:])
        except SystemExit as stop:
            code = stop.code
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)

    def poll(self):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout):
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("fedsparsify", timeout)
            time.sleep(0.01)

    def terminate(self):
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)

fedsparsify.sweep.subprocess = types.SimpleNamespace(
    Popen=Forked, DEVNULL=None, STDOUT=None, TimeoutExpired=subprocess.TimeoutExpired
)
fedsparsify.sweep.POLL = 0.02
"""

OWN = """
import os, torch

def network(broken=False, mended=""):
    class Network(torch.nn.Linear):
        def forward(self, x):
            if broken and self.training and len(x) > 2 and not os.path.exists(mended):
                raise RuntimeError("not today")
            return super().forward(x.flatten(1))

    return Network(64, 10)
"""

BASE = CONFIG.replace("rounds = 3", "rounds = 2").replace("epochs = 1", "epochs = 1\nbatch_size = 128")

GRID = f"""{BASE}
[[sweep]]
method.name = ["fedavg", "fedsparsify-local", "snip"]
partition.kind = "dirichlet"
run.seed = [1, 2]
"""

SEEDS = f"{BASE}\n[[sweep]]\nrun.seed = [1, 2, 3]\n"
LONG = SEEDS.replace("rounds = 2", "rounds = 20").replace("[1, 2, 3]", "[1, 2]")
ONE = "fedsparsify-global_seed-1"


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """Runs commands, and the runs of their sweeps; its directory holds ``own_code.py``."""
    folder = tmp_path_factory.mktemp("launcher")
    (folder / "own_code.py").write_text(OWN)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(commands, "_LAUNCHER", FORKED + commands._LAUNCHER)
        with Launcher(folder) as started:
            yield started


@pytest.fixture(scope="module")
def finished(launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished sweep over ``GRID``; not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    code, said = launcher.run("sweep", write_config(folder, GRID, "grid.toml"), "--out", folder / "out", "--jobs", "2")
    assert code == 0, said
    (folder / "said").write_text(said)
    return folder / "out"


@pytest.fixture(scope="module")
def seeds(launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished sweep over ``SEEDS``; not to be changed."""
    folder = tmp_path_factory.mktemp("seeds")
    code, said = launcher.run("sweep", write_config(folder, SEEDS, "grid.toml"), "--out", folder / "out", "--jobs", "1")
    assert code == 0, said
    (folder / "said").write_text(said)
    return folder / "out"


@pytest.fixture
def here(seeds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with ``grid.toml`` and its finished sweep ``out``."""
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path, SEEDS, "grid.toml")
    shutil.copytree(seeds, tmp_path / "out")
    return tmp_path


def whole(run: Path) -> dict[str, Any]:
    """All of a run that must be the same bit for bit after any interruption."""
    files: dict[str, Any] = dict(contents(run))
    assert set(files) == {"config.toml", "run.json", "metrics.jsonl", "checkpoint.fsp", "model.fsp"}
    return {**files, "metrics.jsonl": records(run, resumed=True)}


# What runs


def test_a_sweep_starts_a_process_for_each_run_where_it_was_started_itself(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "def load():\n"
        "    x, y = np.eye(4, dtype=np.float32), np.arange(4)\n"
        "    return (x, y), (x, y)\n"
    )
    text = BASE.replace('"digits"', '"mine:load"').replace("inputs = 64", "inputs = 4\nclasses = 4")
    write_config(tmp_path, f"{text}\n[[sweep]]\nrun.seed = 7\n", "grid.toml")
    done = subprocess.run(
        [sys.executable, "-m", "fedsparsify", "sweep", "grid.toml"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    name = "fedsparsify-global_seed-7"
    assert done.stdout.splitlines()[:2] == [f"{name}: starts", f"{name}: done, 1 of 1"]
    assert done.stdout.splitlines()[2].startswith("All 1 runs are done. Compare them with: ")
    assert done.stdout.endswith(" report runs/grid\n")
    assert [record["round"] for record in records(tmp_path / "runs" / "grid" / name)] == [0, 1, 2]


def test_every_run_of_the_grid_has_its_directory_and_its_log(finished: Path) -> None:
    methods = ("fedavg", "fedsparsify-local", "snip")
    names = {f"{method}_kind-dirichlet_seed-{seed}" for method in methods for seed in (1, 2)}
    assert {path.name for path in finished.iterdir()} == {*names, "sweep.toml", "logs", ".lock"}
    assert {path.name for path in (finished / "logs").iterdir()} == {f"{n}.{e}" for n in names for e in ("log", "toml")}
    assert (finished / "sweep.toml").read_text() == GRID
    for name in names:
        assert [record["round"] for record in whole(finished / name)["metrics.jsonl"]] == [0, 1, 2]
        assert json.loads((finished / name / "run.json").read_text())["name"] == name
        assert "round 2/2  accuracy" in (finished / "logs" / f"{name}.log").read_text()


def test_all_methods_of_a_seed_start_from_one_network_and_one_partition(finished: Path) -> None:
    facts = [json.loads(path.read_text()) for path in finished.glob("*/run.json")]
    assert len({(fact["method"], fact["seed"]) for fact in facts}) == len(facts) == 6
    for what in ("initial", "partition"):
        assert len({json.dumps(fact[what]) for fact in facts}) == 2, "seeds differ in it"
        assert len({(fact["seed"], json.dumps(fact[what])) for fact in facts}) == 2, "methods do not"


def test_a_run_of_a_sweep_is_what_its_settings_give_alone(here: Path, launcher: Launcher) -> None:
    settings = here / "out" / "logs" / f"{ONE}.toml"
    assert launcher.run("run", settings, "--out", here / "alone", "--no-report")[0] == 0
    assert whole(here / "alone") == whole(here / "out" / ONE)
    assert records(here / "alone") == records(here / "out" / ONE)


@pytest.mark.parametrize(("sweep", "jobs"), [("finished", 2), ("seeds", 1)])
def test_as_many_run_at_once_as_there_are_jobs(sweep: str, jobs: int, request: pytest.FixtureRequest) -> None:
    said = (request.getfixturevalue(sweep).parent / "said").read_text().splitlines()
    running, most = 0, 0
    for line in said[:-1]:
        running += 1 if line.endswith(": starts") else -1
        most = max(most, running)
    assert (running, most) == (0, jobs)
    assert said[-1].startswith(f"All {len(said) // 2} runs are done.")


def test_a_sweep_that_is_done_starts_nothing_and_touches_nothing(here: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in here.rglob("*") if path.name != ".lock"}
    outcome = call("sweep", "grid.toml", "--out", "out")
    assert (outcome.code, outcome.err, outcome.out.count("\n")) == (0, "", 1)
    assert outcome.out.startswith("All 3 runs are done.") and outcome.out.endswith(" report out\n")
    after = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in here.rglob("*") if path.name != ".lock"}
    assert after == before


def test_a_sweep_runs_what_is_missing_only_and_may_grow(here: Path, seeds: Path, launcher: Launcher) -> None:
    names = [f"fedsparsify-global_seed-{seed}" for seed in (1, 2, 3)]
    for name in names[1:]:
        shutil.rmtree(here / "out" / name)
    (here / "out" / names[0] / "model.fsp").unlink()
    command = ("sweep", here / "grid.toml", "--out", here / "out", "--jobs", "1")
    code, said = launcher.run(*command, "--only", "seed-3")
    assert code == 0 and said.splitlines()[:2] == [f"{names[2]}: starts", f"{names[2]}: done, 1 of 1"]
    code, said = launcher.run(*command)
    assert code == 0 and f"{names[0]}: goes on after round 2" in said and f"{names[2]}:" not in said
    assert [whole(here / "out" / name) for name in names] == [whole(seeds / name) for name in names]
    write_config(here, SEEDS.replace("[1, 2, 3]", "[1, 2, 3, 4]"), "grid.toml")
    code, said = launcher.run(*command)
    assert code == 0 and re.findall(r"(\d): (starts|goes on)", said) == [("4", "starts")]
    assert (here / "out" / "sweep.toml").read_text() == (here / "grid.toml").read_text()


# Kills and failures


@pytest.fixture(scope="module")
def undisturbed(launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the runs of ``LONG`` are without any interruption."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert launcher.run("sweep", write_config(folder, LONG), "--out", folder / "out", "--jobs", "2")[0] == 0
    return {path.parent.name: whole(path.parent) for path in sorted(folder.glob("out/*/config.toml"))}


@pytest.mark.parametrize(
    ("kill", "jobs"), [("SIGINT", 1), ("SIGTERM", 2), ("SIGKILL", 1), ("SIGKILL to the sweep alone", 2)]
)
def test_a_killed_sweep_goes_on_to_the_same_bits(
    kill: str, jobs: int, undisturbed: dict[str, dict[str, Any]], tmp_path: Path, launcher: Launcher
) -> None:
    first, second = undisturbed
    out = tmp_path / "out"
    watched = out / (first if jobs == 2 else second) / "metrics.jsonl"
    command = ("sweep", write_config(tmp_path, LONG), "--out", out, "--jobs", str(jobs))
    sweep = launcher.start(*command)
    wait_until(lambda: watched.exists() and watched.read_text().count("\n") > 2, "the second round")
    runs = children(sweep)
    if kill.startswith("SIGKILL"):
        for run in runs:
            os.kill(run, signal.SIGSTOP)  # so that it is in its middle for sure
    os.kill(sweep, signal.Signals[kill.split()[0]])
    code, said = launcher.wait()
    if kill == "SIGKILL":
        for run in runs:
            os.kill(run, signal.SIGKILL)
    elif kill in ("SIGINT", "SIGTERM"):
        assert code == 130 and "Stopped. All finished rounds are saved; go on with: " in said
        assert not any(map(alive, runs)), "they end before the sweep does"
    before = {path: path.stat().st_mtime_ns for path in out.glob(f"{first}/*")} if jobs == 1 else {}

    launcher.start(*command)
    if kill.endswith("alone"):
        sentence = ": is being run by another process; it is waited for"
        wait_until(lambda: launcher._log.read_text().count(sentence) == len(runs), "finding the runs")
        for run in runs:
            os.kill(run, signal.SIGCONT)
    code, said = launcher.wait()
    assert code == 0 and said.splitlines()[-1].startswith("All 2 runs are done.")
    assert (f"{watched.parent.name}: goes on after round " in said) is (not kill.endswith("alone")), said
    assert {name: whole(out / name) for name in undisturbed} == undisturbed
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize("moment", [2, 6, 10, 17])
def test_a_kill_while_a_run_is_being_made_leaves_nothing_behind(
    moment: int, here: Path, seeds: Path, launcher: Launcher
) -> None:
    """Each file has four moments: the grid, the run's settings, and in the run's own process its first files."""
    shutil.rmtree(here / "out")
    command = ("sweep", here / "grid.toml", "--out", here / "out", "--jobs", "1", "--only", ONE)
    code, said = launcher.run(*command, die_at_moment=moment)
    if moment <= 8:
        assert code == -signal.SIGKILL
    else:
        reason = "killed by SIGKILL, as the system does for lack of memory: try fewer --jobs"
        assert code == 2 and f"{ONE}: failed: {reason}\n" in said
        assert said.splitlines()[-1].startswith("error: 1 of 1 runs failed") and f"{ONE} ({reason}; see " in said
    code, said = launcher.run(*command)
    assert code == 0, said
    for leftover in (here / "out" / ONE).glob("*.tmp"):
        leftover.unlink()  # by the making of a run's directory, which is not a sweep's
    assert whole(here / "out" / ONE) == whole(seeds / ONE)
    assert not list(here.rglob("*.tmp"))


def test_a_run_that_fails_is_named_and_the_others_go_on(tmp_path: Path, launcher: Launcher) -> None:
    network = f'name = "own_code:network"\nmended = "{tmp_path / "mended"}"\n'
    text = BASE.replace('name = "2-fc"\ninputs = 64\nhidden = 8\n', network)
    blocks = "\n[[sweep]]\nmodel.broken = [true, false]\n[[sweep]]\nmodel.broken = true\nrun.seed = 2\n"
    command = ("sweep", write_config(tmp_path, text + blocks), "--out", tmp_path / "out", "--jobs", "1")
    code, said = launcher.run(*command)
    *lines, last = said.splitlines()
    one, fine, two = (f"fedsparsify-global_broken-{which}" for which in ("true", "false", "true_seed-2"))
    assert code == 2 and [line.split(": ")[0] for line in lines] == [one, one, fine, fine, two, two], said
    assert lines[3].startswith(f"{fine}: done, 1 of 3, about ")
    assert last.startswith("error: 2 of 3 runs failed, the others are done; mend the cause and give the same command")
    for name, line in ((one, lines[1]), (two, lines[5])):
        log = tmp_path / "out" / "logs" / f"{name}.log"
        reason = line.removeprefix(f"{name}: failed: ")
        assert "RuntimeError: not today" in reason and f"{name} ({reason}; see {log})" in last
        assert log.read_text().endswith(f"error: {reason}\n")
        assert [record["round"] for record in records(tmp_path / "out" / name)] == [0]
    (tmp_path / "mended").touch()
    code, said = launcher.run(*command)
    assert code == 0 and [line.split(": ")[0] for line in said.splitlines()[:-1]] == [one, one, two, two], said
    assert whole(tmp_path / "out" / one)["metrics.jsonl"][-1]["round"] == 2
