"""Types whose blocks share something: keys and values (Gemma 3n and 4, and its drafter), or weights (Zamba 1 and 2).

What a removal has to give is computed by the library itself, with hooks of this file's own that pass blocks by.
"""

import itertools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from shortgpt_adapters.quirks import gemma4_assistant, zamba2
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma4TextConfig, GenerationConfig

import shortgpt
from shortgpt.errors import CalibrationError, SelectionError
from shortgpt.verification.removal_on_disk import prune_checkpoint
from tests.tiny_types import tiny_batch, tiny_config, tiny_model, upstream_mended

SHARED_KEYS = ("gemma3n_text", "gemma4_text", "gemma4_unified_text")
DRAFTERS = ("gemma4_assistant", "gemma4_unified_assistant")


def skipped(model: Any, gone: Iterable[int], batch: Mapping[str, Any]) -> Tensor:
    """The library's logits while blocks hand on what they are given."""
    blocks = list(model.model.layers)
    hooks = [blocks[i].register_forward_hook(lambda block, args, output: args[0]) for i in gone]
    try:
        with torch.no_grad():
            logits = model(**batch).logits
    finally:
        for hook in hooks:
            hook.remove()
    assert isinstance(logits, Tensor)
    return logits


def boundaries(model: Any, batch: Mapping[str, Any]) -> list[Tensor]:
    """What each block is given, and what the last one gives, in float64."""
    seen: list[Tensor] = []
    hooks = [b.register_forward_pre_hook(lambda b, args: seen.append(args[0].double())) for b in model.model.layers]
    hooks.append(model.model.layers[-1].register_forward_hook(lambda b, args, output: seen.append(output.double())))
    with torch.no_grad():
        model(**batch)
    for hook in hooks:
        hook.remove()
    return seen


def influence(stream: list[Tensor]) -> list[float]:
    """1 − cos for each block, over [batch, tokens, width]."""
    cosine = torch.nn.functional.cosine_similarity
    return [(1 - cosine(x, y, dim=-1)).mean().item() for x, y in itertools.pairwise(stream)]


def pruned(model: Any, gone: Iterable[int], folder: Path) -> Path:
    """The model without blocks, made on disk."""
    model.save_pretrained(folder / "whole")
    prune_checkpoint(folder / "whole", folder / "pruned", gone, verify=False)
    return folder / "pruned"


# -- keys and values, and packed embeddings -------------------------------------------------------------------


@pytest.mark.parametrize("model_type", SHARED_KEYS)
def test_a_removed_producer_of_keys_and_values_is_refused(model_type: str) -> None:
    model = tiny_model(model_type)
    blocks = shortgpt.wrap(model)
    attentions = [block.self_attn for block in model.model.layers]
    read = {attention.layer_type for attention in attentions if attention.is_kv_shared_layer}
    makers = [i for i, a in enumerate(attentions) if a.store_full_length_kv and a.layer_type in read]
    assert makers
    assert sorted(blocks.pinned) == makers
    for maker in makers:
        with pytest.raises(SelectionError, match=rf"block {maker}: its keys and values are read by block"):
            shortgpt.remove(blocks, [maker])


@pytest.mark.parametrize("model_type", SHARED_KEYS)
def test_the_readers_that_stay_are_counted(model_type: str) -> None:
    model = tiny_model(model_type, blocks=9)
    batch = tiny_batch(model_type, model)
    gone = (0, 6)  # 6, 7 and 8 read
    shorter = shortgpt.remove(shortgpt.wrap(model), gone)
    assert shorter.config["num_kv_shared_layers"] == 2
    torch.testing.assert_close(shorter.logits(batch), skipped(model, gone, batch))


def test_without_readers_nothing_is_shared_any_more() -> None:
    model = tiny_model("gemma3n_text")
    batch = tiny_batch("gemma3n_text", model)
    shorter = shortgpt.remove(shortgpt.wrap(model), [4, 5])
    assert shorter.config["num_kv_shared_layers"] == 0
    torch.testing.assert_close(shorter.logits(batch), skipped(model, [4, 5], batch))


