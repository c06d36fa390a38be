"""What a removal does to a model: against Hugging Face's own output, closed forms, and independent truth."""

import dataclasses
import json
import math
import statistics
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import shortgpt
from shortgpt import BlockSequence, Effect, Plan
from shortgpt.checkpoints.card import model_card
from shortgpt.errors import CalibrationError, HiddenStateError, ModelError, SelectionError
from shortgpt.measuring import evaluation
from shortgpt.measuring.calibration import held_out
from shortgpt.measuring.effect import continuation, not_measured
from shortgpt.reports.effect import on_one_line
from shortgpt.values.effect import Measured
from tests.support import byte_tokenizer, raising, skipped_by_hand, tiny

WORDS = "".join(f"line {i}: {i * i} is the square of {i}\n" for i in range(900))
ON = {"sequences": 4, "tokens": 40}
GONE = (1, 4)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(WORDS)
    return file


@pytest.fixture(scope="module")
def model() -> BlockSequence:
    return shortgpt.wrap(tiny("llama"), tokenizer=byte_tokenizer(), name="tiny")


@pytest.fixture(scope="module")
def found(model: BlockSequence, text: Path) -> Effect:
    return shortgpt.effect(model, GONE, text, **ON)


# -- held-out text --------------------------------------------------------------------------------------------


def rows(data: shortgpt.Calibration) -> list[list[int]]:
    return [row for batch in data.batches for row in batch["input_ids"].tolist()]


def test_held_out_windows_are_those_that_would_be_scored_next(model: BlockSequence, text: Path) -> None:
    taken, held = shortgpt.calibrate(text, model, **ON), held_out(text, model, **ON)
    assert rows(taken) + rows(held) == rows(shortgpt.calibrate(text, model, sequences=8, tokens=40))
    assert held.info.sequences == 4
    assert held.info.text_hash != taken.info.text_hash
    assert held.info.token_hash != taken.info.token_hash


def test_held_out_windows_share_no_text_with_those_that_are_scored(model: BlockSequence, text: Path) -> None:
    places = [WORDS.index(bytes(row).decode()) for row in rows(shortgpt.calibrate(text, model, **ON))]
    others = [WORDS.index(bytes(row).decode()) for row in rows(held_out(text, model, **ON))]
    assert min(abs(a - b) for a in places for b in others) >= 40


