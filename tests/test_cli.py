"""The command line from end to end: what is written, printed and returned."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedsparsify.report import load_run
from fedsparsify.version import __version__
from tests.commands import CONFIG, ROOT, call, contents, records, write_config

COMMAND = [sys.executable, "-m", "fedsparsify"]
FILES = {"config.toml", "run.json", "metrics.jsonl", "checkpoint.fsp", "model.fsp", "report.html"}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration in the current directory."""
    monkeypatch.chdir(tmp_path)
    return write_config(tmp_path)


# run, resume, report, partition


def test_run_writes_a_whole_run_and_ends_with_a_table_and_the_reports_path(config: Path) -> None:
    outcome = call("run", "tiny.toml", "--out", "new/run")
    assert (outcome.code, outcome.err) == (0, "")
    run = config.parent / "new" / "run"
    assert set(contents(run)) == FILES
    recorded = records(run, timed=True)
    lines = outcome.out.splitlines()
    assert re.fullmatch(r"round 0/3  accuracy \d\.\d{4}  sparsity 0\.0000  0 B sent", lines[0])
    sent = sum(record["bytes_down"] + record["bytes_up"] for record in recorded)
    assert lines[3] == f"round 3/3  accuracy {recorded[3]['accuracy']:.4f}  sparsity 0.8988  {sent / 1e3:.1f} kB sent"
    assert lines[-1] == "Report: new/run/report.html"
    table = " ".join(lines[4:-1]).split()
    assert table[: table.index("training") + 1] == [
        "run",
        "rounds",
        "accuracy",
        "last",
        "ten",
        "left",
        "sparsity",
        "sent",
        "of",
        "dense",
        "training",
    ]
    assert f"{recorded[3]['accuracy']:.4f}" in table and "3/3" in table and str(recorded[3]["nonzero"]) in table
    assert "\x1b" not in outcome.out


def test_what_is_set_is_what_runs_and_is_kept(config: Path) -> None:
    arguments = ("--set", "run.rounds=2", "--set", "schedule.final=0.5", "--set", "run.rounds=1", "--data-dir", "it's")
    assert call("run", config, "--out", "run", *arguments).code == 0
    kept = tomllib.loads((config.parent / "run" / "config.toml").read_text())
    assert (kept["run"]["rounds"], kept["schedule"]["final"]) == (1, 0.5)
    assert kept["data"]["dir"] == str(config.parent / "it's")
    assert kept["run"]["name"] == "tiny"
    assert records(config.parent / "run")[-1]["sparsity"] == pytest.approx(0.5, abs=0.01)


def test_the_configuration_of_a_run_runs_again_to_the_same_bits(config: Path) -> None:
    assert call("run", config, "--out", "one", "--set", "partition.kind=dirichlet").code == 0
    assert call("run", "one/config.toml", "--out", "two").code == 0
    one, two = contents(config.parent / "one"), contents(config.parent / "two")
    assert all(one[name] == two[name] for name in ("model.fsp", "config.toml", "checkpoint.fsp"))
    assert records(config.parent / "one") == records(config.parent / "two")


def test_without_out_runs_are_numbered_below_runs(config: Path) -> None:
    for expected in ("runs/tiny", "runs/tiny-2", "runs/tiny-3"):
        assert call("run", config, "--set", "run.rounds=1").out.endswith(f"Report: {expected}/report.html\n")
    assert call("run", config, "--set", "run.rounds=1", "--set", "run.name=other").code == 0
    assert sorted(path.name for path in Path("runs").iterdir()) == ["other", "tiny", "tiny-2", "tiny-3"]


def test_resume_leaves_a_finished_run_as_it_is_and_completes_one_that_lacks_its_model(config: Path) -> None:
    assert call("run", config, "--out", "run").code == 0
    before = contents(config.parent / "run")
    outcome = call("resume", "run")
    assert (outcome.code, outcome.err) == (0, "")
    last = "Report: run/report.html\nrun was finished: nothing was left to do\n"
    assert outcome.out.endswith(last) and "round" not in outcome.out.split("run ")[0]
    assert contents(config.parent / "run") == before
    (config.parent / "run" / "model.fsp").unlink()
    assert call("resume", "run", "--workers", "2").code == 0
    assert contents(config.parent / "run") == before


