"""JSON text that is changed only where its values change."""

import json
from typing import Any

import pytest

from shortgpt.models.configs.text import same, updated

PRETTY = """{
  "n_layer" : 6,   "eps": 1e-05, "wide": 1.50,
  "kinds": ["a", "b",
            "c"],
  "numbers": [
    1,
    2.50,
    3
  ],
  "rope": {"theta": 5E5, "scaling": {"factor": 8.0}},
  "empty": [], "\\u00e9": "\\u00e9"
}
"""


def changed(text: str, **fields: Any) -> str:
    return updated(text, json.loads(text) | fields)


def test_a_value_that_stays_keeps_every_character_of_its_text() -> None:
    assert updated(PRETTY, json.loads(PRETTY)) == PRETTY


def test_only_the_value_that_changes_is_spelt_anew() -> None:
    assert changed(PRETTY, n_layer=4) == PRETTY.replace('"n_layer" : 6,', '"n_layer" : 4,')


def test_entries_that_stay_in_a_list_keep_their_text_and_layout() -> None:
    assert changed(PRETTY, numbers=[2.5, 3]) == PRETTY.replace("    1,\n", "")
    assert changed(PRETTY, numbers=[]) == PRETTY.replace("[\n    1,\n    2.50,\n    3\n  ]", "[]")


def test_a_field_inside_an_object_is_changed_in_place() -> None:
    assert changed(PRETTY, rope={"theta": 5e5, "scaling": {"factor": 4.0}}) == PRETTY.replace("8.0", "4.0")


def test_a_field_that_goes_takes_what_stood_before_it_along() -> None:
    fields = json.loads(PRETTY)
    del fields["eps"]
    assert updated(PRETTY, fields) == PRETTY.replace('   "eps": 1e-05,', "")


def test_new_fields_come_last_laid_out_as_the_text_is() -> None:
    assert changed('{\n    "a": 1,\n    "b": 2\n}', c=[1, 2]) == (
        '{\n    "a": 1,\n    "b": 2,\n    "c": [\n        1,\n        2\n    ]\n}'
    )
    assert changed('{"a":1,"b":2}', c=[1, 2]) == '{"a":1,"b":2,"c":[1, 2]}'
    assert changed("{}", c=None) == '{"c": null}'


def test_a_field_that_stands_twice_is_changed_twice() -> None:
    assert changed('{"a": 6, "b": 0, "a": 6}', a=4) == '{"a": 4, "b": 0, "a": 4}'


def test_windows_line_ends_and_numbers_that_are_none_stay() -> None:
    text = '{\r\n  "limit": Infinity,\r\n  "depth": 6\r\n}\r\n'
    assert changed(text, depth=4) == text.replace("6", "4")


@pytest.mark.parametrize(("one", "other"), [(1, 1.0), (1, True), (0, None), ("1", 1)])
def test_values_of_different_kinds_are_not_the_same(one: Any, other: Any) -> None:
    assert not same(one, other)


def test_text_behind_the_value_is_an_error() -> None:
    with pytest.raises(ValueError, match="more text behind"):
        updated("{} {}", {})
