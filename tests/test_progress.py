"""What a person sees of a run: a bar that moves on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from fedsparsify.progress import ProgressDisplay, describe_bytes, describe_seconds
from fedsparsify.state import ModelState, ServerState


def state(round: int) -> ServerState:
    return ServerState(round, ModelState(np.zeros(4, np.float32), np.ones(4, np.bool_), np.zeros(0, np.float32)))


def record(round: int, **changes: Any) -> dict[str, Any]:
    known = {"round": round, "accuracy": 0.5, "sparsity": 0.25, "bytes_down": 1000, "bytes_up": 500, "failures": []}
    return {**known, **changes}


def plain(rounds: int) -> tuple[ProgressDisplay, io.StringIO]:
    out = io.StringIO()
    return ProgressDisplay(rounds, Console(file=out, width=200)), out


def test_without_a_terminal_every_round_is_a_line() -> None:
    display, out = plain(3)
    with display:
        for t in range(4):
            for done in range(2):
                display.client_done(t, done + 1, 2)
            display.round_done(state(t), record(t, bytes_down=1000 * (t > 0), bytes_up=500 * (t > 0)))
    lines = [re.sub(r"\d+s left", "1s left", line) for line in out.getvalue().splitlines()]
    assert lines == [
        "round 0/3  accuracy 0.5000  sparsity 0.2500  0 B sent",
        "round 1/3  accuracy 0.5000  sparsity 0.2500  1.5 kB sent  1s left",
        "round 2/3  accuracy 0.5000  sparsity 0.2500  3.0 kB sent  1s left",
        "round 3/3  accuracy 0.5000  sparsity 0.2500  4.5 kB sent",
    ]


def test_a_regression_shows_its_error() -> None:
    display, out = plain(1)
    values = record(0)
    del values["accuracy"]
    display.round_done(state(0), {**values, "mae": 4.25})
    assert "mae 4.2500" in out.getvalue() and "accuracy" not in out.getvalue()
    display.round_done(state(1), {**values, "mae": None})  # it was not finite
    assert "mae -  " in out.getvalue()


def test_a_client_that_is_left_out_is_named_in_one_line_without_markup() -> None:
    display, out = plain(2)
    reason = "it said\n[bold]boo[/bold] " + "x" * 1000
    display.round_done(state(1), record(1, failures=[{"client": 7, "reason": reason}]))
    first = out.getvalue().splitlines()[0]
    assert first.startswith("round 1: left out client 7: it said [bold]boo[/bold] xxx")
    assert len(first) < 340


def test_clipped_values_are_told_where_they_are_encrypted() -> None:
    display, out = plain(2)
    display.round_done(state(1), record(1, encryption={"clipped": 12}))
    display.round_done(state(2), record(2, encryption={"clipped": 0}))
    told = [line for line in out.getvalue().splitlines() if "clipped" in line]
    assert told == ["round 1: 12 encrypted values were clipped to the bound: a larger encryption.bound keeps them"]


def test_bytes_of_rounds_before_a_resume_count_and_a_repeated_round_counts_once() -> None:
    display, out = plain(5)
    for t in range(4):
        display.recall(record(t))
    display.round_done(state(3), record(3))
    assert "6.0 kB sent" in out.getvalue()


def test_on_a_terminal_the_bar_moves_within_a_round() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, _environ={"TERM": "xterm"})
    with ProgressDisplay(10, console) as display:
        display.round_done(state(0), record(0))
        display.client_done(1, 1, 2)
        seen = [display._progress.tasks[0].completed]
        display.client_done(1, 2, 2)
        seen.append(display._progress.tasks[0].completed)
        assert seen == pytest.approx([1 / 3, 2 / 3])
        display.round_done(state(1), record(1))
    shown = out.getvalue()
    assert "1/10" in shown and "accuracy 0.5000" in shown and "left" in shown
    assert "\x1b[?25l" in shown and "\x1b[?25h" in shown, "the cursor is hidden, and comes back"
    assert "round 1/10" not in shown, "no line a round beside the bar"


def test_at_eighty_columns_nothing_is_cut() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80, _environ={"TERM": "xterm"})
    with ProgressDisplay(20_000, console) as display:
        for t in (0, 19_999):
            display.round_done(state(t), record(t, bytes_down=999_900_000))
    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue()).splitlines()[-1]
    assert re.search(r"19999/20000 .*accuracy 0\.5000  sparsity 0\.2500  2\.0 GB sent  \S+ left", last), last


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_500_000, "1.5 MB"), (2_000_000_000, "2.0 GB")]
)
def test_bytes_are_told_in_decimal_units(count: int, text: str) -> None:
    assert describe_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0s"), (59.4, "59s"), (60, "1m00s"), (3599.6, "1h00m"), (7384, "2h03m")]
)
def test_durations_are_told_in_two_units(seconds: float, text: str) -> None:
    assert describe_seconds(seconds) == text
