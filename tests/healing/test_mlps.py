"""MLPs in the places of removed blocks: nothing differs at the start, and transformers opens the result without us."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import shortgpt
from shortgpt.errors import ModelError
from shortgpt.healing.heal import heal
from shortgpt.healing.methods import removed_places
from tests.support import ids_of, saved, tiny

SMALL: dict[str, Any] = {"steps": 4, "sequences": 8, "tokens": 16, "step_sequences": 2, "every": 2}


def with_mlps_by_hand(folder: Path, shorter: Path, places: tuple[int, ...], ids: Tensor) -> Tensor:
    """The logits of the plain shorter model with the MLPs written out on its stream."""
    tensors = load_file(folder / "model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(shorter)
    layers = model.model.layers

    def added(place: int, hidden: Tensor) -> Tensor:
        stem = f"model.layers.{place - 1}.mlp_behind." if place else "model.layers.0.mlp_in_front."
        norm, gate, up, down = (tensors[f"{stem}{name}.weight"] for name in ("norm", "gate", "up", "down"))
        normed = norm * hidden / (hidden.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        inner = normed @ gate.T
        return hidden + (inner * inner.sigmoid() * (normed @ up.T)) @ down.T

    for place in places:
        if place < len(layers):
            layers[place].register_forward_pre_hook(lambda module, args, at=place: (added(at, args[0]), *args[1:]))
        else:
            layers[-1].register_forward_hook(lambda module, args, output, at=place: added(at, output))
    with torch.no_grad():
        return model(input_ids=ids).logits


def test_a_trained_model_with_mlps_opens_in_plain_transformers(llama_folder: Path, text: Path, tmp_path: Path) -> None:
    shortgpt.prune_checkpoint(llama_folder, tmp_path / "shorter", (1, 4, 5), verify=False)
    options: dict[str, Any] = {"method": "mlp", "width": 8, "calibration": text, "learning_rate": 2e-2, **SMALL}
    result = heal(llama_folder, tmp_path / "shorter", tmp_path / "new" / "out", **options)
    assert [folder.name for folder in (tmp_path / "new").iterdir()] == ["out"]
    (tmp_path / "new" / "out").rename(tmp_path / "out")
    assert result.held_out[0].loss == result.before
    assert result.after < result.before
    assert result.trained == 2 * (3 * 32 * 8 + 32)
    opened, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", trust_remote_code=True, output_loading_info=True
    )
    assert not any(info.values())
    found = opened(input_ids=ids_of()).logits
    expected = with_mlps_by_hand(tmp_path / "out", tmp_path / "shorter", (1, 3), ids_of())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    text_of = (tmp_path / "out" / "modeling_with_mlps.py").read_text()
    assert "shortgpt" not in text_of
    with pytest.raises(ValueError, match=r"trust_remote_code|does not recognize"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=False)
    record = json.loads((tmp_path / "out" / "shortgpt.json").read_text())
    assert "trust_remote_code=True" in record["load"]
    assert record["parameters_after"] == sum(parameter.numel() for parameter in opened.parameters())
    again = shortgpt.load(tmp_path / "out", trust_remote_code=True)
    torch.testing.assert_close(again.logits({"input_ids": ids_of()}), found)
    tokens = opened.generate(ids_of(1, 6), max_new_tokens=4, do_sample=False)
    assert tokens.shape == (1, 10)


@pytest.mark.parametrize("name", ["mamba", "gpt2_postnorm", "rwkv"])
def test_before_the_first_step_no_bit_differs(name: str, tmp_path: Path) -> None:
    model: Any = shortgpt.load(saved(tiny(name, 4), tmp_path / "whole"))
    before = model.logits({"input_ids": ids_of()})
    mlps = model.put_mlps((0, 2, 4), 8)
    assert torch.equal(model.logits({"input_ids": ids_of()}), before)
    with torch.no_grad():
        for mlp in mlps:
            torch.nn.init.normal_(mlp.down.weight, std=0.1)
    changed = model.logits({"input_ids": ids_of()})
    assert not torch.equal(changed, before)
    (tmp_path / "out").mkdir()
    model.write(tmp_path / "out")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    torch.testing.assert_close(opened(input_ids=ids_of()).logits, changed)


def test_places_are_counted_in_what_stays() -> None:
    assert removed_places((1, 3), 4) == (0, 1)
    assert removed_places((0, 1), 4) == (2,)
    assert removed_places((0, 1, 2, 3), 4) == ()


def test_blocks_removed_twice_are_places_of_the_original(llama_folder: Path, tmp_path: Path) -> None:
    shortgpt.prune_checkpoint(llama_folder, tmp_path / "once", (1,), verify=False)
    shortgpt.prune_checkpoint(tmp_path / "once", tmp_path / "twice", (1, 3), verify=False)
    plan = shortgpt.load(tmp_path / "twice").plan
    assert plan is not None
    assert (plan.kept, plan.original_depth) == ((0, 3, 5), 6)


def test_without_a_record_no_place_is_known(llama_folder: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no record \(shortgpt.json\) says which blocks were removed"):
        heal(llama_folder, llama_folder, tmp_path / "out", method="mlp", calibration=text, **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_hold_an_mlp_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = shortgpt.wrap(tiny("llama"))
    block = model.blocks[2]
    forward = block.forward
    monkeypatch.setattr(block, "forward", lambda hidden, **others: forward(2 * hidden, **others))
    with pytest.raises(ModelError, match=r"no MLP can stand in the place of blocks of a LlamaForCausalLM.*differ"):
        model.put_mlps((2,), 8)


def test_where_blocks_are_handed_several_streams_none_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = shortgpt.wrap(tiny("llama"))
    monkeypatch.setattr(model, "observed", lambda boundary, hidden: torch.cat((hidden, hidden), -1))
    with pytest.raises(ModelError, match=r"are handed \[2, 32, 32\] where their stream is \[2, 32, 64\]"):
        model.put_mlps((2,), 8)
