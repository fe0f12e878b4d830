"""The report page in a real browser, at the width of a desk and of a telephone."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from slackfit.profile import LatencyProfile
from traces.open_loop.fidelity import fidelity
from traces.report.report import write_report_html
from traces.simulation.simulation import SimulationOptions, simulate_policies
from traces.spec.spec import parse_spec

WIDTHS = (1280, 400)
HEIGHT = 9000
MEASURE = """
const said = [...document.querySelectorAll("iframe")].map(frame => {
  const page = frame.contentDocument, root = page.documentElement;
  const box = e => {
    const r = e.getBoundingClientRect();
    return [r.left, r.top, r.width, r.height];
  };
  const scale = svg => svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
  return {
    width: frame.clientWidth,
    overflow: root.scrollWidth - frame.clientWidth,
    height: root.scrollHeight,
    pictures: [...page.querySelectorAll("figure svg")].map(svg => ({
      box: box(svg),
      label: svg.getAttribute("aria-label"),
      text: [...svg.querySelectorAll("text")].map(
        t => parseFloat(frame.contentWindow.getComputedStyle(t).fontSize) * scale(svg)),
    })),
    text: [...page.querySelectorAll("p, td, th, figcaption, li, dd")]
      .filter(e => e.getBoundingClientRect().width > 0)
      .map(e => parseFloat(frame.contentWindow.getComputedStyle(e).fontSize)),
    cut: [...page.querySelectorAll("td, figcaption, h1, h2, h3")]
      .filter(e => e.getBoundingClientRect().right > frame.clientWidth + 1).map(e => e.textContent),
  };
});
document.body.insertAdjacentHTML("beforeend", "<pre id=said hidden></pre>");
document.getElementById("said").textContent = JSON.stringify(said);
"""


@pytest.fixture(scope="module")
def chromium() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    pytest.skip("no chromium is installed (apt-get install chromium)")


def look(chromium: str, folder: Path, address: str, *options: str) -> subprocess.CompletedProcess:
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"]
    profile = f"--user-data-dir={folder / 'browser'}"
    return subprocess.run(
        [chromium, *flags, profile, "--enable-logging=stderr", *options, address],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "HOME": str(folder)},
    )


@pytest.fixture(scope="module")
def seen(chromium, tmp_path_factory) -> tuple[list[dict], Image.Image, str]:
    """What the browser says of the page at both widths, its picture, and its messages."""
    folder = tmp_path_factory.mktemp("page")
    profile = LatencyProfile.load("profiles/superserve_resnet_2080ti.json")
    kept: list = []
    reports = simulate_policies(
        parse_spec("bursty:base=200,variant=1800,cv2=8,duration=4", seed=1),
        profile,
        ["slackfit", "fixed:largest"],
        SimulationOptions(slo_s=0.036, num_workers=2),
        on_outcomes=lambda _, outcomes: kept.append(outcomes),
    )
    reports[0]["fidelity"] = fidelity(kept[0], kept[1])
    write_report_html(folder / "report.html", reports, title="Two policies")
    page = html.escape((folder / "report.html").read_text(encoding="utf-8"), quote=True)
    style = f"border:0;flex:none;height:{HEIGHT}px"
    frames = "".join(
        f'<iframe srcdoc="{page}" style="{style};width:{w}px"></iframe>' for w in WIDTHS
    )
    both = folder / "both.html"
    both.write_text(
        f'<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,">'
        f'<body style="margin:0;display:flex">{frames}'
        f"<script>addEventListener('load', () => {{{MEASURE}}})</script>",
        encoding="utf-8",
    )
    shot = folder / "shot.png"
    size = f"--window-size={sum(WIDTHS)},{HEIGHT}"
    dumped = look(chromium, folder, both.as_uri(), size, "--dump-dom", f"--screenshot={shot}")
    found = re.search(r'<pre id="said"[^>]*>(.*?)</pre>', dumped.stdout, re.DOTALL)
    assert found, dumped.stderr
    return json.loads(html.unescape(found.group(1))), Image.open(shot), dumped.stderr


def test_the_console_has_no_message(seen):
    _, _, messages = seen
    assert not re.findall(r".*CONSOLE.*", messages)


@pytest.mark.parametrize("at", range(len(WIDTHS)), ids=map(str, WIDTHS))
def test_every_picture_is_there_and_not_empty(seen, at):
    frames, picture, _ = seen
    frame = frames[at]
    assert frame["width"] == WIDTHS[at]
    assert frame["height"] <= HEIGHT
    labels = {p["label"] for p in frame["pictures"]}
    assert {"Queue depth over time", "Batch sizes", "Queries per subnet"} <= labels
    assert len(frame["pictures"]) == 2 + 2 * (5 + 3 + 2)
    pixels = np.asarray(picture.convert("L"), dtype=int)
    for drawn in frame["pictures"]:
        left, top, width, height = (round(v) for v in drawn["box"])
        assert width > 0.75 * min(WIDTHS[at], 480) - 40
        left += sum(WIDTHS[:at])
        part = pixels[top : top + height, left : left + width]
        ink = (part < 200).mean()  # lines, areas and letters; paper is 245 or lighter
        assert ink > 0.004, drawn["label"]


@pytest.mark.parametrize("at", range(len(WIDTHS)), ids=map(str, WIDTHS))
def test_it_is_readable_and_nothing_is_cut_off(seen, at):
    frames, _, _ = seen
    frame = frames[at]
    assert frame["overflow"] <= 0
    assert frame["cut"] == []
    assert min(frame["text"]) >= 12
    assert min(size for p in frame["pictures"] for size in p["text"]) >= 8.5
