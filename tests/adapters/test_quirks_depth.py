"""Types of transformers in which a block's place in the model matters: what makes up for another place, and what does
not. The model with blocks skipped, against which a removal is held, is made here with plain hooks."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from shortgpt_adapters.quirks.minimax import ReloadedMiniMax
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DiffLlamaConfig, MiniCPM3Config, MiniMaxConfig, PreTrainedConfig

import shortgpt
from shortgpt.errors import SelectionError
from shortgpt.models.probing.probes import probe
from shortgpt.models.recognition import recognise, resolve
from shortgpt.testing import boundaries
from shortgpt.verification.removal_on_disk import prune_checkpoint
from tests.tiny_types import tiny_batch, tiny_config, tiny_model


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def built(config: PreTrainedConfig, **change: Any) -> Any:
    """A model of that config in which every weight matters."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(type(config).from_dict(config.to_dict() | change))
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def layers(model: Any) -> nn.ModuleList:
    return next(module for module in model.modules() if isinstance(module, nn.ModuleList))


@contextmanager
def passed_by(model: Any, blocks: Sequence[int]) -> Iterator[None]:
    """The model with these blocks handing on what they are given: the stream, and what else a tuple holds."""

    def hand_on(block: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return (*args, *output[len(args) :]) if isinstance(output, tuple) else args[0]

    hooks = [layers(model)[i].register_forward_hook(hand_on) for i in blocks]
    yield
    for hook in hooks:
        hook.remove()


def logits(model: Any, batch: dict[str, Any]) -> Tensor:
    return model(**batch, use_cache=False).logits


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def reloaded(directory: Path) -> Any:
    model, info = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


PLACES: dict[str, tuple[Sequence[int], ...]] = {
    "beam": ((0,), (1, 4)),
    "diffllama": ((0, 1, 2, 3), (1, 4)),
    "minicpm3": ((5,), (1, 4)),
    "gpt_neox_japanese": ((0, 1), (4, 5)),
    "modernbert-decoder": ((5,), (1, 4)),
    "zaya": ((2, 3), (0,)),
    "minimax": ((0, 1), (1, 4)),
    "qwen4_exp_text": ((5,), (0, 3)),
}


@pytest.mark.sampled("beam", "minicpm3", "zaya", "qwen4_exp_text")
@pytest.mark.parametrize("model_type", PLACES)
def test_a_removal_equals_the_blocks_passed_by_in_memory_and_on_disk(model_type: str, tmp_path: Path) -> None:
    model = tiny_model(model_type)
    batch = tiny_batch(model_type, model)
    wrapped = shortgpt.wrap(model)
    wrapped.save(tmp_path / "whole")
    for blocks in PLACES[model_type]:
        with passed_by(model, blocks):
            expected = logits(model, batch)
        assert not torch.allclose(expected, logits(model, batch), rtol=1e-2)
        assert_close(wrapped.without(blocks).logits(batch), expected)
    prune_checkpoint(tmp_path / "whole", tmp_path / "shorter", blocks, verify=False)
    assert_close(logits(reloaded(tmp_path / "shorter"), batch), expected)


@pytest.mark.parametrize("model_type", PLACES)
def test_the_influence_is_that_of_the_stream_a_plain_hook_sees(model_type: str) -> None:
    model = tiny_model(model_type)
    batch = tiny_batch(model_type, model)
    seen: list[Tensor] = []
    blocks = layers(model)
    hooks = [block.register_forward_pre_hook(lambda block, args: seen.append(args[0].double())) for block in blocks]
    hooks.append(
        blocks[-1].register_forward_hook(
            lambda block, args, output: seen.append((output[0] if isinstance(output, tuple) else output).double())
        )
    )
    model(**batch)
    for hook in hooks:
        hook.remove()
    expected = [(1 - torch.cosine_similarity(x, y, dim=-1)).mean().item() for x, y in pairwise(seen)]
    assert shortgpt.score(shortgpt.wrap(model), [batch]).values == pytest.approx(expected, rel=1e-5)


# -- Beam -----------------------------------------------------------------------------------------------------


def test_behind_a_moved_beam_block_the_stream_has_another_length_and_the_same_direction() -> None:
    model = tiny_model("beam")
    batch = tiny_batch("beam", model)
    shorter = shortgpt.wrap(model).without([0, 3])
    with passed_by(model, [0, 3]):
        full = boundaries(shortgpt.wrap(model), batch)
    # A sum of number k leaves √((k - 1)/k) of the stream; the numbers are 2, 3 in block 0, 4, 5 in block 1 ...
    left = [math.sqrt((2 * i + 1) / (2 * i + 3)) for i in range(6)]
    scales = [1.0]
    for new, old in enumerate((1, 2, 4, 5)):
        scales.append(scales[-1] * left[new] / left[old])
    for stream, scale, same in zip(boundaries(shorter, batch), scales, (1, 2, 4, 5, 6), strict=True):
        assert_close(stream, scale * full[same])


# -- DiffLlama ------------------------------------------------------------------------------------------------


def attended(attention: Any, hidden: Tensor) -> Tensor:
    """What a DiffLlama attention makes of a stream, without rotation."""
    around = torch.zeros(1, hidden.shape[1], attention.head_dim)
    output: Tensor = attention(hidden, (around + 1, around))[0]
    return output


@pytest.mark.parametrize("key", [1.0, 0.0], ids=["a key", "a key of zeros"])
def test_the_folded_lambda_keeps_what_the_attention_computes(key: float) -> None:
    model = tiny_model("diffllama")
    for block in model.model.layers:
        block.self_attn.lambda_k1.mul_(key)
    shorter = shortgpt.wrap(model).without([0, 2, 3]).model  # type: ignore[attr-defined]
    hidden = torch.randn(2, 7, 64, generator=torch.Generator().manual_seed(0))
    for new, old in enumerate((1, 4, 5)):
        moved, before = shorter.model.layers[new].self_attn, model.model.layers[old].self_attn
        assert moved.lambda_init != before.lambda_init
        assert_close(attended(moved, hidden), attended(before, hidden))


def test_the_output_bias_behind_a_folded_lambda_stays() -> None:
    config = tiny_config("diffllama")
    assert isinstance(config, DiffLlamaConfig)
    model = built(config, attention_bias=True)
    shorter = shortgpt.wrap(model).without([0]).model  # type: ignore[attr-defined]
    moved, before = shorter.model.layers[4].self_attn.o_proj, model.model.layers[5].self_attn.o_proj
    assert torch.equal(moved.bias, before.bias)
    assert not torch.equal(moved.weight, before.weight)


# -- MiniCPM 3 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale_depth", [1.4, 2, None])
def test_the_residual_scale_stays_when_blocks_go(scale_depth: float | None) -> None:
    config = tiny_config("minicpm3", 7)
    assert isinstance(config, MiniCPM3Config)
    model = built(config, scale_depth=scale_depth)
    shorter = shortgpt.wrap(model).without([0, 4]).model  # type: ignore[attr-defined]
    assert shorter.model.layers[0].residual_scale == pytest.approx((scale_depth or math.sqrt(7)) / math.sqrt(7))


# -- GPT-NeoX Japanese ----------------------------------------------------------------------------------------


def test_a_block_that_becomes_the_last_gets_a_bias_of_zeros() -> None:
    shorter = shortgpt.wrap(tiny_model("gpt_neox_japanese")).without([4, 5]).model  # type: ignore[attr-defined]
    assert torch.equal(layers(shorter)[3].attention.dense_bias, torch.zeros(64))  # type: ignore[union-attr]


def test_a_last_block_that_stays_keeps_its_bias() -> None:
    model = tiny_model("gpt_neox_japanese")
    shorter = shortgpt.wrap(model).without([1, 2]).model  # type: ignore[attr-defined]
    bias = layers(model)[5].attention.dense_bias  # type: ignore[union-attr]
    assert bias.abs().min() > 0
    assert torch.equal(layers(shorter)[3].attention.dense_bias, bias)  # type: ignore[union-attr]


# -- ModernBERT -----------------------------------------------------------------------------------------------


def test_the_only_block_without_a_norm_before_its_attention_is_pinned() -> None:
    model = tiny_model("modernbert-decoder")
    bare = [i for i, block in enumerate(model.model.layers) if isinstance(block.attn_norm, nn.Identity)]
    wrapped = shortgpt.wrap(model)
    assert list(wrapped.pinned) == bare == [0]
    with pytest.raises(SelectionError, match="no norm before its attention"):
        wrapped.without([0, 3])


# -- Zaya -----------------------------------------------------------------------------------------------------


def test_a_skipped_block_lets_the_router_state_pass() -> None:
    model = tiny_model("zaya")
    batch = tiny_batch("zaya", model)
    states: list[Tensor] = []
    wrapped = shortgpt.wrap(model)
    for index in (1, 4):
        model.model.layers[index].register_forward_hook(lambda block, args, output: states.append(output[1]))
    model.model.layers[4].register_forward_pre_hook(lambda block, args: states.append(args[1]))
    with wrapped.skipping([2, 3]):
        wrapped.logits(batch)
    assert torch.equal(states[0], states[1])


def test_a_block_of_experts_that_becomes_the_first_gives_up_its_scale() -> None:
    model = tiny_model("zaya")
    shorter = shortgpt.wrap(model).without([0, 1]).model  # type: ignore[attr-defined]
    has = [hasattr(block.mlp.gate, "router_states_scale") for block in shorter.model.layers]
    assert has == [False, True, True, True]
    found, before = shorter.model.layers[1].mlp.gate, model.model.layers[3].mlp.gate
    assert torch.equal(found.router_states_scale, before.router_states_scale)


# -- MiniMax --------------------------------------------------------------------------------------------------


def test_a_lightning_block_may_not_become_the_first() -> None:
    wrapped = shortgpt.wrap(tiny_model("minimax"))
    with pytest.raises(SelectionError, match="block 1, of linear attention, would be the first"):
        wrapped.without([0])
    assert len(wrapped.without([0, 1])) == 4


def test_the_decays_go_along_with_their_lightning_block(tmp_path: Path) -> None:
    model = tiny_model("minimax")
    wrapped = shortgpt.wrap(model).without([2, 3])
    wrapped.save(tmp_path / "shorter")
    before = model.model.layers[4].self_attn.slope_rate
    assert torch.equal(reloaded(tmp_path / "shorter").model.layers[2].self_attn.slope_rate, before)


def test_where_the_first_block_is_lightning_cached_generation_is_wrong_before_any_removal_and_not_compared() -> None:
    config = tiny_config("minimax")
    assert isinstance(config, MiniMaxConfig)
    model = built(config, layer_types=["linear_attention", *config.layer_types[1:-1], "full_attention"])
    uncompared, compared = ReloadedMiniMax(model), ReloadedMiniMax(tiny_model("minimax"))
    assert uncompared.cannot_generate is not None
    assert compared.cannot_generate is None
    ids = probe(128)[:1]
    for reloaded_model, differ in ((uncompared, True), (compared, False)):
        cached, recomputed = (reloaded_model.generate(ids, 3, cached=c) for c in (True, False))
        assert ((cached - recomputed).abs().max() > 0.1) == differ


# -- Qwen 4 ---------------------------------------------------------------------------------------------------

TABLES = ("layer_multipliers", "ngram_heads_vocab_sizes", "ngram_heads_offsets")


@pytest.fixture(scope="module")
def four_tables() -> Any:
    """A model of six blocks, four of them with n-gram tables."""
    config = tiny_config("qwen4_exp_text")
    with torch.no_grad():
        return built(config, layer_types=["linear_attention"] * 5 + ["indexed_attention"], ple_layer_ids=[1, 2, 4, 5])


def test_tables_behind_those_that_go_are_built_as_they_were(four_tables: Any) -> None:
    shorter = shortgpt.wrap(four_tables).without([0, 1, 2]).model  # type: ignore[attr-defined]
    anew = AutoModelForCausalLM.from_config(shorter.config)  # from the config alone: no tensor is loaded
    for new, old in ((0, 3), (1, 4)):
        built_anew, before = (m.model.layers[i].ple.ple_embedding for m, i in ((anew, new), (four_tables, old)))
        assert built_anew.ngram_embedding.weight.shape == before.ngram_embedding.weight.shape
        for name in TABLES:
            assert torch.equal(getattr(built_anew, name), getattr(before, name)), name


@pytest.mark.parametrize("blocks", [(1,), (3,), (0, 3)])
def test_a_table_that_goes_from_between_two_is_refused(four_tables: Any, blocks: Sequence[int]) -> None:
    with pytest.raises(SelectionError, match="n-gram tables are numbered through"):
        shortgpt.wrap(four_tables).without(blocks)


@pytest.mark.parametrize("blocks", [(0,), (0, 1), (4,), (0, 4), (0, 1, 3, 4)])
def test_tables_may_go_from_either_end(four_tables: Any, blocks: Sequence[int]) -> None:
    batch = tiny_batch("qwen4_exp_text", four_tables)
    with passed_by(four_tables, blocks):
        expected = logits(four_tables, batch)
    assert_close(shortgpt.wrap(four_tables).without(blocks).logits(batch), expected)


# -- Inkling 2 ------------------------------------------------------------------------------------------------


def cut(model: Any, blocks: Sequence[int], batch: dict[str, Any]) -> Tensor:
    """The logits with these blocks taken out of the list; what is left keeps its groups."""
    whole = model.model.layers
    model.model.layers = nn.ModuleList(block for i, block in enumerate(whole) if i not in blocks)
    try:
        return logits(model, batch)
    finally:
        model.model.layers = whole


@pytest.mark.parametrize(
    ("blocks", "size"),
    [((2, 3), 2), ((0, 1), 2), ((5,), 2), ((1, 2), 2), ((1, 3, 5), 1), ((2, 4), 4)],
    ids=["a group", "the first group", "the last block", "across two", "half of each", "all one group"],
)
def test_removals_that_leave_even_groups_equal_a_shorter_list(blocks: Sequence[int], size: int, tmp_path: Path) -> None:
    model = tiny_model("inkling2_text")
    batch = tiny_batch("inkling2_text", model)
    expected = cut(model, blocks, batch)
    wrapped = shortgpt.wrap(model)
    with wrapped.skipping(blocks):
        assert_close(wrapped.logits(batch), expected)
    shorter = wrapped.without(blocks)
    assert shorter.model.config.n_layers_per_attn_res_block == size  # type: ignore[attr-defined]
    assert_close(shorter.logits(batch), expected)


@pytest.mark.parametrize("blocks", [(0,), (1, 4)])
def test_uneven_groups_are_refused(blocks: Sequence[int]) -> None:
    with pytest.raises(SelectionError, match="begin groups unevenly"):
        shortgpt.wrap(tiny_model("inkling2_text")).without(blocks)


@pytest.mark.parametrize("blocks", [(0, 1), (2, 3)])
def test_queries_that_a_checkpoint_lists_apart_are_renumbered(blocks: Sequence[int], tmp_path: Path) -> None:
    model = tiny_model("inkling2_text")
    batch = tiny_batch("inkling2_text", model)
    shortgpt.wrap(model).save(tmp_path / "whole")
    prune_checkpoint(tmp_path / "whole", tmp_path / "shorter", blocks, verify=False)
    assert_close(logits(reloaded(tmp_path / "shorter"), batch), cut(model, blocks, batch))


def test_a_skipped_block_begins_its_group_again_afterwards() -> None:
    model = tiny_model("inkling2_text")
    batch = tiny_batch("inkling2_text", model)
    wrapped, before = shortgpt.wrap(model), logits(model, batch)
    with wrapped.skipping([2, 3]):
        assert not torch.equal(wrapped.logits(batch), before)
    assert torch.equal(wrapped.logits(batch), before)


def test_the_stream_is_all_that_the_library_hands_to_its_readers() -> None:
    model = tiny_model("inkling2_text")
    batch = tiny_batch("inkling2_text", model)
    read: list[Tensor] = []

    def reads(finished: Tensor, current: Tensor) -> None:
        both = torch.cat([finished, current.unsqueeze(-2)], dim=-2).flatten(2)
        read.append(nn.functional.pad(both, (0, 4 * 64 - both.shape[-1])))

    for block in model.model.layers:
        block.register_forward_pre_hook(lambda block, args: reads(args[1], args[0]))
    model.model.final_input.register_forward_pre_hook(lambda reader, args: reads(*args))
    model(**batch, use_cache=False)
    expected = list(read)
    streams = boundaries(shortgpt.wrap(model), batch)
    assert len(streams) == len(expected) == 7
    assert all(torch.equal(stream, same) for stream, same in zip(streams, expected, strict=True))


# -- all of them ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", [*PLACES, "inkling2_text"])
def test_the_types_are_taken_by_adapters_of_their_own(model_type: str, tmp_path: Path) -> None:
    tiny_config(model_type).save_pretrained(tmp_path)
    assert recognise(resolve(tmp_path)).architecture != "structural"
