"""Every wrong input that a user can give, through the real command line.

Each ends with exit code 2 and one sentence that names the place and what to do, without a traceback, and nothing is
written or changed.
"""

from __future__ import annotations

import errno
import gzip
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fedsparsify.data.fashion_mnist import SOURCE
from fedsparsify.secure import Scheme, make_key
from tests.commands import CONFIG, call, contents, records, write_config
from tests.test_config import PAGE

Arrange = Callable[[Path], object]
Conditions = Callable[[Path], AbstractContextManager[None]]

RUN = ("run", "tiny.toml", "--out", "out")


@dataclass(frozen=True)
class Case:
    """A command that must be refused.

    Attributes:
        name: what is wrong.
        arguments: of the command; the current directory holds ``tiny.toml``, and ``done``, a finished run of it.
        says: parts of the one sentence on standard error.
        arrange: prepares the directory.
        during: the conditions under which the command runs.
        kept: whether all that was there before must be there after and nothing else; a run that stops in its middle
            keeps its finished rounds instead.
        key: the configuration's key that is out of its range.
    """

    name: str
    arguments: tuple[str, ...]
    says: tuple[str, ...]
    arrange: Arrange = lambda folder: None
    during: Conditions = field(default=lambda folder: nullcontext(), kw_only=True)
    kept: bool = field(default=True, kw_only=True)
    key: str = field(default="", kw_only=True)


def wrong(key: str, value: object, *says: str, others: tuple[str, ...] = ()) -> Case:
    """A key with a value that it must not have, set on the command line."""
    settings = [argument for text in (*others, f"{key}={value}") for argument in ("--set", text)]
    return Case(f"{key} = {value}", (*RUN, *settings), (key.split(".")[0], *says), key=key)


def set_(*settings: str) -> tuple[str, ...]:
    return (*RUN, *(argument for text in settings for argument in ("--set", text)))


def append(text: str) -> Arrange:
    return lambda folder: write_config(folder, CONFIG + text)


def replace_in(name: str, old: str, new: str) -> Arrange:
    def arrange(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return arrange


def write(name: str, content: bytes) -> Arrange:
    return lambda folder: (folder / name).write_bytes(content)


def cut(name: str, count: int) -> Arrange:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-count])


def remove(name: str) -> Arrange:
    return lambda folder: (folder / name).unlink()


def fashion_mnist(content: bytes, *, missing: str = "") -> Arrange:
    def arrange(folder: Path) -> None:
        (folder / "data").mkdir()
        for name in SOURCE.md5:
            if name != missing:
                (folder / "data" / f"{name}.gz").write_bytes(content)

    return arrange


def own_network(function: str) -> Arrange:
    """Write a configuration with a network of the user's own code."""

    def arrange(folder: Path) -> None:
        (folder / "own_code.py").write_bytes(OWN)
        text = CONFIG.replace('name = "2-fc"\ninputs = 64\nhidden = 8', f'name = "own_code:{function}"')
        write_config(folder, text, "own.toml")

    return arrange


def held(name: str) -> Conditions:
    """Another process holds a run directory's lock."""

    @contextmanager
    def during(folder: Path) -> Iterator[None]:
        script = (
            "import sys, filelock\nlock = filelock.FileLock(sys.argv[1])\nlock.acquire()\n"
            "print(flush=True)\nsys.stdin.read()"
        )
        command = [sys.executable, "-c", script, str(folder / name / ".lock")]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            try:
                yield
            finally:
                process.kill()

    return during


def full_disk_at(write: int) -> Conditions:
    """The disk is full when something is made durable for the given time."""

    @contextmanager
    def during(folder: Path) -> Iterator[None]:
        sync, count = os.fsync, 0

        def failing(handle: int) -> None:
            nonlocal count
            count += 1
            if count == write:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            sync(handle)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", failing)
            yield

    return during


def files_up_to(size: int) -> Conditions:
    """The system refuses any file larger than this, as a quota does."""

    @contextmanager
    def during(folder: Path) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)

    return during


@contextmanager
def forbidden(folder: Path) -> Iterator[None]:
    """Looking at the run's directory is forbidden; a test may run as somebody to whom nothing is."""
    exists = Path.exists

    def guarded(path: Path) -> bool:
        if path.name == "out":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return exists(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "exists", guarded)
        yield


