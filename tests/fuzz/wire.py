"""Feed the wire's decoder damaged and hostile messages, millions of them: it may succeed or raise WireError, no more.

Run it from the repository's root::

    python tests/fuzz/wire.py --messages 1000000 --seed 1

Each message depends on the seed and its own number alone, so ``--start NUMBER --messages 1`` repeats one of them. What
fails is written to ``--save`` as hex, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Fuzz in as many processes as asked for, and print a summary."""
    sys.path[:0] = [str(_ROOT), str(_ROOT / "src")]
    from tests.fuzz.decoding import Figures, fuzz

    parser = argparse.ArgumentParser(description="Decode damaged and hostile messages.")
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start", type=int, default=0, help="number of the first message")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--save", type=Path, default=Path("fuzz-failures"), help="folder for the messages that fail")
    options = parser.parse_args()
    begin = time.perf_counter()
    if options.workers > 1:
        figures = Figures()
        for row in _share(options):
            figures.add(Figures(**{**row, "refused": Counter(row["refused"])}))
    else:

        def fail(number: int, data: bytes, why: str) -> None:
            path = options.save / f"seed-{options.seed}-message-{number}.hex"
            options.save.mkdir(parents=True, exist_ok=True)
            path.write_text(data.hex() + "\n")
            sys.stderr.write(f"--seed {options.seed} --start {number} --messages 1: {why} ({path})\n")

        figures = fuzz(options.messages, options.seed, options.start, fail)
        if "FUZZ_WORKER" in os.environ:
            sys.stdout.write(json.dumps(figures.__dict__) + "\n")
            return 0
    sys.stdout.write(figures.summary(time.perf_counter() - begin) + "\n")
    return 1 if figures.failures else 0


def _share(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Give each worker an equal range of message numbers."""
    workers = []
    ends = [options.start + options.messages * i // options.workers for i in range(options.workers + 1)]
    for first, end in itertools.pairwise(ends):
        command = [sys.executable, __file__, "--seed", str(options.seed), "--save", str(options.save)]
        command += ["--start", str(first), "--messages", str(end - first)]
        environment = {**os.environ, "FUZZ_WORKER": "1"}
        workers.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
    for worker in workers:
        out, _ = worker.communicate()
        if worker.returncode:
            sys.stderr.write(f"a worker died with exit code {worker.returncode}\n")
            yield {"failures": 1, "refused": {}}
        else:
            yield json.loads(out)


if __name__ == "__main__":
    sys.exit(main())
