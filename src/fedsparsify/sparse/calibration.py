"""Which backend is fastest at which density, measured once on the machine at hand.

The measurement trains two small networks, one of linear layers and one of convolutions, with dense torch, with the
native dense kernels, and with the native sparse kernels at several densities. Every figure is the time of one training
step divided by its multiply-adds at full density (forward only; the two gradients are in the time), so that it can be
scaled to other layers.
"""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..errors import ArgumentError
from ..state import Mask
from .native import available, require_native
from .plan import LayerPlan, NetworkPlan, plan_network

__all__ = ["Calibration", "Choice", "LayerBackend", "LayerTimes", "calibrate", "choose", "processor"]

LayerBackend = Literal["sparse", "dense"]
_VERSION = 1
_DENSITIES = (0.01, 0.05, 0.2, 0.5, 1.0)
_BATCH = 32
_lock = threading.Lock()
_measured: dict[str, Calibration] = {}


@dataclass(frozen=True)
class LayerTimes:
    """Nanoseconds of training per 1000 dense multiply-adds of one kind of layer.

    Attributes:
        torch: dense torch.
        dense: native dense kernels.
        sparse: native sparse kernels, one figure for each of ``Calibration.densities``.
    """

    torch: float
    dense: float
    sparse: tuple[float, ...]


@dataclass(frozen=True)
class Calibration:
    """What was measured on one machine; plain values, so that it can be stored with a run.

    Attributes:
        key: processor, instruction set and version it holds for.
        densities: ascending, where ``LayerTimes.sparse`` was measured.
        linear: times of linear layers.
        conv: times of convolutions.
        torch_step: nanoseconds that a torch step takes beside its arithmetic, for each layer.
    """

    key: str
    densities: tuple[float, ...]
    linear: LayerTimes
    conv: LayerTimes
    torch_step: float

    @property
    def target(self) -> str:
        """The instruction set that was measured, one of :func:`targets`."""
        return self.key.split(" | ")[1]

    def times(self, layer: LayerPlan) -> LayerTimes:
        """The times that hold for a layer."""
        return self.linear if layer.kind == "linear" else self.conv

    def sparse_time(self, layer: LayerPlan, density: float) -> float:
        """Nanoseconds per 1000 dense multiply-adds at a density, interpolated between the measured ones."""
        return float(np.interp(density, self.densities, self.times(layer).sparse))

    @classmethod
    def from_json(cls, data: Any) -> Calibration:
        """Read what ``dataclasses.asdict`` wrote.

        Raises:
            ArgumentError: the data is not a calibration.
        """
        try:
            times = {
                k: LayerTimes(float(data[k]["torch"]), float(data[k]["dense"]), tuple(map(float, data[k]["sparse"])))
                for k in ("linear", "conv")
            }
            densities = tuple(map(float, data["densities"]))
            out = cls(str(data["key"]), densities, torch_step=float(data["torch_step"]), **times)
        except (KeyError, TypeError, ValueError) as e:
            raise ArgumentError(f"not a calibration: {e!r}") from e
        figures = [v for t in times.values() for v in (t.torch, t.dense, *t.sparse)]
        lengths = {len(out.densities), *(len(t.sparse) for t in times.values())}
        sound = list(out.densities) == sorted(out.densities) and out.key.count(" | ") == 2
        sound = sound and 0 <= out.torch_step < math.inf
        if len(lengths) != 1 or not out.densities or not sound or any(not 0 < v < math.inf for v in figures):
            raise ArgumentError("not a calibration: its figures are incomplete or not positive")
        return out


@dataclass(frozen=True)
class Choice:
    """What to train a network with; a plain value to record, and to pass back in for the same bits.

    Attributes:
        backend: ``native`` for :class:`Trainer`, ``torch`` for dense torch.
        layers: ``sparse`` or ``dense`` for each linear and convolution layer, for ``Trainer(backends=...)``.
        ratio: how many times faster than dense torch a step is expected to be.
    """

    backend: Literal["native", "torch"]
    layers: tuple[LayerBackend, ...]
    ratio: float


def choose(plan: NetworkPlan, mask: Mask, batch_size: int, *, calibration: Calibration | None = None) -> Choice:
    """Choose the backends for one network under one mask.

    Args:
        plan: the network.
        mask: bool[n].
        batch_size: examples in a step.
        calibration: measurements to go by; by default those of this machine, see :func:`calibrate`.

    Raises:
        ArgumentError: the mask does not fit the network.
    """
    if mask.shape != (plan.n,):
        raise ArgumentError(f"mask has the shape {mask.shape}, but the network needs ({plan.n},)")
    if not available():
        none: LayerBackend = "dense"
        return Choice("torch", (none,) * len(plan.weighted), 1.0)
    calibration = calibration or calibrate()
    layers: list[LayerBackend] = []
    native = torch_time = 0.0
    for layer in plan.weighted:
        kept = np.count_nonzero(mask[layer.weight : layer.weight + layer.weight_size])
        times = calibration.times(layer)
        sparse = calibration.sparse_time(layer, kept / layer.weight_size)
        layers.append("sparse" if sparse < times.dense else "dense")
        work = layer.weight_size * layer.pixels * batch_size / 1000
        native += min(sparse, times.dense) * work
        torch_time += times.torch * work
    torch_time += calibration.torch_step * len(plan.layers)
    ratio = torch_time / max(native, 1.0)
    return Choice("native" if ratio >= 1.0 else "torch", tuple(layers), ratio)


