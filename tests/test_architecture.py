"""The house of design.md, section 3, enforced: imports point one way, and some things are imported nowhere.

The rules read source text only, so they hold for optional parts whose dependencies are not installed. Each refusal
names file, line and rule. The second half of this file feeds every rule an offence that it must refuse.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

BASE = {"errors", "files", "layout", "lazy", "plugins", "randomness", "recipe", "state", "text", "version"}
AXES = {"merge", "purge", "schedules"}
TUNE = {"tune", "tune_settings", "tune_torch"}
LEAVES = {"data", "export", "models", "secure", "sparse", "wire"}
FEDERATION = BASE | AXES | TUNE | LEAVES | {"algorithms"}
CONFIG = FEDERATION | {"federation"}

# Part -> the parts it may import. A part is a file or folder directly in the package; "" is the package's __init__.
MAY_IMPORT: dict[str, set[str]] = {
    **dict.fromkeys(BASE | AXES | LEAVES, BASE),
    "export": BASE | {"sparse", "wire"},  # a file of coded values, and the kernels that it runs on
    **dict.fromkeys(TUNE, BASE | TUNE | {"data", "sparse"}),  # data for the record that examples travel in
    "algorithms": BASE | AXES | TUNE,
    "federation": FEDERATION,
    "config": CONFIG,
    "progress": CONFIG,
    "experiment": CONFIG | {"config"},
    "runs": CONFIG | {"config", "experiment"},
    "deployment": CONFIG | {"config", "experiment", "progress", "report", "runs", "site_worker"},
    "site_worker": CONFIG | {"config", "experiment"},
    "report": {"errors", "files"},
    "terminal": set(),
    "sweep_grid": BASE | {"config"},
    "sweep": BASE | {"config", "sweep_grid"},
    "sweep_display": BASE | {"progress", "sweep"},
    "sweep_cli": BASE | {"config", "experiment", "sweep", "sweep_display", "sweep_grid", "terminal"},
    "finished": CONFIG | {"config"},
    "export_cli": BASE | {"export", "finished", "progress", "terminal"},
    "inspect_cli": BASE | {"export", "federation", "progress", "terminal", "wire"},
    "deploy_keys": {"errors"},
    "deploy_texts": set(),
    "deploy": {"config", "deploy_keys", "deploy_texts", "errors", "files"},
    "supernode": {"errors"},
    "keys_cli": BASE | {"config", "federation", "models", "secure", "terminal", "wire"},
    "deploy_cli": {"config", "deploy", "errors", "experiment", "supernode", "terminal"},
    "cli": CONFIG
    | {
        "config",
        "deploy_cli",
        "experiment",
        "export_cli",
        "inspect_cli",
        "keys_cli",
        "progress",
        "report",
        "runs",
        "sweep_cli",
    }
    | {"terminal"},
    "__main__": {"cli"},
    "": CONFIG | {"config", "report", "runs"},
}

# Third-party package -> the only place that may import it.
CONFINED = {"flwr": "fedsparsify/federation/flower/", "tenseal": "fedsparsify/secure/"}

# They run code that is in the data they read.
UNSAFE_MODULES = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
UNSAFE_CALLS = {"eval", "exec", "torch.load", "torch.save"}

Sources = Mapping[str, str]  # path below src/ -> text
Rule = Callable[[Sources], Iterable[str]]  # -> offences, each with file, line and reason


@dataclass(frozen=True)
class Import:
    """One imported name: ``from module import name`` or, with an empty name, ``import module``."""

    path: str
    line: int
    module: str
    name: str
    deferred: bool  # inside a function, or for type checking only: not run when the module is loaded


def load_sources() -> Sources:
    """Return the package's own source files."""
    return {str(p.relative_to(ROOT / "src").as_posix()): p.read_text() for p in sorted((ROOT / "src").rglob("*.py"))}


