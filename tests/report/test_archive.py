"""A packed sweep says what its directory says; whatever else is in such a file is refused, and nothing is unpacked."""

from __future__ import annotations

import io
import json
import lzma
import random
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from fedsparsify.errors import RunError
from fedsparsify.report import archive, is_sweep, pack, write_comparison
from fedsparsify.report.archive import load_sweep
from tests.commands import call, contents
from tests.report.fake_sweeps import add_run, add_runs

TABLES = ("table.md", "table.tex", "table.csv", "runs.csv")
RUN = "fedavg_seed-1"
Member = tuple[tarfile.TarInfo, bytes]


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A sweep's directory with two methods, three seeds, and a run that is not finished."""
    folder = tmp_path / "sweep"
    add_runs(folder, "fedavg", {1: 0.90, 2: 0.92, 3: 0.94})
    add_runs(folder, "fedsparsify-global", {1: 0.89, 2: 0.90, 3: 0.94}, sparsity=0.9)
    add_run(folder, "snip", 1, [0.1, 0.2], sparsity=0.9, name="begun", rounds=7)
    (folder / "queued").mkdir()
    (folder / "queued" / "run.json").write_text("{}")
    return folder


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    """The files of one sound run, by their names in an archive."""
    folder = add_run(tmp_path / "source", "fedavg", 1, [0.1, 0.5, 0.9], name=RUN)
    names = ("config.toml", "run.json", "metrics.jsonl")
    found = {f"{RUN}/{name}": (folder / name).read_bytes() for name in names}
    shutil.rmtree(tmp_path / "source")
    return found


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, len(content), link
    return info, content


