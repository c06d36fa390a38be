"""Generation with the library's cache, of several prompts at once."""

from typing import Any

import pytest
import torch

import shortgpt
from tests.support import byte_tokenizer, tiny

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [1, 2, 3], [9, 8, 7, 6, 5]]


@pytest.mark.sampled("llama", "rwkv")
@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2", "openai-gpt", "mamba", "rwkv"])
def test_prompts_of_different_length_go_on_as_each_does_by_itself_in_the_library(name: str) -> None:
    model = tiny(name)
    found = shortgpt.wrap(model).greedy(PROMPTS, 8)
    for prompt, tokens in zip(PROMPTS, found, strict=True):
        ids = torch.tensor([prompt])
        settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "use_cache": False}
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, **settings)
        assert tokens == expected[0, len(prompt) :].tolist()


def test_the_cache_is_used_where_it_is_right_and_the_whole_text_where_it_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right, wrong = (shortgpt.wrap(tiny("llama")) for _ in range(2))
    lengths: list[int] = []
    forward = type(wrong.model).forward

    def forgetful(self: Any, input_ids: Any = None, **inputs: Any) -> Any:
        lengths.append(input_ids.shape[1])
        if self is wrong.model:
            inputs |= {"past_key_values": None, "use_cache": False, "position_ids": None, "attention_mask": None}
        return forward(self, input_ids, **inputs)

    monkeypatch.setattr(type(wrong.model), "forward", forgetful)
    expected = right.greedy(PROMPTS, 4)
    assert lengths[-3:] == [1, 1, 1]
    assert wrong.greedy(PROMPTS, 4) == expected
    assert lengths[-3:] == [8, 9, 10]


def test_the_models_own_settings_for_generation_are_no_matter() -> None:
    plain, set_up = (shortgpt.wrap(tiny("llama")) for _ in range(2))
    set_up.model.generation_config.update(repetition_penalty=5.0, do_sample=True, temperature=3.0, max_length=4)
    assert set_up.greedy(PROMPTS, 6) == plain.greedy(PROMPTS, 6)
    assert set_up.model.generation_config.repetition_penalty == 5.0


def test_the_ends_of_a_text_are_those_of_tokenizer_and_generation_config() -> None:
    model = tiny("llama")
    model.generation_config.eos_token_id = [3, 4]
    assert shortgpt.wrap(model, tokenizer=byte_tokenizer()).end_tokens == {3, 4, 256}
    assert shortgpt.wrap(tiny("mamba")).end_tokens == {256}
