"""Which projection of a block reaches the stream by addition alone, and what a change of it does."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from shortgpt_adapters.families import gpt2_postnorm_model  # noqa: F401  (registers its classes)
from torch import Tensor

import shortgpt
from shortgpt.models.projections import Addition, Change, Projection
from shortgpt.models.sequence import BlockSequence
from tests.support import ids_of, tiny
from tests.tiny_types import tiny_model

BLOCK = 2


def projection_of(blocks: BlockSequence, block: int = BLOCK) -> Projection:
    found = blocks.projection(block)
    assert isinstance(found, Projection), found
    return found


@pytest.mark.parametrize(
    ("name", "form", "tensors"),
    [
        ("llama", "map", {"mlp.down_proj.weight": -2}),
        ("mistral", "map", {"mlp.down_proj.weight": -2}),
        ("gpt2", "map", {"mlp.c_proj.weight": -1, "mlp.c_proj.bias": -1}),
        ("mamba", "map", {"mixer.out_proj.weight": -2}),
        ("rwkv", "scale", {"feed_forward.value.weight": -2}),
        ("gpt2_postnorm", "gain", {"ln_2.weight": -1}),
    ],
)
def test_the_projection_of_a_family(name: str, form: str, tensors: Mapping[str, int]) -> None:
    found = projection_of(shortgpt.wrap(tiny(name)))
    assert (found.form, dict(found.tensors)) == (form, tensors)
    assert (found.reason is None) == (form == "map")


@pytest.mark.parametrize("model_type", ["mixtral", "gpt_neox", "gpt_oss", "qwen2_moe"])
def test_experts_and_branches_that_run_side_by_side_are_taken_together(model_type: str) -> None:
    """What they add is the block's whole addition, or all of the mixture's: by plain hooks on the mixture's module."""
    model = tiny_model(model_type, 4, 0)
    blocks = shortgpt.wrap(model)
    found = projection_of(blocks, 1)
    addition = blocks.addition({"input_ids": ids_of(tokens=6) % blocks.vocab_size}, found)
    seen: dict[str, Tensor] = {}

    def stream(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        seen["x"] = (args[0] if args else kwargs["hidden_states"]).clone()
        seen["y"] = (output if isinstance(output, Tensor) else output[0]).clone()

    def inner(module: Any, args: Any, output: Any) -> None:
        seen["mlp"] = (output if isinstance(output, Tensor) else output[0]).clone()

    block: Any = blocks.blocks[1]  # type: ignore[attr-defined]
    hooks = [block.register_forward_hook(stream, with_kwargs=True), block.mlp.register_forward_hook(inner)]
    with torch.no_grad():
        model(input_ids=ids_of(tokens=6) % blocks.vocab_size, use_cache=False)
    for hook in hooks:
        hook.remove()
    expected = seen["y"] - seen["x"] if model_type == "gpt_neox" else seen["mlp"]
    torch.testing.assert_close(addition.behind, seen["y"])
    torch.testing.assert_close(addition.added, expected.view_as(addition.added), atol=1e-5, rtol=1e-4)


def test_a_change_moves_the_stream_by_what_it_says() -> None:
    model = tiny("llama")
    blocks = shortgpt.wrap(model)
    found = projection_of(blocks)
    ids = ids_of()
    before = blocks.addition({"input_ids": ids}, found)
    matrix = torch.randn(32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        hidden: list[Tensor] = []
        down = model.model.layers[BLOCK].mlp.down_proj
        hook = down.register_forward_pre_hook(lambda module, args: hidden.append(args[0].clone()))
        model(input_ids=ids, use_cache=False)
        hook.remove()
        by_hand = before.behind - hidden[0] @ down.weight.T + hidden[0] @ (matrix.float() @ down.weight).T
    with blocks.changing((Change(found, matrix),)):
        after = blocks.addition({"input_ids": ids}, found)
    torch.testing.assert_close(after.behind, by_hand, atol=1e-4, rtol=1e-4)


def test_behind_the_context_nothing_is_changed() -> None:
    blocks = shortgpt.wrap(tiny("llama"))
    before = blocks.logits({"input_ids": ids_of()})
    change = Change(projection_of(blocks), 2 * torch.eye(32, dtype=torch.float64))
    with blocks.changing((change,)):
        assert not torch.equal(blocks.logits({"input_ids": ids_of()}), before)
    assert torch.equal(blocks.logits({"input_ids": ids_of()}), before)


def test_a_model_that_shares_tensors_keeps_them_when_another_one_is_changed() -> None:
    blocks = shortgpt.wrap(tiny("gpt2"))
    before = blocks.logits({"input_ids": ids_of()})
    shorter = shortgpt.remove(blocks, (4,))
    shorter.change((Change(projection_of(blocks), 2 * torch.eye(32, dtype=torch.float64)),))
    assert torch.equal(blocks.logits({"input_ids": ids_of()}), before)
    assert not torch.equal(
        shorter.logits({"input_ids": ids_of()}), shortgpt.remove(blocks, (4,)).logits({"input_ids": ids_of()})
    )


def test_a_gain_moves_the_stream_by_the_normed_vectors() -> None:
    """Of a norm that adds one to its gain as well: the change is added, so it is the same for both kinds."""
    model = tiny_model("gemma2", 4, 0)
    blocks = shortgpt.wrap(model)
    found = projection_of(blocks, 1)
    assert (found.form, list(found.tensors)) == ("gain", ["post_feedforward_layernorm.weight"])
    ids = ids_of(tokens=6) % blocks.vocab_size
    seen: list[Tensor] = []
    norm = model.model.layers[1].post_feedforward_layernorm
    hook = norm.register_forward_hook(lambda module, args, output: seen.append(output.clone()))
    addition: Addition = blocks.addition({"input_ids": ids}, found)
    hook.remove()
    gain = 1 + norm.weight.detach()
    torch.testing.assert_close(addition.added, seen[0] / gain, atol=1e-5, rtol=1e-4)


def test_half_precision_is_looked_at_in_float32() -> None:
    blocks = shortgpt.wrap(tiny("llama").bfloat16())
    assert dict(projection_of(blocks).tensors) == {"mlp.down_proj.weight": -2}


def test_weights_that_other_blocks_use_are_left_alone() -> None:
    model = tiny("llama")
    model.model.layers[4].mlp.down_proj = model.model.layers[BLOCK].mlp.down_proj
    found = shortgpt.wrap(model).projection(BLOCK)
    assert found == "mlp.down_proj.weight is used in other places of the model as well (tied weights)"


def test_quantised_weights_are_refused_by_name() -> None:
    model = tiny("llama")
    layer = model.model.layers[BLOCK]
    for parameter in layer.parameters():
        parameter.requires_grad_(False)
        parameter.data = parameter.data.to(torch.float8_e4m3fn)
    layer.forward = lambda hidden_states, **kwargs: 2 * hidden_states
    assert shortgpt.wrap(model).projection(BLOCK) == "its weights are quantised"