def tarred(members: list[Member], form: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as file:
        for info, content in members:
            file.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def plain(files: dict[str, bytes]) -> list[Member]:
    return [member(name, content) for name, content in files.items()]


def refusal(folder: Path, content: bytes) -> str:
    """Try to report on a file, and return the one sentence of the refusal; nothing else may have been written."""
    path = folder / "in" / "x.tar.xz"
    path.parent.mkdir()
    path.write_bytes(content)
    before = contents(folder)
    outcome = call("report", path, "--out", folder / "out" / "report.html")
    assert contents(folder) == before
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1
    assert str(path) in outcome.err and "Traceback" not in outcome.err
    assert all(character.isprintable() for character in outcome.err.rstrip("\n"))
    return outcome.err


def test_a_packed_sweep_gives_the_same_report(sweep: Path, tmp_path: Path) -> None:
    packed = pack(sweep, tmp_path / "sweep.tar.xz")
    assert (packed.runs, packed.unfinished) == (6, ("begun", "queued"))
    assert packed.size == (tmp_path / "sweep.tar.xz").stat().st_size < 5_000
    write_comparison(sweep, tmp_path / "one" / "report.html")
    report = write_comparison(tmp_path / "sweep.tar.xz", tmp_path / "two" / "report.html")
    assert (report.runs, report.unfinished) == (6, ())
    assert [path.name for path in report.others] == list(TABLES)
    for name in TABLES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert "| fedsparsify-global | – | 91.00 ± 2.65 |" in (tmp_path / "two" / "table.md").read_text()


def test_unpacked_by_tar_it_is_a_sweep_again_that_packs_to_the_same_bytes(sweep: Path, tmp_path: Path) -> None:
    pack(sweep, tmp_path / "one.tar.xz")
    with tarfile.open(tmp_path / "one.tar.xz") as file:
        file.extractall(tmp_path / "again", filter="data")
    assert is_sweep(tmp_path / "again")
    assert [run.path.name for run in load_sweep(tmp_path / "again").runs] == [
        run.path.name for run in load_sweep(sweep).runs
    ]
    pack(tmp_path / "again", tmp_path / "two.tar.xz")
    assert (tmp_path / "one.tar.xz").read_bytes() == (tmp_path / "two.tar.xz").read_bytes()


def test_the_same_runs_give_the_same_bytes_wherever_and_whenever_they_lie(sweep: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere" / "copy"
    shutil.copytree(sweep, copy)  # with times of its own
    for path in copy.rglob("*.json*"):
        path.chmod(0o600)
    pack(sweep, tmp_path / "one.tar.xz")
    pack(copy, tmp_path / "two.tar.xz")
    assert (tmp_path / "one.tar.xz").read_bytes() == (tmp_path / "two.tar.xz").read_bytes()
    with tarfile.open(tmp_path / "one.tar.xz") as file:
        for info in file:
            assert (info.mtime, info.uid, info.gid, info.uname, info.gname) == (0, 0, 0, "", "")
            assert (info.mode, info.isreg()) == (0o644, True)


def test_no_place_on_the_disk_is_packed(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    folder = add_run(sweep, "fedavg", 1, [0.1, 0.9], settings={"data.dir": "/srv/someone/data"})
    (folder / "checkpoint.bin").write_bytes(b"weights")
    (sweep / "sweep.toml").write_text(
        '[data]\nname = "digits"\ndir = "/srv/someone/data"  # of /srv/someone\n'
        '[[sweep]]\ndata.dir = ["/srv/someone/a", "/srv/someone/b"]\nrun.seed = [1, 2]\n'
    )
    pack(sweep, tmp_path / "out.tar.xz")
    with lzma.open(tmp_path / "out.tar.xz") as file:
        content = file.read()
    assert b"someone" not in content and b"weights" not in content and b'dir = ""' in content
    assert b"    1,\n    2," in content  # the rest of the grid is kept


def test_scores_are_packed_as_they_are_and_what_is_measured_with_seven_digits(tmp_path: Path) -> None:
    records = {"loss": 0.123456789123, "seconds_train": 12345.678912}
    run = add_run(tmp_path / "sweep", "fedavg", 1, [0.1, 0.123456789123], records=records)
    # A line separator that JSON allows within a text ends no line.
    text = (run / "metrics.jsonl").read_text().replace('"loss"', '"failures": [{"reason": "a\u2028b"}], "loss"')
    (run / "metrics.jsonl").write_text(text, encoding="utf-8")
    pack(tmp_path / "sweep", tmp_path / "out.tar.xz")
    last = load_sweep(tmp_path / "out.tar.xz").runs[0].last
    assert (last.score, last.loss, last.seconds_train) == (0.123456789123, 0.1234568, 12345.68)
    assert last.failures[0].reason == "a b"


@pytest.mark.parametrize(
    ("prepare", "out", "message"),
    [
        (lambda sweep: None, "out.zip", r"out\.zip must end in \.tar\.xz"),
        (lambda sweep: sweep.rename(sweep.with_name("moved")), "o.tar.xz", r"sweep: no such sweep"),
        (
            lambda sweep: [p.rename(sweep.parent / p.name) for p in sweep.glob("fed*")],
            "o.tar.xz",
            r"no finished run yet",
        ),
        (lambda sweep: next(sweep.glob("fed*1")).rename(sweep / "a b"), "o.tar.xz", r"a b: a packed run's name has"),
        (lambda sweep: next(sweep.glob("fed*1")).rename(sweep / ("a" * 190)), "o.tar.xz", r"the name is too long"),
        (lambda sweep: (sweep / "sweep.toml").write_text("["), "o.tar.xz", r"sweep\.toml is no grid"),
        (lambda sweep: (sweep / "sweep.toml").write_bytes(b"\xff"), "o.tar.xz", r"sweep\.toml is no grid"),
        (lambda sweep: (sweep / "begun/run.json").write_text("{"), "o.tar.xz", r"run\.json: not a complete JSON"),
        (lambda sweep: None, "sweep/sweep.toml/o.tar.xz", r"o\.tar\.xz cannot be written"),
    ],
)
def test_what_cannot_be_packed_is_refused(
    sweep: Path, tmp_path: Path, prepare: Callable[[Path], object], out: str, message: str
) -> None:
    prepare(sweep)
    with pytest.raises(RunError, match=message):
        pack(sweep, tmp_path / out)
    assert not (tmp_path / out).exists()


def test_a_packed_sweep_is_not_packed_again(sweep: Path, tmp_path: Path) -> None:
    pack(sweep, tmp_path / "one.tar.xz")
    with pytest.raises(RunError, match=r"one\.tar\.xz is packed already: name the sweep's directory"):
        pack(tmp_path / "one.tar.xz", tmp_path / "two.tar.xz")


def test_the_command_says_what_was_packed_and_what_was_not(sweep: Path, tmp_path: Path) -> None:
    outcome = call("pack", sweep, tmp_path / "new" / "out.tar.xz")
    assert (outcome.code, outcome.err) == (0, "")
    assert re.fullmatch(r".*out\.tar\.xz: 6 runs in .*B; not finished and left out: begun, queued\n", outcome.out)


# What follows is about files that others made.


def test_the_sound_archive_of_these_tests_is_read(files: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "x.tar.xz"
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path.write_bytes(lzma.compress(tarred([member("sweep.toml"), *plain(files)], form)))
        sweep = load_sweep(path)
        assert (sweep.name, [run.path.name for run in sweep.runs], sweep.unfinished) == ("x", [RUN], ())
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar.xz"]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ([member("/etc/passwd", b"x")], "'/etc/passwd' is no file of a packed sweep"),
        ([member("/srv/run/run.json", b"{}")], "'/srv/run/run.json' is no file of a packed sweep"),
        ([member("../run.json", b"{}")], "'../run.json' is no file of a packed sweep"),
        ([member("a/../run.json", b"{}")], "'a/../run.json' is no file of a packed sweep"),
        ([member("a/b/run.json", b"{}")], "'a/b/run.json' is no file of a packed sweep"),
        ([member(".hidden/run.json", b"{}")], "'.hidden/run.json' is no file of a packed sweep"),
        ([member("a\\run.json", b"{}")], r"'a\\run.json' is no file of a packed sweep"),
        ([member("a/run.json\n", b"{}")], "is no file of a packed sweep"),
        ([member("\x1b[31ma/run.json", b"{}")], "'\ufffd[31ma/run.json' is no file of a packed sweep"),
        ([member("a\udcff/run.json", b"{}")], "'a\ufffd/run.json' is no file of a packed sweep"),
        ([member("a/" + "b" * 10_000, b"{}")], "bb…' is no file of a packed sweep"),
        ([member("a/checkpoint.bin", b"x")], "'a/checkpoint.bin' is no file of a packed sweep"),
        ([member("a", kind=tarfile.DIRTYPE)], "'a' is no plain file"),
        ([member("a/run.json", kind=tarfile.SYMTYPE, link="/etc/passwd")], "'a/run.json' is no plain file"),
        ([member("a/run.json", kind=tarfile.LNKTYPE, link=f"{RUN}/run.json")], "'a/run.json' is no plain file"),
        ([member("a/run.json", kind=tarfile.CHRTYPE)], "'a/run.json' is no plain file"),
        ([member("a/run.json", kind=tarfile.BLKTYPE)], "'a/run.json' is no plain file"),
        ([member("a/run.json", kind=tarfile.FIFOTYPE)], "'a/run.json' is no plain file"),
        ([member("a/run.json", b"x", kind=tarfile.CONTTYPE)], "'a/run.json' is no plain file"),
        ([member("a/run.json", b"x", kind=b"Z")], "'a/run.json' is no plain file"),
        ([member(f"{RUN}/run.json", b"{}")], f"{RUN}/run.json is in it twice"),
        ([member("sweep.toml"), member("sweep.toml")], "sweep.toml is in it twice"),
        ([member("a/run.json", b"{}")], "a lacks its config.toml and metrics.jsonl"),
    ],
)
def test_a_member_that_is_no_file_of_a_run_is_refused(
    files: dict[str, bytes], tmp_path: Path, extra: list[Member], message: str
) -> None:
    assert message in refusal(tmp_path, lzma.compress(tarred([*plain(files), *extra])))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", b'{"name": "\xff"}', "run.json is not UTF-8 text"),
        ("metrics.jsonl", b"\x80", "metrics.jsonl is not UTF-8 text"),
        ("run.json", b"[" * 100_000, "run.json: not a complete JSON object"),
        ("run.json", b'{"machine": ' + b'{"a":' * 100_000, "run.json: not a complete JSON object"),
        ("run.json", b'{"seed": ' + b"1" * 5000 + b"}", "run.json: not a complete JSON object"),
        ("run.json", b"[]", "run.json: must be a JSON object"),
        ("run.json", json.dumps({"layers": [["w", [2**62] * 99]]}).encode(), "layers: the size must be a whole number"),
        ("metrics.jsonl", b"", "no rounds yet"),
        ("metrics.jsonl", b'{"round": 1', "metrics.jsonl: line 1: not a complete JSON object"),
        ("metrics.jsonl", b"[" * 100_000, "metrics.jsonl: line 1: not a complete JSON object"),
        ("config.toml", b"lr = ", "config.toml: not valid TOML"),
        ("config.toml", b"lr = " + b"[" * 100_000, "config.toml: not valid TOML ("),
        ("config.toml", b"lr = " + b"1" * 5000, "config.toml: not valid TOML (Exceeds the limit"),
        ("config.toml", b"a." * 2000 + b"a = 1", "config.toml: tables are nested more than 20 deep"),
    ],
)
def test_a_hostile_record_is_refused(
    files: dict[str, bytes], tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    files[f"{RUN}/{name}"] = content
    assert message in refusal(tmp_path, lzma.compress(tarred(plain(files))))


def damage(tar: bytes, at: int) -> bytes:
    return tar[:at] + bytes([tar[at] ^ 1]) + tar[at + 1 :]


def longer(tar: bytes, size: int) -> bytes:
    """Let the first member claim a size, with a checksum that fits."""
    info = tarfile.TarInfo.frombuf(tar[:512], "utf-8", "surrogateescape")
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT) + tar[512:]


