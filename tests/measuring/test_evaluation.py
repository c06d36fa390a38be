"""How well the next token is predicted: against Hugging Face's own loss, and against sums written here."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import shortgpt
from shortgpt.errors import CalibrationError, HiddenStateError, ModelError, PluginError, UnknownNameError
from shortgpt.measuring import evaluation
from shortgpt.measuring.evaluation import Evaluator, batch_sums, evaluate, evaluate_cuts, evaluate_sets, open_evaluator
from shortgpt.models.sequence import Cut, TokenBatch
from tests.support import ids_of, skipped_by_hand, tiny

IDS = ids_of(rows=3, tokens=20)
LENGTHS = (20, 9, 14)
MASK = (torch.arange(20) < torch.tensor(LENGTHS)[:, None]).long()
PADDED: TokenBatch = {"input_ids": IDS, "attention_mask": MASK}
CUTS = [Cut(block) for block in range(6)]


def calibrated(model: Any, *batches: TokenBatch) -> Any:
    return shortgpt.calibrate(list(batches), model)


def huggingface_loss(model: Any, batch: TokenBatch) -> float:
    mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
    with torch.no_grad():
        return float(model(**batch, labels=batch["input_ids"].masked_fill(mask == 0, -100), use_cache=False).loss)


@pytest.fixture(scope="module")
def llama() -> Any:
    return tiny("llama")


# -- the evaluators -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gpt2", "mamba", "rwkv"])
def test_perplexity_is_exp_of_hugging_faces_own_loss(name: str) -> None:
    model, batch = tiny(name), {"input_ids": IDS}
    wrapped, evaluator = shortgpt.wrap(model), open_evaluator("perplexity")
    quality = evaluate(wrapped, calibrated(wrapped, batch), evaluator)
    assert evaluator.summary(quality.mean) == pytest.approx(math.exp(huggingface_loss(model, batch)), rel=1e-6)
    assert quality.counts == (19, 19, 19)


def test_padding_is_no_prediction_and_batches_are_weighted_by_their_tokens(llama: Any) -> None:
    model = shortgpt.wrap(llama)
    quality = evaluate(model, calibrated(model, PADDED, {"input_ids": IDS[:2, :7]}), open_evaluator("perplexity"))
    losses = [huggingface_loss(llama, PADDED), huggingface_loss(llama, {"input_ids": IDS[:2, :7]})]
    assert quality.counts == (19, 8, 13, 6, 6)
    assert quality.mean == pytest.approx((40 * losses[0] + 12 * losses[1]) / 52, rel=1e-6)
    rows = [huggingface_loss(llama, {"input_ids": IDS[k : k + 1, :n]}) for k, n in enumerate(LENGTHS)]
    assert quality.sums[:3] == pytest.approx([loss * (n - 1) for loss, n in zip(rows, LENGTHS, strict=True)], rel=1e-5)


def test_accuracy_is_the_share_of_tokens_that_were_the_likeliest(llama: Any) -> None:
    model, evaluator = shortgpt.wrap(llama), open_evaluator("accuracy")
    likeliest = llama(input_ids=IDS, use_cache=False).logits.argmax(-1)
    # every third token of the first sequence is what the model itself would say
    right = IDS.clone()
    for t in range(1, 20, 3):
        right[0, t] = llama(input_ids=right, use_cache=False).logits[0, t - 1].argmax()
    likeliest = llama(input_ids=right, use_cache=False).logits.argmax(-1)
    hits = sum(int(likeliest[row, t] == right[row, t + 1]) for row, n in enumerate(LENGTHS) for t in range(n - 1))
    assert hits >= 7
    quality = evaluate(model, calibrated(model, {"input_ids": right, "attention_mask": MASK}), evaluator)
    assert evaluator.summary(quality.mean) == pytest.approx(hits / 40, rel=1e-12)
    assert not evaluator.lower_is_better


def test_a_perplexity_beyond_a_float_is_infinite() -> None:
    evaluator = open_evaluator("perplexity")
    assert evaluator.summary(math.log(8.5)) == pytest.approx(8.5)
    assert evaluator.summary(1e4) == math.inf


@pytest.mark.parametrize("numbers", [1, 257 * 3, 257 * 1000])
def test_taken_in_pieces_of_any_size_the_sums_are_the_same(numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(3, 20, 257, generator=torch.Generator().manual_seed(1))
    monkeypatch.setitem(evaluation.NUMBERS_AT_A_TIME, "cpu", numbers)
    sums, counts = batch_sums(logits, PADDED, open_evaluator("perplexity"))
    exact = torch.nn.functional.cross_entropy(logits[:, :-1].double().mT, IDS[:, 1:], reduction="none")
    expected = [row[: n - 1].sum().item() for row, n in zip(exact, LENGTHS, strict=True)]
    assert (sums.tolist(), counts) == (pytest.approx(expected, rel=1e-6), [19, 8, 13])
    assert sums.dtype == torch.float64


def test_half_precision_logits_are_taken_to_float32_first() -> None:
    logits = (5 * torch.randn(3, 20, 257, generator=torch.Generator().manual_seed(1))).bfloat16()
    sums, _ = batch_sums(logits, {"input_ids": IDS}, open_evaluator("perplexity"))
    exact = torch.nn.functional.cross_entropy(logits[:, :-1].double().mT, IDS[:, 1:], reduction="none").sum(1)
    assert sums.tolist() == pytest.approx(exact.tolist(), rel=1e-6)


@pytest.mark.parametrize("fits", [1, 2])
def test_a_batch_that_does_not_fit_is_taken_in_halves(fits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    llama = tiny("llama")
    model, evaluator = shortgpt.wrap(llama), open_evaluator("perplexity")
    data, sets = calibrated(model, PADDED, {"input_ids": IDS}), [(), (1,), (2, 3)]
    whole = [evaluate(model, data, evaluator, (4,)), *evaluate_sets(model, data, evaluator, sets)]
    sizes: list[int] = []

    def lacking(module: Any, args: Any, kwargs: Any) -> None:
        sizes.append(len(args[0]))
        if len(args[0]) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")

    llama.model.layers[5].register_forward_pre_hook(lacking, with_kwargs=True)
    halved = [evaluate(model, data, evaluator, (4,)), *evaluate_sets(model, data, evaluator, sets)]
    assert max(sizes) == 3
    for mine, expected in zip(halved, whole, strict=True):
        assert mine.counts == expected.counts
        assert mine.sums == pytest.approx(expected.sums, rel=1e-6)


# -- without some blocks --------------------------------------------------------------------------------------


def loss_by_hand(model: Any, gone: tuple[int, ...]) -> float:
    logits = skipped_by_hand(model, "model.layers", gone, IDS).double()
    return float(torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()))


@pytest.mark.parametrize("removed", [(), (3,), (5, 0)])
def test_each_cut_is_the_model_with_the_block_skipped_beside_those_removed(
    removed: tuple[int, ...], llama: Any
) -> None:
    model, evaluator = shortgpt.wrap(llama), open_evaluator("perplexity")
    data = calibrated(model, {"input_ids": IDS[:2]}, {"input_ids": IDS[2:]})
    found = [quality.mean for quality in evaluate_cuts(model, data, evaluator, CUTS, removed)]
    assert found == pytest.approx([loss_by_hand(llama, (*removed, cut.block)) for cut in CUTS], rel=1e-6)
    assert evaluate(model, data, evaluator, removed).mean == pytest.approx(loss_by_hand(llama, removed), rel=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "gpt2_postnorm", "openai-gpt", "mistral", "mamba", "mamba2", "rwkv"])
def test_cuts_change_no_bit_of_plain_skipping(name: str) -> None:
    model, evaluator = shortgpt.wrap(tiny(name)), open_evaluator("perplexity")
    data = calibrated(model, PADDED)
    plain = [evaluate(model, data, evaluator, (2, cut.block)) for cut in CUTS]
    assert evaluate_cuts(model, data, evaluator, CUTS, (2,)) == plain


@pytest.mark.parametrize(("part", "module"), [("mixer", "self_attn"), ("mlp", "mlp")])
def test_a_part_alone_can_be_cut(part: str, module: str, llama: Any) -> None:
    model, evaluator = shortgpt.wrap(llama), open_evaluator("perplexity")
    found = evaluate_cuts(model, calibrated(model, {"input_ids": IDS}), evaluator, [Cut(1, part), Cut(4, part)])

    def nothing(module: Any, args: Any, output: Any) -> Any:
        return (torch.zeros_like(output[0]), *output[1:]) if isinstance(output, tuple) else torch.zeros_like(output)

    for block, quality in zip((1, 4), found, strict=True):
        hook = getattr(llama.model.layers[block], module).register_forward_hook(nothing)
        expected = loss_by_hand(llama, ())
        hook.remove()
        assert quality.mean == pytest.approx(expected, rel=1e-6)


def test_progress_counts_the_cuts_of_all_batches(llama: Any) -> None:
    seen: list[tuple[str, int, int]] = []
    model = shortgpt.wrap(llama)
    data = calibrated(model, {"input_ids": IDS[:2]}, {"input_ids": IDS[2:]})
    evaluate_cuts(model, data, open_evaluator("perplexity"), CUTS[:2], progress=lambda *now: seen.append(now))
    assert seen == [("cuts", n, 4) for n in (1, 2, 3, 4)]


# -- what is told ---------------------------------------------------------------------------------------------


def test_texts_without_a_prediction_are_refused(llama: Any) -> None:
    model = shortgpt.wrap(llama)
    with pytest.raises(CalibrationError, match="no sequence has two tokens"):
        evaluate(model, calibrated(model, {"input_ids": IDS[:, :1]}), open_evaluator("perplexity"))


def test_a_sequence_of_one_token_beside_others_adds_nothing(llama: Any) -> None:
    model, evaluator = shortgpt.wrap(llama), open_evaluator("perplexity")
    mask = torch.tensor([[1, 0, 0], [1, 1, 1]])
    quality = evaluate(model, calibrated(model, {"input_ids": IDS[:2, :3], "attention_mask": mask}), evaluator)
    assert quality.counts == (0, 2)
    assert quality.sums[0] == 0


def test_nan_is_an_error_that_names_what_was_left_out() -> None:
    broken = tiny("llama")
    model, evaluator = shortgpt.wrap(broken), open_evaluator("perplexity")
    data = calibrated(model, {"input_ids": IDS})
    with torch.no_grad():
        broken.model.layers[3].mlp.down_proj.weight.fill_(math.nan)
    with pytest.raises(HiddenStateError, match="LlamaForCausalLM: the evaluator gave NaN or infinity"):
        evaluate(model, data, evaluator)
    assert math.isfinite(evaluate(model, data, evaluator, (3,)).mean)
    with pytest.raises(HiddenStateError, match="without block 1, 2: the evaluator gave NaN"):
        evaluate_cuts(model, data, evaluator, [Cut(2)], (1,))


class Failing(Evaluator):
    def values(self, logits: Tensor, targets: Tensor) -> Tensor:
        raise KeyError("no such thing")


class Single(Evaluator):
    def values(self, logits: Tensor, targets: Tensor) -> Tensor:
        return logits.mean()


@pytest.mark.parametrize(
    ("evaluator", "message"), [(Failing, "KeyError: 'no such thing'"), (Single, r"shape \(\) for 19 predictions")]
)
def test_an_evaluator_that_fails_is_named(evaluator: Callable[[], Evaluator], message: str, llama: Any) -> None:
    model = shortgpt.wrap(llama)
    with pytest.raises(PluginError, match=rf"evaluator '{evaluator.__name__}' \(plugin tests.*{message}"):
        evaluate(model, calibrated(model, {"input_ids": IDS}), evaluator())


def test_an_evaluator_is_opened_by_name(plug: Callable[[str, str], str]) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown evaluator 'perplexitiy'\. Did you mean 'perplexity'"):
        open_evaluator("perplexitiy")
    plug(
        "mine",
        "from shortgpt import Extension, hookimpl\n"
        "@hookimpl\ndef shortgpt_evaluators():\n    return [Extension('odd', 'builtins:dict')]\n",
    )
    with pytest.raises(PluginError, match="evaluator 'odd'"):
        open_evaluator("odd")


def test_a_streamed_model_is_evaluated_but_not_without_some_of_its_blocks(llama_folder: Any) -> None:
    streamed, whole = (shortgpt.load(llama_folder, device="cpu", stream=stream) for stream in (True, False))
    data, evaluator = calibrated(whole, PADDED), open_evaluator("perplexity")
    assert evaluate(streamed, data, evaluator) == evaluate(whole, data, evaluator)
    with pytest.raises(ModelError, match="still in their files"):
        evaluate_cuts(streamed, data, evaluator, CUTS)
