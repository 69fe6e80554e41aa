"""Training speed on sparse masks, one thread, against dense masked torch, ``sparseprop`` and ``torch.sparse``.

For each network: train it a little, then purge it step by step to the listed sparsities, training on between the
steps, as federated rounds do; measure at each. All contenders take steps in turn in one process, and the table holds
medians and the ratio of paired times. Run it on an idle machine:

    python benchmarks/local_training.py                          # 2-FC on FashionMNIST and 6-CNN on CIFAR-10
    python benchmarks/local_training.py --network 2-FC --pairs 50
    python benchmarks/local_training.py --data-dir ../shared/data --json table.json

``sparseprop`` takes part where it can be imported. The columns ``FMA`` and ``bandwidth`` are the fractions of this
machine's measured multiply-add rate and memory bandwidth that our step reaches, counting only multiply-adds with
surviving weights, and every activation, gradient and parameter as often as a step must touch it.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fedsparsify.layout import ParameterLayout
from fedsparsify.models.cnn6 import cnn6
from fedsparsify.models.fc2 import fc2
from fedsparsify.sparse import NetworkPlan, Trainer, available, calibrate, choose, plan_network, targets
from fedsparsify.sparse.native import require_native

SPARSITIES = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
BATCH = 32


@dataclass(frozen=True)
class Row:
    """One line of the table; times in microseconds a step, ratios against masked dense torch."""

    network: str
    sparsity: float
    backend: str
    layers: str
    torch_us: float
    ours_us: float
    ratio: float
    sparseprop: float | None
    torch_sparse: float | None
    fma: float
    bandwidth: float
    densities: tuple[float, ...]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=["2-FC", "6-CNN"], action="append", help="default: both")
    parser.add_argument("--data-dir", type=Path, help="folder with cifar-10-batches-bin, for 6-CNN")
    parser.add_argument("--fashion-dir", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--sparsity", type=float, action="append", help="default: all seven")
    parser.add_argument("--pairs", type=int, help="paired measurements (default: 31 for 2-FC, 7 for 6-CNN)")
    parser.add_argument("--no-rivals", action="store_true", help="leave out sparseprop and torch.sparse")
    parser.add_argument("--backend", choices=["auto", "sparse", "dense"], default="auto")
    parser.add_argument("--masks", type=Path, help="file to keep the trained masks in between runs (.npz)")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    args = parser.parse_args()
    if args.data_dir is None and args.network != ["2-FC"]:
        parser.error("6-CNN is trained on CIFAR-10: say where it is with --data-dir, or add --network 2-FC")
    if not available():
        raise SystemExit("the native kernels are not built")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", message="Sparse")  # torch's notices that its CSR tensors are in beta
    calibrate()
    rate, bandwidth = require_native().peak(targets()[0])
    print(f"{targets()[0]}: {rate / 1e9:.1f} G multiply-adds/s, {bandwidth / 1e9:.1f} GB/s, one thread, batch {BATCH}")
    rows: list[Row] = []
    header()
    for network in args.network or ["2-FC", "6-CNN"]:
        module = fc2() if network == "2-FC" else cnn6()
        x, y = fashion_mnist(args.fashion_dir) if network == "2-FC" else cifar10(args.data_dir)
        for sparsity, w, buffers, mask in purged_states(network, module, x, y, args.sparsity or SPARSITIES, args.masks):
            row = measure(network, module, sparsity, (w, buffers, mask), (x, y), args, (rate, bandwidth))
            rows.append(row)
            show(row)
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


# Data and masks ------------------------------------------------------------------------------------------------------


def fashion_mnist(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """All training examples: float32[60000, 1, 28, 28], int64[60000]."""
    with gzip.open(folder / "train-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    with gzip.open(folder / "train-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8).astype(np.int64)
    return (images.astype(np.float32) / 255 - 0.286) / 0.353, labels


def cifar10(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The first of the five training files: float32[10000, 3, 32, 32], int64[10000]."""
    raw = np.fromfile(folder / "cifar-10-batches-bin" / "data_batch_1.bin", np.uint8).reshape(-1, 3073)
    images = raw[:, 1:].reshape(-1, 3, 32, 32).astype(np.float32) / 255
    return np.ascontiguousarray((images - 0.473) / 0.251), raw[:, 0].astype(np.int64)


def purged_states(network, module, x, y, sparsities, masks: Path | None):  # type: ignore[no-untyped-def]
    """Yield ``(sparsity, w, buffers, mask)``, purging further and training on at each sparsity."""
    plan = plan_for(module, x)
    w, buffers = ParameterLayout.of(module).read(module)
    mask = np.ones(plan.n, bool)
    rng = np.random.default_rng(0)
    kept = dict(np.load(masks)) if masks and masks.exists() else {}
    settings = {"lr": 0.02} if network == "2-FC" else {"lr": 0.005, "momentum": 0.75}
    examples = 60_000 if network == "2-FC" else 3_200
    for sparsity in sorted(sparsities):
        key = f"{network} {sparsity}"
        if f"{key} w" not in kept:
            size = plan.n - math.floor(sparsity * plan.n)
            keep = np.argsort(-np.where(mask, np.abs(w), -1.0), kind="stable")[:size]
            mask = np.zeros(plan.n, bool)
            mask[keep] = True
            trainer = Trainer(plan, np.where(mask, w, 0), mask, buffers, batch_size=BATCH, **settings)
            trainer.epoch(x, y, rng.permutation(len(x))[:examples])
            w, buffers = trainer.weights(), trainer.buffers()
            kept |= {f"{key} w": w, f"{key} b": buffers, f"{key} m": mask}
            if masks:
                np.savez(masks, **kept)
        w, buffers, mask = kept[f"{key} w"], kept[f"{key} b"], kept[f"{key} m"]
        yield sparsity, w, buffers, mask


