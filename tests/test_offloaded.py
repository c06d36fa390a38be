"""Models whose weights accelerate keeps elsewhere: scored as they are, and not shortened in memory."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from torch import nn

import shortgpt
from shortgpt.errors import ModelError
from tests.support import ids_of, tiny


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