def calibrate(*, refresh: bool = False, cache: Path | None = None) -> Calibration:
    """Return this machine's measurements, taken now (about a second) where there are none yet.

    They are kept in the user's cache folder, and measured anew for another processor, instruction set or version. Call
    this once before starting threads: others running at the same time disturb the measurement.

    Args:
        refresh: measure again even so.
        cache: file to keep them in, instead of the one in the cache folder.

    Raises:
        ArgumentError: the extension is not built.
    """
    native = require_native()
    key = f"{processor()} | {native.targets()[0]} | {native.version}.{_VERSION}"
    path = cache or _cache_file()
    with _lock:
        if not refresh:
            known = _measured.get(f"{key} {path}") or _read(path, key)
            if known is not None:
                _measured[f"{key} {path}"] = known
                return known
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            known = _measure(key)
        finally:
            torch.set_num_threads(threads)
        # Another process may have measured meanwhile: all must go by one measurement, or their bits could differ.
        earlier = None if refresh else _read(path, key)
        if earlier is None:
            _write(path, known)
        _measured[f"{key} {path}"] = known = earlier or known
        return known


def _cache_file() -> Path:
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "fedsparsify" / "calibration.json"


def processor() -> str:
    """Return the processor's name, or on systems that have none the numbers that identify it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    parts = [fields[name] for name in ("CPU implementer", "CPU part") if name in fields]  # 64-bit Arm
    return fields.get("model name") or " ".join([platform.machine(), *parts])


def _read(path: Path, key: str) -> Calibration | None:
    try:
        known = Calibration.from_json(json.loads(path.read_text()))
    except (OSError, ValueError):
        return None
    return known if known.key == key else None


def _write(path: Path, calibration: Calibration) -> None:
    """Keep the measurements for the next process; a folder that cannot be written only costs a second there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".json", delete=False) as file:
            json.dump(asdict(calibration), file, indent=1)
        os.replace(file.name, path)
    except OSError:
        return


def _measure(key: str) -> Calibration:
    linear = nn.Sequential(nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 8))
    conv = nn.Sequential(
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64 * 36, 4),
    )  # fmt: skip
    tiny = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
    small = _torch_step(tiny, (8,)) / len(tiny)
    return Calibration(
        key,
        _DENSITIES,
        _layer_times(linear, (512,), 8, small),
        _layer_times(conv, (32, 12, 12), 1, small),
        small,
    )


def _layer_times(module: nn.Sequential, shape: tuple[int, ...], steps: int, overhead: float) -> LayerTimes:
    plan = plan_network(module, "cross-entropy", shape)
    assert plan is not None  # a network of this file, planned in every run of the tests
    work = sum(layer.weight_size * layer.pixels for layer in plan.weighted) * _BATCH / 1000
    torch_time = max(_torch_step(module, shape) - overhead * len(module), 1.0)
    dense = _native_step(plan, 1.0, "dense", steps)
    sparse = [_native_step(plan, d, "sparse", steps) for d in _DENSITIES]
    return LayerTimes(torch_time / work, dense / work, tuple(t / work for t in sparse))


def _native_step(plan: NetworkPlan, density: float, backend: LayerBackend, steps: int) -> float:
    from .trainer import Trainer  # the trainer chooses its backends here, so this module is there first

    rng = np.random.default_rng(0)
    mask = rng.random(plan.n) < density
    w = rng.standard_normal(plan.n).astype(np.float32) * 0.01
    trainer = Trainer(plan, w, mask, np.zeros(0, np.float32), lr=0.0, batch_size=_BATCH, backends=backend)
    x = rng.standard_normal((_BATCH * steps, *plan.input_shape)).astype(np.float32)
    y = np.zeros(len(x), np.int64)
    return _best(lambda: trainer.epoch(x, y)) / steps


def _torch_step(module: nn.Module, shape: tuple[int, ...]) -> float:
    x = torch.zeros(_BATCH, *shape)
    y = torch.zeros(_BATCH, dtype=torch.long)
    parameters = list(module.parameters())

    def step() -> None:
        gradients = torch.autograd.grad(F.cross_entropy(module(x), y), parameters)
        with torch.no_grad():
            for p, g in zip(parameters, gradients, strict=True):
                p.sub_(g, alpha=0.0)

    return _best(step)


def _best(run: Callable[[], object], repeats: int = 7) -> float:
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter_ns()
        run()
        times.append(time.perf_counter_ns() - start)
    return min(times)  # other programs only ever make a run longer