def plan_for(module: nn.Module, x: np.ndarray) -> NetworkPlan:
    """The plan of a network of this file."""
    plan = plan_network(module, "cross-entropy", x.shape[1:])
    if plan is None:
        raise SystemExit("the compiled trainer does not cover this network")
    return plan


# Contenders: each is a function that takes one step on a batch -------------------------------------------------------

Step = Callable[[torch.Tensor, torch.Tensor], object]


def masked_dense_torch(module: nn.Module, w: np.ndarray, buffers: np.ndarray, mask: np.ndarray, lr: float) -> Step:
    """Dense torch over one flat vector, with the mask and the update as two in-place operations."""
    ParameterLayout.of(module).write(module, w, buffers)
    module.train()
    flat = torch.from_numpy(w.copy())
    gradient = torch.zeros_like(flat)
    keep = torch.from_numpy(mask.astype(np.float32))
    offset = 0
    for p in module.parameters():
        p.data = flat[offset : offset + p.numel()].view(p.shape)
        p.grad = gradient[offset : offset + p.numel()].view(p.shape)
        offset += p.numel()

    def step(x: torch.Tensor, y: torch.Tensor) -> None:
        gradient.zero_()
        F.cross_entropy(module(x), y).backward()
        gradient.mul_(keep)
        flat.add_(gradient, alpha=-lr)

    return step


def plain_sgd(module: nn.Module, lr: float) -> Step:
    """Step over a module's own parameters, for the rivals, whose parameters are the survivors."""
    parameters = [p for p in module.parameters() if p.requires_grad]

    def step(x: torch.Tensor, y: torch.Tensor) -> None:
        for p in parameters:
            p.grad = None
        F.cross_entropy(module(x), y).backward()
        with torch.no_grad():
            torch._foreach_add_(parameters, [p.grad for p in parameters], alpha=-lr)

    return step


def with_layers(module: nn.Module, swap: Callable[[nn.Module], nn.Module]) -> nn.Sequential:
    """The same chain with its linear and convolution layers replaced."""
    return nn.Sequential(*(swap(m) if isinstance(m, nn.Linear | nn.Conv2d) else m for m in module.children()))


def sparseprop_module(module: nn.Module) -> nn.Module | None:
    """The network in ``sparseprop`` layers, in whichever of its two convolutions it finds faster; None without it."""
    try:
        from sparseprop.modules import SparseConv2d, SparseLinear
    except ImportError:
        return None

    def swap(layer: nn.Module) -> nn.Module:
        if isinstance(layer, nn.Linear):
            return SparseLinear.from_dense(layer)
        return SparseConv2d.from_dense(layer, vectorizing_over_on=False)

    return with_layers(module, swap)


