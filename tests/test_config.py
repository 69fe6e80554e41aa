"""Configurations: what is read, what overrides what, what is kept, and that the manual page tells the truth."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic_core import PydanticUndefined

from fedsparsify.algorithms import METHODS
from fedsparsify.config import Settings, load_settings, parse_overrides, settings_from
from fedsparsify.data.datasets import DATASETS, Dataset
from fedsparsify.errors import ConfigError, FedSparsifyError
from fedsparsify.experiment import check_all, prepare
from fedsparsify.merge import MERGE_RULES
from fedsparsify.models.registry import MODELS
from fedsparsify.purge import CRITERIA, SCOPES
from fedsparsify.sweep_grid import load_grid
from tests.commands import CONFIG, ROOT, write_config

GRIDS = [path for path in sorted((ROOT / "configs").rglob("*.toml")) if "[[sweep]]" in path.read_text()]
CONFIGS = sorted(set((ROOT / "configs" / "fashion-mnist").rglob("*.toml")) - set(GRIDS))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path)


# --set


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.1", 0.1),
        ("3", 3),
        ("1e-3", 1e-3),
        ("true", True),
        ('"3"', "3"),
        ("bare-word", "bare-word"),
        ("two words", "two words"),
        ("a=b", "a=b"),
        ("", ""),
        (" spaced ", "spaced"),
        ("[1, 2]", [1, 2]),
        ("mine:load", "mine:load"),
        ("C:\\data", "C:\\data"),
    ],
)
def test_a_value_is_toml_and_a_bare_word_is_a_text(text: str, value: Any) -> None:
    assert parse_overrides([f"table.key={text}"]) == {("table", "key"): value}


@pytest.mark.parametrize("text", ["", "train", "train.lr", "lr=3", "=3", ".=3", "train.=3", ".lr=3"])
def test_another_form_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match=r'--set ".*" must have the form table.key=value, as in train.lr=0.01'):
        parse_overrides([text])


def test_set_wins_over_the_file_the_file_over_defaults_and_the_last_set_over_others(config: Path) -> None:
    settings = load_settings(config, ["train.lr=0.2", "run.rounds=7", "train.lr=0.3"])
    assert (settings.train.lr, settings.run.rounds) == (0.3, 7)
    assert (settings.train.epochs, settings.federation.clients) == (1, 4)  # the file's
    assert (settings.train.batch_size, settings.schedule.exponent) == (32, 3.0)  # defaults


def test_set_adds_tables_and_options_of_the_network(config: Path) -> None:
    settings = load_settings(config, ["partition.kind=classes", "model.classes=11"])
    assert settings.partition.kind == "classes"
    assert settings.model.options == {"inputs": 64, "hidden": 8, "classes": 11}


def test_a_mistake_is_placed_where_it_was_made(config: Path) -> None:
    with pytest.raises(ConfigError, match=r'^--set: train.lr = "fast" must be a number'):
        load_settings(config, ["train.lr=fast"])
    config.write_text(CONFIG + "speed = 3\n")
    with pytest.raises(ConfigError, match=rf"^{re.escape(str(config))}: train.speed is an unknown key"):
        load_settings(config, ["train.lr=0.3"])


@pytest.mark.parametrize(
    ("tables", "hint"),
    [
        ({"train": {"lr": 1, "epoch": 3}}, "train.epoch is an unknown key; did you mean train.epochs?; known are"),
        ({"run": {"lr": 1}}, "run.lr is an unknown key; did you mean train.lr?"),
        ({"trian": {"lr": 1}}, "[trian] is an unknown table; did you mean train?; known are run, data,"),
        ({"lr": 1}, "lr is in no table; did you mean train.lr?; tables are run, data,"),
        ({"train": 3}, "train = 3 must be a table"),
        ({"train": {}}, "train.lr is missing: give it a value"),
    ],
)
def test_an_unknown_key_names_the_nearest_valid_one(tables: dict[str, Any], hint: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"here: {hint}")):
        settings_from({**tomllib.loads(CONFIG), **tables}, "here")


def test_a_mistyped_table_is_told_rather_than_the_one_that_it_leaves_missing() -> None:
    tables = tomllib.loads(CONFIG)
    tables["dta"] = tables.pop("data")
    with pytest.raises(ConfigError, match=re.escape("[dta] is an unknown table; did you mean data?")):
        settings_from(tables, "here")


def test_whole_numbers_serve_as_numbers_but_nothing_else_is_converted() -> None:
    tables = tomllib.loads(CONFIG)
    assert settings_from({**tables, "train": {"lr": 1}}, "here").train.lr == 1.0
    for table, key, value in (("train", "lr", "1"), ("run", "seed", 1.0), ("run", "seed", True), ("run", "name", 1)):
        with pytest.raises(ConfigError, match=f"{table}.{key} = .* must be"):
            settings_from({**tables, table: {"lr": 1, key: value} if table == "train" else {key: value}}, "here")


# config.toml of a run


def test_settings_as_written_are_complete_and_load_to_the_same(config: Path, tmp_path: Path) -> None:
    settings = load_settings(config, ["train.momentum=0.9", 'run.name="a \\"quoted\\" näme"', "model.classes=10"])
    written = write_config(tmp_path, settings.to_toml(), "config.toml")
    assert load_settings(written) == settings
    assert load_settings(written).digest == settings.digest
    tables = tomllib.loads(written.read_text())
    assert set(tables) == set(Settings.model_fields)
    for name, key, _ in keys():
        assert key in tables[name], f"{name}.{key}"


def test_a_run_is_named_after_its_file_if_it_has_no_name(config: Path) -> None:
    assert load_settings(config).run.name == "tiny"
    assert load_settings(config, ["run.name=other"]).run.name == "other"


def test_settings_are_frozen(config: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings(config).train.lr = 3.0


# digest


WITHOUT_EFFECT = {"run.workers", "run.name", "run.tensorboard", "data.dir", "wire.link_memory", "encryption.key"}


@pytest.mark.parametrize(
    "override",
    ["run.workers=3", "run.name=x", "data.dir=/elsewhere", "run.tensorboard=true", "deployment.deadline=9"],
)
def test_what_changes_no_result_changes_no_digest(override: str, config: Path) -> None:
    assert load_settings(config, [override]).digest == load_settings(config).digest


CHANGES = {
    bool: True,
    int: 3,
    float: 0.25,
    str: "other",
}


def test_every_other_key_changes_the_digest(config: Path) -> None:
    digests = {load_settings(config).digest}
    count = 1
    for table, key, field in keys():
        if table == "deployment" or f"{table}.{key}" in WITHOUT_EFFECT:
            continue
        value: Any = {"kind": "classes", "uplink": "int8", "scheme": "ckks"}.get(key) or CHANGES[field.annotation]
        if (table, key) == ("run", "rounds"):
            value = 4
        digests.add(settings_with(table, key, value, **{"scheme": "bfv"} if table == "encryption" else {}).digest)
        count += 1
    digests.add(settings_with("model", "hidden", 9).digest)
    assert len(digests) == count + 1


def test_encryption_that_is_off_changes_no_digest(config: Path) -> None:
    assert settings_with("encryption", "bound", 0.25).digest == load_settings(config).digest


def settings_with(table: str, key: str, value: Any, **others: Any) -> Settings:
    tables = tomllib.loads(CONFIG)
    tables[table] = {**tables.get(table, {}), **others, key: value}
    return settings_from(tables, "here")


def keys() -> Iterator[tuple[str, str, Any]]:
    for table, field in Settings.model_fields.items():
        assert field.annotation is not None
        for key, inner in field.annotation.model_fields.items():
            yield table, key, inner


# configs/


@pytest.mark.parametrize("path", CONFIGS, ids=[str(path.relative_to(ROOT / "configs")) for path in CONFIGS])
def test_every_configuration_is_valid_and_is_what_its_name_says(path: Path) -> None:
    settings = load_settings(path)
    assert settings.run.name == path.stem
    # Everything but the data, which may be absent here, and the network, which depends on it.
    prepare(load_settings(path, ["data.name=digits", "partition.kind=iid", *small(settings)]), str(path))
    assert settings.data.name == path.parent.name
    assert settings.model.name in MODELS and settings.data.name in DATASETS
    if path.stem == "demo":
        return
    assert path.stem.startswith(settings.method.name)
    rest = path.stem.removeprefix(settings.method.name)
    federation = settings.federation
    if rest.endswith("-100-clients"):
        assert (federation.clients, federation.participation) == (100, 0.1)
        rest = rest.removesuffix("-100-clients")
    else:
        assert (federation.clients, federation.participation) == (10, 1.0)
    assert rest.endswith("-encrypted") == settings.encrypts
    assert rest.removesuffix("-encrypted") == {"iid": "-iid", "classes": "-non-iid"}[settings.partition.kind]
    assert settings.partition.classes_per_client == 2
    assert (settings.run.rounds, settings.train.epochs, settings.train.batch_size) == (200, 4, 32)
    assert (settings.train.lr, settings.train.momentum) == (0.02, 0.0)
    if settings.method.name != "fedavg":
        schedule = settings.schedule
        assert (schedule.initial, schedule.final, schedule.start_round) == (0.0, 0.95, 1)
        assert (schedule.frequency, schedule.exponent) == (1, 3.0)
        assert settings.purge == Settings.model_fields["purge"].default


def small(settings: Settings) -> list[str]:
    return ["model.inputs=64"] if settings.model.name == "2-fc" else ["model.name=2-fc", "model.inputs=64"]


@pytest.mark.parametrize("path", GRIDS, ids=[str(path.relative_to(ROOT / "configs")) for path in GRIDS])
def test_every_grid_is_valid(path: Path) -> None:
    grid = load_grid(path)
    check_all((run.settings, run.place) for run in grid.runs)


def test_the_comparison_has_the_methods_of_its_table() -> None:
    grid = load_grid(ROOT / "configs" / "fashion-mnist" / "comparison.toml")
    table = (ROOT / "docs" / "results.md").read_text()
    names = {run.settings.method.name for run in grid.runs}
    assert names <= set(METHODS) and len(names) == 14 and all(f"| {name} |" in table for name in names)
    assert len(grid.runs) == 112


def test_there_is_a_configuration_for_each_method_split_and_size() -> None:
    names = {path.stem for path in CONFIGS if path.parent.name == "fashion-mnist"}
    methods = ("fedavg", "fedsparsify-global", "fedsparsify-local")
    assert names >= {f"{m}-{s}{c}" for m in methods for s in ("iid", "non-iid") for c in ("", "-100-clients")}


# docs/configuration.md


@dataclass(frozen=True)
class Row:
    """One key as the manual page has it."""

    table: str
    key: str
    kind: str
    default: str
    range: str
    meaning: str


def page() -> list[Row]:
    rows, table = [], ""
    for line in (ROOT / "docs" / "configuration.md").read_text().splitlines():
        if line.startswith("## ["):
            table = line[4:-1]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `"):
            rows.append(Row(table, cells[0].strip("`"), *cells[1:]))
    return rows


PAGE = page()
TYPES = {int: "whole number", float: "number", bool: "true or false", str: "text", list[str]: "list of texts"}


def test_the_page_has_every_key_in_order_with_its_type_and_default() -> None:
    assert [(row.table, row.key) for row in PAGE] == [(table, key) for table, key, _ in keys()]
    for row, (_, _, field) in zip(PAGE, keys(), strict=True):
        assert row.kind == TYPES.get(field.annotation, "text"), row
        if field.default is PydanticUndefined:
            assert row.default == "required", row
        else:
            assert tomllib.loads(f"x = {row.default.strip('`')}")["x"] == field.default, row
            assert type(tomllib.loads(f"x = {row.default.strip('`')}")["x"]) is type(field.default), row
        assert row.meaning and field.description, row


@pytest.mark.parametrize("row", [row for row in PAGE if "`" in row.range], ids=lambda row: f"{row.table}.{row.key}")
def test_the_page_lists_exactly_the_words_that_a_key_takes(row: Row) -> None:
    words = re.findall(r"`([^`]+)`", row.range)
    known: dict[str, Mapping[str, object]] = {
        "method.name": METHODS,
        "method.merge": MERGE_RULES,
        "purge.criterion": CRITERIA,
        "purge.scope": SCOPES,
    }
    place = f"{row.table}.{row.key}"
    assert place not in known or sorted(words) == sorted(known[place])
    for word in words:
        assert accepted(row, word), word
    assert not accepted(row, "another")


@pytest.mark.parametrize(
    "row", [row for row in PAGE if row.range[:1] in ("[", "(")], ids=lambda r: f"{r.table}.{r.key}"
)
def test_the_page_gives_exactly_the_range_that_a_key_takes(row: Row) -> None:
    match = re.fullmatch(r"([\[(])(.+), (.+)([\])])", row.range)
    assert match, row
    low, high = limit(match[2]), limit(match[3])
    step = 1 if row.kind == "whole number" else 1e-6
    probes = {low - step, low, low + step, high - step, high, high + step} - {math.inf}
    for value in probes:
        inside = (low <= value if match[1] == "[" else low < value) and (
            value <= high if match[4] == "]" else value < high
        )
        assert accepted(row, int(value) if row.kind == "whole number" else value) == inside, (row, value)
    assert not accepted(row, math.nan) and not accepted(row, math.inf)


def test_every_key_that_is_a_number_has_its_range_on_the_page() -> None:
    assert all(row.range for row in PAGE if row.kind in ("whole number", "number"))


def limit(text: str) -> float:
    """An end of an interval, under the settings that :func:`accepted` uses."""
    known = {"∞": math.inf, "classes": 10, "examples": 1437, "participants": 4, "schedule.initial": 0, "run.rounds": 3}
    return known[text] if text in known else int(text)


def grouped() -> tuple[Dataset, Dataset]:
    """Examples of ten groups, for the one kind of partition that the digits have no use for."""
    x, groups = np.zeros((20, 64), np.float32), np.arange(20) % 10
    data = Dataset(x, groups, groups=groups, group_names=tuple("abcdefghij"))
    return data, data


def accepted(row: Row, value: Any) -> bool:
    """Whether a run of the digits could start with a value."""
    tables = tomllib.loads(CONFIG)
    if row.key == "classes_per_client":
        tables["partition"] = {"kind": "classes"}
        tables["federation"]["clients"] = 10
    if row.key == "alpha":
        tables["partition"] = {"kind": "dirichlet"}
    if (row.table, row.key) == ("schedule", "initial"):
        tables["schedule"]["final"] = max(value, 0.9)
    if row.key == "kind":
        tables["federation"]["clients"] = 10
    if value == "groups":
        tables["data"]["name"] = "tests.test_config:grouped"
    if row.table == "encryption":
        tables["federation"]["min_clients"] = 2
    tables.setdefault(row.table, {})[row.key] = value
    try:
        prepare(settings_from(tables, "here"), "here", deployed=value == "sites")
    except FedSparsifyError:
        return False
    return True


def test_the_pages_smallest_configuration_is_valid() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    block = re.search(r"```toml\n(.*?)```", text, re.DOTALL)
    assert block
    prepare(settings_from(tomllib.loads(block[1]), "page"), "page")
