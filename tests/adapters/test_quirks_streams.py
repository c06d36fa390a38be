"""Types whose stream is not [batch, tokens, width] before and after each block of one list: one test for each quirk."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from shortgpt_adapters.transformers.loader import ReloadedCausalLM
from torch import Tensor, nn
from transformers import (
    BltConfig,
    BltForCausalLM,
    MllamaConfig,
    MllamaForConditionalGeneration,
    MusicgenForConditionalGeneration,
    ProphetNetForConditionalGeneration,
)

import shortgpt
from shortgpt.errors import CalibrationError, ModelError, SelectionError
from shortgpt.models.recognition import recognise, resolve
from shortgpt.testing import boundaries
from tests.tiny_types import tiny_batch, tiny_config, tiny_model

TYPES = ("blt", "cpmant", "hrm_text", "mllama", "musicgen", "musicgen_melody", "prophetnet", "xlm")
XLM_LISTS = ("attentions", "layer_norm1", "ffns", "layer_norm2")


def watched(model: Any, modules: Iterable[nn.Module], **inputs: Any) -> list[list[tuple[Tensor, Tensor]]]:
    """What each module was given and what it gave back, call by call, in a forward of the library."""
    calls: list[list[tuple[Tensor, Tensor]]] = []
    with torch.no_grad(), ExitStack() as hooks:
        for module in modules:
            seen: list[tuple[Tensor, Tensor]] = []
            calls.append(seen)

            def note(module: nn.Module, args: Any, output: Any, seen: Any = seen) -> None:
                seen.append((args[0].clone(), (output if isinstance(output, Tensor) else output[0]).clone()))

            hooks.callback(module.register_forward_hook(note).remove)
        model(**inputs, **({} if "use_cache" in inputs or model.config.model_type == "xlm" else {"use_cache": False}))
    return calls


def stream_of(model: Any, blocks: Iterable[nn.Module], **inputs: Any) -> list[Tensor]:
    """What each block was given, and what the last one gave back."""
    calls = watched(model, blocks, **inputs)
    return [*(given for [(given, _)] in calls), calls[-1][0][1]]


def influence(stream: Sequence[Tensor]) -> list[float]:
    """1 − the mean cosine of each pair of boundaries, [batch, tokens, width], in float64."""
    double = (hidden.double() for hidden in stream)
    return [
        1 - ((x * y).sum(-1) / (x.square().sum(-1) * y.square().sum(-1)).sqrt()).mean().item()
        for x, y in pairwise(double)
    ]


def assert_scores(model: Any, batch: dict[str, Any], stream: Sequence[Tensor]) -> None:
    scores = shortgpt.score(shortgpt.wrap(model), [batch])
    assert scores.values == pytest.approx(influence(stream), rel=1e-5)


def ids(rows: int = 2, tokens: int = 20) -> Tensor:
    return torch.randint(3, 90, (rows, tokens), generator=torch.Generator().manual_seed(0))


def generates_alike(model: Any, prompt: Tensor) -> bool:
    """Whether the library generates with a cache what it generates without."""
    with torch.no_grad():
        cached, uncached = (ReloadedCausalLM(model).generate(prompt, 4, cached=cached) for cached in (True, False))
    return torch.allclose(cached, uncached, atol=1e-4)


@pytest.mark.parametrize("model_type", TYPES)
def test_the_blocks_are_found_from_the_config_alone(model_type: str, tmp_path: Path) -> None:
    model = tiny_model(model_type)
    model.save_pretrained(tmp_path)
    family: Any = recognise(resolve(tmp_path))
    config = family.read_config(resolve(tmp_path))
    blocks: Any = shortgpt.wrap(model)
    assert (family.structure.path, family.depth(config)) == (blocks.structure.path, len(blocks))
    assert family.architecture == blocks.architecture != "structural"


# -- BLT ------------------------------------------------------------------------------------------------------


def test_blt_each_byte_has_the_vector_of_its_patch() -> None:
    model = tiny_model("blt")
    config, batch = model.config, {"input_ids": ids()}
    with torch.no_grad():
        entropies, _, _ = model.model.patcher(ids(), patch_size=config.patch_size, threshold=0.0)
        config.patching_threshold = entropies.median().item()  # long patches and short ones
        _, lengths, _ = model.model.patcher(ids(), patch_size=config.patch_size, threshold=config.patching_threshold)
    lengths = lengths.clamp_min(0)  # what follows the last patch of a row
    assert len(lengths.unique()) > 3
    patches = stream_of(model, model.model.global_transformer.layers, **batch)
    of_bytes = [[row.repeat_interleave(n, 0)[:20] for row, n in zip(p, lengths, strict=True)] for p in patches]
    assert_scores(model, batch, [torch.stack(rows) for rows in of_bytes])


def test_blt_the_blocks_are_not_the_patchers_however_large_it_is() -> None:
    config = tiny_config("blt")
    config.patcher_config.num_hidden_layers = 9
    config.patcher_config.intermediate_size = 1000
    blocks = shortgpt.wrap(BltForCausalLM(config))
    assert blocks.block_names == tuple(f"model.global_transformer.layers.{i}" for i in range(6))
    assert blocks.without((2, 3)).total_parameters() == blocks.total_parameters() - sum(blocks.parameter_counts()[2:4])


def test_blt_patches_are_projected_where_the_encoders_are_of_another_width() -> None:
    settings = tiny_config("blt").to_dict()
    settings["global_config"] |= {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    settings["decoder_config"] |= {"hidden_size_global": 32}
    torch.manual_seed(0)
    model = BltForCausalLM(BltConfig(**settings)).eval()
    assert isinstance(model.model.global_transformer.token_embedding_projection, nn.Linear)
    shorter: Any = shortgpt.remove(shortgpt.wrap(model), (2, 3))
    by_hand = deepcopy(model)
    del by_hand.model.global_transformer.layers[2:4]
    assert torch.equal(shorter.logits({"input_ids": ids()}), by_hand(ids(), use_cache=False).logits)


def test_blt_the_librarys_cache_fails_with_all_blocks_too() -> None:
    with pytest.raises(AttributeError, match="num_hidden_layers"):
        generates_alike(tiny_model("blt"), ids(1))


# -- CPM-Ant --------------------------------------------------------------------------------------------------


def test_cpmant_a_boundary_shows_the_text_behind_the_prompt() -> None:
    model = tiny_model("cpmant")
    stream = stream_of(model, model.cpmant.encoder.layers, input_ids=ids())
    assert stream[0].shape[1] == model.config.prompt_length + 20
    assert_scores(model, {"input_ids": ids()}, [hidden[:, model.config.prompt_length :] for hidden in stream])


def test_cpmant_a_prompt_is_no_token_of_the_vocabulary() -> None:
    model = tiny_model("cpmant")
    assert shortgpt.wrap(model).vocab_size == model.config.vocab_size < model.get_input_embeddings().num_embeddings


def test_cpmant_every_new_token_changes_those_before_it() -> None:
    model = tiny_model("cpmant")
    with torch.no_grad():
        longer, shorter = (model(ids()[:, :tokens], use_cache=False).logits for tokens in (20, 19))
    assert not torch.allclose(longer[:, :19], shorter, atol=1e-3)
    assert not generates_alike(model, ids(1))


# -- HRM ------------------------------------------------------------------------------------------------------


def test_hrm_a_boundary_holds_every_pass_of_both_stacks() -> None:
    model = tiny_model("hrm_text")
    stacks = (model.model.L_module, model.model.H_module)
    passes = model.config.H_cycles * (model.config.L_cycles + 1)
    entries = [given for calls in watched(model, stacks, input_ids=ids()) for given, _ in calls]
    returned = [
        [out for stack in stacks for _, out in watched(model, [stack.layers[i]], input_ids=ids())[0]] for i in range(6)
    ]
    assert len(entries) == len(returned[0]) == passes
    stream = [torch.cat(passes, -1) for passes in (entries, *returned)]
    assert_scores(model, {"input_ids": ids()}, stream)


def test_hrm_a_block_goes_from_both_stacks() -> None:
    model = tiny_model("hrm_text")
    by_hand = deepcopy(model)
    for stack in (by_hand.model.L_module, by_hand.model.H_module):
        del stack.layers[2:4]
    original = shortgpt.wrap(model)
    shorter: Any = shortgpt.remove(original, (2, 3))
    expected = by_hand(ids(), use_cache=False).logits
    assert torch.equal(shorter.logits({"input_ids": ids()}), expected)
    with original.skipping((2, 3)):
        assert torch.equal(original.logits({"input_ids": ids()}), expected)
    config = shorter.model.config
    assert config.num_layers_per_stack == 4
    assert config.num_hidden_layers == 4 * config.H_cycles * (config.L_cycles + 1)
    assert generates_alike(shorter.model, ids(1))
    assert sum(original.parameter_counts()) == sum(p.numel() for n, p in model.named_parameters() if ".layers." in n)


def test_hrm_a_skipped_block_changes_the_stream_in_no_pass() -> None:
    model = shortgpt.wrap(tiny_model("hrm_text"))
    with model.skipping((2, 5)):
        stream = boundaries(model, {"input_ids": ids()})
    assert [torch.equal(x, y) for x, y in pairwise(stream)] == [False, False, True, False, False, True]


# -- Mllama ---------------------------------------------------------------------------------------------------


def test_mllama_blocks_that_need_an_image_are_not_scored_without_one() -> None:
    model = tiny_model("mllama")
    with pytest.raises(CalibrationError, match="blocks 1, 4 attend to an image"):
        shortgpt.score(shortgpt.wrap(model), [{"input_ids": ids()}])
    batch = tiny_batch("mllama", model)
    assert_scores(model, batch, stream_of(model, model.model.layers, **batch))
    text_only = shortgpt.remove(shortgpt.wrap(model), (1, 4))
    assert len(shortgpt.score(text_only, [{"input_ids": ids()}])) == 4


def test_mllama_a_shorter_model_sees_the_image_with_the_cross_blocks_that_stay() -> None:
    model = tiny_model("mllama")
    batch = tiny_batch("mllama", model)
    by_hand = deepcopy(model)
    del by_hand.model.layers[1:3]
    by_hand.model.cross_attention_layers = [2]
    shorter: Any = shortgpt.remove(shortgpt.wrap(model), (1, 2))
    assert shorter.model.config.cross_attention_layers == [2]
    assert torch.equal(shorter.logits(batch), by_hand(**batch, use_cache=False).logits)
    assert not torch.equal(shorter.logits(batch), shorter.logits({"input_ids": batch["input_ids"]}))


def test_mllama_a_cross_block_cannot_come_first() -> None:
    model = tiny_model("mllama")
    with pytest.raises(SelectionError, match="block 1 would come first, and attends to images"):
        shortgpt.remove(shortgpt.wrap(model), (0,))
    # The reason: where it does, a padded row is generated from otherwise with a cache than without.
    prompt, mask = ids(1), torch.ones(1, 20, dtype=torch.long)
    mask[:, :8] = 0
    alike = []
    for cross in ([1, 4], [0, 4]):
        config = deepcopy(model.config)
        config.cross_attention_layers = cross
        torch.manual_seed(0)
        other = type(model)(config).eval()
        settings = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True}
        cached, uncached = (
            other.generate(prompt, attention_mask=mask, use_cache=cache, output_logits=True, **settings).logits[1]
            for cache in (True, False)
        )
        alike.append(torch.allclose(cached, uncached, atol=1e-5))
    assert alike == [True, False]


def test_mllama_with_its_vision_tower_is_scored_from_pixels() -> None:
    vision = {"hidden_size": 32, "num_hidden_layers": 2, "num_global_layers": 1, "attention_heads": 2}
    vision |= {"intermediate_size": 48, "vision_output_dim": 96, "image_size": 16, "patch_size": 8}
    text = tiny_model("mllama").config.to_dict()
    torch.manual_seed(0)
    config = MllamaConfig(text_config=text, vision_config=vision | {"intermediate_layers_indices": [0, 1]})
    model = MllamaForConditionalGeneration(config).eval()
    for name, gate in model.named_parameters():
        if name.endswith("_gate"):
            gate.data.fill_(0.5)
    ones = torch.ones(2, 1, 4, dtype=torch.long)
    batch = {"input_ids": ids(), "pixel_values": torch.randn(2, 1, 4, 3, 16, 16)}
    batch |= {"aspect_ratio_ids": ones[..., 0], "aspect_ratio_mask": ones}
    assert_scores(model, batch, stream_of(model, model.model.language_model.layers, **batch))
    shorter: Any = shortgpt.remove(shortgpt.wrap(model), (1, 2))
    assert shorter.model.config.text_config.cross_attention_layers == [2]


# -- MusicGen -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["musicgen", "musicgen_melody"])
def test_musicgen_the_codes_of_a_frame_share_its_stream(model_type: str) -> None:
    model = tiny_model(model_type)
    encoded = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": ids(2 * model.config.num_codebooks), "encoder_hidden_states": encoded}
    frames = [hidden[:, -20:] for hidden in stream_of(model, model.model.decoder.layers, **batch)]
    assert_scores(model, batch, frames)
    seen = boundaries(shortgpt.wrap(model), batch)
    for row in range(len(batch["input_ids"])):
        assert torch.equal(seen[3][row], frames[3][row // model.config.num_codebooks])


def test_musicgen_with_its_text_encoder_is_refused() -> None:
    model = MusicgenForConditionalGeneration(tiny_config("musicgen"))
    with pytest.raises(ModelError, match="save its `decoder`, and take that"):
        shortgpt.wrap(model, architecture="musicgen")


def test_musicgen_a_row_that_is_no_codebooks_is_given_to_all_of_them() -> None:
    model = tiny_model("musicgen")
    with torch.no_grad():
        expected = model(ids(3).repeat_interleave(model.config.num_codebooks, 0), use_cache=False).logits
    blocks = shortgpt.wrap(model)
    assert torch.equal(blocks.logits({"input_ids": ids(3)}), expected)
    assert boundaries(blocks, {"input_ids": ids(3)})[0].shape == (3, 20, 64)
    assert blocks.vocab_size == model.config.vocab_size + 1  # and the padding's


def test_musicgen_padding_is_the_same_for_all_codes_of_a_frame() -> None:
    model = tiny_model("musicgen")
    books = model.config.num_codebooks
    codes, mask = ids(2 * books), torch.ones(2 * books, 20, dtype=torch.long)
    mask[:books, 13:] = 0
    blocks = shortgpt.wrap(model)
    padded = shortgpt.score(blocks, [{"input_ids": codes, "attention_mask": mask}])
    apart = shortgpt.score(blocks, [{"input_ids": codes[:books, :13]}, {"input_ids": codes[books:]}])
    assert padded.values == pytest.approx(apart.values, rel=1e-5)
    mask[0] = 1
    with pytest.raises(CalibrationError, match="codebooks of a sequence must have the same attention_mask"):
        shortgpt.score(blocks, [{"input_ids": codes, "attention_mask": mask}])


def test_musicgen_generates_with_a_cache_from_one_token_only(tmp_path: Path) -> None:
    from shortgpt_adapters.quirks.musicgen import ReloadedMusicgen, reload

    blocks = shortgpt.wrap(tiny_model("musicgen"))
    shortgpt.remove(blocks, (2, 3)).save(tmp_path / "shorter")
    reloaded = reload(tmp_path / "shorter", device="cpu", dtype="auto")
    cached, uncached = (reloaded.generate(ids(1), 6, cached=cached) for cached in (True, False))
    assert cached.shape == (6, reloaded.model.config.num_codebooks * reloaded.model.config.vocab_size)
    torch.testing.assert_close(cached, uncached)

    class FromTheWholePrompt(ReloadedMusicgen):
        def _codes(self, input_ids: Tensor) -> Tensor:
            return ids(reloaded.model.config.num_codebooks)

    cached, uncached = (FromTheWholePrompt(tiny_model("musicgen")).generate(ids(), 2, cached=c) for c in (True, False))
    assert not torch.allclose(cached[0], uncached[0], atol=1e-2)  # what excuses it: the library's, with all blocks


# -- ProphetNet -----------------------------------------------------------------------------------------------


def test_prophetnet_a_tokens_stream_is_the_main_one_and_those_ahead() -> None:
    model = tiny_model("prophetnet")
    with torch.no_grad():
        output = model(ids(), use_cache=False, output_hidden_states=True)
    ahead = [hidden.unflatten(1, (model.config.ngram, 20)) for hidden in output.hidden_states_ngram]
    stream = [torch.cat([x, *y.unbind(1)], -1) for x, y in zip(output.hidden_states, ahead, strict=True)]
    assert stream[0].shape == (2, 20, 64 * (1 + model.config.ngram))
    assert_scores(model, {"input_ids": ids()}, stream)


def test_prophetnet_with_its_encoder_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    ProphetNetForConditionalGeneration(tiny_config("prophetnet")).save_pretrained(tmp_path / "whole")
    with pytest.raises(ModelError, match="load its decoder with ProphetNetForCausalLM"):
        shortgpt.prune_checkpoint(tmp_path / "whole", tmp_path / "shorter", (2, 3), verify=False)
    assert not (tmp_path / "shorter").exists()


def test_prophetnet_takes_no_longer_rows_than_it_has_positions_ahead() -> None:
    model = tiny_model("prophetnet")
    longest = shortgpt.wrap(model).max_tokens
    model(ids(1, longest), use_cache=False)
    with pytest.raises(IndexError):
        model(ids(1, longest + 1), use_cache=False)


def test_prophetnet_the_library_computes_otherwise_with_a_cache_or_in_a_longer_row() -> None:
    model = tiny_model("prophetnet")
    assert not generates_alike(model, ids(1))
    mask = torch.ones(1, 20, dtype=torch.long)
    mask[:, 13:] = 0
    with torch.no_grad():
        padded, plain = model(ids(1), mask, use_cache=False).logits, model(ids(1)[:, :13], use_cache=False).logits
    assert not torch.allclose(padded[:, :13], plain, atol=1e-2)


@pytest.mark.parametrize("model_type", ["blt", "cpmant", "prophetnet"])
def test_padding_that_a_model_would_read_is_refused(model_type: str) -> None:
    mask = torch.ones(2, 20, dtype=torch.long)
    blocks = shortgpt.wrap(tiny_model(model_type))
    whole = shortgpt.score(blocks, [{"input_ids": ids(), "attention_mask": mask}])
    assert whole.values == shortgpt.score(blocks, [{"input_ids": ids()}]).values
    mask[0, 13:] = 0
    with pytest.raises(CalibrationError, match="hand in rows without padding"):
        shortgpt.score(blocks, [{"input_ids": ids(), "attention_mask": mask}])


# -- XLM ------------------------------------------------------------------------------------------------------


def test_xlm_a_block_begins_with_its_attention_and_ends_with_its_second_norm() -> None:
    model = tiny_model("xlm")
    with torch.no_grad():
        stream = model(ids(), output_hidden_states=True).hidden_states
    assert_scores(model, {"input_ids": ids()}, stream)


def test_xlm_a_block_goes_from_all_four_lists(tmp_path: Path) -> None:
    model = tiny_model("xlm")
    by_hand = deepcopy(model)
    for name in XLM_LISTS:
        del getattr(by_hand.transformer, name)[2:4]
    by_hand.transformer.n_layers = 4
    for place, attention in enumerate(by_hand.transformer.attentions):
        attention.layer_id = place
    original = shortgpt.wrap(model)
    shorter = shortgpt.remove(original, (2, 3))
    expected = by_hand(ids()).logits
    assert torch.equal(shorter.logits({"input_ids": ids()}), expected)
    with original.skipping((2, 3)):
        assert torch.equal(original.logits({"input_ids": ids()}), expected)
    shorter.save(tmp_path / "shorter")
    with safe_open(tmp_path / "shorter" / "model.safetensors", "pt") as file:
        places = {name: {int(n.split(".")[2]) for n in file.keys() if f".{name}." in n} for name in XLM_LISTS}  # noqa: SIM118
    assert places == {name: {0, 1, 2, 3} for name in XLM_LISTS}
    blocks = (p.numel() for n, p in model.named_parameters() if any(f".{name}." in n for name in XLM_LISTS))
    assert sum(original.parameter_counts()) == sum(blocks)


def test_xlm_a_skipped_block_hands_on_a_stream_of_its_own() -> None:
    """The library multiplies the mask into what a block gives back, in place."""
    model = shortgpt.wrap(tiny_model("xlm"))
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[0, 13:] = 0
    batch = {"input_ids": ids(), "attention_mask": mask}
    with model.skipping((0, 3)):
        values = shortgpt.score(model, [batch]).values
    assert [abs(value) < 1e-9 for value in values] == [True, False, False, True, False, False]


def test_xlm_a_padding_id_in_a_text_is_a_token_like_others(tmp_path: Path) -> None:
    from shortgpt_adapters.quirks.xlm import reload

    model = tiny_model("xlm")
    text = ids()
    text[:, 4:6] = model.config.pad_token_id
    blocks = shortgpt.wrap(model)
    with torch.no_grad():
        expected = model(text, attention_mask=torch.ones_like(text)).logits
        guessed = model(text).logits
    assert torch.equal(blocks.logits({"input_ids": text}), expected)
    assert not torch.allclose(guessed[:, -2:], expected[:, -2:], atol=1e-3)  # taken for padding
    assert all(value > 0 for value in shortgpt.score(blocks, [{"input_ids": text}]).values)
    blocks.save(tmp_path / "whole")
    assert torch.equal(reload(tmp_path / "whole", device="cpu", dtype="auto").logits(text), expected)
