"""What travels: bytes of a real federation's messages beside what others would send, and what coding them costs.

    python benchmarks/wire.py                   # all three parts; the first two train, a few minutes each
    python benchmarks/wire.py --part federation --set run.rounds=40
    python benchmarks/wire.py --json wire.json

Parts:

``federation``  FashionMNIST, 10 clients, global 95%, every message of every round. Rivals code the same models.
``absence``     the same with 100 clients of whom 10 take part: bits a value by the age of what a client holds.
``large``       15 million parameters at 95%: seconds to encode and decode, and to merge 100 updates, on one thread,
                beside decoding dense float32 arrays and averaging them.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import io
import json
import math
import statistics
import tempfile
import time
import tracemalloc
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedsparsify import experiment, runs
from fedsparsify.config import load_settings
from fedsparsify.federation import Links, Reply, Simulator, receive
from fedsparsify.federation.links import mean_step
from fedsparsify.layout import ParameterLayout, Slot
from fedsparsify.merge import average_of, merge_models
from fedsparsify.state import ClientUpdate, ModelState
from fedsparsify.wire import Kind, Message, decode, encode, explain

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "fashion-mnist"
COMPRESS_EVERY = 10  # rounds; gzip takes longer than training does


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=list(PARTS), action="append", help="default: all")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="TABLE.KEY=VALUE")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    figures = {part: PARTS[part](arguments.overrides) for part in arguments.part or PARTS}
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


# A real federation ----------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What is counted of every message."""

    layout: ParameterLayout | None = None
    rounds: list[dict[str, Any]] = field(default_factory=list)
    by_age: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    masks: list[tuple[int, float]] = field(default_factory=list)  # bytes of a mask section, and its entropy in bytes


def watched(name: str, overrides: list[str], watch: Callable[..., None]) -> Tally:
    """Run a configuration, and let ``watch`` see each round's broadcasts, models and replies."""
    tally = Tally()
    inner = Simulator.exchange
    seen: dict[int, tuple[int, ModelState]] = {}

    def exchange(self: Simulator, round: int, broadcasts: Mapping[int, bytes]) -> Iterator[Reply]:
        tally.layout = self.layout
        replies = list(inner(self, round, broadcasts))
        held = self._held[next(iter(broadcasts))].reference
        assert held is not None
        watch(tally, self, round, held.model, broadcasts, replies, seen)
        seen.update(dict.fromkeys(broadcasts, (round, held.model)))
        yield from replies

    settings = load_settings(CONFIGS / f"{name}.toml", overrides)
    prepared = experiment.prepare(settings, name)
    Simulator.exchange = exchange  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as folder:
            runs.start(prepared, Path(folder) / "run")
    finally:
        Simulator.exchange = inner  # type: ignore[method-assign]
    return tally


@functools.cache
def full_participation(overrides: tuple[str, ...]) -> Tally:
    """Run the federation in which everyone always takes part; two parts need it."""
    return watched("fedsparsify-global-iid", list(overrides), count_round)


def federation(overrides: list[str]) -> dict[str, Any]:
    """Compare all bytes of a run."""
    tally = full_participation(tuple(overrides))
    totals = {key: sum(row[key] for row in tally.rounds) for key in ("down", "up", *RIVALS)}
    sampled = [row for row in tally.rounds if "gzip" in row]
    for name in SLOW_RIVALS:
        share = sum(row[name] for row in sampled) / sum(row["dense float32"] for row in sampled)
        totals[name] = share * totals["dense float32"]
    dense = totals["dense float32"]
    ours = totals["down"] + totals["up"]
    late = [row for row in tally.rounds if row["sparsity"] > 0.9]
    late_bits = 8 * sum(row["up"] for row in late) / max(sum(row["values_up"] for row in late), 1)
    mask_excess = max((size - 1.05 * entropy for size, entropy in tally.masks), default=0.0)
    print(f"\nFashionMNIST, {len(tally.rounds)} rounds, all messages up and down")
    print("| what is sent | MB | of dense |\n|---|---|---|")
    for name, size in [("FedSparsify", ours), *((name, totals[name]) for name in (*RIVALS, *SLOW_RIVALS))]:
        print(f"| {name} | {size / 1e6:,.1f} | 1/{dense / size:.2f} |")
    print(f"\nuplink at s > 0.9: {late_bits:.2f} bits a surviving value, everything included")
    print(f"mask sections: at most {mask_excess:.0f} bytes more than 1.05 times their entropy")
    return {
        "rounds": len(tally.rounds), "bytes": {"FedSparsify": ours, **totals}, "of_dense": dense / ours,
        "late_uplink_bits": late_bits, "mask_bytes_over_1.05_entropy": mask_excess,
        "bits_by_round": [[round(8 * row[w] / row[f"values_{w}"], 2) for w in ("down", "up")] for row in tally.rounds],
    }  # fmt: skip


