"""Some of the campaign of broken inputs; `make hostile` tries ten times as many."""

import pytest

from tests.hostile import ATTACKS, campaign

CASES = 400
"""In all; more where reading is all that is done, for that takes a millisecond."""


@pytest.mark.parametrize("name", ATTACKS)
def test_a_broken_input_gives_a_result_or_one_clear_error(name: str) -> None:
    campaign(name, max(3, CASES * ATTACKS[name].share // 100))
