"""A browser without a network draws every figure, logs nothing, and needs nothing from elsewhere."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fedsparsify.report import write_report

MakeRun = Callable[..., Path]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = "</script><script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\">"

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome in PATH")


class Drawn(HTMLParser):
    """Per figure, how many of its traces hold a shape with an outline, and what the document refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.traces: dict[str, list[int]] = {}
        self.references: list[str] = []
        self._plot = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.references += [values[name] for name in ("src", "href", "xlink:href", "srcset", "data") if name in values]
        classes = values.get("class", "").split()
        if tag == "figcaption":
            self._plot = ""
        if "data-plot" in values:
            self._plot = values["data-plot"]
            self.traces[self._plot] = []
        elif self._plot and tag == "g" and ("trace" in classes or "hm" in classes):
            self.traces[self._plot].append(0)
        elif self._plot and self.traces[self._plot] and tag in ("path", "image"):
            self.traces[self._plot][-1] += bool(values.get("d") or values.get("xlink:href") or values.get("href"))


def open_page(page: Path, tmp_path: Path, *options: str) -> tuple[str, list[str]]:
    """Return the document after its scripts have run, and what was logged to the console."""
    assert BROWSER is not None
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={tmp_path / 'browser'}",
        "--enable-logging=stderr",
        "--virtual-time-budget=5000",
        *options,
        "--dump-dom",
        page.resolve().as_uri(),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=True)
    return result.stdout, [line for line in result.stderr.splitlines() if "CONSOLE" in line]


def add_script(page: Path, script: str) -> None:
    """Let ``script`` run at the end, which takes the page's policy away, as that would not admit it."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text(encoding="utf-8"))
    page.write_text(text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")


def expected_traces(page: Path) -> dict[str, int]:
    found = re.search(r'<script type="application/json" id="plots">(.*?)</script>', page.read_text(encoding="utf-8"))
    assert found
    return {name: len(plot["data"]) for name, plot in json.loads(found[1]).items()}


@pytest.mark.parametrize("kind", ["one", "several", "mae"])
def test_every_figure_is_drawn_without_an_error_or_a_network(make_run: MakeRun, tmp_path: Path, kind: str) -> None:
    failures = {2: [{"client": 3, "reason": HOSTILE}]}
    runs = {
        "one": lambda: [make_run(method="fedsparsify-local", rounds=40, done=33, failures=failures)],
        "several": lambda: [
            make_run("a", rounds=40),
            make_run("b", rounds=12, name="fedavg-noniid", method="fedavg", final=0),
            make_run("c", rounds=40, name=HOSTILE, method="fedsparsify-local", frequency=5, failures=failures),
        ],
        "mae": lambda: [make_run(metric="mae", rounds=5, partition={"kind": "sites", "counts": [198, 40, 3]})],
    }
    page = write_report(runs[kind](), tmp_path / "report.html")
    document, console = open_page(page, tmp_path)
    assert console == []
    drawn = Drawn(document)
    assert {name: len(traces) for name, traces in drawn.traces.items()} == expected_traces(page)
    assert [name for name, traces in drawn.traces.items() if not all(traces)] == []
    assert document.count('class="main-svg"') >= len(drawn.traces)
    assert "<title>owned" not in document
    assert [reference for reference in drawn.references if not reference.startswith(("data:", "#"))] == []


def test_a_phone_scrolls_no_page_sideways(make_run: MakeRun, tmp_path: Path) -> None:
    failures = {1: [{"client": 1, "reason": "x" * 300}]}
    page = write_report(
        [make_run("a", rounds=3, name="a" * 60, failures=failures), make_run("b", rounds=3)], tmp_path / "report.html"
    )
    add_script(
        page,
        "for (const name of ['scrollWidth', 'clientWidth'])\n"
        "  document.body.dataset[name] = document.documentElement[name];",
    )
    document, console = open_page(page, tmp_path, "--window-size=390,844", "--hide-scrollbars")
    widths = re.search(r'<body data-scroll-width="(\d+)" data-client-width="(\d+)"', document)
    assert console == []
    assert widths
    assert int(widths[1]) <= int(widths[2]) <= 520


def test_a_click_on_the_legend_hides_the_run_in_all_figures(make_run: MakeRun, tmp_path: Path) -> None:
    page = write_report([make_run("a", rounds=3), make_run("b", rounds=3, name="fedavg", final=0)], tmp_path / "a.html")
    add_script(page, "document.querySelector('[data-key=run0]').click();")
    document, console = open_page(page, tmp_path)
    assert console == []
    traces = Drawn(document).traces
    assert [len(traces[name]) for name in ("score-rounds", "layers", "drift-rounds", "bytes")] == [1, 1, 1, 2]
    assert len(re.findall(r'data-key="run0" aria-pressed="false"', document)) == document.count('data-key="run0"')


def test_the_policy_stops_a_script_that_was_smuggled_in(make_run: MakeRun, tmp_path: Path) -> None:
    page = write_report([make_run(rounds=1)], tmp_path / "report.html")
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace("</body>", "<script>document.title = 'owned'</script></body>"), encoding="utf-8")
    document, console = open_page(page, tmp_path)
    assert "<title>owned" not in document
    assert any("Content Security Policy" in line for line in console)


def test_these_tests_see_an_error_and_a_missing_resource(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text('<body><script>throw new Error("broken")</script><img src="https://example.org/a.png"></body>')
    document, console = open_page(page, tmp_path)
    assert any("broken" in line for line in console)
    assert "https://example.org/a.png" in Drawn(document).references
