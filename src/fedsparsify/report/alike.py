"""Did all methods of a seed start alike? A paired comparison is worth nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fedsparsify.report.comparison import Problem
from fedsparsify.report.records import Run, printable

__all__ = ["Findings", "same_start"]


@dataclass(frozen=True)
class Findings:
    """What was found, one sentence each; ``alike`` is False where each names runs that differ from the others."""

    sentences: tuple[str, ...]
    alike: bool


def same_start(problems: Sequence[Problem]) -> Findings:
    """Say whether the runs of a seed and problem share their initial weights and their partition, or which do not."""
    findings: list[str] = []
    checked = {"digest": 0, "score": 0, "partition": 0}
    unknown = 0
    for problem in problems:
        by_seed: dict[int, list[Run]] = {}
        for cell in problem.cells:
            for seed, run in cell.runs.items():
                by_seed.setdefault(seed, []).append(run)
        for seed, runs in sorted(by_seed.items()):
            where = f"seed {seed}{f', {problem.title}' if problem.title else ''}"
            with_digest = [run for run in runs if run.initial]
            # A method that masks before the first round has another score in round 0 though its weights are the same.
            dense = [run for run in runs if run.rounds[0].round == 0 and run.rounds[0].sparsity == 0]
            known = {run.path for run in (*with_digest, *dense)}
            unknown += sum(run.path not in known for run in runs)
            checked["digest"] += len(with_digest)
            checked["score"] += len(dense)
            checked["partition"] += sum(run.partition is not None for run in runs)
            findings += _odd(with_digest, lambda run: run.initial, f"{where}: other initial weights")
            findings += _odd(dense, lambda run: repr(run.rounds[0].score), f"{where}: another score in round 0")
            split = [run for run in runs if run.partition is not None]
            findings += _odd(split, lambda run: run.partition and run.partition.counts, f"{where}: another partition")
    if findings:
        return Findings(tuple(findings), False)
    sentences = []
    if checked["digest"]:
        sentences.append(f"{checked['digest']} runs recorded a digest of their initial weights: one seed, one digest.")
    if checked["score"]:
        sentences.append(f"{checked['score']} runs start unpruned: those of one seed have the same score in round 0.")
    if unknown:
        sentences.append(f"{unknown} runs prune before round 0 and recorded no digest: their start cannot be checked.")
    if checked["partition"]:
        sentences.append(f"{checked['partition']} runs recorded who holds what: those of one seed deal examples alike.")
    return Findings(tuple(sentences), True)


def _odd(runs: Sequence[Run], value: Callable[[Run], Any], what: str) -> list[str]:
    """Name the runs whose value differs from that of most."""
    values = [value(run) for run in runs]
    if len(set(values)) < 2:
        return []
    usual = max(values, key=values.count)
    names = [run.path.name for run, own in zip(runs, values, strict=True) if own != usual]
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return [f"{what} than most have: {printable(shown)}"]