def count_round(
    tally: Tally, simulator: Simulator, t: int, model: ModelState, broadcasts: Mapping[int, bytes],
    replies: list[Reply], seen: Mapping[int, tuple[int, ModelState]],
) -> None:  # fmt: skip
    """Add one round's bytes, and what rivals would have sent."""
    row: dict[str, Any] = {
        "sparsity": model.sparsity,
        "down": sum(map(len, broadcasts.values())),
        "up": sum(len(reply.payload or b"") for reply in replies),
        "values_down": model.nonzero * len(broadcasts),
        "values_up": model.nonzero * len(replies),
    }
    sent = 2 * len(broadcasts)  # under a global purge an update has the broadcast's survivors, so it costs as much
    for name, size in RIVALS.items():
        row[name] = sent * size(model, simulator.layout)
    if t % COMPRESS_EVERY == 1:
        for name, compress in SLOW_RIVALS.items():
            row[name] = sent * len(compress(model.w.tobytes()))
    for client, (_, before) in seen.items():
        if client in broadcasts:
            tally.masks.append(mask_cost(broadcasts[client], before, model))
            break
    tally.rounds.append(row)


def mask_cost(message: bytes, before: ModelState, after: ModelState) -> tuple[int, float]:
    """Return bytes of the mask section, and the entropy in bytes of the survivors among the earlier ones."""
    size = next(section.size for section in explain(message).sections if section.name == "mask")
    n, k = before.nonzero, after.nonzero
    p = k / n if n else 1.0
    bits = 0.0 if p in (0.0, 1.0) else -n * (p * math.log2(p) + (1 - p) * math.log2(1 - p))
    return size, bits / 8


def flower_size(model: ModelState, layout: ParameterLayout) -> int:
    """What Flower's NumPy records carry: one ``numpy.save`` a tensor, dense."""
    size = 0
    for tensor in layout.split(model.w).values():
        file = io.BytesIO()
        np.save(file, tensor, allow_pickle=False)
        size += file.tell()
    return size


RIVALS: dict[str, Callable[[ModelState, ParameterLayout], int]] = {
    "dense float32": lambda model, layout: 4 * layout.n,
    "Flower's default": flower_size,
    "bitmap + float32": lambda model, layout: (layout.n + 7) // 8 + 4 * model.nonzero,
    "COO, 32-bit indices": lambda model, layout: 8 * model.nonzero,
}
SLOW_RIVALS: dict[str, Callable[[bytes], bytes]] = {"gzip": lambda data: gzip.compress(data, 6)}
try:
    import zstandard

    SLOW_RIVALS["zstd"] = zstandard.ZstdCompressor(level=3).compress
except ImportError:
    print("(without zstandard, its row is left out: pip install 'fedsparsify[benchmarks]')")


# Clients that come and go ---------------------------------------------------------------------------------------------


def absence(overrides: list[str]) -> dict[str, Any]:
    """Compare the downlink of clients that were away with that of clients that never are."""
    full = full_participation(tuple(overrides))
    some = watched("fedsparsify-global-iid-100-clients", overrides, count_ages)
    steady = [8 * row["down"] / row["values_down"] for row in full.rounds]
    print("\n100 clients, 10 a round: downlink bits a value against full participation in the same round")
    print("| age of what the client holds | messages | bits a value | of full participation |\n|---|---|---|---|")
    table = {}
    for first, last in ((1, 1), (2, 4), (5, 9), (10, 19), (20, 10**6)):
        rows = [entry for age, entries in some.by_age.items() if first <= age <= last for entry in entries]
        if not rows:
            continue
        bits = float(np.mean([b for _, b in rows]))
        ratio = float(np.mean([b / steady[t - 1] for t, b in rows]))
        name = f"{first} to {last} rounds" if last < 10**6 else f"{first} rounds or more"
        table[name] = {"messages": len(rows), "bits": bits, "ratio": ratio}
        print(f"| {name} | {len(rows)} | {bits:.2f} | {ratio:.2f} |")
    return table


def count_ages(
    tally: Tally, simulator: Simulator, t: int, model: ModelState, broadcasts: Mapping[int, bytes],
    replies: list[Reply], seen: Mapping[int, tuple[int, ModelState]],
) -> None:  # fmt: skip
    """Note bits a value by the age of what each client holds."""
    for client, broadcast in broadcasts.items():
        if client in seen:
            tally.by_age[t - seen[client][0]].append((t, 8 * len(broadcast) / model.nonzero))  # type: ignore[arg-type]


# A large network ------------------------------------------------------------------------------------------------------


