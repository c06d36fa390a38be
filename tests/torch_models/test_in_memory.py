"""A removal in memory is proven where weights are folded, in float32, and says so where it cannot be."""

from collections.abc import Mapping
from typing import Any

import psutil
import pytest
import torch
from shortgpt_adapters.families import gpt2
from shortgpt_adapters.quirks import beam, diffllama
from torch import Tensor

import shortgpt
from shortgpt.errors import VerificationError
from tests.support import skipped_by_hand, tiny
from tests.tiny_types import tiny_model

HALF = (torch.float16, torch.bfloat16)


def left_out(*_: Any) -> Any:
    def fold(tensor: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        return tensor.clone()

    return fold


def scaled_gpt2(dtype: torch.dtype) -> Any:
    return tiny("gpt2", scale_attn_by_inverse_layer_idx=True).to(dtype)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(
    ("make", "adapter", "fold"),
    [
        (scaled_gpt2, gpt2, "_scaled_queries"),
        (lambda dtype: tiny_model("diffllama").to(dtype), diffllama, "_times"),
        (lambda dtype: tiny_model("beam").to(dtype), beam, "_times"),
    ],
    ids=["gpt2", "diffllama", "beam"],
)
def test_a_fold_that_is_left_out_is_noticed_in_half_precision(
    make: Any, adapter: Any, fold: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shortgpt.wrap(make(dtype))
    assert shortgpt.remove(model, [1]).notes == model.notes
    monkeypatch.setattr(adapter, fold, left_out)
    with pytest.raises(VerificationError, match="something depends on a block's place"):
        shortgpt.remove(model, [1])


@pytest.mark.parametrize("dtype", HALF)
def test_a_folded_weight_is_computed_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    model = scaled_gpt2(dtype)
    shorter: Any = shortgpt.remove(shortgpt.wrap(model), [0])
    width = model.config.n_embd
    for new in range(5):
        was = model.transformer.h[new + 1].attn.c_attn.weight.double()
        was[:, :width] *= (new + 1) / (new + 2)
        found = shorter.model.transformer.h[new].attn.c_attn.weight
        assert (found.double() - was).abs().max() <= was.abs().max() * torch.finfo(dtype).eps / 2


def test_without_the_memory_for_a_copy_it_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(available=100 << 20))
    (note,) = shortgpt.remove(shortgpt.wrap(scaled_gpt2(torch.bfloat16)), [1]).notes
    assert note.startswith("The removal was not verified: its proof needs a copy in float32, and memory does not ")


def test_a_model_whose_logits_say_nothing_is_noted_too() -> None:
    model = scaled_gpt2(torch.float32)
    with torch.no_grad():
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.zero_()
    (note,) = shortgpt.remove(shortgpt.wrap(model), [1]).notes
    assert note == (
        "The removal was not verified: the original's logits with these blocks skipped are all zero, which proves "
        "nothing."
    )


def test_what_is_not_folded_is_equal_in_half_precision_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("olmo2").bfloat16()
    monkeypatch.setattr(torch.nn.Module, "float", None)  # no copy in float32
    ids = torch.arange(24).view(2, 12)
    shorter = shortgpt.remove(shortgpt.wrap(model), [1, 4])
    assert torch.equal(shorter.logits({"input_ids": ids}), skipped_by_hand(model, "model.layers", (1, 4), ids))
