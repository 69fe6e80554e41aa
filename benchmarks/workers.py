"""How local training scales over the simulator's workers, in one run: ``python benchmarks/workers.py``.

Each turn trains the same ten clients for one local epoch (2-FC, FashionMNIST, batch 32) with every contender, one after
the other; the table shows medians over the turns and the median of the paired ratios. One thread of arithmetic each:

- the compiled trainer in one thread, and in one thread a core;
- dense torch in one process, in one forked process a core, and in one thread a core.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import torch

from fedsparsify import data, models
from fedsparsify.data import partition
from fedsparsify.federation.pool import Pool, default_workers
from fedsparsify.purge import magnitude_mask
from fedsparsify.randomness import derive
from fedsparsify.state import ModelState
from fedsparsify.tune import Tuner, TuneSettings


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--workers", type=int, default=default_workers())
    parser.add_argument("--sparsity", type=float, default=0.95)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    train, _ = data.load("fashion-mnist")
    parts = [train.take(p) for p in partition.iid(train.y, 10, derive(1, "partition"))]
    native = TuneSettings(lr=0.02, epochs=1, device="cpu", backend="native")
    tuners = {
        backend: [Tuner(models.build("2-fc", seed=1), replace(native, backend=backend), train) for _ in parts]
        for backend in ("native", "torch")
    }
    w, buffers = tuners["torch"][0].layout.read(models.build("2-fc", seed=1))
    mask = magnitude_mask(w, arguments.sparsity)
    start = ModelState(np.where(mask, w, 0).astype(np.float32), mask, buffers)

    def job_of(backend: str) -> Callable[[bytes], bytes]:
        def job(client: bytes) -> bytes:
            k = client[0]
            return tuners[backend][k].tune(start, parts[k], seed=1, round=1, client=k).model.w.tobytes()

        return job

    jobs = [bytes([k]) for k in range(len(parts))]
    n = arguments.workers
    with ExitStack() as stack:
        processes = {w: stack.enter_context(Pool(job_of("torch"), w)) for w in (1, n)}
        threads = stack.enter_context(ThreadPoolExecutor(n))
        contenders: dict[str, Callable[[], object]] = {
            "native, 1 thread": lambda: list(map(job_of("native"), jobs)),
            f"native, {n} threads": lambda: list(threads.map(job_of("native"), jobs)),
            "torch, 1 process": lambda: list(processes[1].run(jobs)),
            f"torch, {n} processes": lambda: list(processes[n].run(jobs)),
            f"torch, {n} threads": lambda: list(threads.map(job_of("torch"), jobs)),
        }
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for turn in range(arguments.turns + 1):
            for name, run in contenders.items():
                started = time.perf_counter()
                run()
                if turn:  # the first warms up
                    seconds[name].append(time.perf_counter() - started)
    print(f"10 clients x one local epoch at {arguments.sparsity:.0%} sparsity, median of {arguments.turns} turns")
    for name, times in seconds.items():
        alone = seconds[f"{name.split(',')[0]}, 1 {'thread' if name.startswith('native') else 'process'}"]
        ratio = statistics.median(one / many for one, many in zip(alone, times, strict=True))
        print(f"{name:20} {statistics.median(times):7.3f} s   {ratio:4.2f}x one")


if __name__ == "__main__":
    main()