def test_as_many_windows_as_are_left_are_held_out(model: BlockSequence, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text(WORDS[: 16 * 40 * 6])
    assert held_out(tmp_path / "short.txt", model, **ON).info.sequences == 2
    (tmp_path / "short.txt").write_text(WORDS[: 16 * 40 * 4])
    with pytest.raises(CalibrationError, match="it gives 4 windows of 40 tokens, and the first 4 were scored, so none"):
        held_out(tmp_path / "short.txt", model, **ON)


# -- what is measured -----------------------------------------------------------------------------------------


def test_perplexity_before_and_after_is_that_of_the_library_on_the_held_out_text(
    found: Effect, model: BlockSequence, text: Path
) -> None:
    ids = torch.tensor(rows(held_out(text, model, **ON)))
    nats = []
    for gone in ((), GONE):
        logits = skipped_by_hand(tiny("llama"), "model.layers", gone, ids).double()[:, :-1]
        nats.append(torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none"))
    before, after = (math.exp(each.mean()) for each in nats)
    assert found.before.perplexity == pytest.approx(before, rel=1e-5)
    assert found.after.perplexity == pytest.approx(after, rel=1e-5)
    assert found.ratio == pytest.approx(after / before, rel=1e-5)
    apart = (nats[1] - nats[0]).reshape(4, 39).mean(1).tolist()
    assert found.ratio_stderr == pytest.approx(after / before * statistics.stdev(apart) / 2, rel=1e-4)


def test_the_continuations_are_what_the_library_generates(
    found: Effect, model: BlockSequence, text: Path, tmp_path: Path
) -> None:
    prompt = rows(held_out(text, model, **ON))[0][:32]
    shortgpt.remove(model, GONE).save(tmp_path / "shorter")
    assert found.prompt == bytes(prompt).decode()
    for library, told in (
        (tiny("llama"), found.before.continuation),
        (AutoModelForCausalLM.from_pretrained(tmp_path / "shorter"), found.after.continuation),
    ):
        made = library.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=32, pad_token_id=0)
        assert told == byte_tokenizer().decode(made[0, 32:].tolist())


def test_a_continuation_ends_with_the_token_that_ends_texts(model: BlockSequence) -> None:
    free = continuation(model, [65, 66], new_tokens=6)
    assert len(free) == 6
    assert continuation(model, [65, 66], new_tokens=6, end=free[2]) == free[: free.index(free[2]) + 1]


def test_speed_is_that_of_the_shorter_model_not_of_one_that_skips(
    model: BlockSequence, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[int, tuple[int, ...]]] = []
    without = model.without

    def seen(blocks: Iterable[int]) -> BlockSequence:
        shorter = without(blocks)
        logits = shorter.logits
        shorter.logits = lambda batch: (  # type: ignore[method-assign]
            shapes.append((len(shorter), tuple(batch["input_ids"].shape))) or logits(batch)  # type: ignore[func-returns-value]
        )
        return shorter

    monkeypatch.setattr(model, "without", seen)
    found = shortgpt.effect(model, range(1, 6), text, **ON)
    assert set(shapes) == {(1, (1, 512))}
    assert len(shapes) >= 4
    assert found.timed == (1, 512)
    assert found.before.tokens_per_second is not None
    assert found.after.tokens_per_second is not None
    assert (found.device, found.dtype) == ("cpu", "float32")


def test_the_model_is_as_it_was(model: BlockSequence, text: Path) -> None:
    ids = {"input_ids": torch.arange(24)[None]}
    before = model.logits(ids)
    shortgpt.effect(model, GONE, text, **ON)
    assert torch.equal(model.logits(ids), before)


def test_the_effect_is_the_truths(real: Path) -> None:
    folder = real / "stories260k-llama"
    truth = json.loads((folder / "bi_truth.json").read_text())["runs"]["tinystories_sample"]
    model = shortgpt.load(folder, device="cpu")
    data = shortgpt.calibrate([{"input_ids": torch.tensor(truth["token_ids"])}], model)
    for block in (0, 3):
        expected = truth["ppl_without_block"][block]
        found = shortgpt.effect(model, (block,), data)
        assert found.before.perplexity == pytest.approx(truth["ppl_full"], rel=1e-4)
        assert found.after.perplexity == pytest.approx(expected, rel=1e-4)
        assert found.ratio == pytest.approx(expected / truth["ppl_full"], rel=1e-4)


# -- what cannot be measured, and why -------------------------------------------------------------------------


def test_texts_that_were_handed_in_hold_nothing_out_and_speed_is_measured_all_the_same(model: BlockSequence) -> None:
    found = shortgpt.effect(model, GONE, ["some text", "and more"])
    assert set(found.not_measured) == {"perplexity", "continuation"}
    assert "handed in are all scored, so none is held out" in found.not_measured["perplexity"]
    assert found.ratio is found.before.perplexity is found.prompt is found.text is None
    assert found.before.tokens_per_second is not None
    assert "perplexity, continuation: not measured: texts and token batches" in str(found).replace("\n", " ")


def test_a_source_that_is_too_short_is_told(model: BlockSequence, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("short " * 20)
    assert "too short" in shortgpt.effect(model, GONE, tmp_path / "short.txt", **ON).not_measured["continuation"]


def test_a_streamed_model_is_not_measured(llama_folder: Path) -> None:
    streamed = shortgpt.load(llama_folder, device="cpu", stream=True)
    found = shortgpt.effect(streamed, GONE)
    assert set(found.not_measured) == {"perplexity", "continuation", "tokens per second"}
    assert str(found).replace("\n", " ").endswith("not measured: the weights are still in their files (stream)")


def test_a_model_that_cannot_be_made_shorter_in_memory_has_no_speed(
    model: BlockSequence, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(blocks: Iterable[int]) -> BlockSequence:
        raise ModelError("spread over several devices")

    monkeypatch.setattr(model, "without", refused)
    found = shortgpt.effect(model, GONE, text, **ON)
    assert found.not_measured == {"tokens per second": "spread over several devices"}
    assert found.timed == ()
    assert found.after.perplexity is not None


def test_a_tokenizer_that_cannot_decode_gives_no_continuation(text: Path) -> None:
    tokenizer = byte_tokenizer()
    model = shortgpt.wrap(tiny("llama"), tokenizer=lambda *args, **options: tokenizer(*args, **options))
    assert shortgpt.effect(model, GONE, text, **ON).not_measured == {"continuation": "the tokenizer cannot decode"}


def test_logits_that_are_not_finite_have_no_perplexity_and_the_rest_is_measured(
    model: BlockSequence, text: Path
) -> None:
    with raising(evaluation, "evaluate", HiddenStateError("NaN without the blocks 1, 4"), after=1):
        found = shortgpt.effect(model, GONE, text, **ON)
    assert found.not_measured == {"perplexity": "NaN without the blocks 1, 4"}
    assert found.before.perplexity is found.ratio is None
    assert found.prompt is not None


@pytest.mark.parametrize(("window", "prompt"), [(50, 18), (32, None)])
def test_prompt_and_continuation_fit_into_the_models_window(text: Path, window: int, prompt: int | None) -> None:
    model = shortgpt.wrap(tiny("gpt2", n_positions=window), tokenizer=byte_tokenizer())
    found = shortgpt.effect(model, GONE, text, sequences=4, tokens=window)
    assert (None if found.prompt is None else len(found.prompt.encode())) == prompt
    assert ("continuation" in found.not_measured) == (prompt is None)
    assert found.timed == (1, window)


def test_blocks_that_are_not_there_are_an_error(model: BlockSequence) -> None:
    with pytest.raises(SelectionError, match="blocks 9 do not exist"):
        shortgpt.effect(model, (9,))


# -- how it is told -------------------------------------------------------------------------------------------


def test_the_effect_survives_the_plans_file_and_older_plans_can_be_read(found: Effect) -> None:
    plan = Plan("m", "llama", 6, GONE, effect=found)
    assert Plan.from_json(plan.to_json()) == plan
    older = {name: value for name, value in plan.to_dict().items() if name not in ("choice", "effect", "exports")}
    assert Plan.from_dict(older) == Plan("m", "llama", 6, GONE)


def test_the_report_fits_80_columns_and_tells_all(found: Effect) -> None:
    lines = str(found).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["before", "after"]
    assert "4 held-out sequences" in str(found)
    assert f"× {found.ratio:.4g} ± {found.ratio_stderr:.2g}" in str(found)
    assert "forward pass of 1 × 512" in str(found)


def test_words_that_a_terminal_would_act_upon_are_escaped() -> None:
    assert on_one_line("a\x1b[31m\n\tb é 中\ud800") == "a\\x1b[31m\\n\\tb é 中\\ud800"
    shown = Effect(Measured(continuation="\x1b[2J"), Measured(continuation="~~~~\n# b"), prompt="[/red]")
    assert "before: \\x1b[2J" in str(shown)
    assert "prompt: [/red]" in str(shown)


def test_the_card_shows_numbers_words_and_what_is_lacking(found: Effect) -> None:
    lacking = dataclasses.replace(found, not_measured={"tokens per second": "there is no room"})
    card = model_card(Plan("m", "llama", 6, GONE, effect=lacking))
    section = card.split("## Effect\n")[1].split("\n## ")[0]
    assert f"| perplexity | {found.before.perplexity:.4g} | {found.after.perplexity:.4g} |" in section
    assert "~~~~text\nprompt: " in section
    assert "Tokens per second: not measured: there is no room." in section
    assert section.rstrip().endswith("the standard errors may be too small.")  # all windows are of one file
    bare = model_card(Plan("m", "llama", 6, GONE, effect=not_measured("the weights are elsewhere")))
    assert "Perplexity, continuation, tokens per second: not measured: the weights are elsewhere.\n" in bare


def test_a_continuation_cannot_end_its_block_in_the_card() -> None:
    words = Effect(Measured(continuation="~~~~\n~~~~"), Measured(continuation="# x"), prompt="p")
    lines = model_card(Plan("m", "llama", 6, GONE, effect=words)).splitlines()
    assert [line for line in lines if line.startswith("~~~~")] == ["~~~~text", "~~~~"]
