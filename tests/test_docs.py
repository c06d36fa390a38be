"""The documentation: what it shows runs, the files it shows are the files, and what it says of hooks and methods is so.

In docs/ and README.md every block of `python` is run, and every command in a block of `console`, those of one page in
order, in one folder and one namespace; `$ ... || echo $?` must fail. A block behind `<!-- file: PATH -->` is not run
but must be that file, to the letter. `<!-- not run: REASON -->` leaves one out; its commands must still exist.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from pathlib import Path

import click
import pytest

import shortgpt
from shortgpt import hookspecs
from shortgpt.cli import cli
from tests.example_environment import Environment
from tests.pages import BLOCK, PAGES, ROOT, blocks_of, indented, is_run, printed_by

GUIDE = ROOT / "docs" / "writing-an-adapter.md"
RUNNER = """
import json, sys
namespace = {"__name__": "__main__"}
for page, line, code in json.loads(sys.stdin.read()):
    exec(compile("\\n" * line + code, page, "exec"), namespace)
"""


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix().removeprefix("docs/")


@pytest.mark.sampled(
    "training.md",
    "command-line.md",
    "tutorial.md",
    "how-to/refusals.md",
    "how-to/my-architecture.md",
    "how-to/my-criterion.md",
)
@pytest.mark.parametrize("page", [page for page in PAGES if is_run(page)], ids=named)
def test_a_page_does_what_it_says(page: Path, tmp_path: Path) -> None:
    """Its Python runs, its commands end as they should, and print every word that is shown of them."""
    for _, command, printed in printed_by(page, tmp_path):
        missing = words(command.shown) - words(printed)
        assert not missing, f"{page.name}: {command.line}\n{printed}\npython -m tests.pages {page} writes it again"


@pytest.mark.parametrize("page", [GUIDE], ids=named)
def test_the_python_of_a_page_with_examples_runs(page: Path, examples: Environment, tmp_path: Path) -> None:
    blocks = [(page.name, block.line, block.code) for block in blocks_of(page) if block.is_python]
    examples.ok("-c", RUNNER, cwd=tmp_path, stdin=json.dumps(blocks))


def words(shown: str) -> set[str]:
    """The words of an output, but for texts that a model wrote, which other versions of Python and torch change."""
    lines = [line for line in shown.splitlines() if not re.match(r"prompt:|before:|after:", line)]
    return set(re.findall(r"[^\W\d_]{3,}", "\n".join(lines)))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_a_command_that_is_shown_exists_with_its_options(page: Path) -> None:
    for command in [*indented(page), *(command for block in blocks_of(page) for command in block.commands)]:
        if command.ours:
            name, *arguments = command.ours
            arguments = [argument for argument in arguments if argument not in ("-h", "--help")]
            with click.Context(cli, **cli.context_settings) as group:  # whose help options it keeps
                cli.commands[name].make_context(name, arguments, parent=group).close()


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_a_command_is_run_or_the_page_says_why_not(page: Path) -> None:
    left = [
        command.line
        for block in blocks_of(page)
        for command in block.commands
        if block.language != "console" and not block.is_left_out
    ]
    assert left == []


def test_a_line_that_fails_is_told_by_page_and_line(examples: Environment) -> None:
    done = examples.run("-c", RUNNER, stdin=json.dumps([("page.md", 41, "x = 1\n"), ("page.md", 50, "x\ny\n")]))
    assert done.returncode == 1
    assert 'File "page.md", line 52' in done.stderr
    assert "name 'y' is not defined" in done.stderr


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_a_file_that_is_shown_is_the_file(page: Path) -> None:
    for block in blocks_of(page):
        if block.file is not None:
            assert block.code == (ROOT / block.file).read_text(encoding="utf-8"), f"{page.name} shows {block.file}"


def test_the_guide_shows_every_file_that_an_adapter_consists_of() -> None:
    shown = {block.file for block in blocks_of(GUIDE)}
    package = ROOT / "examples" / "third_party_architecture"
    written = [*package.glob("*.toml"), *package.glob("tests/*.py"), *package.glob("shortgpt_pebble/*.py")]
    library = {"__init__.py", "model.py", "make_model.py"}
    assert {f.relative_to(ROOT).as_posix() for f in written if f.name not in library} <= shown


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    targets = [t for t in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if "://" not in t and not t.startswith("mailto:")]
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_reference_has_every_public_name() -> None:
    page = (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\.\. \S+:: shortgpt\.(\w+)$", page, re.MULTILINE)) - {"errors"} == set(shortgpt.__all__)


# -- hooks and methods ----------------------------------------------------------------------------------------


def hooks() -> dict[str, str]:
    """Hook → `name(parameters) -> answer`, of shortgpt/hookspecs.py."""
    found = inspect.getmembers(hookspecs, lambda f: hasattr(f, "shortgpt_spec"))
    return {name: f"{name}{inspect.signature(hook)}".replace("'", "") for name, hook in found}


def test_the_guide_lists_the_hooks_with_their_signatures_and_descriptions() -> None:
    table = re.findall(r"^\| `(shortgpt_\w+\(.*?\) -> .*?)` \| (.*) \|$", GUIDE.read_text("utf-8"), re.MULTILINE)
    rows = {hook: text.replace("\\|", "|") for hook, text in table}  # a table's cells escape the sign that parts them
    assert rows == {line: inspect.getdoc(getattr(hookspecs, name)) for name, line in hooks().items()}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_a_hook_that_is_named_exists(page: Path) -> None:
    packages = {"shortgpt_adapters", "shortgpt_plugins", "shortgpt_pebble", "shortgpt_extras", "shortgpt_paper"}
    assert set(re.findall(r"\bshortgpt_[a-z_]+", page.read_text(encoding="utf-8"))) - packages <= set(hooks())


CLASSES = ("Family", "TorchFamily", "BlockSequence", "TorchBlockSequence")
METHOD = re.compile(rf"`({'|'.join(CLASSES)})\.(\w+)\((.*?)\)`")


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_a_method_that_is_named_takes_these_arguments(page: Path) -> None:
    for owner, name, arguments in METHOD.findall(page.read_text(encoding="utf-8")):
        method = getattr(getattr(shortgpt, owner), name)
        shown: list[str] = []
        for parameter in list(inspect.signature(method).parameters.values())[1:]:
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY and "*" not in shown:
                shown.append("*")
            shown.append(parameter.name)
        assert arguments == ", ".join(shown), f"{owner}.{name}"


def test_the_guide_names_every_method_that_an_author_must_write() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    told = {(owner, name) for owner, name, _ in METHOD.findall(text)} | set(
        re.findall(r"property `(\w+)\.(\w+)`", text)
    )
    for owner in CLASSES:
        cls = getattr(shortgpt, owner)
        own = {name for name in cls.__abstractmethods__ if name in vars(cls)}
        assert own <= {name for told_owner, name in told if told_owner == owner}, owner


def test_the_guide_names_every_way_to_recognise_a_model() -> None:
    inherited = {field.name for field in dataclasses.fields(shortgpt.Extension)}
    ways = {field.name for field in dataclasses.fields(shortgpt.Architecture)} - inherited - {"priority"}
    assert set(re.findall(r"^\| `(\w+)` \| a ", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)) == ways
