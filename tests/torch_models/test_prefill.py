"""Blocks skipped while a prompt is read: held against hooks of our own that throw away what they did to it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import shortgpt
from shortgpt.errors import ModelError, SelectionError
from tests.support import ids_of, tiny

GONE = (1, 3)
FAMILIES = ("llama", "gpt2")
OTHERS = ("bloom", "falcon", "qwen3")
"""ALiBi, a block whose parts stand side by side, and keys that are normed."""


def model_of(name: str) -> Any:
    if name in FAMILIES:
        return tiny(name)
    from tests.tiny_types import tiny_model

    return tiny_model(name, blocks=6)


@contextmanager
def thrown_away(model: Any, path: str) -> Iterator[None]:
    """The blocks compute a prompt, and give back what they were given."""

    def bypass(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        stream = args[0]
        if stream.shape[1] == 1:
            return output
        return stream if isinstance(output, Tensor) else (stream, *output[1:])

    with ExitStack() as hooks:
        for block in GONE:
            hooks.callback(
                model.get_submodule(f"{path}.{block}").register_forward_hook(bypass, with_kwargs=True).remove
            )
        yield


def generated(model: Any, ids: Tensor, **inputs: Any) -> tuple[Tensor, Tensor]:
    """Eight greedy tokens and their logits, by the library."""
    settings = GenerationConfig(
        max_new_tokens=8,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    made = model.generate(ids, generation_config=settings, **inputs)
    return made.sequences, torch.stack(made.logits)


@pytest.mark.parametrize("name", [*FAMILIES, *OTHERS])
def test_generate_gives_what_it_gives_where_the_blocks_work_on_the_prompt_is_thrown_away(name: str) -> None:
    model = model_of(name)
    path = shortgpt.wrap(model).block_names[0].rpartition(".")[0]
    ids = ids_of(rows=3, tokens=9) % 99
    mask = torch.ones_like(ids)
    mask[1, :4] = 0  # padded on the left
    with thrown_away(model, path):
        expected = generated(model, ids, attention_mask=mask)
    whole = generated(model, ids, attention_mask=mask)
    with shortgpt.prefill_skipping(model, GONE):
        found = generated(model, ids, attention_mask=mask)
    assert found[0].equal(expected[0])
    assert torch.allclose(found[1], expected[1], atol=1e-5 * float(expected[1].abs().max()))
    assert not torch.allclose(found[1], whole[1], atol=1e-3)


def test_padding_on_the_right_moves_no_real_token() -> None:
    model, ids = tiny("llama"), ids_of(rows=2, tokens=9)
    padded = torch.cat([ids, torch.zeros(2, 3, dtype=torch.long)], 1)
    mask = torch.cat([torch.ones_like(ids), torch.zeros(2, 3, dtype=torch.long)], 1)
    with torch.no_grad(), shortgpt.prefill_skipping(model, GONE):
        plain = model(input_ids=ids, use_cache=True).logits
        found = model(input_ids=padded, attention_mask=mask, use_cache=True).logits[:, :9]
    assert torch.allclose(found, plain, atol=1e-5)


def test_the_cache_holds_the_rotated_keys_of_the_stream_as_it_is() -> None:
    model, ids = tiny("llama"), ids_of(rows=2, tokens=9)
    block = model.model.layers[1]
    with torch.no_grad():
        with shortgpt.prefill_skipping(model, GONE):
            cache = model(input_ids=ids, use_cache=True).past_key_values
        stream = model.model.layers[0](
            model.model.embed_tokens(ids),
            position_embeddings=model.model.rotary_emb(model.model.embed_tokens(ids), torch.arange(9)[None]),
            attention_mask=torch.full((9, 9), float("-inf")).triu(1)[None, None],
        )
        normed = block.input_layernorm(stream)
        keys, values = (
            projection(normed).view(2, 9, 2, 8).transpose(1, 2)
            for projection in (block.self_attn.k_proj, block.self_attn.v_proj)
        )
        cos, sin = model.model.rotary_emb(keys, torch.arange(9)[None])
        keys = apply_rotary_pos_emb(keys, keys, cos, sin)[1]
    assert torch.allclose(cache.layers[1].keys, keys, atol=1e-6)
    assert torch.allclose(cache.layers[1].values, values, atol=1e-6)


def test_of_a_skipped_block_neither_attention_nor_mlp_is_done_for_the_prompt_and_both_for_new_tokens() -> None:
    model, ran = tiny("llama"), []
    for block in (0, 1):
        for part in (model.model.layers[block].mlp, model.model.layers[block].self_attn.o_proj):
            part.register_forward_hook(lambda module, args, output, block=block: ran.append((block, args[0].shape[1])))
    with shortgpt.prefill_skipping(model, [1]):
        ran.clear()
        generated(model, ids_of(rows=1, tokens=9))
    assert [tokens for block, tokens in ran if block == 0] == [9, 9, *[1] * 14]
    assert [tokens for block, tokens in ran if block == 1] == [1] * 14


def test_a_prompt_of_one_token_and_one_that_is_read_in_parts_are_prompts() -> None:
    model, ids = tiny("llama"), ids_of(rows=1, tokens=9)
    with torch.no_grad(), shortgpt.prefill_skipping(model, GONE) as blocks:
        whole = model(input_ids=ids, use_cache=True)
        first = model(input_ids=ids[:, :1], use_cache=True)
        rest = model(input_ids=ids[:, 1:], use_cache=True, past_key_values=first.past_key_values)
        assert blocks.greedy([ids[0].tolist()], 3) == [generated(model, ids)[0][0, 9:12].tolist()]
    assert torch.allclose(torch.cat([first.logits, rest.logits], 1), whole.logits, atol=1e-5)


def test_nothing_is_left_of_it(tmp_path: Path) -> None:
    model, ids = tiny("llama"), ids_of(rows=1, tokens=9)
    before = generated(model, ids)
    with pytest.raises(ZeroDivisionError), shortgpt.prefill_skipping(model, GONE):
        raise ZeroDivisionError
    assert generated(model, ids)[1].equal(before[1])
    assert not any("forward" in vars(block) for block in model.model.layers)


@pytest.mark.parametrize(
    ("name", "blocks", "message"),
    [
        (
            "mamba2",
            (1,),
            "block 1 cannot be skipped .*: a Mamba2Block keeps a state that cannot be had without running it",
        ),
        ("rwkv", (1,), "a RwkvForCausalLM has no cache, or one that is wrong"),
        ("jamba", (1, 2), r"a JambaMambaDecoderLayer keeps a state that cannot be had without running it"),
        ("longcat_flash", (1,), "a LongcatFlashDecoderLayer keeps several keys and values"),
        ("gemma3n_text", (1,), "other blocks need more of them than the stream and their keys and values"),
        ("deepseek_v32", (1,), "a few tokens, or the cache behind them, are others"),
    ],
)
def test_a_block_whose_state_cannot_be_had_without_running_it_is_refused_by_name(
    name: str, blocks: tuple[int, ...], message: str
) -> None:
    model = tiny(name) if name in ("mamba2", "rwkv") else model_of(name)
    with pytest.raises(ModelError, match=message), shortgpt.prefill_skipping(model, blocks):
        raise AssertionError("it must not come here")
    assert not any("forward" in vars(block) for block in shortgpt.wrap(model).blocks)  # type: ignore[attr-defined]


def test_blocks_that_are_none_a_streamed_model_and_a_pass_without_a_cache_are_told(
    llama_folder: Path, run_cli: Callable[..., Any]
) -> None:
    model = tiny("llama")
    with pytest.raises(SelectionError, match="blocks 6 do not exist"), shortgpt.prefill_skipping(model, [6]):
        pass
    with pytest.raises(ModelError, match="cannot be run with a cache"):
        shortgpt.load(llama_folder, stream=True).prefill_skipping([1]).__enter__()
    with shortgpt.prefill_skipping(model, GONE) as blocks, pytest.raises(ModelError, match="need a cache to write to"):
        blocks.logits({"input_ids": ids_of()})
