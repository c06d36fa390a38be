"""How Sphinx builds the site: `make docs`. CONTRIBUTING.md says why Sphinx, MyST and Furo."""

from __future__ import annotations

import re
from pathlib import Path

from sphinx.application import Sphinx

import shortgpt

project = "shortgpt"
author = "the authors of shortgpt"
copyright = f"{author}; Apache-2.0"
release = version = shortgpt.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click", "sphinx_copybutton"]
exclude_patterns = ["_build"]
highlight_language = "text"
suppress_warnings = ["ref.python"]  # a name such as `device` in an annotation, which several classes have
default_role = "code"  # docstrings put code between single backticks

myst_heading_anchors = 4
myst_enable_extensions = ["deflist"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # else an attribute would be described twice

copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True

html_theme = "furo"
html_title = "shortgpt"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["llms.txt"]
html_copy_source = False
html_show_sourcelink = False

HERE = Path(__file__).parent
LINK = re.compile(r"\[([^\]]+)\]\((?!\w+:)([^)#\s]+)[^)]*\)")


def without_folders(app: Sphinx, page: str, source: list[str]) -> None:
    """Name folders of the repository, and its pages outside docs/, without a link: the site does not hold them.

    Other files outside docs/ are offered as downloads, by MyST.
    """
    folder = (HERE / page).parent

    def named(link: re.Match[str]) -> str:
        target = (folder / link[2]).resolve()
        is_held = target.is_relative_to(HERE) or (target.is_file() and target.suffix != ".md")
        return link[0] if is_held else link[1]

    source[0] = LINK.sub(named, source[0])


FOR_READERS = {
    'role="heading"><span class="caption-text">': 'role="heading" aria-level="2"><span class="caption-text">',
    '<aside class="sidebar-drawer">': '<aside class="sidebar-drawer" aria-label="All pages">',
    "<pre>": '<pre tabindex="0">',
    '<div class="table-wrapper': '<div tabindex="0" class="table-wrapper',
}
"""What axe-core misses in the markup of Sphinx and Furo: levels, names, and that a keyboard reaches what scrolls."""


def for_readers(app: Sphinx, failed: Exception | None) -> None:
    if failed is None and app.builder.name == "html":
        for page in Path(app.outdir).rglob("*.html"):
            text = page.read_text(encoding="utf-8")
            for found, better in FOR_READERS.items():
                text = text.replace(found, better)
            page.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> None:
    app.connect("source-read", without_folders)
    app.connect("build-finished", for_readers)