def extended(tar: bytes, headers: int) -> bytes:
    """Let each of many headers extend the next."""
    return member("a", kind=tarfile.XHDTYPE)[0].tobuf() * headers + tar


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tar: lzma.compress(tar)[:-1], "is cut off"),
        (lambda tar: lzma.compress(tar)[:40], "is cut off"),
        (lambda tar: b"", "is cut off"),
        (lambda tar: damage(lzma.compress(tar), 60), "is damaged or no .xz file (Corrupt input data)"),
        (lambda tar: damage(lzma.compress(tar), 0), "is damaged or no .xz file (Input format not supported"),
        (lambda tar: tar, "is damaged or no .xz file"),
        (lambda tar: lzma.compress(tar, format=lzma.FORMAT_ALONE), "is damaged or no .xz file"),
        (lambda tar: lzma.compress(tar) + b"more", "goes on after its end"),
        (lambda tar: lzma.compress(tar) + lzma.compress(tar), "goes on after its end"),
        # A dictionary of 256 MB would have to be set aside before the first byte is seen.
        (
            lambda tar: lzma.compress(tar, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 28}]),
            "is damaged or no .xz file (Memory usage limit exceeded)",
        ),
        (lambda tar: lzma.compress(b""), "is damaged (empty file)"),
        (lambda tar: lzma.compress(b"no tar at all" * 100), "is damaged ("),
        (lambda tar: lzma.compress(tar[:700]), "is damaged (unexpected end of data)"),
        (lambda tar: lzma.compress(damage(tar, 0)), "is damaged (bad checksum)"),
        # tarfile takes the next two for the end of the archive.
        (lambda tar: lzma.compress(damage(tar, 1024)), "is damaged after a part of it"),
        (lambda tar: lzma.compress(tar[:1024] + tar[1024:1100]), "is damaged after a part of it"),
        (lambda tar: lzma.compress(longer(tar, 2**40)), f"'{RUN}/config.toml' is no plain file"),
        (lambda tar: lzma.compress(longer(tar, -1024)), ""),
        (lambda tar: lzma.compress(longer(tar, 9000)), f"{RUN} lacks its run.json and metrics.jsonl"),
        (lambda tar: lzma.compress(extended(tar, 2000)), "is damaged ("),
    ],
)
def test_a_damaged_archive_is_refused(
    files: dict[str, bytes], tmp_path: Path, change: Callable[[bytes], bytes], message: str
) -> None:
    assert message in refusal(tmp_path, change(tarred(plain(files))))


