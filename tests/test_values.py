"""Values to JSON and back: what is read is exactly what was written, and nothing else is taken."""

import json
import math
from dataclasses import dataclass, field
from typing import Any

import pytest

from shortgpt.errors import ShortGPTError
from shortgpt.values import Value


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


FULL = Outer(3, 0.1, True, None, ((1.0, 2.5), (1e-300, 0.1 + 0.2)), Inner("a"), (Inner("b", 2.0),), {4: "why", 0: "ü"})
PLAIN: dict[str, Any] = {"count": 1, "share": 0.5, "flag": False, "label": "x", "rows": []}


def test_a_value_survives_json_bit_for_bit() -> None:
    assert Outer.from_json(FULL.to_json()) == FULL


def test_the_json_is_plain() -> None:
    assert json.loads(FULL.to_json()) == {
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


@pytest.mark.parametrize("text", ["", "{", "nonsense", "[1]", "3"])
def test_text_that_is_no_json_object_is_refused(text: str) -> None:
    with pytest.raises(ShortGPTError, match=r"Outer: (not JSON|expected a JSON object)"):
        Outer.from_json(text)