def large(overrides: list[str]) -> dict[str, Any]:
    """Measure what coding and merging cost."""
    del overrides
    shape = (512, 2930)
    layout = ParameterLayout(tuple(Slot(f"layer{i}", shape, i * math.prod(shape)) for i in range(10)))
    rng = np.random.default_rng(0)
    none = np.zeros(0, np.float32)
    mask = rng.random(layout.n) < 0.05
    start = ModelState.of_values(rng.normal(0, 0.05, int(mask.sum())).astype(np.float32), mask, none)
    pull = rng.normal(0, 1e-3, start.nonzero).astype(np.float32)

    def merged(t: int) -> ModelState:
        return ModelState.of_values(start.values + np.float32(0.3 * t) * pull, mask, none)

    def update(k: int, t: int) -> ModelState:
        noise = np.random.default_rng([k, t]).normal(0, 5e-4, start.nonzero).astype(np.float32)
        return ModelState.of_values(merged(t).values + pull + noise, mask, none)

    # As the engine does it, in a second round: by then both ends know how each client moves.
    links = Links(layout, 100, 1 << 30)
    trends: list[ModelState | None] = [None] * 100
    held = None
    for t in (1, 2):
        held = receive(links.broadcast(t, merged(t), range(100))[0], held, layout).reference
        payloads = []
        for k in range(100):
            message = Message(Kind.UPDATE, t, update(k, t), k, 100)
            payloads.append(encode(message, layout, held.with_trend(trends[k])))
            if t == 1:
                links.confirm(k, message.model)
                trends[k] = mean_step(None, merged(1), message.model)
    message = Message(Kind.UPDATE, 2, update(1, 2), 1, 100)
    full = encode(Message(Kind.BROADCAST, 1, start), layout)
    seconds = {
        "encode a broadcast in full": median(lambda: encode(Message(Kind.BROADCAST, 1, start), layout)),
        "decode it": median(lambda: decode(full, layout)),
        "encode an update": median(lambda: encode(message, layout, held.with_trend(trends[1]))),
        "decode an update": median(lambda: decode(payloads[1], layout, links.reference(1))),
    }

    def merge_ours() -> ModelState:
        def updates() -> Iterator[ClientUpdate]:
            for k, payload in enumerate(payloads):
                message = decode(payload, layout, links.reference(k))
                yield ClientUpdate(k, 2, message.model, message.num_examples)

        return merge_models(updates(), average_of, mask)

    saved = io.BytesIO()
    np.save(saved, start.w, allow_pickle=False)
    dense = saved.getvalue()

    def merge_dense() -> np.ndarray[Any, Any]:
        total = np.zeros(layout.n, np.float32)
        for _ in range(100):
            total += np.load(io.BytesIO(dense), allow_pickle=False) * np.float32(0.01)
        return total

    pairs = [(timed(merge_ours), timed(merge_dense)) for _ in range(3)]
    seconds["merge 100 updates"], seconds["average 100 dense arrays"] = (
        statistics.median(pair[i] for pair in pairs) for i in (0, 1)
    )
    ratio = statistics.median(ours / theirs for ours, theirs in pairs)
    tracemalloc.start()
    merge_ours()
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    print(f"\n{layout.n:,} parameters, {start.nonzero:,} left, one thread; medians")
    print("| what | seconds |\n|---|---|")
    for name, value in seconds.items():
        print(f"| {name} | {value:.3f} |")
    kept = sum(4 * len(trend.values) for trend in trends if trend is not None) / 1e6
    print(f"\nmerging takes {ratio:.2f} of the time that dense arrays take, and at most {peak:,.0f} MB, beside")
    print(f"{sum(map(len, payloads)) / 1e6:,.0f} MB of encoded updates and {kept:,.0f} MB of trends that are kept")
    confirming = median(lambda: mean_step(trends[1], merged(2), update(1, 2))) - median(lambda: update(1, 2))
    print(f"keeping a client's trend takes {confirming:.3f} s more an update")
    return {
        "seconds": seconds,
        "merge_ratio": ratio,
        "seconds_trend": confirming,
        "peak_mb": peak,
        "bits_up": 8 * len(payloads[0]) / start.nonzero,
    }


def timed(run: Callable[[], object]) -> float:
    """Seconds of one run, with this thread's clock."""
    start = time.thread_time()
    run()
    return time.thread_time() - start


def median(run: Callable[[], object], repeats: int = 5) -> float:
    """Median seconds of some runs after one that does not count."""
    run()
    return statistics.median(timed(run) for _ in range(repeats))


PARTS: dict[str, Callable[[list[str]], dict[str, Any]]] = {
    "federation": federation,
    "absence": absence,
    "large": large,
}

if __name__ == "__main__":
    main()