@pytest.mark.parametrize("packed", [False, True])
def test_whatever_bit_is_flipped_nothing_but_a_refusal_comes_of_it(
    files: dict[str, bytes], tmp_path: Path, packed: bool
) -> None:
    sound = lzma.compress(tarred(plain(files))) if packed else tarred(plain(files))
    chance = random.Random(1)
    refused = 0
    for _ in range(300):
        content = bytearray(sound)
        content[chance.randrange(len(sound))] ^= 1 << chance.randrange(8)
        (tmp_path / "x.tar.xz").write_bytes(content if packed else lzma.compress(content, preset=0))
        try:
            load_sweep(tmp_path / "x.tar.xz")
        except RunError:
            refused += 1
    assert refused == 300 if packed else refused > 20  # a digit may become another one
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar.xz"]


@pytest.mark.parametrize("where", ["machine", "failures"])
def test_however_deep_a_record_is_nested_it_is_read_or_refused(
    files: dict[str, bytes], tmp_path: Path, where: str
) -> None:
    name = f"{RUN}/run.json" if where == "machine" else f"{RUN}/metrics.jsonl"
    outcomes: set[object] = set()
    for depth in (*range(10, 800, 30), *range(800, 1050), 100_000):
        deep = "[" * depth + "]" * depth
        value = f'{{"machine": {{"cpu": {deep}}}, ' if where == "machine" else f'{{"failures": [{{"reason": {deep}}}], '
        text = files[name].replace(b"{", value.encode(), 1)
        (tmp_path / "x.tar.xz").write_bytes(lzma.compress(tarred(plain(files | {name: text})), preset=0))
        try:
            outcomes.add(len(load_sweep(tmp_path / "x.tar.xz").runs))
        except RunError as error:
            outcomes.add(str(error).partition("; ")[0].rpartition(": ")[2])
    assert outcomes == {1, "not a complete JSON object"}