@pytest.mark.parametrize("model_type", ["gemma3n_text", "gemma4_text"])
def test_the_packed_embeddings_keep_the_pieces_of_the_blocks_that_stay(model_type: str, tmp_path: Path) -> None:
    model = tiny_model(model_type, blocks=9)
    batch = tiny_batch(model_type, model)
    gone = (2, 3)
    folder = pruned(model, gone, tmp_path)
    before, after = model.state_dict(), load_file(folder / "model.safetensors")
    size = model.config.hidden_size_per_layer_input
    table, projection = "model.embed_tokens_per_layer.weight", "model.per_layer_model_projection.weight"
    columns = [slice(i * size, (i + 1) * size) for i in range(9) if i not in gone]
    assert torch.equal(after[table], torch.cat([before[table][:, piece] for piece in columns], 1))
    assert torch.equal(after[projection], torch.cat([before[projection][piece] for piece in columns]))
    reloaded = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(skipped(reloaded, (), batch), skipped(model, gone, batch))


def test_the_parallel_streams_are_one_vector_a_token() -> None:
    model = tiny_model("gemma3n_text")
    batch = tiny_batch("gemma3n_text", model)
    stream = [torch.cat(tuple(parallel), -1) for parallel in boundaries(model, batch)]
    assert stream[0].shape == (2, 20, 3 * 64)
    scores = shortgpt.score(shortgpt.wrap(model), [batch])
    assert scores.values == pytest.approx(influence(stream), rel=1e-9)


@pytest.mark.parametrize("model_type", ["gemma4_text", "gemma4_unified_text"])
def test_a_last_block_that_attends_in_a_window_is_refused(model_type: str) -> None:
    blocks = shortgpt.wrap(tiny_model(model_type))
    assert blocks.config["layer_types"][3:] == ["sliding_attention", "full_attention", "full_attention"]
    with pytest.raises(SelectionError, match=r"block 3 would become the last one.*keep block 4, or remove 3 too"):
        shortgpt.remove(blocks, [4, 5])
    with pytest.raises(SelectionError, match=r"block 2 would become the last one.*keep block 4, or remove 2 too"):
        shortgpt.remove(blocks, [3, 4, 5])


def test_the_library_makes_the_last_block_of_a_gemma4_attend_to_all_tokens() -> None:
    config = Gemma4TextConfig(num_hidden_layers=2, layer_types=["full_attention", "sliding_attention"])
    assert config.layer_types == ["full_attention", "full_attention"]


# -- the drafter ----------------------------------------------------------------------------------------------


def drafted(model_type: str, model: Any) -> dict[str, Any]:
    """A batch to score it on: what the assisted model gives, and ids that say how many tokens are drafted."""
    return {**tiny_batch(model_type, model), "input_ids": torch.ones(2, 1, dtype=torch.long)}


@pytest.mark.parametrize("model_type", DRAFTERS)
def test_a_drafter_is_scored_on_what_the_assisted_model_gives(model_type: str) -> None:
    model = tiny_model(model_type)
    expected = influence(boundaries(model, tiny_batch(model_type, model)))
    scores = shortgpt.score(shortgpt.wrap(model), [drafted(model_type, model)])
    assert scores.values == pytest.approx(expected, rel=1e-9)
    assert scores.tokens == (1, 1)


def test_a_drafter_is_not_scored_on_token_ids_alone() -> None:
    blocks = shortgpt.wrap(tiny_model("gemma4_assistant"))
    with pytest.raises(CalibrationError, match="inputs_embeds, shared_kv_states, position_ids as well"):
        shortgpt.score(blocks, [{"input_ids": torch.ones(2, 5, dtype=torch.long)}])


