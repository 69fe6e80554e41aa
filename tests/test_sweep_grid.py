"""Grids: which runs one stands for, what they are called, and every grid that a user can get wrong."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsparsify import sweep_grid
from fedsparsify.config import Settings, load_settings
from fedsparsify.errors import ConfigError
from fedsparsify.sweep_grid import differing_keys, load_grid
from tests.commands import CONFIG, call, contents, write_config


def names(folder: Path, blocks: str) -> list[str]:
    """The names of a grid's runs, without the method that all of them share."""
    grid = load_grid(write_config(folder, CONFIG + blocks, "grid.toml"))
    return [run.name.removeprefix("fedsparsify-global_") for run in grid.runs]


def value(settings: Settings, key: str) -> Any:
    table, _, name = key.partition(".")
    return settings.model_dump()[table][name]


# What a grid stands for


def test_a_block_is_the_product_of_its_axes_and_the_last_changes_fastest(tmp_path: Path) -> None:
    blocks = """
    [[sweep]]
    method.name = ["fedavg", "fedsparsify-local"]
    schedule.final = [0.8, 0.9]
    partition.kind = ["iid", "classes"]
    run.seed = [1, 2, 3]
    """
    grid = load_grid(write_config(tmp_path, CONFIG + blocks, "grid.toml"))
    keys = ("method.name", "schedule.final", "partition.kind", "run.seed")
    assert [tuple(value(run.settings, key) for key in keys) for run in grid.runs] == [
        (method, final, kind, seed)
        for method in ("fedavg", "fedsparsify-local")
        for final in (0.8, 0.9)
        for kind in ("iid", "classes")
        for seed in (1, 2, 3)
    ]
    assert grid.runs[-1].name == "fedsparsify-local_final-0.9_kind-classes_seed-3"
    assert len({run.name for run in grid.runs}) == len({run.settings.digest for run in grid.runs}) == 24


def test_a_run_is_the_base_with_what_its_block_replaces_and_no_block_sees_another(tmp_path: Path) -> None:
    blocks = """
    [[sweep]]
    model.hidden = [8, 16]
    train.lr = 0.5
    [[sweep]]
    method.name = "fedprox"
    method.proximal = 0.1
    schedule.final = 0.9
    """
    grid = load_grid(write_config(tmp_path, CONFIG + blocks, "grid.toml"))
    base = load_settings(write_config(tmp_path))
    differences = [differing_keys(run.settings, base) for run in grid.runs]
    assert differences == [
        ["train.lr = 0.5, not 0.1"],
        ["model.hidden = 16, not 8", "train.lr = 0.5, not 0.1"],
        ["method.name = 'fedprox', not 'fedsparsify-global'", "method.proximal = 0.1, not None"],
    ]
    assert [run.settings.run.name for run in grid.runs] == [run.name for run in grid.runs]
    assert [run.place.removeprefix(f"{grid.path}: ") for run in grid.runs] == [
        f"[[sweep]] block {number}" for number in (1, 1, 2)
    ]
    assert grid.text == CONFIG + blocks


def test_blocks_that_overlap_share_their_runs(tmp_path: Path) -> None:
    blocks = "[[sweep]]\nrun.seed = [1, 2, 2]\n[[sweep]]\nrun.seed = [2, 3]\n"
    assert names(tmp_path, blocks) == ["seed-1", "seed-2", "seed-3"]


