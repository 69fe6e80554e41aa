"""A sweep's directory: what counts as done, what is shown, what is refused, and what is packed.

Its runs are written by hand here: nothing is trained.
"""

from __future__ import annotations

import json
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from fedsparsify.sweep_grid import load_grid
from tests.commands import CONFIG, call, contents, write_config
from tests.test_wrong_inputs import cut, full_disk_at, held, remove, replace_in, write

GRID = CONFIG.replace("rounds = 3", "rounds = 2") + "\n[[sweep]]\nrun.seed = [1, 2, 3]\n"
ONE = "fedsparsify-global_seed-1"
TWO = "fedsparsify-global_seed-2"
THREE = "fedsparsify-global_seed-3"

Arrange = Callable[[Path], object]

FACTS = {"rounds": 2, "layers": [["w", [10]]], "parameters": 10, "schedule": [0.0, 0.5, 0.9]}
RECORD = {"accuracy": 0.5, "loss": 1.0, "nonzero": 10, "sparsity": 0.0, "layers_nonzero": [10], "participants": []}


def nothing(folder: Path) -> None:
    """Leave all as it is."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with ``grid.toml`` and its finished sweep ``out``."""
    monkeypatch.chdir(tmp_path)
    for run in load_grid(write_config(tmp_path, GRID, "grid.toml")).runs:
        folder = tmp_path / "out" / run.name
        folder.mkdir(parents=True)
        (folder / "config.toml").write_text(run.settings.to_toml())
        (folder / "run.json").write_text(json.dumps({**FACTS, "seed": run.settings.run.seed}))
        (folder / "metrics.jsonl").write_text("".join(json.dumps({"round": t, **RECORD}) + "\n" for t in range(3)))
        (folder / "checkpoint.fsp").write_bytes(b"a checkpoint")
        (folder / "model.fsp").write_bytes(b"a model")
    (tmp_path / "out" / "sweep.toml").write_text(GRID)
    return tmp_path


def refused(*arguments: str) -> str:
    """The sentence of a command that is refused; nothing may be changed."""
    before = contents(Path())
    outcome = call(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("error: ") and outcome.err.endswith("\n") and outcome.err.count("\n") == 1, "one line"
    assert contents(Path()) == before
    return outcome.err.removeprefix("error: ")


def listed(*arguments: str) -> dict[str, tuple[str, str]]:
    """Run -> (state, round) as ``--list`` shows them."""
    outcome = call("sweep", *arguments, "--list")
    assert (outcome.code, outcome.err) == (0, "")
    return {name: (state, at) for name, state, at in re.findall(r"^ (\S+) +([a-z]+) +(\S+/\d+) $", outcome.out, re.M)}


# What is done, and what is not


def keep_records_only(folder: Path) -> None:
    """Make a run what it is in a packed sweep: its records only."""
    for name in ("checkpoint.fsp", "model.fsp"):
        (folder / "out" / ONE / name).unlink()


def lengthen_the_last_record(folder: Path) -> None:
    path = folder / "out" / ONE / "metrics.jsonl"
    *lines, last = path.read_text().splitlines()
    last = json.dumps({**json.loads(last), "participants": list(range(20_000))})
    path.write_text("\n".join([*lines, last, ""]))


def keep_records(count: int) -> Arrange:
    def arrange(folder: Path) -> None:
        path = folder / "out" / ONE / "metrics.jsonl"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:count]))

    return arrange