@pytest.mark.parametrize("model_type", DRAFTERS)
@pytest.mark.parametrize("gone", [(0,), (2, 3), (0, 2, 3)])
def test_a_shorter_drafter_is_the_skipped_one(model_type: str, gone: tuple[int, ...]) -> None:
    """The last set leaves no block that attends in a window, but the library asks for its keys all the same."""
    model = tiny_model(model_type)
    batch = tiny_batch(model_type, model)
    shorter = shortgpt.remove(shortgpt.wrap(model), gone)
    assert shorter.config["text_config"]["num_kv_shared_layers"] == 6 - len(gone)
    torch.testing.assert_close(shorter.logits(batch), skipped(model, gone, batch))


def test_a_saved_drafter_opens_again_and_answers_alike(tmp_path: Path) -> None:
    model = tiny_model("gemma4_assistant")
    blocks = shortgpt.wrap(model)
    reloaded = gemma4_assistant.reload(pruned(model, [1], tmp_path), device="cpu", dtype="auto")
    ids = torch.arange(14).view(2, 7)
    with blocks.skipping([1]):
        expected = blocks.logits({"input_ids": ids})
    assert torch.equal(reloaded.logits(ids), expected)
    with blocks.skipping([2]):
        assert not torch.allclose(reloaded.logits(ids), blocks.logits({"input_ids": ids}))
    assert not torch.allclose(reloaded.logits(ids + 1), expected)
    assert reloaded.cannot_generate == "a drafter generates only beside the model that it assists"


def test_the_config_is_mended_only_while_a_drafter_is_built() -> None:
    config = tiny_config("gemma4_assistant").text_config
    upstream = Gemma4TextConfig.kv_sharing_modes
    with gemma4_assistant.all_may_read():
        assert config.kv_sharing_modes == ["reuse"] * 6
        config.num_kv_shared_layers = 2
        assert config.kv_sharing_modes.count("reuse") == 2
    assert Gemma4TextConfig.kv_sharing_modes is upstream


def test_the_mends_of_the_tests_and_of_the_adapter_do_not_get_in_each_others_way() -> None:
    upstream = Gemma4TextConfig.kv_sharing_modes
    with upstream_mended():
        shorter = shortgpt.remove(shortgpt.wrap(tiny_model("gemma4_assistant")), [0])
    assert len(shorter) == 5
    assert Gemma4TextConfig.kv_sharing_modes is upstream