def test_a_bomb_is_not_unpacked_further_than_the_bound(
    files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MAX_UNPACKED", 1 << 20)
    bomb = lzma.compress(tarred([*plain(files), member("a/metrics.jsonl", bytes(4 << 20))]))
    assert len(bomb) < 5_000
    assert "holds more than 1,048,576 bytes" in refusal(tmp_path, bomb)


def test_too_many_files_are_refused(files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_FILES", 3)
    (tmp_path / "sound").mkdir()
    (tmp_path / "sound" / "x.tar.xz").write_bytes(lzma.compress(tarred(plain(files))))
    assert len(load_sweep(tmp_path / "sound" / "x.tar.xz").runs) == 1
    assert "holds more than 3 files" in refusal(tmp_path, lzma.compress(tarred([*plain(files), member("sweep.toml")])))


def test_an_archive_without_a_finished_run_is_refused(files: dict[str, bytes], tmp_path: Path) -> None:
    files[f"{RUN}/run.json"] = json.dumps(json.loads(files[f"{RUN}/run.json"]) | {"rounds": 9}).encode()
    assert "holds no finished run yet" in refusal(tmp_path, lzma.compress(tarred(plain(files))))


def test_no_such_archive_and_a_folder_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "folder.tar.xz").mkdir()
    for name, why in (("none.tar.xz", "No such file or directory"), ("folder.tar.xz", "Is a directory")):
        with pytest.raises(RunError, match=rf"{name} cannot be read \({why}\)"):
            load_sweep(tmp_path / name)
