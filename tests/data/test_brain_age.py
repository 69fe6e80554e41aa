"""Tables, sites and brain age: hand-computed values, and every way in which a cell can be wrong."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from fedsparsify.data import load, partition, sites
from fedsparsify.data.tables import Table
from fedsparsify.errors import ArgumentError, DataError

HEADER = "sub_id,age,sex,volume,flat,site"


def people(site: str, ages: range) -> list[str]:
    return [f"{site}{age},{age},{age % 2},{10 * age},7,{site}" for age in ages]


def write(folder: Path, rows: list[str], header: str = HEADER) -> Path:
    (folder / "fcon1000.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder


def test_a_small_site_is_held_out_whole_and_of_others_every_fifth_by_age(tmp_path: Path) -> None:
    rows = people("B", range(39, 29, -1)) + people("A", range(50, 60)) + people("C", range(70, 79))
    train, test = load("brain-age", write(tmp_path, rows))
    assert test.group_names == train.group_names == ("A", "B", "C")
    assert train.groups is not None and test.groups is not None
    assert np.bincount(train.groups).tolist() == [8, 8]
    assert np.bincount(test.groups).tolist() == [2, 2, 9]
    ages = np.array([*range(30, 40), *range(50, 60)])
    ages = ages[[i for i in range(20) if i % 10 not in (2, 7)]]
    assert train.y_scale == pytest.approx(ages.std())
    assert np.sort(train.y[:, 0] * train.y_scale + ages.mean()) == pytest.approx(ages)
    tested = test.y[test.groups != 2, 0] * test.y_scale + ages.mean()
    assert np.sort(tested) == pytest.approx([32, 37, 52, 57])


def test_features_are_standardised_by_the_training_people(tmp_path: Path) -> None:
    train, test = load("brain-age", write(tmp_path, people("A", range(20, 40)) + people("C", range(90, 93))))
    assert train.x.shape == (16, 3) and train.x.dtype == np.float32  # sex, volume, flat
    assert train.x.mean(axis=0) == pytest.approx([0, 0, 0], abs=1e-6)
    assert train.x.std(axis=0) == pytest.approx([1, 1, 0])
    assert test.x[:, 1].max() > 5, "the unseen site does not take part in the means"


def test_each_site_with_training_examples_is_a_client() -> None:
    groups = np.array([2, 0, 2, 2])
    for clients in (0, 2):
        assert [part.tolist() for part in partition.by_groups(groups, clients)] == [[1], [0, 2, 3]]
    with pytest.raises(ArgumentError, match=r"federation.clients = 3, but 2 groups have training examples: write 2"):
        partition.by_groups(groups, 3)
    with pytest.raises(ArgumentError, match="belong to no groups: choose another kind"):
        partition.by_groups(None, 0)


def test_without_a_large_site_there_is_nothing_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="FCON1000: no site has 10 examples"):
        load("brain-age", write(tmp_path, people("A", range(20, 29))))


def test_a_missing_file_lists_the_one_way_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDSPARSIFY_DATA", raising=False)
    with pytest.raises(DataError, match=r"no public address .*One way to get it: put its files fcon1000.csv .*--data"):
        load("brain-age", tmp_path)


ROWS = people("A", range(20, 32))


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        ([], HEADER, "has 1 lines: it needs a header and at least one row"),
        (ROWS, HEADER.replace("age", "years"), 'has no column "age", only sub_id, years'),
        (ROWS, HEADER.replace("flat", "volume"), 'has two columns "volume": rename one'),
        ([*ROWS, "x,1,2"], HEADER, "line 14: 3 cells for 6 columns"),
        ([*ROWS, "x,old,0,1,1,A"], HEADER, 'line 14: age = "old" is no finite number; mend the cell'),
        ([*ROWS, "x,30,0,inf,1,A"], HEADER, 'line 14: volume = "inf" is no finite number'),
        ([*ROWS, "x,30,0,,1,A"], HEADER, 'line 14: volume = "" is no finite number'),
        ([*ROWS, "x,30,0,1,1, "], HEADER, "line 14: site is empty"),
    ],
)
def test_a_wrong_cell_is_named_with_its_line(tmp_path: Path, rows: list[str], header: str, message: str) -> None:
    with pytest.raises(DataError, match=f"^fcon1000.csv.*{re.escape(message)}"):
        load("brain-age", write(tmp_path, rows, header))


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b'age,site\n"1,A\n'])
def test_a_file_that_is_no_csv_is_refused(content: bytes) -> None:
    with pytest.raises(DataError, match=r"a\.csv is no CSV file in UTF-8"):
        Table(content, "a.csv", ["age"])


def test_a_constant_column_becomes_zero() -> None:
    values, mean, deviation = sites.standardise(np.array([[3.0], [3.0], [5.0]]), np.array([True, True, False]))
    assert values.tolist() == [[0], [0], [2]] and mean.tolist() == [3] and deviation.tolist() == [1]
