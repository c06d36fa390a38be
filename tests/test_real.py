"""Trained models and text that this project did not make, with numbers that independent float64 code gave for them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import shortgpt
from shortgpt import BlockSequence, prune_checkpoint
from tests.support import perplexity

RUNS = [
    ("stories260k-llama", "tinystories_sample"),
    ("stories260k-llama", "wikitext2_valid"),
    ("rwkv-4v0-660K-hf", "wikitext2_valid"),
    ("rwkv-4v0-660K-hf", "lambada_test"),
]


@pytest.fixture(scope="module")
def opened() -> dict[Path, BlockSequence]:
    """Models that were loaded before, by folder."""
    return {}


@pytest.fixture(params=RUNS, ids=lambda run: "-".join(run))
def case(request: pytest.FixtureRequest, real: Path, opened: dict[Path, BlockSequence]) -> Any:
    """A model's folder, the model, token ids [sequences, tokens], and the truth about them."""
    model, run = request.param
    folder = real / model
    truth = json.loads((folder / "bi_truth.json").read_text())["runs"][run]
    if folder not in opened:
        opened[folder] = shortgpt.load(folder, device="cpu")
    return folder, opened[folder], torch.tensor(truth["token_ids"]), truth


def perplexity_of(model: BlockSequence, ids: Tensor) -> float:
    return perplexity(model.logits({"input_ids": ids}), ids)


def test_block_influence_is_the_truths(case: Any) -> None:
    _, model, ids, truth = case
    scores = shortgpt.score(model, [{"input_ids": ids}])
    assert scores.values == pytest.approx(truth["bi"], abs=2e-5)
    assert scores.stream_norm == pytest.approx(truth["mean_resid_norm"][:-1], rel=1e-5)


def test_the_blocks_chosen_are_the_truths(case: Any) -> None:
    _, model, ids, truth = case
    scores = shortgpt.score(model, [{"input_ids": ids}])
    assert set(scores.least_influential(3)) == set(truth["lowest_bi"])


def test_perplexity_is_the_truths_whole_skipped_and_removed_in_memory(case: Any) -> None:
    _, model, ids, truth = case
    assert perplexity_of(model, ids) == pytest.approx(truth["ppl_full"], rel=1e-4)
    for block, expected in enumerate(truth["ppl_without_block"]):
        with model.skipping([block]):
            assert perplexity_of(model, ids) == pytest.approx(expected, rel=1e-4), f"block {block} skipped"
        shorter = shortgpt.remove(model, [block])
        assert perplexity_of(shorter, ids) == pytest.approx(expected, rel=1e-4), f"block {block} removed"
    assert perplexity_of(model, ids) == pytest.approx(truth["ppl_full"], rel=1e-4)


@pytest.mark.sampled("stories260k-llama-tinystories_sample-disk", "rwkv-4v0-660K-hf-lambada_test-memory")
@pytest.mark.parametrize("road", ["disk", "memory"])
def test_perplexity_is_the_truths_of_what_was_saved_and_loaded_again(case: Any, road: str, tmp_path: Path) -> None:
    folder, model, ids, truth = case
    for block, expected in enumerate(truth["ppl_without_block"]):
        out = tmp_path / str(block)
        if road == "disk":
            prune_checkpoint(folder, out, [block], verify=False)
        else:
            shortgpt.remove(model, [block]).save(out)
        found = perplexity_of(shortgpt.load(out, device="cpu"), ids)
        assert found == pytest.approx(expected, rel=1e-4), f"block {block}"
