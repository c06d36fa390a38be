"""Values to JSON and back: what is read is exactly what was written, and nothing else is taken."""

import json
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest

from shortgpt.basics.value import Value
from shortgpt.errors import OutputError, ShortGPTError


@dataclass(frozen=True)
class Inner(Value):
    name: str
    weight: float = 1.0


@dataclass(frozen=True)
class Outer(Value):
    count: int
    share: float
    flag: bool
    label: str | None
    rows: tuple[tuple[float, ...], ...]
    inner: Inner | None = None
    many: tuple[Inner, ...] = ()
    notes: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TwoWords(Value):
    schema_version: ClassVar[int] = 3
    size: int

    def check(self) -> None:
        if self.size < 0:
            raise ShortGPTError("less than nothing is more than it holds")


FULL = Outer(3, 0.1, True, None, ((1.0, 2.5), (1e-300, 0.1 + 0.2)), Inner("a"), (Inner("b", 2.0),), {4: "why", 0: "ü"})
PLAIN: dict[str, Any] = {"count": 1, "share": 0.5, "flag": False, "label": "x", "rows": []}


def test_a_value_survives_json_bit_for_bit() -> None:
    assert Outer.from_json(FULL.to_json()) == FULL


def test_the_json_is_plain() -> None:
    assert json.loads(FULL.to_json()) == {"schema": "shortgpt/outer/1"} | FULL.to_dict()
    assert FULL.to_dict() == {
        "count": 3,
        "share": 0.1,
        "flag": True,
        "label": None,
        "rows": [[1.0, 2.5], [1e-300, 0.30000000000000004]],
        "inner": {"name": "a", "weight": 1.0},
        "many": [{"name": "b", "weight": 2.0}],
        "notes": {"4": "why", "0": "ü"},
    }


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks_are_null_and_come_back_as_nan(number: float) -> None:
    text = Inner("a", number).to_json()
    assert json.loads(text)["weight"] is None
    assert math.isnan(Inner.from_json(text).weight)


def test_a_whole_number_is_taken_for_a_float_and_defaults_are_filled_in() -> None:
    assert Outer.from_dict(PLAIN | {"share": 1}) == Outer(1, 1.0, False, "x", ())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, r"Outer: unknown keys \['colour'\]; known are"),
        ({"count": "3"}, r"Outer\.count: expected int, found str"),
        ({"count": True}, r"Outer\.count: expected int, found bool"),
        ({"count": 1.5}, r"Outer\.count: expected int, found float"),
        ({"share": "0.5"}, r"Outer\.share: expected float, found str"),
        ({"flag": 1}, r"Outer\.flag: expected bool, found int"),
        ({"label": 3}, r"Outer\.label: expected str, found int"),
        ({"rows": 3}, r"Outer\.rows: expected a list, found int"),
        ({"rows": [3]}, r"Outer\.rows: expected a list, found int"),
        ({"rows": [["x"]]}, r"Outer\.rows: expected float, found str"),
        ({"inner": []}, "Inner: expected a JSON object, found list"),
        ({"inner": {"weight": 1}}, r"Inner: the keys \['name'\] are missing"),
        ({"notes": []}, r"Outer\.notes: expected an object, found list"),
        ({"notes": {"a": "why"}}, r"Outer\.notes: expected int, found 'a'"),
        ({"notes": {"1": 3}}, r"Outer\.notes: expected str, found int"),
    ],
)
def test_what_was_not_written_by_us_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ShortGPTError, match=message):
        Outer.from_dict(PLAIN | change)


def test_a_missing_key_is_named() -> None:
    del (lacking := dict(PLAIN))["share"]
    with pytest.raises(ShortGPTError, match=r"Outer: the keys \['share'\] are missing"):
        Outer.from_dict(lacking)


# -- documents say what they are --------------------------------------------------------------------------------


def test_the_schema_is_the_kind_and_the_version_and_stands_on_top_only() -> None:
    document = json.loads(FULL.to_json())
    assert next(iter(document)) == "schema"
    assert document["schema"] == "shortgpt/outer/1"
    assert "schema" not in document["inner"]
    assert "schema" not in document["many"][0]
    assert json.loads(TwoWords(1).to_json())["schema"] == "shortgpt/two-words/3"


def test_what_was_written_before_there_were_schemas_is_read() -> None:
    assert Outer.from_json(json.dumps(FULL.to_dict())) == FULL


def test_a_document_is_also_read_as_a_mapping() -> None:
    assert Outer.from_dict(json.loads(FULL.to_json())) == FULL


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ("shortgpt/inner/1", r"of another kind \(inner\)"),
        ("shortgpt/two-words/4", "upgrade shortgpt"),
        ("shortgpt/two-words/2", "write it again"),
        ("elsewhere/two-words/3", "not written by shortgpt"),
        ("shortgpt/two-words/", "not written by shortgpt"),
        (3, "not written by shortgpt"),
        (None, "not written by shortgpt"),
    ],
)
def test_another_kind_or_version_is_refused_with_what_was_found_and_what_is_read(schema: object, told: str) -> None:
    with pytest.raises(ShortGPTError, match=told) as caught:
        TwoWords.from_json(json.dumps({"schema": schema, "size": 1}))
    assert repr(schema) in str(caught.value)
    assert "'shortgpt/two-words/3'" in str(caught.value)


def test_a_kind_is_told_apart_by_its_schema_even_where_the_keys_are_the_same() -> None:
    @dataclass(frozen=True)
    class Twin(Value):
        name: str
        weight: float = 1.0

    with pytest.raises(ShortGPTError, match="of another kind"):
        Twin.from_json(Inner("a").to_json())


def test_what_is_read_is_checked_for_contradictions() -> None:
    with pytest.raises(ShortGPTError, match="more than it holds"):
        TwoWords.from_json('{"size": -1}')


def test_pairs_have_two_items() -> None:
    @dataclass(frozen=True)
    class Pair(Value):
        interval: tuple[float, str]

    assert Pair.from_json('{"interval": [1, "a"]}') == Pair((1.0, "a"))
    with pytest.raises(ShortGPTError, match=r"Pair\.interval: expected 2 items, found 3"):
        Pair.from_json('{"interval": [1, "a", 2]}')


def test_a_kind_without_tables_says_what_to_take() -> None:
    with pytest.raises(OutputError, match="there is no table of a Inner; take --format json"):
        Inner("a").tidy()


@pytest.mark.parametrize("text", ["", "{", "nonsense", "[1]", "3", "[" * 100_000, "9" * 5000])
def test_text_that_is_no_json_object_is_refused(text: str) -> None:
    with pytest.raises(ShortGPTError, match=r"Outer: (not JSON|expected a JSON object)"):
        Outer.from_json(text)