@pytest.mark.parametrize(
    ("arrange", "state", "at"),
    [
        pytest.param(nothing, "done", "2/2", id="as it was left"),
        pytest.param(keep_records_only, "done", "2/2", id="records only"),
        pytest.param(lengthen_the_last_record, "done", "2/2", id="a last record of very many participants"),
        pytest.param(lambda folder: shutil.rmtree(folder / "out" / ONE), "missing", "-/2", id="no directory"),
        pytest.param(remove(f"out/{ONE}/config.toml"), "missing", "-/2", id="no settings"),
        pytest.param(remove(f"out/{ONE}/run.json"), "started", "2/2", id="no facts"),
        pytest.param(remove(f"out/{ONE}/model.fsp"), "started", "2/2", id="no model"),
        pytest.param(remove(f"out/{ONE}/metrics.jsonl"), "started", "-/2", id="no records"),
        pytest.param(keep_records(0), "started", "-/2", id="empty records"),
        pytest.param(keep_records(1), "started", "0/2", id="the first record only"),
        pytest.param(keep_records(2), "started", "1/2", id="the last record missing"),
        pytest.param(cut(f"out/{ONE}/metrics.jsonl", 9), "started", "-/2", id="a torn record"),
        pytest.param(write(f"out/{ONE}/metrics.jsonl", b"[1]\n"), "started", "-/2", id="another record"),
    ],
)
def test_a_run_is_done_when_settings_facts_and_all_records_are_there(
    arrange: Arrange, state: str, at: str, here: Path
) -> None:
    arrange(here)
    before = contents(here)
    assert listed("grid.toml", "--out", "out") == {
        ONE: (state, at),
        TWO: ("done", "2/2"),
        THREE: ("done", "2/2"),
    }
    assert contents(here) == before


def test_a_run_in_another_process_is_shown_as_running(here: Path) -> None:
    with held(f"out/{ONE}")(here):
        assert listed("grid.toml", "--out", "out")[ONE] == ("running", "2/2")


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        ("seed-1", "1"),
        ("seed", "123"),
        ("*_seed-[13]", "13"),
        ("seed-[13]", None),
        (TWO, "2"),
        ("*", "123"),
        ("?edsparsify*3", "3"),
        ("SEED-1", None),
    ],
)
def test_only_takes_a_part_of_a_name_or_a_pattern_for_all_of_it(only: str, expected: str | None, here: Path) -> None:
    if expected is None:
        assert call("sweep", "grid.toml", "--only", only, "--list").code == 2
    else:
        names = [f"fedsparsify-global_seed-{seed}" for seed in expected]
        assert listed("grid.toml", "--only", only) == dict.fromkeys(names, ("missing", "-/2"))


def test_a_report_knows_a_sweep_whose_runs_were_all_made_otherwise(here: Path) -> None:
    (here / "out" / "sweep.toml").unlink()
    assert call("sweep", "grid.toml", "--out", "out").code == 0
    assert (here / "out" / "sweep.toml").read_text() == GRID


# What is refused: one sentence, and nothing is lost


def grid(old: str, new: str) -> Arrange:
    """Change the grid, and add a run to it that must not start."""

    def arrange(folder: Path) -> None:
        replace_in("grid.toml", old, new)(folder)
        replace_in("grid.toml", "[1, 2, 3]", "[1, 2, 3, 4]")(folder)

    return arrange


SWEEP = ("sweep", "grid.toml", "--out", "out")
PACK = ("pack", "out", "p.tar.xz")
OTHER = f"out/{ONE} holds a run with other settings than grid.toml: [[sweep]] block 1 asks for: "

REFUSED = [
    # Another grid
    (
        "another rate",
        SWEEP,
        grid("lr = 0.1", "lr = 0.2"),
        f"{OTHER}train.lr = 0.1, not 0.2: move it away, choose another",
    ),
    ("more rounds", SWEEP, grid("rounds = 2", "rounds = 9"), f"{OTHER}run.rounds = 2, not 9: move it away"),
    (
        "listing another grid",
        (*SWEEP, "--list"),
        grid("final = 0.9", "final = 0.8"),
        f"{OTHER}schedule.final = 0.9, not",
    ),
    ("a part of another", (*SWEEP, "--only", "4"), grid("hidden = 8", "hidden = 9"), f"{OTHER}model.hidden = 8, not 9"),
    (
        "settings that were broken",
        SWEEP,
        replace_in(f"out/{ONE}/config.toml", "lr = 0.1", "lr = 'x'"),
        f'out/{ONE}/config.toml: train.lr = "x" must be a number',
    ),
    (
        "settings that are torn",
        SWEEP,
        write(f"out/{ONE}/config.toml", b"[run"),
        f"out/{ONE}/config.toml is not valid TOML",
    ),
    # Packing
    ("packing nothing", ("pack", "nowhere", "p.tar.xz"), nothing, "nowhere: no such sweep; give the directory that"),
    ("packing a file", ("pack", "grid.toml", "p.tar.xz"), nothing, "grid.toml: no such sweep; give the directory that"),
    ("packing a run", ("pack", f"out/{ONE}", "p.tar.xz"), nothing, f"out/{ONE} holds no finished run yet: go on with"),
    (
        "packing what is packed",
        ("pack", "p.tar.xz", "q.tar.xz"),
        nothing,
        "p.tar.xz is packed already: name the sweep's",
    ),
    ("packing to another ending", ("pack", "out", "out.zip"), nothing, "out.zip must end in .tar.xz, so that"),
    (
        "packing nothing over a file",
        ("pack", f"out/{ONE}", "p.tar.xz"),
        write("p.tar.xz", b"mine"),
        "holds no finished run",
    ),
    (
        "packing over a folder",
        PACK,
        lambda folder: (folder / "p.tar.xz").mkdir(),
        "p.tar.xz cannot be written (Is a dir",
    ),
    ("packing below a file", ("pack", "out", "grid.toml/p.tar.xz"), nothing, "grid.toml/p.tar.xz cannot be written ("),
    (
        "packing torn records",
        PACK,
        cut(f"out/{ONE}/metrics.jsonl", 9),
        f"out/{ONE}/metrics.jsonl: line 3: not a complete",
    ),
    ("packing torn facts", PACK, cut(f"out/{ONE}/run.json", 9), f"out/{ONE}/run.json: not a complete JSON"),
    (
        "packing a hostile name",
        PACK,
        lambda folder: (folder / "out" / ONE).rename("out/a b"),
        "out/a b: a packed run's",
    ),
]


