"""Run directories as the engine writes them, with made-up but plausible numbers."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
LAYERS: list[tuple[str, list[int]]] = [
    ("fc1.weight", [128, 784]),
    ("fc1.bias", [128]),
    ("fc2.weight", [128, 128]),
    ("fc2.bias", [128]),
    ("fc3.weight", [10, 128]),
    ("fc3.bias", [10]),
]
PARAMETERS = 118_282
MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Return ``write_run`` that writes into the test's own directory."""
    return lambda directory="run", **settings: write_run(tmp_path / directory, **settings)


def write_run(
    path: Path,
    *,
    name: str = "fedsparsify-global-iid",
    method: str = "fedsparsify-global",
    seed: int = 1,
    rounds: int = 200,
    done: int | None = None,
    final: float = 0.95,
    frequency: int = 1,
    metric: str = "accuracy",
    failures: dict[int, list[dict[str, Any]]] | None = None,
    **facts: Any,
) -> Path:
    """Write a run of 10 clients into ``path``; ``final=0`` makes it dense, ``facts`` override keys of run.json."""
    noise = random.Random(f"{name}{seed}")
    two_classes = "noniid" in name
    classes = range(10)
    counts = [
        [3000 if k in (c, (c + 1) % 10) else 0 for k in classes] if two_classes else [600] * 10 for c in range(10)
    ]
    schedule = [final * (1 - (1 - frequency * (t // frequency) / rounds) ** 3) for t in range(rounds + 1)]
    run = {
        "version": "0.1.0",
        "name": name,
        "method": method,
        "model": "2-fc",
        "dataset": "fashion-mnist",
        "seed": seed,
        "rounds": rounds,
        "parameters": PARAMETERS,
        "layers": LAYERS,
        "partition": {"kind": "classes" if two_classes else "iid", "class_names": CLASSES, "counts": counts},
        "schedule": schedule if final else None,
        "machine": {"python": "3.11.7", "torch": "2.13.0", "cpu": "8-core", "workers": 2, "backend": "torch"},
    }
    path.mkdir(parents=True)
    (path / "run.json").write_text(json.dumps(run | facts))
    (path / "config.toml").write_text(
        f"[run]\nname = {json.dumps(name)}\nseed = {seed}\n\n[method]\nname = {json.dumps(method)}\n\n"
        f"[schedule]\nfinal = {final}\nfrequency = {frequency}\n\n[train]\nlr = 0.02\nbatch_size = 32\nepochs = 4\n"
    )
    records = [
        _record(t, schedule[t], metric, noise, (failures or {}).get(t, []), "local" in method, two_classes)
        for t in range((rounds if done is None else done) + 1)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def _record(
    t: int, sparsity: float, metric: str, noise: random.Random, failures: list[Any], local: bool, hard: bool
) -> dict[str, Any]:
    density = 1 - sparsity
    left = [
        max(1, round(math.prod(shape) * density ** (1.06 if "fc1.weight" in name else 0.3))) for name, shape in LAYERS
    ]
    learned = 1 - math.exp(-t / (18 if hard else 5))
    score = 0.1 + (0.68 if hard else 0.79) * learned + noise.gauss(0, 0.025 if hard else 0.003)
    return {
        "round": t,
        metric: score if metric == "accuracy" else 12 - 8 * learned + noise.gauss(0, 0.1),
        "loss": 2.3 - 1.9 * learned + 0.001 * t,
        "sparsity": sparsity,
        "nonzero": round(PARAMETERS * density),
        "participants": list(range(10)) if t else [],
        "failures": failures,
        "bytes_down": round(10 * (4 * PARAMETERS * density + PARAMETERS / 8)) if t else 0,
        "bytes_up": round(10 * (4 * PARAMETERS * density + (PARAMETERS / 8 if local else 0))) if t else 0,
        "seconds_train": (6 + 10 * density) * noise.uniform(0.97, 1.06) if t else 0.0,
        "seconds_round": (3.3 + 5 * density) * noise.uniform(0.97, 1.06) if t else 0.4,
        "client_drift": (0.35 + 0.55 * density) * noise.uniform(0.97, 1.03) if t else None,
        "mask_overlap": 1 - 0.3 * sparsity * noise.uniform(0.97, 1.03) if local and t else None,
        "layers_nonzero": left,
        "train_loss": 2.2 - 2 * learned if t else None,
    }