def module_of(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def part_of(module: str) -> str:
    return [*module.split("."), ""][1]


def imports_of(path: str, text: str) -> Iterator[Import]:
    package = module_of(path).split(".")
    if not path.endswith("/__init__.py"):
        package.pop()

    def absolute(module: str, level: int) -> str:
        base = package[: len(package) - level + 1] if level else []
        return ".".join(base + ([module] if module else []))

    def walk(node: ast.AST, deferred: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            inner = deferred or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                inner = True
            if isinstance(child, ast.Import):
                yield from (Import(path, child.lineno, alias.name, "", deferred) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                module = absolute(child.module or "", child.level)
                yield from (Import(path, child.lineno, module, alias.name, deferred) for alias in child.names)
            elif isinstance(child, ast.Call) and ast.unparse(child.func).endswith(("import_module", "__import__")):
                match child.args:
                    case [ast.Constant(value=str(name)), *_]:
                        dots = len(name) - len(name.lstrip("."))
                        yield Import(path, child.lineno, absolute(name[dots:], dots), "", deferred)
            yield from walk(child, inner)

    yield from walk(ast.parse(text), False)


def own_imports(sources: Sources) -> Iterator[tuple[Import, str]]:
    """Yield each import of the package itself with the module that it loads."""
    modules = {module_of(path) for path in sources}
    for path, text in sources.items():
        for found in imports_of(path, text):
            if found.module.split(".")[0] == "fedsparsify":
                submodule = f"{found.module}.{found.name}"
                yield found, submodule if submodule in modules else found.module


def wrong_directions(sources: Sources) -> Iterator[str]:
    for found, target in own_imports(sources):
        here, there = part_of(module_of(found.path)), part_of(target)
        where = f"{found.path}:{found.line}"
        if here not in MAY_IMPORT:
            yield f"{where}: {here} has no place in the house: add it to MAY_IMPORT and to the design"
        elif there == "":
            yield f"{where}: imports from the package's __init__: import the module that defines {found.name or target}"
        elif here != there and there not in MAY_IMPORT[here]:
            allowed = ", ".join(sorted(MAY_IMPORT[here] - {here})) or "nothing of the package"
            yield f"{where}: {here or '__init__'} must not import {there}; it may import {allowed}"


def cycles(sources: Sources) -> Iterator[str]:
    """Yield a cycle of modules that load each other; a deferred import within a part is a way out of one."""
    edges: dict[str, dict[str, Import]] = {module_of(path): {} for path in sources}
    for found, target in own_imports(sources):
        if not found.deferred:
            edges[module_of(found.path)][target] = found
    done: set[str] = set()

    def visit(module: str, trail: list[str]) -> Iterator[str]:
        if module in trail:
            loop = [*trail[trail.index(module) :], module]
            last = edges[loop[-2]][loop[-1]]
            yield f"{last.path}:{last.line}: closes the import cycle {' -> '.join(loop)}"
        elif module not in done:
            for target in edges.get(module, {}):
                yield from visit(target, [*trail, module])
            done.add(module)

    for module in edges:
        yield from visit(module, [])


def private_names(sources: Sources) -> Iterator[str]:
    for found, _ in own_imports(sources):
        if part_of(found.module) == part_of(module_of(found.path)):
            continue
        for name in [*found.module.split("."), found.name]:
            if name.startswith("_") and not name.startswith("__"):
                yield f"{found.path}:{found.line}: {name} is private to {found.module}: make it public, or do without"


def confined_and_unsafe(sources: Sources) -> Iterator[str]:
    for path, text in sources.items():
        for found in imports_of(path, text):
            top = found.module.split(".")[0]
            if top in CONFINED and not path.startswith(CONFINED[top]):
                yield f"{path}:{found.line}: {top} may be imported only in {CONFINED[top]}"
            names = {top, found.module, f"{found.module}.{found.name}"}
            if names & (UNSAFE_MODULES | UNSAFE_CALLS):
                yield f"{path}:{found.line}: {found.module} {found.name} can run code that is in a file"
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.Call):
                continue
            if ast.unparse(node.func).removeprefix("builtins.") in UNSAFE_CALLS:
                yield f"{path}:{node.lineno}: {ast.unparse(node.func)} can run code that is in its input"
            for keyword in node.keywords:
                if keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False":
                    yield f"{path}:{node.lineno}: allow_pickle can run code that is in a file"


def sort_key(name: str) -> tuple[int, list[tuple[bool, int, str]]]:
    """Order constants, then classes, then the rest, numbers in names by value: the order that the linter writes."""
    kind = 0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2
    chunks = re.findall(r"\d+|\D+", name)
    return kind, [(not c.isdigit(), int(c) if c.isdigit() else 0, c) for c in chunks]


def bound_names(body: list[ast.stmt]) -> Iterator[str]:
    """Yield the names that a module's top level binds, whichever branch runs."""
    for node in body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                yield from (alias.asname or alias.name.split(".")[0] for alias in aliases)
            case ast.Assign() | ast.AnnAssign() | ast.For() | ast.With() | ast.If() | ast.Try():
                targets = (n for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
                yield from (target.id for target in targets)
                for part in ("body", "orelse", "finalbody"):
                    yield from bound_names(getattr(node, part, []))
                for handler in getattr(node, "handlers", []):
                    yield from bound_names(handler.body)


def undeclared(sources: Sources) -> Iterator[str]:
    for path, text in sources.items():
        tree = ast.parse(text)
        if not ast.get_docstring(tree):
            yield f"{path}:1: has no module docstring"
        if path.endswith("/__main__.py"):
            continue
        lists = [n for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__"]
        if len(lists) != 1:
            yield f"{path}:1: must have one __all__, and has {len(lists)}"
            continue
        names: list[str] = ast.literal_eval(lists[0].value)
        where = f"{path}:{lists[0].lineno}"
        if names != sorted(set(names), key=sort_key):
            yield f"{where}: __all__ must be sorted: {sorted(set(names), key=sort_key)}"
        yield from (
            f"{where}: __all__ names {n}, which is nowhere" for n in names if n not in {*bound_names(tree.body)}
        )


RULES: list[Rule] = [wrong_directions, cycles, private_names, confined_and_unsafe, undeclared]


@pytest.mark.parametrize("rule", RULES, ids=[rule.__name__ for rule in RULES])
def test_the_package_keeps_the_rules(rule: Rule) -> None:
    offences = list(rule(load_sources()))
    assert not offences, "\n" + "\n".join(offences)


def test_the_rules_see_the_package() -> None:
    sources = load_sources()
    assert {"fedsparsify/errors.py", "fedsparsify/wire/codec.py", "fedsparsify/cli.py"} <= set(sources)
    seen = {(found.path, target) for found, target in own_imports(sources)}
    assert ("fedsparsify/layout.py", "fedsparsify.errors") in seen


# The synthetic house: every part as an empty module, and in folders one module besides, so that targets resolve.
FOLDERS = LEAVES | {"algorithms", "federation", "report"}
HOUSE = {
    "fedsparsify/__init__.py": "",
    **{f"fedsparsify/{part}.py": "" for part in MAY_IMPORT if part and part not in FOLDERS},
    **{f"fedsparsify/{part}/{name}.py": "" for part in FOLDERS for name in ("__init__", "inside")},
}


def test_an_empty_house_is_in_order() -> None:
    for rule in (wrong_directions, cycles, private_names, confined_and_unsafe):
        assert list(rule(HOUSE)) == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("errors.py", "from . import state as _; from .cli import main"),
        ("state.py", "from .purge import magnitude_mask"),
        ("layout.py", "from . import merge"),
        ("plugins.py", "import fedsparsify.config"),
        ("purge.py", "from .schedules import PolynomialSchedule"),
        ("merge.py", "from fedsparsify.purge import magnitude_mask"),
        ("schedules.py", "from .algorithms import fedavg"),
        ("tune.py", "from .merge import weighted_average"),
        ("tune.py", "from .federation import engine"),
        ("algorithms/inside.py", "from ..federation import Engine"),
        ("algorithms/inside.py", "from ..wire import encode"),
        ("algorithms/inside.py", "from ..data import load"),
        ("wire/inside.py", "from ..merge import weighted_average"),
        ("wire/inside.py", "from ..sparse import kernels"),
        ("secure/inside.py", "from .. import wire"),
        ("sparse/inside.py", "def f():\n    from ..tune import train"),
        ("data/inside.py", "import fedsparsify.models.inside"),
        ("data/__init__.py", "from ..config import load_settings"),
        ("models/inside.py", "from ..data import Dataset"),
        ("export/inside.py", "from ..federation.inside import load"),
        ("federation/inside.py", "from ..config import Settings"),
        ("federation/inside.py", "from ..report import write_report"),
        ("federation/inside.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..cli import app"),
        ("federation/inside.py", "import importlib\nimportlib.import_module('fedsparsify.cli')"),
        ("federation/inside.py", "import importlib\nimportlib.import_module('..cli', __package__)"),
        ("config.py", "from .cli import main"),
        ("config.py", "from .experiment import federate"),
        ("experiment.py", "from .report import write_report"),
        ("report/inside.py", "from ..state import ModelState"),
        ("report/inside.py", "from fedsparsify.federation.inside import load"),
        ("wire/inside.py", "from fedsparsify import errors, encode"),
        ("wire/inside.py", "import fedsparsify"),
        ("__init__.py", "from .cli import main"),
        ("newcomer.py", "from .errors import FedSparsifyError"),
    ],
)
def test_an_import_against_the_direction_is_refused(path: str, line: str) -> None:
    offences = list(wrong_directions({**HOUSE, f"fedsparsify/{path}": line}))
    assert len(offences) == 1
    assert re.match(rf"fedsparsify/{path}:\d: ", offences[0])


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("layout.py", "from .state import Floats; from .errors import ArgumentError"),
        ("tune.py", "from .sparse import Trainer; from .data import Dataset"),
        ("algorithms/inside.py", "from ..purge import magnitude_mask; from . import inside2"),
        ("federation/inside.py", "from ..wire import encode; from ..algorithms import Method; from . import engine"),
        ("wire/inside.py", "from . import codec; from ..errors import WireError; import numpy"),
        ("cli.py", "from . import experiment; from .report import write_report"),
        ("__init__.py", "from .runs import federate"),
    ],
)
def test_an_import_along_the_direction_is_accepted(path: str, line: str) -> None:
    assert list(wrong_directions({**HOUSE, f"fedsparsify/{path}": line})) == []


