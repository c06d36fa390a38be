"""Log-likelihoods against Hugging Face's own logits, whatever the batch; contexts cut from the left, counted."""

import math
from typing import Any

import pytest
import torch

import shortgpt
from shortgpt.errors import CalibrationError, HiddenStateError
from shortgpt.measuring.tasks.language_model import LanguageModel
from shortgpt.measuring.tasks.likelihood import Request
from tests.support import byte_tokenizer, tiny


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny("llama", max_position_embeddings=64)


def language_model(model: Any, removed: tuple[int, ...] = (), **options: Any) -> LanguageModel:
    return LanguageModel(shortgpt.wrap(model, tokenizer=byte_tokenizer()), removed, **options)


def by_hand(model: Any, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """The sum of log p in float64, and whether each token is the likeliest: one text, no batch, no padding."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([context + continuation]), use_cache=False).logits[0].double()
    total, greedy = 0.0, True
    for at, token in enumerate(continuation, start=len(context) - 1):
        total += float(logits[at, token] - logits[at].logsumexp(0))
        greedy = greedy and int(logits[at].argmax()) == token
    return total, greedy


REQUESTS = [
    Request(tuple(b"a"), tuple(b"bc")),
    Request(tuple(b"the longest of these contexts"), tuple(b" goes on and on")),
    Request(tuple(b"short"), tuple(b"er")),
    Request(tuple(b"the last"), tuple(b" one")),
]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_they_are_what_the_model_gives_for_each_by_itself(model: Any, batch_size: int) -> None:
    found = language_model(model, batch_size=batch_size).likelihoods(REQUESTS)
    for request, one in zip(REQUESTS, found, strict=True):
        total, greedy = by_hand(model, list(request.context), list(request.continuation))
        assert one.total == pytest.approx(total, rel=1e-6)
        assert one.greedy is greedy
        assert len(one.tokens) == len(one.predictions) == len(request.continuation)


def test_what_the_model_would_write_is_greedy(model: Any) -> None:
    lm = language_model(model)
    context = tuple(b"some context")
    (made,) = lm.generate([context], 5)
    right, wrong = lm.likelihoods([Request(context, made.ids), Request(context, (*made.ids[:4], made.ids[4] ^ 1))])
    assert right.greedy
    assert right.predictions == made.ids
    assert not wrong.greedy


def test_blocks_that_are_left_out_are_removed(model: Any) -> None:
    lm = language_model(model, (1, 3))
    shorter = shortgpt.wrap(model, tokenizer=byte_tokenizer()).without((1, 3))
    (found,) = lm.likelihoods(REQUESTS[:1])
    logits = shorter.logits({"input_ids": torch.tensor([list(b"abc")])})[0].double().log_softmax(-1)
    assert found.total == pytest.approx(float(logits[0, ord("b")] + logits[1, ord("c")]), rel=1e-6)


def test_a_context_too_long_for_the_window_loses_its_left_end_and_is_counted(model: Any) -> None:
    lm = language_model(model)
    text = bytes(range(97, 122)) * 5
    request = Request(tuple(text[:100]), tuple(text[100:110]))
    (found,) = lm.likelihoods([request])
    assert lm.truncated == 1
    assert found.total == pytest.approx(by_hand(model, list(text[45:100]), list(text[100:110]))[0], rel=1e-6)
    lm.likelihoods([Request(tuple(text[:55]), tuple(text[55:65]))])  # 64 tokens are read of 65
    assert lm.truncated == 1


def test_what_has_no_likelihood_is_refused(model: Any) -> None:
    lm = language_model(model)
    with pytest.raises(CalibrationError, match="longer than the window of 64"):
        lm.likelihoods([Request((1,), (2,) * 65)])
    with pytest.raises(CalibrationError, match="a token or more of context"):
        lm.likelihoods([Request((), (2,))])
    assert lm.likelihoods([]) == []


def test_a_model_that_gives_nan_is_told() -> None:
    broken = tiny("llama", blocks=2)
    with torch.no_grad():
        broken.lm_head.weight[5] = math.nan
    with pytest.raises(HiddenStateError, match="logits are NaN"):
        language_model(broken).likelihoods(REQUESTS[:1])


def test_white_space_between_belongs_to_what_follows(model: Any) -> None:
    lm = language_model(model)
    assert lm.encode_pair("one \n", "two") == Request(tuple(b"one"), tuple(b" \ntwo"))
    assert lm.encode_pair("", "two") == Request((256,), tuple(b"two")), "nothing before it: the token of an end"


def test_a_tokenizer_that_joins_over_the_cut_has_the_continuation_judged_alone(model: Any) -> None:
    class Pairs:
        """Two signs make a token, counted from the text's beginning."""

        def __call__(self, text: str) -> dict[str, list[int]]:
            return {"input_ids": [sum(text[at : at + 2].encode()) % 256 for at in range(0, len(text), 2)]}

    lm = LanguageModel(shortgpt.wrap(model, tokenizer=Pairs()))
    assert lm.encode_pair("abc", "def") == Request(((97 + 98) % 256, 99), ((100 + 101) % 256, 102)), (
        "each by itself: as one text, a token would begin before the cut"
    )
    assert lm.encode_pair("ab", "cd") == Request(((97 + 98) % 256,), ((99 + 100) % 256,))


def test_generation_ends_at_stop_strings_and_with_the_text(model: Any) -> None:
    lm = language_model(model)
    prompt = tuple(b"begin")
    (whole,) = lm.generate([prompt], 12)
    letter = whole.text[6]
    (stopped,) = lm.generate([prompt], 12, until=(letter,))
    assert stopped.text == whole.text[: whole.text.index(letter)]
    assert (
        lm.generate([prompt], 12, characters=3)[0].ids
        == whole.ids[: len(lm.generate([prompt], 12, characters=3)[0].ids)]
    )
    assert lm.truncated == 0
    lm.generate([prompt * 20], 12)
    assert lm.truncated == 1, "a prompt that leaves no room in the window"


def test_a_model_without_tokenizer_is_refused(model: Any) -> None:
    with pytest.raises(CalibrationError, match="has no tokenizer, so tasks cannot be put to it; name one"):
        LanguageModel(shortgpt.wrap(model))
