"""`--html`: one page that needs nothing beside it, for every kind of result; names and texts from outside stay text."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

import shortgpt
from shortgpt import Comparison, Scores
from shortgpt.basics.value import Value
from shortgpt.reports.html.page import as_page
from shortgpt.values.comparison import Row
from shortgpt.values.effect import Effect, Measured
from shortgpt.values.plan import Verification
from tests.support import Playback, Ran

NASTY = "<script>alert(1)</script><img src=http://x.example/>\"'&"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
Run = Callable[..., Ran]


class Page(HTMLParser):
    """What stands on a page: tags with their attributes, and the text of cells, headings and the rest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


@pytest.fixture(scope="module")
def scores() -> Scores:
    stream = torch.randn(5, 40, 8, generator=torch.Generator().manual_seed(0)).cumsum(0)
    batches = [{"input_ids": row[None]} for row in torch.arange(40).reshape(4, 10)]
    measured = shortgpt.score(Playback(stream, name=NASTY), batches)
    return measured.choosing(measured.least_influential(1))


@pytest.fixture(scope="module")
def results(scores: Scores) -> dict[str, Value]:
    effect = Effect(Measured(2.0, NASTY, 10.0), Measured(3.0, NASTY, 12.0), 1.5, 0.1, scores.calibration, prompt=NASTY)
    verification = Verification(verified=False, reason=NASTY)
    plan = replace(scores.plan(1), effect=effect, verification=verification, load=NASTY, notes=(NASTY,))
    comparison = Comparison((Row(NASTY, scores), Row("y", error=NASTY)), scores.criteria)
    return {"scores": scores, "plan": plan, "effect": effect, "verification": verification, "comparison": comparison}


@pytest.mark.parametrize("kind", ["scores", "plan", "effect", "verification", "comparison"])
def test_what_comes_from_outside_stays_text_and_nothing_is_fetched(results: dict[str, Value], kind: str) -> None:
    html = as_page(results[kind], command=f"shortgpt score {NASTY}")
    page = Page(html)
    assert NASTY in page.text
    assert page.count("script") == 1
    assert page.count("img") == 0
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "action", "data"):
            target = attributes.get(name) or ""
            assert target in ("", "data:,") or target.startswith("#")
        assert not [name for name in attributes if name.startswith("on")]
    assert "url(http" not in html
    assert "default-src 'none'" in html


def test_a_page_has_the_numbers_the_choice_and_how_to_make_it_again(results: dict[str, Value], scores: Scores) -> None:
    page = Page(as_page(results["plan"], command="shortgpt prune x"))
    for told in ("Perplexity × 1.5", "Text of the whole model", "How to load it", "shortgpt prune x", "Verification"):
        assert told in page.text
    cells = [float(one["data-value"] or "nan") for tag, one in page.tags if tag == "td" and "data-value" in one]
    assert set(scores.values) <= set(cells)
    assert all(one.get("scope") == "col" for tag, one in page.tags if tag == "th")
    assert next(one for tag, one in page.tags if tag == "html")["lang"] == "en"
    assert [tag for tag, _ in page.tags if tag in ("h1", "main", "title")].count("h1") == 1


def test_pictures_are_svg_whose_names_do_not_meet(scores: Scores) -> None:
    html = as_page(scores.plan(1))
    drawings = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(drawings) == 1
    tree = ElementTree.fromstring(drawings[0])
    assert not {"width", "height"} & set(tree.attrib)
    names = [node.attrib["id"] for node in tree.iter() if "id" in node.attrib]
    assert len(names) == len(set(names))
    assert all(re.match(r"p\d+-", name) for name in names)


def test_every_command_with_a_result_writes_a_page(run_cli: Run, llama_folder: Path, tmp_path: Path) -> None:
    on = ("--sequences", 2, "--tokens", 16, "--device", "cpu")
    for number, command in enumerate(
        (
            ("score", llama_folder, *on),
            ("compare", llama_folder, *on),
            ("inspect", llama_folder),
            ("prune", llama_folder, "-o", tmp_path / "out", "--remove", 1, "--no-verify"),
            ("show", tmp_path / "out"),
        )
    ):
        file = tmp_path / f"{number}.html"
        ran = run_cli(*command, "--html", file)
        assert ran.status == 0, ran.err
        assert str(llama_folder) in Page(file.read_text(encoding="utf-8")).text
    clash = run_cli("score", llama_folder, "--html", tmp_path / "a", "--json", tmp_path / "a")
    assert (clash.status, "both go to" in clash.err) == (2, True)


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
def test_a_browser_shows_it_without_an_error_or_a_request(results: dict[str, Value], tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(as_page(results["plan"]), encoding="utf-8")
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", profile)
    done = subprocess.run(
        [str(CHROMIUM), *options, "--dump-dom", "--window-size=380,800", f"file://{tmp_path / 'page.html'}"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert Page(done.stdout).count("button") > 0, done.stderr  # the script ran: headings became buttons
    assert "CONSOLE" not in done.stderr
