"""A finished run as what can be exported: network and final parameters, the data's recipe, where it comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import data, models
from .config import OWN, Settings, load_settings
from .data import Dataset
from .errors import ArgumentError, DataError, RunError, WireError
from .export.artifact import Artifact
from .export.descriptions import Facts
from .export.graph import Graph
from .export.model import SparseModel
from .export.trace import trace
from .files import check_run
from .layout import ParameterLayout
from .recipe import Recipe
from .state import ModelState
from .version import __version__
from .wire import Kind, decode

__all__ = ["Finished", "artifact_of", "load_finished", "recipe_for", "score"]


@dataclass(frozen=True, eq=False)
class Finished:
    """What a finished run leaves.

    Attributes:
        artifact: the trained network, ready to be written.
        test: the test set, prepared.
        state: PyTorch's state dict of the network, as arrays.
    """

    artifact: Artifact
    test: Dataset
    state: Mapping[str, NDArray[Any]]


def load_finished(
    run: Path, data_dir: Path | None = None, *, network: Any = None, test: Dataset | None = None
) -> Finished:
    """Read a run directory whose rounds are all done.

    Args:
        run: the directory.
        data_dir: folder with the data files, in place of that in the run's configuration.
        network: of a run that was started from Python its ``torch.nn.Module``, which gets the final parameters.
        test: of such a run its test set.

    Raises:
        RunError: it is no run directory, is not finished, or was started from Python and ``network`` or ``test`` is
            missing.
        DataError: the data set is not here; its normalisation belongs to the model.
        ArgumentError: the network does something that cannot be exported.
    """
    check_run(run)
    settings = load_settings(run / "config.toml")
    path = run / "model.fsp"
    if not path.is_file():
        remedy = f"go on with it by fedsparsify resume {run}"
        if not (run / "checkpoint.fsp").is_file():
            remedy = "these are records only: run its config.toml again"
        raise RunError(f"{run} is not finished: it holds no model.fsp; {remedy}")
    if (settings.model.name == OWN and network is None) or (settings.data.name == OWN and test is None):
        raise RunError(
            f"{run} was started from Python, so its network and data are not known here: export it there by"
            " load_finished(run, network=..., test=...) (docs/export.md, Your own network and data)"
        )
    module = network
    if module is None:
        module = models.build(settings.model.name, settings.run.seed, **settings.model.options)
    layout = ParameterLayout.of(module)
    try:
        message = decode(path.read_bytes(), layout, expected=Kind.MODEL)
    except WireError as error:
        remedy = "restore it, or " + (
            "give the network that the run trained"
            if network is not None
            else f"delete it and run fedsparsify resume {run}"
        )
        raise RunError(f"{path} cannot be used ({error}): {remedy}") from error
    if test is None:
        folder = data_dir or (Path(settings.data.dir).expanduser() if settings.data.dir else None)
        _, test = data.load(settings.data.name, folder, options=settings.data.options)
    layout.write(module, message.model.w, message.model.buffers)
    try:
        graph = trace(module, test.x.shape[1:])
    except ArgumentError as error:
        raise ArgumentError(f'model.name = "{settings.model.name}" cannot be exported: {error}') from error
    state = {name: tensor.detach().cpu().numpy() for name, tensor in module.state_dict().items()}
    artifact = Artifact(graph, recipe_for(graph, test), _facts(run, settings, message.model, message.round))
    return Finished(artifact, test, state)


def artifact_of(module: Any, test: Dataset, facts: Facts | None = None) -> Artifact:
    """Return a network of your own as what can be written, with its present parameters.

    Args:
        module: a ``torch.nn.Module``.
        test: examples of its data, for their shape, class names and recipe.
        facts: what is to be remembered of its origin.

    Raises:
        ArgumentError: the network does something that cannot be exported.
    """
    graph = trace(module, test.x.shape[1:])
    return Artifact(graph, recipe_for(graph, test), {"version": __version__, **(facts or {})})


def recipe_for(graph: Graph, test: Dataset) -> Recipe:
    """Return the data set's recipe, or one that leaves examples as they are; labels are named as the outputs need.

    Raises:
        DataError: the inputs are words, but the data set does not say how texts become them.
    """
    recipe = test.recipe
    if recipe is None:
        if graph.input_dtype == "int64":
            raise DataError("the network reads words, but its data set has no recipe: give Dataset.recipe")
        recipe = Recipe(shape=test.x.shape[1:], target_scale=test.y_scale)
    if test.num_classes and not recipe.labels:
        names = test.class_names or tuple(map(str, range(test.num_classes)))
        recipe = replace(recipe, labels=names)
    return recipe


def score(graph: Graph, recipe: Recipe, test: Dataset) -> tuple[str, float]:
    """Return what a graph reaches on a test set: ``accuracy``, or ``mae`` in the target's unit."""
    model = SparseModel(Artifact(graph, recipe))
    kind = np.int64 if graph.input_dtype == "int64" else np.float32
    outputs = np.concatenate([model.forward(test.x[i : i + 256].astype(kind)) for i in range(0, len(test), 256)])
    if recipe.labels:
        return "accuracy", float((outputs.argmax(1) == test.y).mean())
    return "mae", float(np.abs(outputs - test.y).mean() * test.y_scale)


def _facts(run: Path, settings: Settings, model: ModelState, round: int) -> Facts:
    facts: dict[str, str | int | float] = {
        "version": __version__,
        "configuration": settings.digest.hex(),
        "run": settings.run.name or run.name,
        "model": settings.model.name,
        "data set": settings.data.name,
        "method": settings.method.name,
        "rounds": round,
        "sparsity": model.sparsity,
    }
    try:
        last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
        facts |= {key: float(last[key]) for key in ("accuracy", "mae", "loss") if key in last}
    except (OSError, ValueError, LookupError, TypeError):
        return facts  # the model is whole without its records
    return facts