OWN = b"""
import torch
def network(): return "no network"
def failing(): raise ValueError("no data today")
def data(): return 1, 2, 3
def unfit(): return torch.nn.Linear(7, 10)
def stubborn():
    class Stubborn(torch.nn.Linear):
        def forward(self, x):
            if self.training:
                raise RuntimeError("not today")
            return super().forward(x.flatten(1))
    return Stubborn(64, 10)
constant = 3
"""
own = write("own_code.py", OWN)

ENCRYPTED = ("encryption.scheme=bfv", "federation.min_clients=2")

CASES = [
    # The file
    Case("no such configuration", ("run", "nowhere.toml"), ("nowhere.toml cannot be read", "name a TOML file")),
    Case("a folder for a configuration", ("run", "done"), ("done cannot be read (Is a directory)", "name a TOML file")),
    Case("no TOML", RUN, ("tiny.toml is not valid TOML", "line"), write("tiny.toml", b"[run\nrounds = 3")),
    Case("no text", RUN, ("tiny.toml is not valid TOML", "utf-8"), write("tiny.toml", b"\xff\xfe[run]")),
    Case("an empty configuration", RUN, ("tiny.toml: data is missing", "add the table"), write("tiny.toml", b"")),
    # Keys
    Case("an unknown key", RUN, ("tiny.toml: train.epoch", "did you mean train.epochs?"), append("epoch = 3")),
    Case("an unknown key by --set", set_("train.epoch=3"), ("--set: train.epoch", "did you mean train.epochs?")),
    Case("a key of another table", set_("run.lr=3"), ("--set: run.lr", "did you mean train.lr?")),
    Case("a sweep", RUN, ("tiny.toml holds [[sweep]] blocks", "fedsparsify sweep tiny.toml"), append("[[sweep]]\n")),
    Case("an unknown table", RUN, ("[trian] is an unknown table", "did you mean train?"), append("[trian]\nlr = 3")),
    Case(
        "an unknown table beside a missing one",
        RUN,
        ("[trian] is an unknown table", "did you mean train?"),
        replace_in("tiny.toml", "[train]", "[trian]"),
    ),
    Case(
        "a key outside of a table",
        RUN,
        ("tiny.toml: lr is in no table", "did you mean train.lr?"),
        write("tiny.toml", b"lr = 3\n" + CONFIG.encode()),
    ),
    Case(
        "a table that is none",
        RUN,
        ("tiny.toml: schedule = 3 must be a table",),
        write("tiny.toml", ("schedule = 3" + CONFIG.replace("[schedule]\nfinal = 0.9", "")).encode()),
    ),
    Case(
        "a --set into a table that is none",
        set_("schedule.final=0.5"),
        ("tiny.toml: schedule = 3 must be a table",),
        write("tiny.toml", ("schedule = 3" + CONFIG.replace("[schedule]\nfinal = 0.9", "")).encode()),
    ),
    Case("a missing key", RUN, ("tiny.toml: train.lr is missing",), replace_in("tiny.toml", "lr = 0.1", "")),
    Case("an unknown option of the network", set_("model.hiden=3"), ("model.hiden", "did you mean hidden?")),
    # --set
    Case("--set without a table", set_("lr=3"), ('--set "lr=3" must have the form table.key=value',)),
    Case("--set without a value", set_("train.lr"), ('--set "train.lr" must have the form table.key=value',)),
    Case("--set of a whole table", set_("train=3"), ('--set "train=3" must have the form table.key=value',)),
    Case(
        "an unknown option of the data set", set_("data.name=imdb", "data.word=3"), ("data.word", "did you mean words?")
    ),
    Case("an option of data without any", set_("data.size=3"), ("data.size is no option of digits; it has none",)),
    Case(
        "groups of data without any", set_("partition.kind=groups"), ('kind = "groups"', "belong to no groups: choose")
    ),
    # Types
    wrong("train.lr", "fast", '"fast" must be a number'),
    wrong("run.rounds", "2.5", "2.5 must be a whole number"),
    wrong("run.rounds", "true", "true must be a whole number"),
    wrong("run.name", "3", "3 must be a text in quotes"),
    wrong("run.name", "../elsewhere", '"../elsewhere" must be without slashes'),
    wrong("run.tensorboard", "1", "1 must be true or false"),
    wrong("train.nesterov", "yes", '"yes" must be true or false'),
    wrong("model.hidden", "2.5", "2.5 must be a whole number"),
    wrong("data.dir", "[1]", "[1] must be a text"),
    # Ranges: every key that has one
    wrong("run.seed", "-1", "-1 must be at least 0"),
    wrong("run.seed", "9223372036854775808", "must be at most 9223372036854775807"),
    wrong("run.rounds", "0", "0 must be at least 1"),
    wrong("run.rounds", "1000001", "must be at most 1000000"),
    wrong("run.workers", "-1", "-1 must be at least 0"),
    wrong("run.workers", "1025", "1025 must be at most 1024"),
    wrong("partition.classes_per_client", "0", "must be from 1 to 10", others=("partition.kind=classes",)),
    wrong("partition.classes_per_client", "11", "must be from 1 to 10", others=("partition.kind=classes",)),
    wrong("partition.alpha", "0.0", "must be a finite number above 0", others=("partition.kind=dirichlet",)),
    wrong("partition.alpha", "-1.0", "must be a finite number above 0", others=("partition.kind=quantity",)),
    wrong("federation.clients", "0", "must be at least 1"),
    wrong("federation.clients", "-3", "must be at least 1"),
    wrong("federation.clients", "1438", "clients = 1438 must be at most 1437, the number of examples"),
    wrong("federation.clients", "1000000000000", "must be at most 1437", others=("federation.participation=0.1",)),
    wrong("federation.participation", "0.0", "must be more than 0 and at most 1"),
    wrong("federation.participation", "1.1", "must be more than 0 and at most 1"),
    wrong("federation.min_clients", "0", "must be from 1 to 4"),
    wrong("federation.min_clients", "5", "must be from 1 to 4"),
    wrong("federation.min_clients", "3", "must be from 1 to 2", others=("federation.participation=0.5",)),
    wrong("model.hidden", "0", "must be a whole number of at least 1"),
    wrong("schedule.initial", "-0.1", "must be at least 0 and less than 1"),
    wrong("schedule.initial", "1.0", "must be at least 0 and less than 1"),
    wrong("schedule.initial", "0.95", "schedule.final = 0.9 must be at least schedule.initial"),
    wrong("schedule.final", "1.0", "less than 1: a network without parameters cannot be trained"),
    wrong("schedule.final", "-0.5", "must be at least"),
    wrong("schedule.start_round", "0", "must be at least 1"),
    wrong("schedule.start_round", "4", "comes after the last round, 3"),
    wrong("schedule.frequency", "0", "must be at least 1 round"),
    wrong("schedule.exponent", "0.0", "must be more than 0"),
    wrong("deployment.deadline", "0.0", "must be more than 0"),
    wrong("deployment.patience", "-1.0", "must be at least 0"),
    wrong("train.lr", "0.0", "must be more than 0"),
    wrong("train.lr", "-1", "must be more than 0"),
    wrong("train.lr", "nan", "must be a finite number"),
    wrong("train.lr", "inf", "must be a finite number"),
    wrong("train.epochs", "0", "must be at least 1"),
    wrong("train.batch_size", "0", "must be at least 1"),
    wrong("train.momentum", "1.0", "must be at least 0 and less than 1"),
    wrong("train.momentum", "-0.1", "must be at least 0 and less than 1"),
    wrong("train.nesterov", "true", "needs train.momentum to be more than 0"),
    wrong("train.weight_decay", "-0.1", "must be at least 0"),
    wrong("wire.uplink", "float16", "must be 'float32', 'bfloat16' or 'int8'"),
    wrong("wire.link_memory", "-1", "-1 must be at least 0"),
    wrong("wire.link_memory", "1048577", "must be at most 1048576"),
    wrong("encryption.scheme", "rsa", "must be 'none', 'bfv' or 'ckks'"),
    wrong("encryption.bound", "0", "0 must be more than 0"),
    # Names
    wrong("data.name", "digit", "unknown; did you mean digits?"),
    wrong("model.name", "2fc", "unknown; did you mean 2-fc?"),
    wrong("method.name", "fedavgg", "unknown; did you mean fedavg?"),
    wrong("method.merge", "majorty", "unknown; did you mean majority?"),
    wrong("purge.criterion", "magnitud", "unknown; did you mean magnitude?"),
    wrong("purge.scope", "globl", "unknown; did you mean global?"),
    wrong("purge.prunable", "none", 'must be "all" or "weights"'),
    wrong("partition.kind", "class", "must be 'iid', 'classes', 'dirichlet', 'quantity', 'groups' or 'sites'"),
    wrong("train.backend", "jax", "must be one of auto, native, torch"),
    wrong("train.device", "abacus", '"abacus" cannot be used here'),
    # A user's own code
    wrong("model.name", "nowhere:network", "no module named nowhere"),
    wrong("model.name", "nowhere:", 'must have the form "module:function"'),
    Case(
        "a misspelt function",
        set_("data.name=own_code:dat"),
        ('data.name = "own_code:dat"', "has no dat; did you mean data?"),
        own,
    ),
    Case("a constant for a function", set_("data.name=own_code:constant"), ("is a int; name a function",), own),
    Case("data that fail", set_("data.name=own_code:failing"), ("failed with ValueError: no data today", "line"), own),
    Case("three data sets", set_("data.name=own_code:data"), ("returned a tuple; it must return a pair",), own),
    Case(
        "a network that is none",
        ("run", "own.toml", "--out", "out"),
        ("returned a str; it must return a torch.nn.Module",),
        own_network("network"),
    ),
    Case(
        "a network that does not fit the data",
        ("run", "own.toml", "--out", "out"),
        ("cannot be evaluated on the test set", "RuntimeError", "if model.name = ", "the keys of [model]"),
        own_network("unfit"),
    ),
    Case(
        "a network for other inputs",
        set_("model.inputs=63"),
        ("63", 'if model.name = "2-fc" does not fit data.name = "digits"', "the keys of [model]"),
    ),
    Case("a network for fewer classes", set_("model.classes=9"), ("cannot be evaluated on the test set", "9")),
    # Partitions
    Case(
        "classes that do not all find a client",
        set_("partition.kind=classes"),
        ("4 clients with 2 classes each cannot hold all 10 classes", "use at least 3"),
    ),
    Case(
        "more clients than a class has examples",
        set_("partition.kind=classes", "federation.clients=1000"),
        ("too few for the 200 of 1000 clients", "use fewer clients"),
    ),
    Case(
        "an impossible partition to be shown",
        ("partition", "tiny.toml", "--set", "partition.kind=classes"),
        ("tiny.toml with --set: partition.kind", "4 clients with 2 classes each cannot hold all 10 classes"),
    ),
    Case(
        "an unknown data set to be shown",
        ("partition", "tiny.toml", "--set", "data.name=digit"),
        ("tiny.toml", 'data.name = "digit" is unknown; did you mean digits?'),
    ),
    # Data files
    Case(
        "no such data directory",
        (*set_("data.name=fashion-mnist"), "--data-dir", "no'where"),
        ("data directory", "no'where is not a folder", "create it"),
    ),
    Case(
        "a missing data file",
        (*set_("data.name=fashion-mnist"), "--data-dir", "data"),
        ("data holds only some files of FashionMNIST: add t10k-labels-idx1-ubyte",),
        fashion_mnist(b"", missing="t10k-labels-idx1-ubyte"),
    ),
    Case(
        "a truncated data file",
        (*set_("data.name=fashion-mnist"), "--data-dir", "data"),
        (".gz is truncated or no gzip file", "delete it and get FashionMNIST again"),
        fashion_mnist(gzip.compress(bytes(1000))[:-9]),
    ),
    Case(
        "a data file with another checksum",
        (*set_("data.name=fashion-mnist"), "--data-dir", "data"),
        (".gz is damaged or not of FashionMNIST: the MD5", "get FashionMNIST again"),
        fashion_mnist(gzip.compress(bytes(1000))),
    ),
    # The run's directory
    Case("a run directory in use", ("run", "tiny.toml", "--out", "done"), ("done is already in use: choose another",)),
    Case("a file for a directory", ("run", "tiny.toml", "--out", "tiny.toml"), ("tiny.toml is already in use",)),
    Case("a directory below a file", ("run", "tiny.toml", "--out", "tiny.toml/a/b"), ("tiny.toml/a/b cannot be",)),
    Case("a directory that is forbidden", RUN, ("out cannot be used (Permission denied): choose",), during=forbidden),
    Case(
        "a run directory that is being made",
        RUN,
        ("out is already in use: another process",),
        lambda folder: (folder / "out").mkdir(),
        during=held("out"),
    ),
    Case(
        "a run that is going on", ("resume", "done"), ("done is already in use: another process",), during=held("done")
    ),
    Case(
        "no space for the first file",
        RUN,
        ("out/run.json cannot be written (No space", "make room"),
        during=full_disk_at(1),
    ),
    Case("no space for the second file", RUN, ("out/config.toml cannot be written (No space",), during=full_disk_at(3)),
    Case("no room for any file", RUN, ("out/run.json cannot be written (File too large)",), during=files_up_to(500)),
    Case(
        "no space in mid-run, for a record",
        RUN,
        ("out/metrics.jsonl cannot be written (No space", "the last state is kept", "then resume"),
        during=full_disk_at(13),
        kept=False,
    ),
    Case(
        "no space in mid-run, for a checkpoint",
        RUN,
        ("out/checkpoint.fsp cannot be written (No space", "the last state is kept", "then resume"),
        during=full_disk_at(15),
        kept=False,
    ),
    Case(
        "no room in mid-run for a larger file",
        set_("run.rounds=12"),
        ("out/metrics.jsonl cannot be written (File too large)", "then resume"),
        during=files_up_to(4000),
        kept=False,
    ),
    Case(
        "no client that can train",
        ("run", "own.toml", "--out", "out"),
        ("round 1: 0 of 4 participants returned a usable update", "min_clients = 1", "RuntimeError: not today"),
        own_network("stubborn"),
        kept=False,
    ),
    # Encryption
    Case(
        "encryption for a method whose server needs models",
        set_(*ENCRYPTED, "method.name=feddst"),
        ('encryption.scheme = "bfv"', 'method.name = "feddst" needs each client\'s model', "fedsparsify-global"),
    ),
    Case(
        "encryption for a merge rule that needs models",
        set_(
            "encryption.scheme=bfv", "federation.min_clients=2", "method.name=fedsparsify-local", "method.merge=nonzero"
        ),
        ('with method.merge = "nonzero" needs each client\'s model',),
    ),
    Case(
        "encryption of rounded updates",
        set_("encryption.scheme=ckks", "federation.min_clients=2", "wire.uplink=int8"),
        ('encryption.scheme = "ckks" rounds updates in its own way', 'leave out wire.uplink = "int8"'),
    ),
    Case(
        "encryption of one alone",
        set_("encryption.scheme=bfv"),
        ("needs federation.min_clients of 2 or more, not 1", "shows all clients that one's model"),
    ),
    Case(
        "an encryption key that is none",
        set_(*ENCRYPTED, "encryption.key=tiny.toml"),
        ("tiny.toml is no key",),
    ),
    Case(
        "a bound that no change is within",
        set_(*ENCRYPTED, "encryption.bound=1e-320"),
        ("encryption.bound = 1e-320 is too small",),
    ),
    Case(
        "a bound that leaves no digits",
        set_(*ENCRYPTED, "encryption.bound=1e9"),
        ("encryption.bound = 1000000000.0 is too large: changes would be rounded to multiples of 8e+03",),
    ),
    Case(
        "a key of another scheme",
        ("keys", "check", "x.key", "--scheme", "ckks"),
        ("x.key: a BFV key", "does not fit", "--scheme ckks"),
        lambda folder: make_key(Scheme.of(2)).save(folder / "x.key"),
    ),
    Case("a key for nobody", ("keys", "new", "x.key", "--participants", "9999"), ("9999 participants are more than",)),
    Case(
        "a key over another file", ("keys", "new", "tiny.toml", "--participants", "9"), ("tiny.toml is there already",)
    ),
    Case(
        "a key of an unknown scheme",
        ("keys", "new", "x.key", "--participants", "9", "--scheme", "rsa"),
        ("--scheme rsa is unknown; known are bfv, ckks",),
    ),
    Case("no key to check", ("keys", "check", "x.key"), ("x.key: the key cannot be read (No such file",)),
    Case("a file that is no key", ("keys", "check", "tiny.toml"), ("tiny.toml is no key",)),
    Case(
        "a locked model without its run",
        ("keys", "open", "done", "--key", "x.key"),
        ("done is no whole run directory: it holds no config.toml; copy all of it from the server",),
        lambda folder: (folder / "done" / "config.toml").rename(folder / "done" / "model.locked"),
    ),
    Case("a misspelt table", set_("trian.lr=0.2"), ("--set: [trian] is an unknown table; did you mean train?",)),
    Case("no locked model", ("keys", "open", "done", "--key", "x.key"), ("done/model.locked cannot be read",)),
    # Resuming
    Case("nothing to resume", ("resume", "nowhere"), ("nowhere is no run directory: it holds no config.toml",)),
    Case("resuming a file", ("resume", "tiny.toml"), ("tiny.toml is no run directory",)),
    Case(
        "a checkpoint of another configuration",
        ("resume", "done"),
        ("checkpoint.fsp was written by another configuration than done/config.toml", "restore"),
        replace_in("done/config.toml", "lr = 0.1", "lr = 0.2"),
    ),
    Case(
        "a checkpoint of more rounds than are asked for",
        ("resume", "done"),
        ("checkpoint.fsp was written by another configuration than done/config.toml",),
        replace_in("done/config.toml", "rounds = 3", "rounds = 2"),
    ),
    Case(
        "a configuration that was broken since",
        ("resume", "done"),
        ("done/config.toml: train.lr = -1.0 must be more than 0",),
        replace_in("done/config.toml", "lr = 0.1", "lr = -1"),
    ),
    Case(
        "a damaged checkpoint",
        ("resume", "done"),
        ("done/checkpoint.fsp cannot be used", "restore it, or start a new run"),
        cut("done/checkpoint.fsp", 9),
    ),
    Case("an empty checkpoint", ("resume", "done"), ("checkpoint.fsp is cut off",), write("done/checkpoint.fsp", b"")),
    Case("no checkpoint", ("resume", "done"), ("checkpoint.fsp is missing",), remove("done/checkpoint.fsp")),
    Case("torn records", ("resume", "done"), ("metrics.jsonl cannot be used", "restore"), cut("done/metrics.jsonl", 9)),
    Case("no records", ("resume", "done"), ("metrics.jsonl holds 0 of the 4",), remove("done/metrics.jsonl")),
    Case("no facts", ("resume", "done"), ("run.json cannot be used", "restore it"), remove("done/run.json")),
    Case("torn facts", ("resume", "done"), ("run.json cannot be used", "restore it"), cut("done/run.json", 9)),
    # Reports
    Case("a report on nothing", ("report", "nowhere"), ("nowhere: no such run directory",)),
    Case(
        "a report on a folder",
        ("report", "."),
        (".: not a run directory, it has no run.json", "or those in it by ./*/"),
    ),
    Case("a report on no rounds", ("report", "done"), ("no rounds yet", "wait"), write("done/metrics.jsonl", b"")),
    Case(
        "a report on torn records",
        ("report", "done"),
        ("done/metrics.jsonl: line 4: not a complete JSON object",),
        cut("done/metrics.jsonl", 9),
    ),
    Case(
        "a report into a folder",
        ("report", "done", "--out", "done"),
        ("done: the report cannot be written (Is a directory); choose another --out",),
    ),
    Case(
        "a report below a file", ("report", "done", "--out", "tiny.toml/page.html"), ("the report cannot be written",)
    ),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of ``tiny.toml``."""
    folder = tmp_path_factory.mktemp("finished")
    outcome = call("run", write_config(folder), "--out", folder / "done")
    assert outcome.code == 0, outcome.err
    (folder / "done" / "report.html").unlink()
    return folder / "done"


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_wrong_input_ends_in_one_sentence_and_changes_nothing(
    case: Case, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.delitem(sys.modules, "own_code", raising=False)
    monkeypatch.delenv("FEDSPARSIFY_DATA", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    write_config(tmp_path)
    shutil.copytree(finished, tmp_path / "done")
    case.arrange(tmp_path)
    before = contents(tmp_path)

    with case.during(tmp_path):
        outcome = call(*case.arguments)

    assert outcome.code == 2, outcome.out
    assert outcome.err.startswith("error: ")
    assert outcome.err.endswith("\n") and outcome.err.count("\n") == 1, "one line"
    assert "Traceback" not in outcome.err + outcome.out
    assert all(part in outcome.err for part in case.says), outcome.err
    if case.kept:
        assert contents(tmp_path) == before
    else:
        assert_whole_and_resumable(tmp_path / "out")


def assert_whole_and_resumable(run: Path) -> None:
    assert not list(run.glob(".*.tmp"))
    assert json.loads((run / "run.json").read_text())["rounds"] >= len(records(run)) - 1
    if "own_code" in (run / "config.toml").read_text():
        assert [record["round"] for record in records(run)] == [0]
        return
    assert call("resume", run).code == 0
    config = run / "config.toml"
    assert call("run", config, "--out", "undisturbed").code == 0
    assert (run / "model.fsp").read_bytes() == (run.parent / "undisturbed" / "model.fsp").read_bytes()
    assert records(run, resumed=True) == records(run.parent / "undisturbed", resumed=True)


def test_every_key_with_a_range_has_a_value_out_of_it_in_the_table() -> None:
    tried = {case.key for case in CASES}
    assert {f"{row.table}.{row.key}" for row in PAGE if row.range} <= tried


def test_names_of_cases_are_unique() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