def test_what_is_given_on_the_command_line_replaces_the_bases_value(tmp_path: Path) -> None:
    path = write_config(tmp_path, CONFIG + "[[sweep]]\nrun.seed = [1, 2]\n", "grid.toml")
    grid = load_grid(path, {("data", "dir"): "elsewhere", ("train", "lr"): 0.3})
    assert [(run.settings.data.dir, run.settings.train.lr) for run in grid.runs] == [("elsewhere", 0.3)] * 2


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ("", ["fedsparsify-global"]),
        ("run.seed = 3", ["seed-3"]),
        ("schedule.final = [0.9, 0.95]\nrun.seed = 1", ["final-0.9_seed-1", "final-0.95_seed-1"]),
        ("run.seed = 1\nschedule.final = 0.9", ["final-0.9_seed-1"]),
        ("train.nesterov = [true, false]", ["nesterov-true", "nesterov-false"]),
        ("train.lr = 1e-7", ["lr-1e-07"]),
        ("model.name = '6-cnn'\ndata.name = 'digits'", ["data-name-digits_model-name-6-cnn"]),
        ("model.name = 'mine:net'", ["name-mine-net"]),
        ("deployment.sites = [['a', 'b']]", ["sites--a-b-"]),
        ("data.dir = '/a b/ü/*?$(x)\\'", ["dir--a-b-x-"]),
        ("data.dir = '../../..'", ["dir-..-..-.."]),
        ("model.size.depth = [1, 2]", ["depth-1", "depth-2"]),
    ],
)
def test_a_run_is_called_by_its_method_and_what_its_block_sets(block: str, expected: list[str], tmp_path: Path) -> None:
    assert names(tmp_path, f"[[sweep]]\n{block}\n") == expected


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60), method=st.text(max_size=20))
def test_no_text_makes_a_name_that_leaves_the_sweeps_folder_or_is_hidden(text: str, method: str) -> None:
    for name in (
        sweep_grid._name(method, {("data", "dir"): text}),
        sweep_grid._name(text, {}),
    ):
        assert re.fullmatch(r"[A-Za-z0-9_+][A-Za-z0-9._+-]*", name)
        assert (Path("sweep") / name).parent == Path("sweep")


# What differs


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, []),
        ({"run": {"workers": 3, "name": "other", "tensorboard": True}, "data": {"dir": "x"}}, []),
        ({"run": {"rounds": 4}}, ["run.rounds = 3, not 4"]),
        (
            {"schedule": {"final": 0.8}, "partition": {"kind": "classes"}},
            ["partition.kind = 'iid', not 'classes'", "schedule.final = 0.9, not 0.8"],
        ),
    ],
)
def test_settings_differ_in_what_changes_results(
    change: Mapping[str, Mapping[str, Any]], expected: list[str], tmp_path: Path
) -> None:
    path = write_config(tmp_path)
    texts = [f"{table}.{key}={json.dumps(v)}" for table, keys in change.items() for key, v in keys.items()]
    one, other = load_settings(path), load_settings(path, texts)
    assert differing_keys(one, other) == expected
    assert (one.digest == other.digest) == (not expected)


# Wrong grids, through the command line


@dataclass(frozen=True)
class Wrong:
    """A grid that must be refused: what is wrong, its blocks (or the whole text), and parts of the sentence."""

    name: str
    blocks: str
    says: tuple[str, ...]
    base: str = CONFIG


def block(name: str, keys: str, *says: str) -> Wrong:
    """A grid of one block; the sentence names it."""
    return Wrong(name, f"[[sweep]]\n{keys}\n", ("grid.toml: [[sweep]] block 1", *says))