def test_report_shows_one_run_or_several_side_by_side(config: Path) -> None:
    for name, method in (("one", "fedavg"), ("two", "fedsparsify-local")):
        assert (
            call("run", config, "--out", name, "--set", f"method.name={method}", "--set", f"run.name={name}").code == 0
        )
    single = call("report", "one")
    assert single.code == 0 and single.out.endswith("Report: one/report.html\n")
    both = call("report", "one", "two")
    assert both.code == 0 and both.out.endswith("Report: report.html\n")
    assert re.search(r"^ one  .*\n two  ", both.out, re.MULTILINE)
    page = Path("report.html").read_text()
    assert "fedavg" in page and "fedsparsify-local" in page
    assert call("report", "one", "--out", "deep/page.html").code == 0
    assert Path("deep/page.html").read_text().startswith("<!")


def test_partition_shows_the_split_that_a_run_will_have_and_writes_nothing(config: Path) -> None:
    before = contents(config.parent)
    outcome = call("partition", config, "--set", "partition.kind=quantity")
    assert (outcome.code, outcome.err) == (0, "")
    lines = re.findall(r"^[ \d·]+\d $", outcome.out, re.MULTILINE)
    rows = [list(map(int, line.replace("·", "0").split())) for line in lines]
    assert contents(config.parent) == before
    assert call("run", config, "--out", "run", "--set", "partition.kind=quantity").code == 0
    partition = load_run(config.parent / "run").partition
    assert partition is not None
    assert [row[1:11] for row in rows] == [list(row) for row in partition.counts]
    assert [row[11:] for row in rows] == [[sum(row), sum(n > 0 for n in row)] for row in partition.counts]


@pytest.mark.parametrize("columns", ["80", None])
def test_tables_are_whole_at_eighty_columns_and_in_files(
    columns: str | None, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)  # parallel test runners set it
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    name = "fedsparsify-global-non-iid-100-clients"
    assert call("run", config, "--out", "run", "--set", f"run.name={name}").code == 0
    table = call("report", "run").out
    split = call("partition", config, "--set", "federation.clients=12").out
    assert "…" not in table + split
    assert all(len(line) <= 80 for line in table.splitlines() if columns)
    assert name in table.replace("\n", "").replace(" ", "") or columns


def test_a_run_can_log_to_tensorboard(config: Path) -> None:
    pytest.importorskip("tensorboard")
    pytest.importorskip("torch.utils.tensorboard")
    assert call("run", config, "--out", "run", "--set", "run.tensorboard=true").code == 0
    assert list(Path("run/tensorboard").glob("events.*"))


# help


def test_help_shows_commands_version_and_completion() -> None:
    outcome = call("--help")
    assert outcome.code == 0
    for word in ("run", "resume", "report", "partition", "--version", "--install-completion", "--show-completion"):
        assert re.search(rf"[ │]{word} ", outcome.out), word
    assert call("--version").out == f"fedsparsify {__version__}\n"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("run", ["CONFIG", "--out", "--set", "TABLE.KEY=VALUE", "--data-dir", "docs/configuration.md", "Ctrl-C"]),
        ("resume", ["DIR", "--workers", "bit for bit"]),
        ("report", ["DIR...", "--out", "offline"]),
        ("partition", ["CONFIG", "--set", "--data-dir", "without training"]),
    ],
)
def test_every_command_explains_itself(command: str, words: list[str]) -> None:
    outcome = call(command, "--help")
    assert (outcome.code, outcome.err) == (0, "")
    text = " ".join(outcome.out.split())
    assert all(word in text for word in words), outcome.out
    assert "[bold]" not in outcome.out


def test_help_names_a_configuration_and_a_page_that_are_there() -> None:
    text = " ".join((call("--help").out + call("run", "--help").out).split())
    named = set(re.findall(r"(?:configs|docs)/[\w/.-]+\.(?:toml|md)", text))
    assert len(named) >= 3
    assert all((ROOT / path).is_file() for path in named), named


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("run",),
        ("run", "a.toml", "b.toml"),
        ("run", "a.toml", "--speed", "3"),
        ("fly",),
        ("report",),
        ("resume",),
        ("resume", "x", "--workers", "-1"),
    ],
)
def test_a_command_that_cannot_be_understood_exits_with_two_and_names_its_help(arguments: tuple[str, ...]) -> None:
    outcome = call(*arguments)
    assert outcome.code == 2
    assert "Traceback" not in outcome.out + outcome.err and "env var" not in outcome.err
    if not arguments:
        assert "Usage: fedsparsify" in outcome.out + outcome.err
        return
    command = f"fedsparsify {arguments[0]}" if arguments[0] in ("run", "report", "resume") else "fedsparsify"
    assert outcome.err.startswith("error: ") and outcome.err.endswith(f" (see {command} --help)\n"), outcome.err
    assert outcome.err.count("\n") == 1 and outcome.out == ""


