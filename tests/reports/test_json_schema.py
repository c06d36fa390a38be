"""The JSON Schema of a kind: what results write is valid by it, what is none is not, and the page says what it says."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import shortgpt
from shortgpt import plugins
from shortgpt.basics.value import Value
from shortgpt.reports.json_schema import descriptions, json_schema
from shortgpt.values.choosing.spans import Spans
from shortgpt.values.comparison import Row
from tests import json_docs
from tests.support import Playback

PAGE = Path(__file__).parents[2] / "docs" / "json.md"


def results() -> list[Value]:
    stream = torch.randn(4, 20, 8, generator=torch.Generator().manual_seed(0)).cumsum(0)
    model = Playback(stream, pinned={0: "why"})
    scores = shortgpt.score(model, [{"input_ids": torch.arange(20)[None]}], criteria=["block-influence"])
    spans = Spans("block-influence", 2, ((0.1, float("nan"), 0.2),), (1,))
    comparison = shortgpt.Comparison((Row("m", scores), Row("n", error="why")), ("block-influence",))
    return [scores, spans, comparison, scores.plan(1), plugins.registry()]


@pytest.mark.parametrize("name", json_docs.kinds())
def test_every_field_of_every_kind_is_described_in_its_docstring(name: str) -> None:
    kind = json_docs.kinds()[name]
    fields = [field for field in json_schema(kind)["properties"] if field not in ("schema", *kind.derived)]
    assert fields == list(descriptions(kind))


def test_the_page_is_what_the_dataclasses_say() -> None:
    told = "python -m tests.json_docs docs/json.md writes it again"
    assert PAGE.read_text(encoding="utf-8") == json_docs.page(), told


def test_the_page_has_every_kind_of_result_that_is_public() -> None:
    public = [thing for name in shortgpt.__all__ if isinstance(thing := getattr(shortgpt, name), type)]
    kinds = [kind for kind in public if issubclass(kind, Value)]
    assert len(kinds) >= 6
    text = PAGE.read_text(encoding="utf-8")
    assert [kind for kind in kinds if f"\n`{kind.schema()}`: " not in text] == []


def test_no_two_kinds_have_one_name() -> None:
    kinds: list[type[Value]] = list(json_docs.kinds().values())
    found, waiting = set(), Value.__subclasses__()
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        found |= {kind} if kind.__module__.startswith("shortgpt.") else set()
    assert found == set(kinds)


@pytest.mark.parametrize("result", results(), ids=lambda result: type(result).__name__)
def test_what_is_written_is_valid_and_what_is_damaged_is_not(result: Value) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    check = jsonschema.Draft202012Validator(json_schema(type(result)))
    document: dict[str, Any] = json.loads(result.to_json())
    check.validate(document)
    damaged: list[dict[str, Any]] = [document | {"colour": 1}, document | {"schema": "shortgpt/other/1"}]
    for key in json_schema(type(result))["required"]:
        lacking = copy.deepcopy(document)
        del lacking[key]
        damaged += [lacking, document | {key: {"of": ["no such type"]}}]
    assert [found for found in damaged if check.is_valid(found)] == []


def test_a_schema_in_full() -> None:
    assert json_schema(Spans) == {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Spans",
        "type": "object",
        "properties": {
            "schema": {"const": "shortgpt/spans/1"},
            "criterion": {"type": "string", "description": "what was measured."},
            "depth": {"type": "integer", "description": "the number of blocks, L."},
            "sums": {
                "type": "array",
                "items": {"type": "array", "items": {"type": ["number", "null"]}},
                "description": "float64 sums of the tokens' values, [sequences][pairs]; the pairs (i, j), "
                "0 <= i < j <= L, in lexicographic order.",
            },
            "counts": {
                "type": "array",
                "items": {"type": "integer"},
                "description": "the tokens that are in each sequence's sums, [sequences].",
            },
        },
        "required": ["criterion", "depth", "sums", "counts"],
        "additionalProperties": False,
        "$defs": {},
    }
