"""Pages in headless Chromium: no accessibility violation that axe-core knows, no sideways scroll, tables that sort."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

import shortgpt
from shortgpt.reports.html.page import as_page
from tests.support import Playback

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ROOT = Path(__file__).parents[2]
AXE = Path(os.environ.get("SHORTGPT_AXE", ROOT / "node_modules" / "axe-core" / "axe.min.js"))
"""Of the npm package axe-core."""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")

NARROW = """
const frame = document.createElement("iframe");
frame.style = "width: 380px; height: 800px; border: 0";
frame.srcdoc = PAGE;
frame.onload = () => {
  const page = frame.contentDocument, root = page.documentElement;
  const column = () => [...page.querySelectorAll("table tbody tr")].map((row) => row.cells[0].textContent.trim());
  const before = column();
  page.querySelector("thead th button").click();
  const once = column();
  page.querySelector("thead th button").click();
  done({scrolls: root.scrollWidth - root.clientWidth, before, once, twice: column()});
};
document.body.append(frame);
"""


@pytest.fixture(scope="module")
def page() -> str:
    stream = torch.randn(5, 40, 8, generator=torch.Generator().manual_seed(0)).cumsum(0)
    batches = [{"input_ids": row[None]} for row in torch.arange(40).reshape(4, 10)]
    measured = shortgpt.score(Playback(stream, name="a-model-with-a-long-name/" * 4), batches)
    text = as_page(measured.plan(1), command="shortgpt score a-model")
    return re.sub(r"<meta[^>]*Content-Security-Policy[^>]*>", "", text)  # or no test's script would run


def told(folder: Path, text: str) -> Any:
    """What a page's script hands to `done`."""
    file = folder / "page.html"
    file.write_text(text, encoding="utf-8")
    options = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}")
    done = subprocess.run(
        [str(CHROMIUM), *options, "--virtual-time-budget=20000", "--dump-dom", f"file://{file}"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    found = re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None, done.stderr
    return json.loads(html.unescape(found[1]))


DONE = """
function done(value) {
  const told = document.createElement("pre");
  told.id = "told";
  told.textContent = JSON.stringify(value);
  document.body.append(told);
}
"""


@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_no_violation(page: str, tmp_path: Path, dark: bool) -> None:
    if not AXE.is_file():
        pytest.skip("no axe-core: npm install axe-core, or name axe.min.js by SHORTGPT_AXE")
    run = "axe.run(document).then((found) => done(found.violations.map((one) => [one.id, one.nodes[0].html])))"
    if dark:
        assert "(prefers-color-scheme: dark)" in page
        page = page.replace("(prefers-color-scheme: dark)", "all")
    scripts = f"<script>{AXE.read_text(encoding='utf-8')}</script><script>{DONE}{run}</script>"
    assert told(tmp_path, page.replace("</body>", f"{scripts}</body>")) == []


def test_at_380_pixels_nothing_scrolls_sideways_and_a_click_sorts(page: str, tmp_path: Path) -> None:
    script = DONE + NARROW.replace("PAGE", json.dumps(page).replace("</", "<\\/"))
    found = told(tmp_path, f"<!doctype html><title>frame</title><body><script>{script}</script></body>")
    assert found["scrolls"] <= 0
    assert sorted(found["once"]) == sorted(found["before"])
    assert found["once"] == found["twice"][::-1]