def test_modules_that_load_each_other_are_refused_unless_one_waits() -> None:
    loop = {
        **HOUSE,
        "fedsparsify/wire/a.py": "from .b import x",
        "fedsparsify/wire/b.py": "from . import c",
        "fedsparsify/wire/c.py": "import os\nfrom .a import y",
    }
    chain = " -> ".join(f"fedsparsify.wire.{name}" for name in "abca")
    assert list(cycles(loop)) == [f"fedsparsify/wire/c.py:2: closes the import cycle {chain}"]
    assert list(cycles({**loop, "fedsparsify/wire/c.py": "def f():\n    from .a import y"})) == []


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    [
        (private_names, "cli.py", "from .config import _check"),
        (private_names, "tune.py", "from .sparse._native import train"),
        (private_names, "tune.py", "from .sparse import _native"),
        (confined_and_unsafe, "federation/inside.py", "import flwr"),
        (confined_and_unsafe, "cli.py", "def f():\n    from flwr.server import start"),
        (confined_and_unsafe, "wire/inside.py", "import tenseal as ts"),
        (confined_and_unsafe, "wire/inside.py", "import pickle"),
        (confined_and_unsafe, "wire/inside.py", "from pickle import loads"),
        (confined_and_unsafe, "wire/inside.py", "import torch\ntorch.load('x')"),
        (confined_and_unsafe, "wire/inside.py", "from torch import load"),
        (confined_and_unsafe, "wire/inside.py", "import numpy\nnumpy.load('x', allow_pickle=True)"),
        (confined_and_unsafe, "config.py", "eval('1')"),
        (confined_and_unsafe, "config.py", "import builtins\nbuiltins.exec('1')"),
        (undeclared, "wire/inside.py", '"""Doc."""'),
        (undeclared, "wire/inside.py", "__all__ = []"),
        (undeclared, "wire/inside.py", '"""Doc."""\na = B = 1\n__all__ = ["a", "B"]'),
        (undeclared, "wire/inside.py", '"""Doc."""\na = 1\n__all__ = ["a", "a"]'),
        (undeclared, "wire/inside.py", '"""Doc."""\n__all__ = ["missing"]'),
    ],
)
def test_an_offence_is_refused_with_its_place(rule: Rule, path: str, text: str) -> None:
    offences = list(rule({f"fedsparsify/{path}": text, "fedsparsify/sparse/__init__.py": '"""Doc."""\n__all__ = []'}))
    assert len(offences) == 1
    assert re.match(rf"fedsparsify/{path}:\d: ", offences[0])


@pytest.mark.parametrize(
    "text",
    [
        "model.eval()",  # a network's evaluation mode
        "import numpy\nnumpy.load('x', allow_pickle=False)",
        "def load(): ...\nload()",
    ],
)
def test_a_harmless_likeness_is_accepted(text: str) -> None:
    assert list(confined_and_unsafe({"fedsparsify/wire/inside.py": text})) == []


def test_flower_and_tenseal_have_their_places() -> None:
    homes = {"fedsparsify/federation/flower/apps.py": "import flwr", "fedsparsify/secure/ckks.py": "import tenseal"}
    assert list(confined_and_unsafe(homes)) == []


def test_all_is_sorted_as_the_linter_sorts_it() -> None:
    text = '"""Doc."""\nDATA = Layer = fc2 = fc10 = 1\n__all__ = ["DATA", "Layer", "fc2", "fc10"]'
    assert list(undeclared({"fedsparsify/wire/inside.py": text})) == []
