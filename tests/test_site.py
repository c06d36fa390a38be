"""The site that `make docs` built, in the folder SHORTGPT_SITE: complete, no link is dead, and nothing is fetched."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import threading
from functools import cache
from html import unescape
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import click
import pytest

import shortgpt
from shortgpt.cli import cli
from tests.pages import ROOT

SITE = Path(os.environ.get("SHORTGPT_SITE", "")).absolute()
pytestmark = pytest.mark.skipif("SHORTGPT_SITE" not in os.environ, reason="`make docs` builds the site")


class Html(HTMLParser):
    """A page's tags with their attributes, and its text without markup."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self, attribute: str, *tags: str) -> list[str]:
        return [given[attribute] for tag, given in self.tags if attribute in given and (not tags or tag in tags)]


@cache
def html(page: Path) -> Html:
    return Html(page)


@pytest.fixture(scope="module")
def pages() -> list[Path]:
    return sorted(SITE.rglob("*.html"))


def test_every_link_inside_the_site_leads_to_a_file_and_a_place_in_it(pages: list[Path]) -> None:
    dead = []
    for page in pages:
        for target in html(page).values("href") + html(page).values("src"):
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            file = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            is_there = file.is_file() and (
                not parts.fragment or file.suffix != ".html" or unquote(parts.fragment) in html(file).values("id")
            )
            if not is_there:
                dead.append(f"{page.relative_to(SITE)}: {target}")
    assert dead == []


def test_no_page_fetches_anything_from_elsewhere(pages: list[Path]) -> None:
    for page in pages:
        sources = html(page).values("src") + html(page).values("href", "link")
        assert [s for s in sources if urlsplit(s).netloc] == [], page
    for sheet in SITE.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet


def test_every_picture_says_what_it_shows(pages: list[Path]) -> None:
    for page in pages:
        assert [given for tag, given in html(page).tags if tag == "img" and not given.get("alt")] == [], page


def test_headings_have_levels_and_what_scrolls_is_reached_by_keyboard(pages: list[Path]) -> None:
    for page in pages:
        for tag, given in html(page).tags:
            assert given.get("role") != "heading" or "aria-level" in given, page
            if tag == "pre" or "table-wrapper" in given.get("class", ""):
                assert given.get("tabindex") == "0", page


def test_every_public_name_has_an_entry() -> None:
    page = SITE / "reference" / "python.html"
    assert {f"shortgpt.{name}" for name in shortgpt.__all__} <= set(html(page).values("id"))


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_stands_there_with_each_argument_and_option(name: str) -> None:
    places = set(html(SITE / "reference" / "commands.html").values("id"))
    assert f"shortgpt-{name}" in places
    for parameter in cli.commands[name].params:
        if isinstance(parameter, click.Option):
            if not parameter.hidden:
                spelled = max(parameter.opts, key=len).lstrip("-")
                assert f"cmdoption-shortgpt-{name}-{spelled}" in places, parameter.opts
        else:
            assert f"cmdoption-shortgpt-{name}-arg-{(parameter.name or '').upper()}" in places


def test_the_list_for_language_models_names_every_page() -> None:
    listed = set(re.findall(r"\]\(([^)]+)\)", (SITE / "llms.txt").read_text(encoding="utf-8")))
    pages = {p.relative_to(ROOT / "docs").with_suffix(".html").as_posix() for p in (ROOT / "docs").rglob("*.md")}
    assert listed == pages


# -- in a browser ---------------------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NARROW = """<!doctype html><meta charset="utf-8"><script>
const told = {};
async function look(pages) {
  for (const name of pages) {
    const frame = document.createElement("iframe");
    frame.style = "width: 380px; height: 800px; border: 0";
    frame.src = name;
    const loaded = new Promise((done) => { frame.onload = done; });
    document.documentElement.append(frame);
    await loaded;
    const root = frame.contentDocument.documentElement;
    const far = [...frame.contentDocument.querySelectorAll("article *")].filter(
      (one) => one.getBoundingClientRect().right > 381 && !one.closest("pre, .table-wrapper, .sig"));
    if (root.scrollWidth > root.clientWidth || far.length) {
      told[name] = [root.scrollWidth - root.clientWidth, ...far.slice(0, 3).map((one) => one.outerHTML.slice(0, 90))];
    }
    frame.remove();
  }
  const shown = document.createElement("pre");
  shown.id = "told";
  shown.textContent = JSON.stringify(told);
  document.documentElement.append(shown);
}
look(PAGES);
</script>"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing: the output is that of the test."""


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
def test_no_page_scrolls_sideways_at_380_pixels(pages: list[Path], tmp_path: Path) -> None:
    """Pages are laid out in frames of that width; tables and listings scroll in boxes of their own."""
    served = tmp_path / "site"
    shutil.copytree(SITE, served)
    names = [page.relative_to(SITE).as_posix() for page in pages]
    (served / "narrow.html").write_text(NARROW.replace("PAGES", json.dumps(names)), encoding="utf-8")
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=served)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/narrow.html"
        options = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}")
        done = subprocess.run(
            [str(CHROMIUM), *options, "--virtual-time-budget=120000", "--dump-dom", address],
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        server.shutdown()
    told = re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.DOTALL)
    assert told is not None, done.stderr
    assert json.loads(unescape(told[1])) == {}
