"""What an encrypted sum costs: bytes and seconds of ours, of the library's ordinary vectors, and of plain float32.

    python benchmarks/encryption.py
    python benchmarks/encryption.py --clients 100 --json encryption.json

The model is 2-FC (118,282 values), dense and at 95% sparsity (5,915 survivors). Clients' values are averaged, each in
three ways, in turns within this process and on one thread; a row gives medians:

- **ours**: ``fedsparsify.secure``, with the parameters that it chooses for so many clients;
- **TenSEAL**: its ``CKKSVector`` at its usual parameters (ring 8192, primes of 60, 40 and 40 bits), 4,096 values each;
- **float32**: bytes that are added up, nothing encrypted.

"up" and "down" are bytes that a client sends and receives, a value. Times are the processor's: a client's for
encrypting and serialising, the server's for adding all clients up, and a client's for reading the sum.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tenseal

from fedsparsify.secure import FixedPoint, Scheme, add, decrypt, encrypt, expand, make_key
from fedsparsify.state import Floats

SIZES = {"dense": 118_282, "95%": 5_915}
CHUNK = 4096  # slots of a CKKS ciphertext in a ring of 8192
BOUND = 0.5


@dataclass(frozen=True)
class Measured:
    """One way, once."""

    up: int
    down: int
    encrypt: float
    add: float
    decrypt: float
    error: float


Way = Callable[[Sequence[Floats]], Measured]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    ways: dict[str, Way] = {"ours": ours(arguments.clients), "TenSEAL": ordinary(), "float32": plain}
    figures: dict[str, dict[str, dict[str, float]]] = {}
    print(f"{'':14}{'up':>9}{'down':>9}{'encrypt':>11}{'add':>11}{'decrypt':>11}{'error':>9}")
    print(f"{'':14}{'B/value':>9}{'B/value':>9}{'ms':>11}{'ms':>11}{'ms':>11}")
    for size, count in SIZES.items():
        rng = np.random.default_rng(1)
        values = [
            np.clip(rng.normal(0, 0.1, count), -BOUND, BOUND).astype(np.float32) for _ in range(arguments.clients)
        ]
        taken: dict[str, list[Measured]] = {name: [] for name in ways}
        for _ in range(arguments.turns):
            for name, way in ways.items():
                taken[name].append(way(values))
        for name, all_of in taken.items():
            row = {key: statistics.median(getattr(one, key) for one in all_of) for key in Measured.__annotations__}
            figures.setdefault(size, {})[name] = row
            seconds = "".join(f"{1000 * row[key]:11.2f}" for key in ("encrypt", "add", "decrypt"))
            bytes_ = f"{row['up'] / count:9.3f}{row['down'] / count:9.3f}"
            print(f"{size:6}{name:8}{bytes_}{seconds}{row['error']:9.1e}")
    dense, sparse = figures["dense"], figures["95%"]
    own = [row["encrypt"] + row["decrypt"] for row in (dense["ours"], sparse["ours"])]
    print(f"at 95%, of dense with the same scheme: time 1/{own[0] / own[1]:.1f}", end=", ")
    print(f"bytes up 1/{dense['ours']['up'] / sparse['ours']['up']:.1f}", end=", ")
    print(f"down 1/{dense['ours']['down'] / sparse['ours']['down']:.1f}")
    print(
        f"at 95%, of TenSEAL's dense vectors: bytes up 1/{dense['TenSEAL']['up'] / sparse['ours']['up']:.0f}", end=", "
    )
    print(f"down 1/{dense['TenSEAL']['down'] / sparse['ours']['down']:.0f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


def ours(clients: int) -> Way:
    """Return a way of ours for so many clients."""
    scheme = Scheme.of(clients)
    key, fixed = make_key(scheme), FixedPoint(BOUND, scheme.plain_modulus, clients)
    print(f"{clients} clients: {scheme}")

    def way(values: Sequence[Floats]) -> Measured:
        count, weight = values[0].size, 1 / len(values)
        times, uploads = [], []
        for client, own in enumerate(values):
            started = time.thread_time()
            uploads.append(encrypt(key, fixed.integers(own, weight)[0], client=client, round=1, context=b"benchmark"))
            times.append(time.thread_time() - started)
        started = time.thread_time()
        total = add(enumerate(uploads), scheme, round=1, count=count, expand=expand)
        added = time.thread_time()
        mean = fixed.reals(decrypt(key, total, round=1, count=count, context=b"benchmark")[0])
        done = time.thread_time()
        error = float(np.abs(mean - np.mean(values, axis=0, dtype=np.float64)).max())
        return Measured(len(uploads[0]), len(total), statistics.median(times), added - started, done - added, error)

    return way


def ordinary() -> Way:
    """Return the library's own vectors."""
    context = tenseal.context(
        tenseal.SCHEME_TYPE.CKKS,
        8192,
        coeff_mod_bit_sizes=[60, 40, 40],
        encryption_type=tenseal.ENCRYPTION_TYPE.SYMMETRIC,
    )
    context.global_scale = 2**40

    def way(values: Sequence[Floats]) -> Measured:
        count, weight = values[0].size, 1 / len(values)
        starts = range(0, count, CHUNK)
        times, uploads = [], []
        for own in values:
            started = time.thread_time()
            share = own.astype(np.float64) * weight
            uploads.append([tenseal.ckks_vector(context, share[i : i + CHUNK]).serialize() for i in starts])
            times.append(time.thread_time() - started)
        started = time.thread_time()
        total = []
        for place in range(len(starts)):
            vector = tenseal.ckks_vector_from(context, uploads[0][place])
            for upload in uploads[1:]:
                vector += tenseal.ckks_vector_from(context, upload[place])
            total.append(vector.serialize())
        added = time.thread_time()
        mean = np.concatenate([np.array(tenseal.ckks_vector_from(context, part).decrypt()) for part in total])
        done = time.thread_time()
        error = float(np.abs(mean - np.mean(values, axis=0, dtype=np.float64)).max())
        up, down = sum(map(len, uploads[0])), sum(map(len, total))
        return Measured(up, down, statistics.median(times), added - started, done - added, error)

    return way


def plain(values: Sequence[Floats]) -> Measured:
    """Average float32 arrays that travel as they are."""
    times, uploads = [], []
    for own in values:
        started = time.thread_time()
        uploads.append((own * np.float32(1 / len(values))).tobytes())
        times.append(time.thread_time() - started)
    started = time.thread_time()
    total = np.sum([np.frombuffer(upload, np.float32) for upload in uploads], axis=0).tobytes()
    added = time.thread_time()
    mean = np.frombuffer(total, np.float32).copy()
    done = time.thread_time()
    error = float(np.abs(mean - np.mean(values, axis=0, dtype=np.float64)).max())
    return Measured(len(uploads[0]), len(total), statistics.median(times), added - started, done - added, error)


if __name__ == "__main__":
    main()
