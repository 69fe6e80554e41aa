"""Feed the reader of model files damaged and hostile ones: it may succeed or raise WireError, no more.

Run it from the repository's root::

    python tests/fuzz/artifact.py --files 100000 --seed 1

Each file depends on the seed and its own number alone, so ``--start NUMBER --files 1`` repeats one of them. What fails
is written to ``--save``, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Fuzz, and print a summary."""
    sys.path[:0] = [str(_ROOT), str(_ROOT / "src")]
    from tests.fuzz.artifact_files import fuzz

    parser = argparse.ArgumentParser(description="Read damaged and hostile model files.")
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start", type=int, default=0, help="number of the first file")
    parser.add_argument("--save", type=Path, default=Path("fuzz-failures"), help="folder for the files that fail")
    options = parser.parse_args()

    def fail(number: int, data: bytes, why: str) -> None:
        path = options.save / f"seed-{options.seed}-file-{number}.fsz"
        options.save.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        sys.stderr.write(f"--seed {options.seed} --start {number} --files 1: {why} ({path})\n")

    begin = time.perf_counter()
    figures = fuzz(options.files, options.seed, options.start, fail)
    refused = ", ".join(f"{name} {count}" for name, count in figures.refused.most_common())
    sys.stdout.write(
        f"{figures.files} files in {time.perf_counter() - begin:.0f} s: {figures.failures} failures,"
        f" {figures.accepted} accepted, {sum(figures.refused.values())} refused ({refused}); slowest"
        f" {1e3 * figures.slowest:.0f} ms, peak {figures.peak / 1e6:.1f} MB\n"
    )
    return 1 if figures.failures else 0


if __name__ == "__main__":
    sys.exit(main())