WRONG = [
    # The file
    Wrong("no block", "", ("grid.toml holds no [[sweep]] block: add one", "fedsparsify run grid.toml")),
    Wrong("an empty file", "", ("grid.toml holds no [[sweep]] block",), ""),
    Wrong("an empty list of blocks", "", ("holds no [[sweep]] block",), f"sweep = []\n{CONFIG}"),
    Wrong("one bracket", "[sweep]\nrun.seed = [1, 2]", ("sweep must be written as blocks", "[[sweep]]", "two")),
    Wrong("a list of numbers", "", ("sweep must be written as blocks",), f"sweep = [1, 2]\n{CONFIG}"),
    Wrong("no TOML", "[[sweep]]\nrun.seed = 1 2", ("grid.toml is not valid TOML:", "line ")),
    Wrong("a key twice", "[[sweep]]\nrun.seed = 1\nrun.seed = 2", ("grid.toml is not valid TOML:",)),
    # The base
    Wrong(
        "an unknown table in the base",
        "[trian]\nlr = 1\n[[sweep]]",
        ("grid.toml: [[sweep]] block 1: [trian] is an unknown table", "did you mean train?"),
    ),
    Wrong("a table that is none", "[[sweep]]", ("run = 3 must be a table",), "run = 3\n"),
    Wrong(
        "a table that is none, and keys for it",
        "[[sweep]]\nrun.seed = [1, 2]",
        ("block 1: run = 3 must be a table",),
        "run = 3\n",
    ),
    Wrong("a base without data", "[[sweep]]\nrun.seed = 1", ("block 1: data is missing: add the table",), "[run]\n"),
    Wrong(
        "a name for all runs",
        "[[sweep]]\nrun.seed = [1, 2]",
        ("grid.toml: run.name = 'mine' has no place in a sweep", "take it out"),
        CONFIG.replace("[run]", "[run]\nname = 'mine'"),
    ),
    # Keys and types
    block("an unknown key", "train.learning = 1", "train.learning is an unknown key", "known are train.lr"),
    block("a mistyped key", "schedule.finel = [0.9]", "schedule.finel is an unknown key; did you mean schedule.final?"),
    block("a key without its table", "seed = [1, 2]", "seed is in no table; did you mean run.seed?"),
    block("a list for a table", "run = [1, 2]", "run = 1 must be a table"),
    block("a text for a number", "train.lr = ['fast']", 'train.lr = "fast" must be a number'),
    block("a number for a text", "method.name = [1]", "method.name = 1 must be a text in quotes"),
    block("a fraction for a count", "run.seed = [1, 2.5]", "run.seed = 2.5 must be a whole number"),
    block("a truth for a count", "run.rounds = [true]", "run.rounds = true must be a whole number"),
    block("a number that is none", "schedule.final = [nan]", "schedule.final = NaN must be a finite number"),
    block("a list of lists", "run.seed = [[1, 2], [3, 4]]", "run.seed = [1, 2] must be a whole number"),
    block("a date", "run.seed = [2024-01-01]", 'run.seed = "2024-01-01" must be a whole number'),
    block("an empty axis", "run.seed = [1]\nschedule.final = []", "schedule.final = [] is an axis without values"),
    block("tables in an axis", "run.seed = [{first = 1}]", "run.seed is a list of tables", "plain values"),
    block("a name for a block", "run.name = 'mine'\nrun.seed = [1, 2]", "run.name = 'mine' has no place in a sweep"),
    block("an unknown partition", "partition.kind = ['idd']", 'partition.kind = "idd" must be', "'iid'"),
    # Names
    block("a name that is too long", f"data.dir = '{'x' * 300}'", "the name fedsparsify-global_dir-x", "at most 200"),
    Wrong(
        "two blocks with one name",
        "[[sweep]]\nrun.seed = [1, 2]\n[[sweep]]\nrun.seed = 2\nschedule.final.x = 1",
        ("block 2: schedule.final = 0.9 must be a table",),
    ),
    block("two texts of one axis with one name", "model.name = ['a:b', 'a/b']", "makes two runs called", "change one"),
    Wrong(
        "two texts with one name",
        "[[sweep]]\nmodel.name = 'a:b'\n[[sweep]]\nmodel.name = 'a/b'",
        ("block 2 and [[sweep]] block 1 both make a run fedsparsify-global_name-a-b", "model.name = 'a:b', not 'a/b'"),
    ),
    Wrong(
        "one run under two names",
        "[[sweep]]\nrun.seed = 1\n[[sweep]]\nrun.seed = 1\nschedule.final = 0.9",
        ("grid.toml: fedsparsify-global_seed-1 and fedsparsify-global_final-0.9_seed-1 are the same run", "in both"),
    ),
    Wrong(
        "an axis that changes nothing",
        "[[sweep]]\nrun.workers = [1, 2]",
        (
            "fedsparsify-global_workers-1 and fedsparsify-global_workers-2 are the same run",
            "take one of the values out",
        ),
    ),
    Wrong(
        "a number written in two ways",
        "[[sweep]]\ntrain.lr = [1, 1.0]",
        ("fedsparsify-global_lr-1 and fedsparsify-global_lr-1.0 are the same run", "take one of the values out"),
    ),
    block(
        "far too many runs",
        "run.seed = [{0}]\nrun.rounds = [{0}]\ntrain.epochs = [{0}]".format(",".join(map(str, range(1, 101)))),
        "takes the sweep to 1,000,000 runs; at most 100,000",
    ),
    # What is found out before the first run starts; the sentence names the run, too
    block("an unknown method", "method.name = ['fedavg', 'fedavgg']", "fedavgg: method.name", "did you mean fedavg?"),
    block("a hostile method", "method.name = '../../../x'", 'x: method.name = "../../../x" is unknown'),
    block("an option that no method takes", "method.name = 'fedavg'\nmethod.mu = 1", "fedavg_mu-1: ", "mu"),
    block("a sparsity above one", "schedule.final = [0.9, 1.5]", "_final-1.5: schedule.final = 1.5", "less than 1"),
    block("a sparsity of one", "schedule.final = [1.0]", "_final-1.0: schedule.final = 1.0", "less than 1"),
    block("a sparsity below zero", "schedule.final = [0.5, -0.1]", "schedule.final = -0.1", "at least"),
    block("a first round after the last", "run.rounds = [9, 2]\nschedule.start_round = 5", "_rounds-2_", "start_round"),
    block("a learning rate below zero", "train.lr = [0.1, -1]", "_lr--1: train.lr = -1.0 must be"),
    block("an unknown criterion", "purge.criterion = ['size']", 'purge.criterion = "size" is unknown', "magnitude"),
    block("more clients than examples", "federation.clients = [4, 5000]", "federation.clients = 5000 must be at most"),
    block("classes that do not exist", "partition.kind = 'classes'\npartition.classes_per_client = 11", "11"),
    block("an unknown data set", "data.name = ['digit']", 'data.name = "digit" is unknown', "did you mean digits?"),
    block("an unknown network", "model.name = ['3-fc']", 'model.name = "3-fc" is unknown', "known are"),
    block("a function that does not exist", "method.name = 'json:lumps'", 'method.name = "json:lumps"', "has no lumps"),
    block("a partition for deployments", "partition.kind = ['sites']", 'partition.kind = "sites"', "deployment"),
]