class TorchSparse(nn.Module):
    """A linear or convolution layer over ``torch.sparse`` CSR matrices; convolutions by unfolding."""

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        csr = layer.weight.detach().flatten(1).to_sparse_csr()
        self.values, self.bias = nn.Parameter(csr.values()), layer.bias
        self.crow, self.col, self.shape = csr.crow_indices(), csr.col_indices(), tuple(csr.shape)
        t = torch.sparse_csr_tensor(self.crow, self.col, torch.arange(csr.values().numel()), self.shape)
        self.crow_t, self.col_t, self.order_t = _transpose(t)
        self.window = None if isinstance(layer, nn.Linear) else (layer.kernel_size, layer.padding)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As the layer it stands for."""
        if self.window is None:
            return _CsrProduct.apply(self.values, x.t(), self).t() + self.bias
        n, _, h, w = x.shape
        columns = F.unfold(x, self.window[0], padding=self.window[1])
        product = _CsrProduct.apply(self.values, columns.transpose(0, 1).reshape(columns.shape[1], -1), self)
        return (product + self.bias[:, None]).view(-1, n, h, w).transpose(0, 1)


def _transpose(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows = torch.repeat_interleave(torch.arange(t.shape[0]), t.crow_indices().diff())
    order = torch.argsort(t.col_indices() * t.shape[0] + rows)
    counts = torch.bincount(t.col_indices(), minlength=t.shape[1])
    return F.pad(counts.cumsum(0), (1, 0)), rows[order], order


class _CsrProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, x: torch.Tensor, layer: TorchSparse) -> torch.Tensor:
        ctx.save_for_backward(values, x)
        ctx.layer = layer
        return torch.sparse_csr_tensor(layer.crow, layer.col, values, layer.shape) @ x

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        values, x = ctx.saved_tensors
        layer = ctx.layer
        zeros = torch.sparse_csr_tensor(layer.crow, layer.col, torch.zeros_like(values), layer.shape)
        dvalues = torch.sparse.sampled_addmm(zeros, dy.contiguous(), x.t().contiguous(), beta=0.0).values()
        dx = None
        if ctx.needs_input_grad[1]:
            shape = (layer.shape[1], layer.shape[0])
            dx = torch.sparse_csr_tensor(layer.crow_t, layer.col_t, values[layer.order_t], shape) @ dy
        return dvalues, dx, None


# Measurement ---------------------------------------------------------------------------------------------------------


def measure(network, module, sparsity, state, data, args, peaks) -> Row:  # type: ignore[no-untyped-def]
    """Let the contenders take turns on the same batches."""
    w, buffers, mask = state
    x, y = data
    plan = plan_for(module, x)
    small = network == "2-FC"
    steps, pairs = (20, args.pairs or 31) if small else (1, args.pairs or 7)
    rival_runs = 5 if small else 1
    choice = choose(plan, mask, BATCH)
    layers = choice.layers if args.backend == "auto" else (args.backend,) * len(plan.weighted)
    lr = 1e-4
    ours = Trainer(plan, w, mask, buffers, lr=lr, batch_size=BATCH, backends=layers)
    dense = masked_dense_torch(module, w, buffers, mask, lr)
    rivals: list[Step | None] = [None, None]
    if not args.no_rivals:
        sparseprop = sparseprop_module(module)
        rivals = [None if sparseprop is None else plain_sgd(sparseprop, lr)]
        rivals.append(plain_sgd(with_layers(module, TorchSparse), lr))  # type: ignore[arg-type]
    size = BATCH * steps
    times: list[list[float]] = [[], [], [], []]
    for pair in range(pairs + 1):
        begin = pair * size % (len(x) - size)
        xs, ys = x[begin : begin + size], y[begin : begin + size]
        batches = [
            (torch.from_numpy(xs[i : i + BATCH]), torch.from_numpy(ys[i : i + BATCH])) for i in range(0, size, BATCH)
        ]
        runs = [lambda xs=xs, ys=ys: ours.epoch(xs, ys), *(_stepper(s, batches) for s in (dense, *rivals))]
        if pair % 2:
            runs[0], runs[1] = runs[1], runs[0]
        for i, run in enumerate(runs):
            if run is None or (i > 1 and pair > rival_runs):
                continue
            start = time.perf_counter()
            run()
            slot = 1 - i if pair % 2 and i < 2 else i
            if pair:  # the first pair warms up
                times[slot].append((time.perf_counter() - start) / steps * 1e6)
    ours_us, torch_us = statistics.median(times[0]), statistics.median(times[1])
    ratio = statistics.median(t / o for o, t in zip(times[0], times[1], strict=True))
    if choice.backend == "torch" and args.backend == "auto":
        ours_us, ratio = torch_us, 1.0
    fma, traffic = work_of(plan, mask)
    return Row(
        network, sparsity, choice.backend if args.backend == "auto" else "native",
        "".join(b[0] for b in layers), torch_us, ours_us, ratio,
        *(torch_us / statistics.median(t) if t else None for t in times[2:]),
        fma / (ours_us * 1e-6) / peaks[0], traffic / (ours_us * 1e-6) / peaks[1],
        tuple(float(mask[p.weight : p.weight + p.weight_size].mean()) for p in plan.weighted),
    )  # fmt: skip


def _stepper(step: Step | None, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> Callable[[], None] | None:
    if step is None:
        return None

    def run() -> None:
        for xb, yb in batches:
            step(xb, yb)

    return run


def work_of(plan: NetworkPlan, mask: np.ndarray) -> tuple[float, float]:
    """Multiply-adds with survivors, and bytes that must move, in one step."""
    fma = traffic = 0.0
    for i, layer in enumerate(plan.weighted):
        kept = int(mask[layer.weight : layer.weight + layer.weight_size].sum())
        passes = 2 if i == 0 else 3
        fma += passes * kept * layer.pixels * BATCH
        traffic += kept * 4 * 6  # read forward and backward; gradient written and read; updated
    for layer in plan.layers:
        traffic += 4 * 4 * BATCH * math.prod(layer.out_shape)  # activation and its gradient, written and read
    return fma, traffic


def header() -> None:
    """Print the head of the table."""
    print("| network | sparsity | layers | torch µs | ours µs | ours | sparseprop | torch.sparse | FMA | bandwidth |")
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)


def show(row: Row) -> None:
    """Print one line of the table."""
    rival = [f"{v:.2f}x" if v is not None else "-" for v in (row.sparseprop, row.torch_sparse)]
    print(
        f"| {row.network} | {row.sparsity:.0%} | {row.backend} {row.layers} | {row.torch_us:,.0f} | {row.ours_us:,.1f} "
        f"| {row.ratio:.2f}x | {rival[0]} | {rival[1]} | {row.fma:.0%} | {row.bandwidth:.0%} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
