"""Configs as they were published: a sample of what `make types CONFIGS=FOLDER` tries."""

import json
from pathlib import Path

import pytest

from tests.published import HEADING, REMOVALS, SIZES, check_published, shrunken

PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"
CHEAP = ("EleutherAI_gpt-neo-1.3B",)


def documented() -> dict[str, dict[str, str]]:
    """The verdicts of the table of published configs, by name."""
    table = PAGE.read_text(encoding="utf-8").partition(HEADING)[2]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    return {row[0]: dict(zip(REMOVALS, row[4:], strict=False)) for row in rows[2:]}


@pytest.mark.parametrize("name", CHEAP)
def test_a_published_config_is_pruned_and_verified_or_refused_as_the_table_says(
    published_configs: Path, name: str
) -> None:
    found = check_published(published_configs / f"{name}.json", ("{middle}",))
    assert found.removals == {"{middle}": documented()[name]["{middle}"]}


def test_the_table_holds_nothing_but_what_is_verified_or_refused() -> None:
    verdicts = [verdict for row in documented().values() for verdict in row.values()]
    assert len(verdicts) > 100
    assert set(verdicts) == {"verified", "refused"}


def test_a_published_config_of_a_type_that_the_library_lacks_is_refused_and_told(published_configs: Path) -> None:
    found = check_published(published_configs / "MiniMaxAI--MiniMax-M3.json")
    assert set(found.removals.values()) == {"refused"}
    assert "'minimax_m3'" in found.reasons[0]


def test_shrinking_changes_sizes_alone() -> None:
    published = {
        "name": "of-long-ago",
        "rope_theta": 500000.0,
        "hidden_size": 4096,
        "layer_types": ["full_attention"] * 80,
        "torch_dtype": "bfloat16",
        "num_hidden_layers": 80,
        "sliding_window": 4096,
        "bos_token_id": 200000,
        "model_type": "qwen3",
    }
    text, left_out = shrunken(json.dumps(published, indent=4))
    small = json.loads(text)
    assert left_out == []
    assert list(small)[: len(published)] == list(published)
    assert set(small) - set(published) <= set(SIZES)  # what the class would have taken from its defaults
    assert {name for name in published if small[name] != published[name]} == {"hidden_size", "bos_token_id"}
    assert text.startswith('{\n    "name"')


def test_shrinking_leaves_out_a_quantisation_that_the_library_would_load() -> None:
    config = {"model_type": "llama", "quantization_config": {"quant_method": "fp8"}}
    assert "quantization_config" not in json.loads(shrunken(json.dumps(config))[0])
    config = {"model_type": "llama", "quantization_config": {"quant_method": "modelopt"}}  # the library passes it over
    assert json.loads(shrunken(json.dumps(config))[0])["quantization_config"] == {"quant_method": "modelopt"}