# -- shared weights -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gone", "first"), [((1,), 2), ((0,), 0), ((5,), 1), ((0, 1, 2), 0)])
def test_the_shared_weights_move_to_the_first_hybrid_block_that_stays(
    gone: tuple[int, ...], first: int, tmp_path: Path
) -> None:
    model = tiny_model("zamba")  # 1, 3 and 4 are hybrid
    batch = tiny_batch("zamba", model)
    folder = pruned(model, gone, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    shared = {name for name in tensors if ".shared_transf." in name}
    assert {int(name.split(".")[2]) for name in shared} == {first}
    for name in shared:
        rest = name.partition(".shared_transf.")[2]
        assert torch.equal(tensors[name], model.state_dict()[f"model.layers.1.shared_transf.{rest}"])
    reloaded = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(skipped(reloaded, (), batch), skipped(model, gone, batch))


def test_a_single_hybrid_block_is_refused() -> None:
    blocks = shortgpt.wrap(tiny_model("zamba"))
    with pytest.raises(SelectionError, match="block 3 would be the only hybrid one"):
        shortgpt.remove(blocks, [1, 4])
    with pytest.raises(SelectionError, match="no attention block would be left"):
        shortgpt.remove(blocks, [1, 3, 4])
    config = tiny_config("zamba")
    config.layers_block_type = ["hybrid"] + ["linear_attention"] * 5
    with pytest.raises(ValueError, match="tie_weights_keys"):
        AutoModelForCausalLM.from_config(config)


ADAPTERS = re.compile(r"model\.layers\.(\d+)\.shared_transformer\..+_adapter_list\.(\d+)\..+")

TURNS = {
    "the last": ((6,), 2, {0: {0, 2}, 3: {1}}),  # A B A
    "the first": ((0,), 2, {2: {0, 2}, 3: {1}}),  # B A B
    "one of each": ((3, 4), 2, {0: {0}, 4: {1}}),  # A B
    "all of one": ((3, 6), 1, {0: {0, 1}}),  # A A
    "so that one set is there twice": ((1, 2, 3, 5, 7), 3, {0: {0}, 1: {1}, 2: {2}}),  # A A B
}
"""What goes of 9 blocks of which 0, 3, 4 and 6 are hybrid → the cycle, and each holder's adapters, by new numbers."""


@pytest.mark.parametrize("case", TURNS)
def test_memory_blocks_take_turns_in_the_shortest_cycle(case: str, tmp_path: Path) -> None:
    gone, cycle, holders = TURNS[case]
    model = tiny_model("zamba2", blocks=9)
    batch = tiny_batch("zamba2", model)
    folder = pruned(model, gone, tmp_path)
    found: dict[int, set[int]] = {}
    for name in load_file(folder / "model.safetensors"):
        if match := ADAPTERS.fullmatch(name):
            found.setdefault(int(match[1]), set()).add(int(match[2]))
    assert found == holders
    reloaded = AutoModelForCausalLM.from_pretrained(folder)
    assert reloaded.config.num_mem_blocks == cycle
    torch.testing.assert_close(skipped(reloaded, (), batch), skipped(model, gone, batch))


def test_a_set_that_is_there_twice_is_saved_from_memory_too(tmp_path: Path) -> None:
    model = tiny_model("zamba2", blocks=9)
    batch = tiny_batch("zamba2", model)
    gone = TURNS["so that one set is there twice"][0]
    shorter = shortgpt.remove(shortgpt.wrap(model), gone)
    assert shorter.total_parameters() < sum(p.numel() for p in model.parameters())
    shorter.save(tmp_path / "shorter")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "shorter")
    torch.testing.assert_close(skipped(reloaded, (), batch), skipped(model, gone, batch))


def test_a_removal_that_would_make_the_model_grow_is_refused() -> None:
    blocks = shortgpt.wrap(tiny_model("zamba2", blocks=9))
    with pytest.raises(
        SelectionError, match=r"\(they would be 0 0 1\), so 3 would have to be held, and the model would"
    ):
        shortgpt.remove(blocks, [3])


def test_the_cache_is_compared_without_the_bound_that_only_prompts_have(tmp_path: Path) -> None:
    model = tiny_model("zamba2")
    model.config.time_step_min = 0.8
    model.save_pretrained(tmp_path)
    ids = torch.arange(3, 13)[None]
    reloaded = zamba2.reload(tmp_path, device="cpu", dtype="auto")
    own = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(reloaded.logits(ids), skipped(own, (), {"input_ids": ids}))
    cached, uncached = (reloaded.generate(ids, 4, cached=cached) for cached in (True, False))
    torch.testing.assert_close(cached, uncached, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(reloaded.logits(ids), skipped(own, (), {"input_ids": ids}))
    cached, uncached = (_library_generates(own, ids, use_cache) for use_cache in (True, False))
    assert not torch.allclose(cached[1], uncached[1], rtol=1e-2, atol=1e-2)


def _library_generates(model: Any, ids: Tensor, use_cache: bool) -> tuple[Tensor, ...]:
    greedy = GenerationConfig(max_new_tokens=4, min_new_tokens=4, do_sample=False, use_cache=use_cache, pad_token_id=0)
    output = model.generate(ids, generation_config=greedy, output_logits=True, return_dict_in_generate=True)
    logits: tuple[Tensor, ...] = output.logits
    return logits