@pytest.mark.parametrize(("arguments", "arrange", "says"), [pytest.param(*r[1:], id=r[0]) for r in REFUSED])
def test_a_wrong_input_ends_in_one_sentence_and_nothing_is_lost(
    arguments: tuple[str, ...], arrange: Arrange, says: str, here: Path
) -> None:
    arrange(here)
    said = refused(*arguments)
    assert says in said


def test_packing_needs_a_file_to_pack_into(here: Path) -> None:
    before = contents(here)
    outcome = call("pack", "out")
    assert outcome.code == 2 and "Missing argument 'FILE'" in outcome.err
    assert contents(here) == before


def test_two_sweeps_do_not_work_in_one_directory(here: Path) -> None:
    (here / "out" / "sweep.toml").unlink()  # so that there is something to do
    (here / "out" / "logs").mkdir()
    with held("out")(here):
        assert refused(*SWEEP) == "out: another sweep is working here: wait for it, or stop it\n"


@pytest.mark.parametrize(("arguments", "file"), [(SWEEP, "out/sweep.toml"), (PACK, "p.tar.xz")])
def test_a_full_disk_is_named_and_leaves_all_as_it_was(arguments: tuple[str, ...], file: str, here: Path) -> None:
    if arguments == SWEEP:
        (here / "out" / "sweep.toml").unlink()
    else:
        (here / "p.tar.xz").write_bytes(b"an older one")
    (here / "out" / "logs").mkdir()
    with full_disk_at(1)(here):
        assert refused(*arguments).startswith(f"{file} cannot be written (No space left on device)")


def test_runs_of_no_block_are_kept_and_listed(here: Path) -> None:
    replace_in("grid.toml", "[1, 2, 3]", "[2]")(here)
    outcome = call(*SWEEP, "--list")
    assert outcome.out.splitlines()[-2] == "1 runs: 1 done"
    assert outcome.out.endswith(f"; a report shows them too: {ONE}, {THREE}\n")


def test_a_packed_sweep_unpacks_to_a_sweep_that_is_done(here: Path) -> None:
    (here / "out" / TWO / "metrics.jsonl").unlink()
    (here / "p.tar.xz").write_bytes(b"an older one")
    outcome = call(*PACK)
    assert re.fullmatch(r"p.tar.xz: 2 runs in .*; not finished and left out: \S+_seed-2\n", outcome.out)
    packed = (here / "p.tar.xz").read_bytes()
    assert call("pack", "out", "new/again.tar.xz").code == 0
    assert (here / "new" / "again.tar.xz").read_bytes() == packed
    with tarfile.open(here / "p.tar.xz") as archive:
        archive.extractall(here / "unpacked", filter="data")
    done = ("done", "2/2")
    assert listed("grid.toml", "--out", "unpacked") == {
        ONE: done,
        TWO: ("missing", "-/2"),
        THREE: done,
    }
