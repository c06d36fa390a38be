"""What is taken for a model and for text: names, paths, models in memory, wrappers, data sets, numbers of numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import shortgpt
from shortgpt import Comparison, ShortGPTError
from shortgpt.errors import CalibrationError, ModelError
from tests.support import ids_of, tiny

TEXTS = [f"{i} is the number before {i + 1}, and {i * i} its square" for i in range(6)]


@pytest.fixture(scope="module")
def by_hand(llama_folder: Path) -> shortgpt.Scores:
    return shortgpt.score(shortgpt.load(llama_folder, device="cpu"), TEXTS)


def test_a_model_is_scored_by_name_by_path_and_in_memory(llama_folder: Path, by_hand: shortgpt.Scores) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(llama_folder), AutoTokenizer.from_pretrained(llama_folder)
    assert shortgpt.score(llama_folder, TEXTS, device="cpu").sums == by_hand.sums
    assert shortgpt.score(str(llama_folder), TEXTS, device="cpu").sums == by_hand.sums
    assert shortgpt.score(model, TEXTS, tokenizer=tokenizer).sums == by_hand.sums
    ablation = shortgpt.ablate(model, TEXTS, tokenizer=tokenizer)
    assert ablation.without["block"] == shortgpt.ablate(llama_folder, TEXTS, device="cpu").without["block"]
    assert shortgpt.effect(llama_folder, [1], TEXTS, device="cpu").not_measured
    assert shortgpt.inspect(llama_folder, "1").refusal is None
    compared = shortgpt.compare([model, llama_folder], TEXTS, tokenizer=tokenizer, device="cpu")
    assert isinstance(compared, Comparison)
    assert [row.scores.sums for row in compared.rows if row.scores is not None] == [by_hand.sums] * 2
    assert shortgpt.curve(model, TEXTS, tokenizer=tokenizer, most=1).measured()


def test_what_would_do_nothing_to_a_model_in_memory_is_told(llama_folder: Path) -> None:
    opened = shortgpt.load(llama_folder, device="cpu")
    for model, idle in ((opened, "dtype"), (opened, "tokenizer"), (tiny("llama"), "device")):
        with pytest.raises(ModelError, match=f"in memory, so that {idle} would do nothing"):
            shortgpt.score(model, TEXTS, **{idle: "x"})
    for nothing in (7, object()):
        with pytest.raises(ShortGPTError):
            shortgpt.score(nothing, TEXTS)


@pytest.mark.parametrize("how", ["compiled", "parallel"])
def test_wrappers_of_torch_are_taken_off(llama_folder: Path, by_hand: shortgpt.Scores, how: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama_folder)
    wrapped: Any = torch.compile(model) if how == "compiled" else torch.nn.DataParallel(model)
    tokenizer = AutoTokenizer.from_pretrained(llama_folder)
    assert shortgpt.score(wrapped, TEXTS, tokenizer=tokenizer).sums == by_hand.sums
    blocks = shortgpt.wrap(wrapped)
    assert len(shortgpt.remove(blocks, [1])) == len(blocks) - 1


def test_a_data_set_is_its_records_texts(by_hand: shortgpt.Scores, llama_folder: Path) -> None:
    records = datasets.Dataset.from_dict({"text": TEXTS, "label": list(range(6))})
    for given in (records, records.to_iterable_dataset(), records.rename_column("text", "body")):
        assert shortgpt.score(llama_folder, given, device="cpu").sums == by_hand.sums
    two = datasets.Dataset.from_dict({"a": TEXTS, "b": TEXTS})
    with pytest.raises(CalibrationError, match="a, b could each be the text"):
        shortgpt.score(llama_folder, two, device="cpu")
    assert shortgpt.score(llama_folder, two, field="b", device="cpu").calibration.field == "b"


def test_generators_and_numpys_numbers_are_taken(by_hand: shortgpt.Scores, llama_folder: Path) -> None:
    four = shortgpt.score(llama_folder, (text for text in TEXTS), sequences=numpy.int64(4), device="cpu")
    assert four.sums[0] == by_hand.sums[0][:4]
    plan = shortgpt.prune(llama_folder, blocks=numpy.int32(2), scores=by_hand, dry_run=True)
    assert plan is not None
    assert plan.blocks == by_hand.least_influential(2)


def test_trace_gives_the_stream_that_the_blocks_are_handed() -> None:
    model = tiny("llama")
    ids = ids_of(rows=3)
    seen: list[torch.Tensor] = []
    hooks = [layer.register_forward_pre_hook(lambda module, args: seen.append(args[0])) for layer in model.model.layers]
    hooks.append(model.model.norm.register_forward_pre_hook(lambda module, args: seen.append(args[0])))
    with torch.no_grad():
        for row in ids:
            model(row[None])
    for hook in hooks:
        hook.remove()
    traced = list(shortgpt.trace(model, [{"input_ids": row[None]} for row in ids]))
    assert [(one.number, one.boundary) for one in traced] == [(n, b) for n in range(3) for b in range(7)]
    assert all(torch.equal(one.hidden, stream) for one, stream in zip(traced, seen, strict=True))
    assert torch.equal(traced[-1].batch["input_ids"], ids[2:])


def test_a_model_says_what_it_is(llama_folder: Path) -> None:
    assert repr(shortgpt.load(llama_folder, device="cpu")).endswith(f"{llama_folder}: llama, 6 blocks, cpu>")


def test_only_models_of_the_hub_have_revisions(llama_folder: Path) -> None:
    for name in (llama_folder, "zoo:llama"):
        with pytest.raises(ModelError, match="only models of the hub have revisions"):
            shortgpt.load(name, revision="main")


def test_the_revision_is_fetched_and_named(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def snapshot_download(name: str, *, revision: str, **patterns: Any) -> str:
        asked.append((name, revision))
        return str(llama_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    model = shortgpt.load("some/model", revision="v2", device="cpu")
    assert set(asked) == {("some/model", "v2")}
    assert model.name == "some/model@v2"
