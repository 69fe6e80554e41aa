"""Processes against threads for the simulator's workers, in one run: ``python benchmarks/workers.py``.

Each turn trains the same clients for one local epoch with the torch backend (2-FC, FashionMNIST, batch 32), once in
forked processes and once in threads, alternating; the table shows medians and the ratio. One thread of arithmetic each.
"""

from __future__ import annotations

import argparse
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from fedsparsify import data, models
from fedsparsify.data import partition
from fedsparsify.federation.pool import Pool, default_workers
from fedsparsify.randomness import derive
from fedsparsify.state import ModelState
from fedsparsify.tune import Tuner, TuneSettings


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--workers", type=int, default=default_workers())
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    train, _ = data.load("fashion-mnist")
    parts = [train.take(p) for p in partition.iid(train.y, 10, derive(1, "partition"))]
    settings = TuneSettings(lr=0.02, epochs=1, device="cpu")
    tuners = [Tuner(models.build("2-fc", seed=1), settings) for _ in parts]
    w, buffers = tuners[0].layout.read(models.build("2-fc", seed=1))
    start = ModelState(w, np.ones(w.shape, np.bool_), buffers)

    def job(client: bytes) -> bytes:
        k = client[0]
        return tuners[k].tune(start, parts[k], seed=1, round=1, client=k)[0].w.tobytes()

    jobs = [bytes([k]) for k in range(len(parts))]
    seconds: dict[str, list[float]] = {"one worker": [], "processes": [], "threads": []}
    with Pool(job, 1) as one, Pool(job, arguments.workers) as processes:
        for _ in range(arguments.turns):
            for name, pool in (("one worker", one), ("processes", processes)):
                started = time.perf_counter()
                list(pool.run(jobs))
                seconds[name].append(time.perf_counter() - started)
            with ThreadPoolExecutor(arguments.workers) as threads:
                started = time.perf_counter()
                list(threads.map(job, jobs))
                seconds["threads"].append(time.perf_counter() - started)
    base = statistics.median(seconds["one worker"])
    print(f"10 clients x one local epoch, {arguments.workers} workers, median of {arguments.turns} turns")
    for name, times in seconds.items():
        median = statistics.median(times)
        print(f"{name:12} {median:6.2f} s   {base / median:4.2f}x one worker")


if __name__ == "__main__":
    main()