def test_help_and_completion_need_no_torch(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom fedsparsify.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment(), check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_the_shell_completes_commands() -> None:
    done = subprocess.run(
        COMMAND,
        capture_output=True,
        text=True,
        env=environment(_FEDSPARSIFY_COMPLETE="complete_bash", COMP_WORDS="fedsparsify re", COMP_CWORD="1"),
    )
    assert done.stdout.split() == ["resume", "report"]


# A terminal


def environment(**changes: str) -> dict[str, str]:
    known = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR", "CI")}
    return {**known, "PYTHONPATH": str(ROOT / "src"), "TERM": "xterm-256color", **changes}


class Terminal:
    """A real terminal of 80 columns with a command in it."""

    def __init__(self, handle: int, process: subprocess.Popen[bytes]) -> None:
        self.handle, self.process, self.shown = handle, process, ""

    def read_until(self, happened: Callable[[str], object], seconds: float = 1800) -> None:
        deadline = time.monotonic() + seconds
        while not happened(self.shown):
            assert time.monotonic() < deadline, self.text[-500:]
            if not self._read(0.1):
                assert happened(self.shown), self.text[-500:]

    def finish(self, seconds: float = 1800) -> int:
        """Read to the end and return the exit code."""
        deadline = time.monotonic() + seconds
        while self._read(60):
            assert time.monotonic() < deadline, self.text[-500:]
        return self.process.wait(seconds)

    def _read(self, seconds: float) -> bool:
        """Take what is there, and say whether there may be more."""
        if not select.select([self.handle], [], [], seconds)[0]:
            return True
        try:
            chunk = os.read(self.handle, 65536)
        except OSError:  # nobody holds the other end any more
            return False
        self.shown += chunk.decode(errors="replace")
        return bool(chunk)

    @property
    def text(self) -> str:
        """What was shown, without colours and cursor movements."""
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "", self.shown)


@contextmanager
def terminal(*arguments: str) -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 80, 0, 0))

    def take_terminal() -> None:
        os.setsid()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment(),
        preexec_fn=take_terminal,
    )
    os.close(theirs)
    try:
        yield Terminal(ours, process)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


@pytest.mark.slow
def test_a_terminal_shows_a_live_bar_and_ctrl_c_stops_with_the_command_that_goes_on(config: Path) -> None:
    config.write_text(CONFIG.replace("rounds = 3", "rounds = 100000").replace("workers = 1", "workers = 2"))
    with terminal("run", "tiny.toml", "--out", "a run") as shown:
        shown.read_until(lambda text: re.search(r"[1-9]\d*/100000", text))
        os.write(shown.handle, b"\x03")
        code = shown.finish()
    assert code == 130
    assert "\x1b[?25l" in shown.shown and shown.shown.rindex("\x1b[?25h") > shown.shown.rindex("\x1b[?25l")
    assert re.search(r"round +\d+/100000 [━╸╺ ]+accuracy 0\.\d{4}  sparsity 0\.\d{4}  [\d.]+ [kM]?B sent", shown.text)
    assert not re.search(r"^round \d+/\d+  accuracy", shown.text, re.MULTILINE), "lines are for files"
    last = " ".join(shown.text.split("Stopped.")[1].split())
    assert re.fullmatch(r"All finished rounds are saved; go on with: .*fedsparsify resume 'a run'", last)
    assert "Traceback" not in shown.text
    assert len(records(config.parent / "a run")) >= 2


def test_ctrl_c_while_data_are_loaded_leaves_nothing(config: Path) -> None:
    (config.parent / "slow.py").write_text("import os, signal\ndef data():\n    os.kill(os.getpid(), signal.SIGINT)\n")
    done = subprocess.run(
        [*COMMAND, "run", "tiny.toml", "--set", "data.name=slow:data", "--out", "run"],
        capture_output=True,
        text=True,
        env=environment(PYTHONDONTWRITEBYTECODE="1"),
    )
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    assert set(contents(config.parent)) == {"slow.py", "tiny.toml"}


@pytest.mark.parametrize(("words", "said"), [((), "no more is said"), (("8 GiB",), "8 GiB")])
def test_too_little_memory_is_told_in_a_sentence(
    words: tuple[str, ...], said: str, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hungry(*_: object) -> None:
        raise MemoryError(*words)

    monkeypatch.setattr("fedsparsify.cli.load_settings", hungry)
    outcome = call("run", "tiny.toml")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == f"error: there is not enough memory ({said}): give less at once, or use a larger machine\n"
