"""Plans: what `shortgpt.json` and the model card say of a removal."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

import shortgpt
from shortgpt import Plan, Scores, Verification
from shortgpt.checkpoints.card import model_card
from shortgpt.checkpoints.records import write_records
from shortgpt.errors import OutputError, SelectionError
from shortgpt.models.removal import plan_of
from tests.support import Playback, tiny


@pytest.fixture
def scores() -> Scores:
    stream = torch.randn(5, 40, 8, generator=torch.Generator().manual_seed(0)).cumsum(0)
    batches = [{"input_ids": torch.arange(40).reshape(4, 10)}]
    return shortgpt.score(Playback(stream, name="someone/model"), batches)


@pytest.fixture
def plan(scores: Scores) -> Plan:
    done = Verification(True, None, 0.0, 12.5, 0.0, (2, 32), 8, "cpu", "float32")
    hashes = {"config.json": "a" * 64, "model.safetensors": "b" * 64}
    return replace(
        scores.plan(2),
        verification=done,
        parameters_before=2000,
        parameters_after=1500,
        source_hashes=hashes,
        load="import x",
    )


def test_a_plan_survives_its_file(tmp_path: Path, plan: Plan) -> None:
    nested = replace(plan, base=Plan("older", "llama", 9, (3,)))
    write_records(tmp_path, nested)
    assert Plan.read(tmp_path) == nested
    assert Plan.read(tmp_path / "shortgpt.json") == nested


def test_the_plan_of_a_model_names_it_and_the_blocks_in_order() -> None:
    model = shortgpt.wrap(tiny("llama"), name="mine")
    assert plan_of(model, [4, 1, 4]) == Plan("mine", "llama", 6, (1, 4))


def test_the_plan_of_a_shortened_model_holds_the_plan_before(plan: Plan) -> None:
    model = shortgpt.wrap(tiny("llama", blocks=2))
    model.plan = plan
    assert plan_of(model, [1]).base == plan


def test_the_card_says_what_was_done(plan: Plan, scores: Scores) -> None:
    card = model_card(plan)
    _, front, text = card.split("---\n", 2)
    assert yaml.safe_load(front) == {"base_model": "someone/model", "tags": ["shortgpt", "depth-pruning"]}
    assert "# model, 2 of 4 blocks" in text
    assert f"Made from `someone/model` (architecture `playback`) by shortgpt {shortgpt.__version__}" in text
    assert "Parameters: 1,500 of 2,000 (25.0% removed)." in text
    assert "Calibration: token batches, 4 sequences of up to 10 tokens; SHA-256 of the tokens" in text
    assert scores.calibration.token_hash[:16] in text
    for block, (value, error) in enumerate(zip(scores.values, scores.stderr, strict=True)):
        mark = "removed" if block in plan.blocks else ""
        assert f"| blocks.{block} | {value:.6f} | {error:.6f} | {mark} |" in text
    assert "Verified: logits differ by 0 (largest logit 12.5)" in text
    assert "```python\nimport x\n```" in text
    assert "shortgpt prune MODEL --plan shortgpt.json" in text


def test_the_card_of_a_removal_by_hand_has_no_scores_and_says_that_nothing_was_checked() -> None:
    card = model_card(Plan("m", "llama", 6, (1, 2, 4)))
    assert "the blocks 1-2, 4 were removed" in card
    assert "## Scores" not in card
    assert "Not verified: it was not asked for." in card


def test_the_card_of_a_second_removal_names_the_first() -> None:
    assert "The base model is `older` (9 blocks) without 3." in model_card(
        Plan("m", "llama", 8, (1,), base=Plan("older", "llama", 9, (3,)))
    )


@pytest.mark.parametrize(
    "name", ["a: b", "#x", "[x]", "x' y", "- x", "/some/place", "zoo:llama", "meta-llama/Llama-2-7b"]
)
def test_the_front_matter_is_yaml_and_names_a_base_model_of_the_hub_only(name: str) -> None:
    card = model_card(Plan(name, "llama", 6, (1,)))
    front = yaml.safe_load(card.split("---\n")[1])
    assert front.get("base_model") == (name if name == "meta-llama/Llama-2-7b" else None)
    assert f"`{name}`" in card


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"model": 1}', '{"rows": []}', "\x00"])
def test_a_file_that_is_no_plan_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "shortgpt.json").write_text(text)
    with pytest.raises(SelectionError, match="not a plan that shortgpt wrote"):
        Plan.read(tmp_path)


def test_a_plan_file_that_is_not_there_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SelectionError, match=r"shortgpt\.json: the plan cannot be read \(No such file"):
        Plan.read(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(SelectionError, match="not a plan"):
        Plan.read(tmp_path / "binary")


def test_records_that_cannot_be_written_are_an_output_error(tmp_path: Path, plan: Plan) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        write_records(tmp_path / "nowhere", plan)
