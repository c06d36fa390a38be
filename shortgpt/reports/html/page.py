"""A result as one page of HTML that needs nothing beside it: tables, pictures as SVG, how it was made.

Everything from outside, such as a model's name or text that it wrote, is escaped by the template. The page asks for
nothing over the network, and reads without its script, which sorts tables.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import platform
import re
import sys
from dataclasses import dataclass
from typing import Any

from shortgpt._version import __version__
from shortgpt.basics.value import Cell, Table, Value
from shortgpt.reports.cells import number
from shortgpt.reports.html.sections import Section, sections
from shortgpt.reports.plots import PICTURES, figure

DISTRIBUTION = "shortgpt-blocks"


@dataclass(frozen=True)
class Picture:
    """A drawing, and what it shows in words."""

    svg: str
    title: str


def as_page(result: Value, command: str = "", **shown: Any) -> str:
    """The page of a result.

    Args:
        command: the line that made it, to be made again by.
        shown: what the picture shows besides, such as `marked` blocks of scores.
    """
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("shortgpt.reports.html", "."), autoescape=True, trim_blocks=True)
    environment.filters |= {"cell": _cell, "is_number": _is_number}
    parts = sections(result)
    return environment.get_template("page.html").render(
        title=parts[0].title,
        sections=parts,
        pictures=_pictures(result, parts, shown),
        command=command,
        versions=_versions(),
    )


def _pictures(result: Value, parts: tuple[Section, ...], shown: dict[str, Any]) -> list[Picture]:
    """One for each value of the page that can be drawn; none without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        return []
    drawn = [(result, shown), *((part.pictured, part.shown) for part in parts if part.pictured is not None)]
    return [
        Picture(_svg(value, f"p{place}", options), f"Picture of the {type(value).__name__.lower()} in the tables below")
        for place, (value, options) in enumerate(drawn)
        if type(value).__name__ in PICTURES
    ]


def _svg(result: Value, prefix: str, shown: dict[str, Any]) -> str:
    """The drawing without what only a file of its own needs. Names in it begin with `prefix`: there may be several."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix}):
        figure(result, **shown).savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", text)
    head, body = text.split(">", 1)
    return re.sub(r' (width|height)="[^"]*"', "", head) + ">" + body  # the page sizes it


def _versions() -> dict[str, str]:
    """Of shortgpt, of Python, and of what shortgpt is built on that was loaded for this."""
    versions = {"shortgpt": __version__, "Python": platform.python_version()}
    try:
        required = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:  # run from its sources
        required = []
    for name in dict.fromkeys(re.split(r"[^\w.-]", requirement, maxsplit=1)[0] for requirement in required):
        if name.replace("-", "_") in sys.modules:
            versions[name] = importlib.metadata.version(name)
    return versions


def _cell(cell: Cell) -> str:
    if cell is None or cell != cell:
        return ""
    return number(cell) if isinstance(cell, float) else str(cell)


def _is_number(table: Table, column: int) -> bool:
    return table.is_number(column)
