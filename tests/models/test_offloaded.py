"""Models whose weights accelerate keeps elsewhere: scored as they are, and not shortened in memory."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from torch import nn
from transformers import LlamaForCausalLM

import shortgpt
from shortgpt.errors import ModelError
from tests.support import ids_of, run_cli, tiny


def on_disk(model: nn.Module, folder: Path) -> nn.Module:
    return disk_offload(model, str(folder), execution_device=torch.device("cpu"))


def in_memory(model: nn.Module, folder: Path) -> nn.Module:
    return cpu_offload(model, execution_device=torch.device("cpu"))


def half_on_disk(model: nn.Module, folder: Path) -> nn.Module:
    places = dict.fromkeys(("model.rotary_emb", "model.norm", "lm_head"), "cpu") | {"model.embed_tokens": "disk"}
    places |= {f"model.layers.{i}": "cpu" if i < 3 else "disk" for i in range(6)}
    return dispatch_model(model, places, main_device="cpu", offload_dir=str(folder), force_hooks=True)


@pytest.mark.parametrize("away", [on_disk, in_memory, half_on_disk])
def test_a_model_that_is_offloaded_scores_as_it_does_in_memory_and_is_not_shortened_there(
    away: Callable[[nn.Module, Path], nn.Module], tmp_path: Path
) -> None:
    batch = [{"input_ids": ids_of(4, 24)}]
    expected = shortgpt.score(shortgpt.wrap(tiny("llama"), name="it"), batch)
    model = shortgpt.wrap(away(tiny("llama"), tmp_path), name="it")
    assert any(p.is_meta for p in model.model.parameters())  # type: ignore[attr-defined]
    assert model.device.type == "cpu"
    assert shortgpt.score(model, batch) == expected
    with pytest.raises(ModelError, match="offloaded or spread over several devices"):
        shortgpt.remove(model, [1])


def test_the_device_auto_leaves_the_places_of_the_blocks_to_accelerate(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    opened = LlamaForCausalLM.from_pretrained.__func__  # type: ignore[attr-defined]

    def watched(kind: type, *args: object, **options: object) -> object:
        seen.append(options.get("device_map"))
        return opened(kind, *args, **options)

    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", classmethod(watched))
    spread = shortgpt.load(llama_folder, device="auto")
    assert seen == ["auto"]
    batch = [{"input_ids": ids_of(4, 24)}]
    assert shortgpt.score(spread, batch) == shortgpt.score(shortgpt.load(llama_folder, device="cpu"), batch)


def test_one_device_has_to_be_named_for_blocks_that_are_streamed(llama_folder: Path) -> None:
    ran = run_cli("score", llama_folder, "--device", "auto", "--stream")
    assert ran.status == 2
    assert "blocks that are streamed run on one device; name it in place of auto" in ran.err
