"""How a reloaded model of transformers is asked for its logits and its greedy tokens."""

from typing import Any

import pytest
import torch
from shortgpt_adapters.quirks.xlnet import ReloadedXLNet
from shortgpt_adapters.transformers.loader import ReloadedCausalLM, UnboundedTimeSteps
from torch import Tensor
from transformers import GenerationConfig, LlamaForCausalLM

from shortgpt import Verification
from shortgpt.models.probing.probes import Probe
from shortgpt.verification.fresh_process import Answer
from tests.support import ids_of, tiny
from tests.tiny_types import tiny_model


def greedy_by_hand(model: Any, ids: Tensor, tokens: int) -> Tensor:
    """The logits of each greedy token, every one from the whole text before it."""
    made = []
    with torch.no_grad():
        for _ in range(tokens):
            logits = model(ids, use_cache=False).logits[:, -1]
            made.append(logits)
            ids = torch.cat((ids, logits.argmax(-1, keepdim=True)), dim=1)
    return torch.cat(made)


SETTINGS: tuple[dict[str, Any], ...] = (
    {"stop_strings": ["x"]},
    {"penalty_alpha": 0.6, "top_k": 4},
    {"prompt_lookup_num_tokens": 3},
    {"num_beams": 4, "num_return_sequences": 2},
    {"max_time": 0.0001},
    {"dola_layers": "high"},
    {"guidance_scale": 2.0},
    {"repetition_penalty": 5.0, "no_repeat_ngram_size": 2, "encoder_repetition_penalty": 3.0},
    {"forced_bos_token_id": 3, "forced_eos_token_id": 4, "suppress_tokens": [5, 6], "begin_suppress_tokens": [7]},
    {"bad_words_ids": [[8]], "sequence_bias": [[[9], 5.0]], "exponential_decay_length_penalty": (1, 2.0)},
    {"cache_implementation": "static", "max_length": 34, "min_length": 2},
    {"watermarking_config": {"bias": 2.5}},
    {"token_healing": True, "assistant_confidence_threshold": 0.1, "is_assistant": True},
    {"do_sample": True, "temperature": 9.0, "top_p": 0.9, "use_cache": False},
)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: next(iter(settings)))
def test_what_a_folder_says_of_generation_does_not_reach_the_proofs_own(settings: dict[str, Any]) -> None:
    model, ids = tiny("llama"), ids_of(rows=1)
    expected = greedy_by_hand(model, ids, 8)
    own = model.generation_config = GenerationConfig(**settings)
    own.eos_token_id = int(expected[2].argmax())  # the text would end with its third token
    for cached in (True, False):
        found = ReloadedCausalLM(model).generate(ids, 8, cached=cached)
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert model.generation_config is own


class ReadsItsOwnSettings(LlamaForCausalLM):
    def generate(self, *arguments: Any, **options: Any) -> Any:
        assert self.generation_config.num_beams in (None, 1)
        return super().generate(*arguments, **options)


def test_neither_do_they_reach_a_generate_of_the_models_own() -> None:
    model = tiny("llama")
    model.__class__ = ReadsItsOwnSettings
    model.generation_config.num_beams = 4
    model.generate = None  # one that the folder brought along
    assert ReloadedCausalLM(model).generate(ids_of(rows=1), 8, cached=True).shape == (8, 257)
    assert model.generation_config.num_beams == 4


@pytest.mark.parametrize("name", ["mistral", "llama", "gpt2"])
def test_a_config_that_spells_out_that_it_is_no_decoder_is_not_believed(name: str) -> None:
    model = tiny(name)
    model.config.is_decoder = model.config.add_cross_attention = False
    assert ReloadedCausalLM(model).cannot_generate is None


def test_blocks_that_attend_to_both_sides_are_told() -> None:
    model = tiny_model("bert")
    assert ReloadedCausalLM(model).cannot_generate is None
    for module in model.modules():  # each layer asks for itself
        if hasattr(module, "is_causal"):
            module.is_causal = False
    model.config.is_decoder = False
    reason = "its blocks attend to both sides (a later token changes the logits of earlier ones)"
    assert ReloadedCausalLM(model).cannot_generate == reason


def test_xlnet_is_compared_although_it_attends_to_both_sides() -> None:
    model = tiny_model("xlnet")
    assert ReloadedCausalLM(model).looks_ahead()
    reloaded = ReloadedXLNet(model)
    assert reloaded.cannot_generate is None
    cached, uncached = (reloaded.generate(ids_of(rows=1) % 50, 8, cached=cached) for cached in (True, False))
    torch.testing.assert_close(cached, uncached, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model_type", ["zamba2", "nemotron_h"])
def test_a_library_that_is_changed_to_compare_is_named(model_type: str) -> None:
    model = tiny_model(model_type)
    for module in model.modules():
        if hasattr(module, "time_step_limit"):
            module.time_step_limit = (0.001, 0.1)
    told = UnboundedTimeSteps(model).mended
    assert told is not None
    assert "without the bounds of the mixers' time steps" in told
    answer = Answer.by(UnboundedTimeSteps(model), Probe(ids_of(rows=1, tokens=8) % 50))
    assert Answer.of(answer.tensors()).mended == told
    assert str(Verification(True, max_difference=0.0, max_logit=1.0, mended=told)).endswith(f"; {told}")
    for module in model.modules():
        if hasattr(module, "time_step_limit"):
            module.time_step_limit = (0.0, float("inf"))
    assert UnboundedTimeSteps(model).mended is None
