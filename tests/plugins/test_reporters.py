"""JSON, CSV and Markdown of every kind of result, read by others' parsers."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from markdown_it import MarkdownIt

import shortgpt
from shortgpt import Comparison, Scores, plugins
from shortgpt.basics.targets import load_target
from shortgpt.basics.value import Table, Value
from shortgpt.errors import OutputError
from shortgpt.values.choosing.spans import Spans
from shortgpt.values.comparison import Row
from shortgpt.values.inspection import Field, Inspection
from tests.support import Playback

CRITERIA = ["block-influence", "angular-distance"]
SPANS = Spans("block-influence", 3, ((2.0, 4.0, 12.0, 1.0, 5.0, 3.0), (2.0, 2.0, 2.0, 1.0, 1.0, 1.0)), (1, 3))
NASTY = "a|b\\|c_d_ *e* `f` <g> [h](i)\nj \\"


@pytest.fixture
def scores() -> Scores:
    """Of 3 blocks on 2 sequences, by two criteria; one was refused."""
    stream = torch.randn(4, 20, 8, generator=torch.Generator().manual_seed(0)).cumsum(0)
    measured = shortgpt.score(
        Playback(stream, name="a|b", pinned={1: "it stays"}),
        [{"input_ids": torch.arange(20).reshape(2, 10)}],
        criteria=CRITERIA,
    )
    return replace(measured, refused={"perplexity": "it has no head"})


def reported(name: str, result: Value) -> str:
    entry = plugins.lookup("format", plugins.registry().reporters, name)
    return str(load_target(entry.target)(result))


def read_csv(result: Value) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(reported("csv", result))))


def read_markdown(text: str) -> list[list[list[str]]]:
    """The text of the cells of each table, as a Markdown parser sees them."""
    tables: list[list[list[str]]] = []
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type == "table_open":
            tables.append([])
        elif token.type == "tr_open":
            tables[-1].append([])
        elif token.type == "inline" and tables and len(tables[-1]) and token.level > 2:
            children = token.children or []
            assert {child.type for child in children} <= {"text", "text_special"}, "a name was read as Markdown"
            tables[-1][-1].append("".join(child.content for child in children))
    return tables


# -- csv ------------------------------------------------------------------------------------------------------


def test_csv_has_a_row_a_block_and_criterion_with_every_digit(scores: Scores) -> None:
    rows = read_csv(scores)
    assert len(rows) == 2 * 3 + 1
    for name in CRITERIA:
        mine = [row for row in rows if row["criterion"] == name]
        expected = scores.of(name)
        assert tuple(float(row["score"]) for row in mine) == expected.values
        assert tuple(float(row["stderr"]) for row in mine) == expected.stderr
        assert tuple(float(row["stream_norm"]) for row in mine) == scores.stream_norm
        assert tuple(float(row["update_norm"]) for row in mine) == scores.update_norm
        assert tuple(int(row["parameters"]) for row in mine) == scores.parameters
        assert [row["name"] for row in mine] == ["blocks.0", "blocks.1", "blocks.2"]
        assert [row["pinned"] for row in mine] == ["", "it stays", ""]
        assert sorted(range(3), key=lambda i: int(mine[i]["rank"])) == list(expected.ranking())
    assert {row["model"] for row in rows} == {"a|b"}
    assert [(row["criterion"], row["error"]) for row in rows if row["error"]] == [("perplexity", "it has no head")]


def test_csv_of_a_comparison_has_the_rows_of_all_models_and_why_one_failed(scores: Scores) -> None:
    rows = read_csv(Comparison((Row("x", scores), Row("y", error="y: broken"), Row("z", scores)), tuple(CRITERIA)))
    assert len(rows) == 2 * 2 * 3 + 1
    assert [row["model"] for row in rows] == (["x"] * 3 + ["z"] * 3) * 2 + ["y"]
    assert rows[-1]["error"] == "broken"
    assert [float(row["score"]) for row in rows[6:9]] == list(scores.of("angular-distance").values)
    only = read_csv(Comparison((Row("x", scores),), ("angular-distance",)))
    assert {row["criterion"] for row in only} == {"angular-distance"}


def test_csv_of_spans_has_a_row_a_run(scores: Scores) -> None:
    means = {("0", "0"): 1.0, ("0", "1"): 1.5, ("0", "2"): 3.5, ("1", "1"): 0.5, ("1", "2"): 1.5, ("2", "2"): 1.0}
    assert {(row["first"], row["last"]): float(row["score"]) for row in read_csv(SPANS)} == means
    assert all(int(row["last"]) - int(row["first"]) + 1 == int(row["blocks"]) for row in read_csv(SPANS))
    beside = [row for row in read_csv(replace(scores, spans=SPANS)) if row["block"] != row["last"]]
    assert {(row["block"], row["last"]): float(row["score"]) for row in beside} == {
        run: mean for run, mean in means.items() if run[0] != run[1]
    }


def test_csv_leaves_what_does_not_exist_empty_and_quotes_what_must_be() -> None:
    table = Table("", ("a,b", 'c"d'), ((math.nan, None), ("x\ny", 1), ("x,y", 1e-300)))

    class Kind(Value):
        def tables(self) -> tuple[Table, ...]:
            return (table,)

    text = reported("csv", Kind())
    assert list(csv.reader(io.StringIO(text))) == [["a,b", 'c"d'], ["", ""], ["x\ny", "1"], ["x,y", "1e-300"]]


# -- markdown -------------------------------------------------------------------------------------------------


def test_markdown_of_scores_has_all_criteria_and_what_was_refused(scores: Scores) -> None:
    text = reported("markdown", replace(scores, spans=SPANS))
    blocks, refused, runs = read_markdown(text)
    names = ["block", "name", "block-influence", "± s.e.", "angular-distance", "± s.e.", "parameters", "rank", "pinned"]
    assert blocks[0] == names
    for block, row in enumerate(blocks[1:]):
        assert row[:2] == [str(block), f"blocks.{block}"]
        for column, name in ((2, CRITERIA[0]), (4, CRITERIA[1])):
            one = scores.of(name)
            assert row[column : column + 2] == [f"{one.values[block]:.4f}", f"{one.stderr[block]:.4f}"]
    assert refused[1:] == [["perplexity", "it has no head"]]
    assert runs[1:] == [["1", "2", "1.0000"]]  # every longer one holds the pinned block
    assert text.startswith("**a\\|b: playback, unknown-norm, 3 blocks")


def test_markdown_of_a_comparison_has_a_table_a_criterion_and_one_of_what_failed(scores: Scores) -> None:
    other = replace(scores, calibration=replace(scores.calibration, text_hash="another"))
    rows = (Row("x", scores), Row("y", error="it is broken"), Row("z", other))
    influence, angle, failed = read_markdown(reported("markdown", Comparison(rows, tuple(CRITERIA))))
    for table, name in ((influence, CRITERIA[0]), (angle, CRITERIA[1])):
        values = scores.of(name).values
        told = [f"{number:.4f}" for number in (sum(values) / 3, min(values), max(values))]
        assert [row[3:6] for row in table[1:]] == [told, told]
        assert [row[0] for row in table[1:]] == ["x", "z"]
        assert table[1][-1] == ""
        assert "other text" in table[2][-1]
    assert failed[1:] == [["y", "it is broken"]]


def test_no_name_breaks_a_markdown_table(scores: Scores) -> None:
    result = Comparison((Row(NASTY, scores), Row(NASTY, error=NASTY)))
    measured, failed = read_markdown(reported("markdown", result))
    assert len({len(row) for row in measured}) == 1
    assert measured[1][0] == NASTY.replace("\n", " ")
    assert failed[1] == [NASTY.replace("\n", " ")] * 2


def test_numbers_stand_right_and_text_left() -> None:
    lines = reported("markdown", SPANS).splitlines()
    assert lines[3] == "| ---: | --- | ---: |"


# -- the others -----------------------------------------------------------------------------------------------


def test_json_reads_back(scores: Scores) -> None:
    assert Scores.from_json(reported("json", scores)) == scores
    comparison = Comparison((Row("x", scores), Row("y", error="no")), ("block-influence",))
    assert Comparison.from_json(reported("json", comparison)) == comparison
    assert Spans.from_json(reported("json", SPANS)) == SPANS
    assert json.loads(reported("json", scores))["schema"] == "shortgpt/scores/1"


def test_an_inspection_and_the_registry_have_tables() -> None:
    fields = (Field("layer_types", "['a', 'b']", "filtered"),)
    found = Inspection("m", "llama", "pre", 2, ("A", "B"), (10, 20), "whole", fields, {0: "why"}, (1,), "it must not")
    blocks, config, removal = read_markdown(reported("markdown", found))
    assert blocks[1:] == [["0", "A", "10", "why"], ["1", "B", "20", ""]]
    assert config[1:] == [["layer_types", "['a', 'b']", "filtered"]]
    assert removal[1:] == [["1", "it must not"]]
    assert len(read_csv(found)) == 2
    provided = {(row["kind"], row["name"]) for row in read_csv(plugins.registry())}
    assert {("criteria", "block-influence"), ("evaluators", "perplexity"), ("models", "zoo:llama")} <= provided


@pytest.mark.parametrize("name", ["csv", "markdown"])
def test_a_kind_that_has_no_tables_is_refused_in_one_message(name: str, scores: Scores) -> None:
    with pytest.raises(OutputError, match="there is no table of a CalibrationInfo; take --format json"):
        reported(name, scores.calibration)


def test_a_table_has_a_cell_a_column() -> None:
    row: Any = (1, 2)
    with pytest.raises(ValueError, match="a row of 2 cells under 1 columns"):
        Table("", ("a",), (row,))