def refused(*arguments: str) -> str:
    """The sentence of a command that is refused, without the word error; nothing may be written."""
    before = contents(Path())
    outcome = call("sweep", *arguments, "--out", "out")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("error: ") and outcome.err.endswith("\n") and outcome.err.count("\n") == 1, "one line"
    assert contents(Path()) == before
    return outcome.err.removeprefix("error: ")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())  # a user's own module puts the current directory first
    return tmp_path


@pytest.mark.parametrize("case", WRONG, ids=[case.name for case in WRONG])
def test_a_wrong_grid_ends_in_one_sentence_and_nothing_is_written(case: Wrong, here: Path) -> None:
    write_config(here, case.base + case.blocks, "grid.toml")
    said = refused("grid.toml")
    assert said.startswith("grid.toml") and all(part in said for part in case.says), said


@pytest.mark.parametrize(
    ("path", "content", "says"),
    [
        ("nowhere.toml", None, "nowhere.toml cannot be read (No such file or directory): name a TOML file with"),
        ("nowhere/grid.toml", None, "nowhere/grid.toml cannot be read (No such file or directory): name"),
        ("grid.toml/grid.toml", b"", "grid.toml/grid.toml cannot be read (Not a directory): name"),
        (".", None, ". cannot be read (Is a directory): name"),
        ("x" * 300, None, "cannot be read (File name too long): name"),
        ("grid.toml", b"\xff\xfe[[sweep]]", "grid.toml is not valid TOML: 'utf-8' codec can't decode byte 0xff"),
        ("grid.toml", b"[[sweep]]\n\x00", "grid.toml is not valid TOML:"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_what_to_give_instead(
    path: str, content: bytes | None, says: str, here: Path
) -> None:
    if content is not None:
        (here / "grid.toml").write_bytes(content)
    assert says in refused(path)


def test_a_pattern_that_fits_no_run_is_refused(here: Path) -> None:
    write_config(here, CONFIG + "[[sweep]]\nrun.seed = [1, 2]\n", "grid.toml")
    said = refused("grid.toml", "--only", "seed-[3-9]")
    assert said == '--only "seed-[3-9]" fits none of the 2 runs of grid.toml: --list shows their names\n'


@pytest.mark.parametrize("out", ["grid.toml", "grid.toml/below"])
def test_a_sweep_has_no_place_in_a_file(out: str, here: Path) -> None:
    write_config(here, CONFIG + "[[sweep]]\nrun.seed = [1, 2]\n", "grid.toml")
    before = contents(here)
    outcome = call("sweep", "grid.toml", "--out", out)
    assert outcome.code == 2 and re.fullmatch(
        rf"error: {out} cannot be written \(.*\): choose another --out\n", outcome.err
    )
    assert contents(here) == before


def test_the_names_of_the_cases_are_unique() -> None:
    assert len({case.name for case in WRONG}) == len(WRONG)


def test_a_grid_is_read_whatever_the_directory_is_called(tmp_path: Path) -> None:
    folder = tmp_path / "a [b]{c}"
    folder.mkdir()
    path = write_config(folder, CONFIG + "[[sweep]]\nrun.seed = ['x']\n", "grid.toml")
    with pytest.raises(ConfigError, match=re.escape(f"{os.fspath(path)}: [[sweep]] block 1: run.seed")):
        load_grid(path)
