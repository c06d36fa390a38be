"""examples/notebook.ipynb: its cells run in order, and what it shows of them is there."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

from shortgpt.basics.value import Value
from tests.example_environment import EXAMPLES
from tests.fresh_processes import forked_verification

NOTEBOOK = json.loads((EXAMPLES / "notebook.ipynb").read_text(encoding="utf-8"))
CELLS = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What stands at the end of each cell, None where that is no expression; or what the cell printed."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    found = []
    with pytest.MonkeyPatch.context() as patch, forked_verification():
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("notebook")))
        for number, cell in enumerate(CELLS):
            tree = ast.parse("".join(cell["source"]))
            last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(tree, f"cell {number}", "exec"), namespace)
                value = None
                if isinstance(last, ast.Expr):
                    value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), namespace)
            found.append(printed.getvalue() if value is None else value)
    return found


def test_the_cells_run_and_show_what_the_notebook_holds_of_them(shown: list[Any]) -> None:
    for cell, value in zip(CELLS, shown, strict=True):
        kinds = {kind for output in cell["outputs"] for kind in output.get("data", {"text/plain": ""})}
        if not isinstance(value, str) or value:
            assert "text/plain" in kinds, cell["source"]
        if isinstance(value, Value):
            assert "text/html" in kinds
        if hasattr(value, "_repr_png_"):
            assert "image/png" in kinds
            assert value._repr_png_().startswith(b"\x89PNG\r\n")


def test_it_is_proven_in_it_that_nothing_but_the_blocks_went(shown: list[Any]) -> None:
    (line,) = [value for value in shown if isinstance(value, str) and "largest difference" in value]
    assert line == "12 blocks, then 9; largest difference of a logit: 0\n"


def test_it_holds_no_error_and_no_path_of_a_machine() -> None:
    text = (EXAMPLES / "notebook.ipynb").read_text(encoding="utf-8")
    assert not [output for cell in CELLS for output in cell["outputs"] if output["output_type"] == "error"]
    assert str(Path.home()) not in text
    assert tempfile.gettempdir() not in text
