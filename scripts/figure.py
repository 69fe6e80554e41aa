"""Save one figure of a report as an SVG file for the documentation: scripts/figure.py FIGURE OUT.svg RUN...

FIGURE is the figure's name in the page, e.g. ``score-bytes``; an unknown one lists them. Needs Chromium to draw.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from plotly.offline import get_plotlyjs

from fedsparsify.files import write_atomically
from fedsparsify.report.figures import all_figures
from fedsparsify.report.plots import run_keys
from fedsparsify.report.records import load_run
from fedsparsify.report.tables import labels

PAGE = """<!doctype html><meta charset="utf-8"><div id="plot"></div><pre id="out"></pre><script>%s</script><script>
const figure = %s;
Plotly.newPlot('plot', figure.data, figure.layout, {staticPlot: true}).then(
  plot => Plotly.toImage(plot, {format: 'svg', width: figure.layout.width, height: figure.layout.height})).then(
  url => { document.getElementById('out').textContent = decodeURIComponent(url.slice(url.indexOf(',') + 1)); });
</script>"""


def main(name: str, out: str, *directories: str) -> None:
    """Draw the figure and write the file."""
    runs = [load_run(directory) for directory in directories]
    figures = {figure.id: figure for figure in all_figures(runs, run_keys(labels(runs)))}
    if name not in figures:
        sys.exit(f"{name} is no figure of these runs: {', '.join(figures)}")
    figure = figures[name]
    layout = figure.layout | {
        "width": 760,
        "height": 400,
        "title": {"text": figure.title, "x": 0.02, "font": {"size": 16}},
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#ffffff",
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": "#222222"},
        "legend": {"orientation": "h", "y": -0.2},
        "margin": {"l": 60, "r": 20, "t": 50, "b": 40},
    }
    for axis in ("xaxis", "yaxis"):
        layout[axis] = layout[axis] | {"gridcolor": "#e4e7eb"}
    content = json.dumps({"data": figure.data, "layout": layout}).replace("<", "\\u003c")
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        sys.exit("drawing needs chromium or google-chrome in PATH")
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "page.html")
        page.write_text(PAGE % (get_plotlyjs(), content), encoding="utf-8")
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
        command = [browser, *options, f"--user-data-dir={folder}/profile", "--virtual-time-budget=20000"]
        done = subprocess.run([*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, check=True)
    drawn = re.search(r'<pre id="out">(.*?)</pre>', done.stdout, re.DOTALL)
    if drawn is None or "<svg" not in html.unescape(drawn[1]):
        sys.exit("the browser drew nothing")
    write_atomically(Path(out), html.unescape(drawn[1]).encode())


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
