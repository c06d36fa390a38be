"""docs/searching.md shows what was measured: its tables are made from the committed results, which hold together."""

import importlib.util
import json
from itertools import combinations
from math import comb
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "examples" / "search" / "results"


def results() -> list[Any]:
    return [json.loads(file.read_text()) for file in sorted(RESULTS.glob("*.json"))]


def test_the_page_holds_the_tables_of_the_results() -> None:
    spec = importlib.util.spec_from_file_location("search_tables", ROOT / "examples" / "search" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    page = (ROOT / "docs" / "searching.md").read_text(encoding="utf-8")
    inside = page.partition(tables.BEGIN)[2].partition(tables.END)[0].strip()
    assert inside == tables.tables(RESULTS).strip(), "python examples/search/regret.py writes them again"


@pytest.mark.parametrize("found", results(), ids=lambda found: str(found["model"]))
def test_every_set_was_measured_and_a_rules_regret_is_that_of_its_set(found: Any) -> None:
    assert found["choosing"]["token_hash"] != found["judging"]["token_hash"]
    for case in found["cases"]:
        sets = list(combinations(range(found["depth"]), case["blocks"]))
        assert len(case["values"]) == len(sets) == comb(found["depth"], case["blocks"])
        value = dict(zip(sets, case["values"], strict=True))
        best = min(value, key=lambda blocks: value[blocks])
        assert tuple(case["optimum"]["blocks"]) == best
        for row in case["rules"]:
            expected = value[tuple(row["blocks"])] / value[best] - 1
            assert row["regret"] == pytest.approx(expected, abs=1e-5)
            assert row["low"] <= row["regret"] <= row["high"]
