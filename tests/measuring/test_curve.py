"""Quality against blocks removed: held against Hugging Face's own model with hooks of our own, and float64 sums."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import shortgpt
from shortgpt import BlockSequence, Curves
from shortgpt.errors import CalibrationError, SelectionError, ShortGPTError, UnknownNameError
from shortgpt.measuring.calibration import calibrate_and_hold_out
from shortgpt.measuring.compensation import fit
from shortgpt.measuring.tasks.sets import task_of
from shortgpt.reports import as_text
from shortgpt.reports.plots.curve import curve_figure
from shortgpt.values.curves import Curve, CurveRow, Line, Point
from tests.support import Playback, Ran, byte_tokenizer, ids_of, perplexity, skipped_by_hand, tiny

Run = Callable[..., Ran]
CRITERIA = ("block-influence", "relative-magnitude")


@pytest.fixture
def llama() -> tuple[PreTrainedModel, BlockSequence]:
    model = tiny("llama")
    return model, shortgpt.wrap(model, tokenizer=byte_tokenizer(), name="llama")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("".join(f"line {i}: {i * i} is the square of {i}\n" for i in range(400)))
    return file


def measured(curves: Curves, model: str | None = None) -> Curve:
    """The curve of the only model, or of the one of that name."""
    found = [curve for name, curve in curves.measured() if model in (None, name)]
    assert len(found) == 1, curves.failures()
    return found[0]


def in_one_row(**changes: Any) -> Curves:
    """A made-up curve: 4 blocks, two criteria, of which one cannot remove 2 and 3 together."""
    model = Playback(torch.randn(5, 257, 8).cumsum(0), name="made up")
    scores = replace(shortgpt.score(model, ["a text"], criteria=CRITERIA), criteria=("block-influence", "random"))
    lines = (
        Line("block-influence", (Point((), 2.0), Point((3,), 3.0), Point((2, 3), 50.0, "the pair is tied"))),
        Line("random", (Point((), 2.0), Point((1,), 400.0))),
    )
    row = CurveRow("made up", Curve(scores, scores.calibration, lines))
    return replace(Curves("perplexity", True, (row,)), **changes)


# -- what is measured -------------------------------------------------------------------------------------------------


def test_the_quality_is_the_perplexity_of_hugging_faces_model_without_the_blocks_on_text_that_was_not_scored(
    llama: Any, text: Path
) -> None:
    model, blocks = llama
    found = measured(shortgpt.curve(blocks, text, criteria=CRITERIA, most=5, sequences=3, tokens=24))
    windows = shortgpt.calibrate(text, blocks, sequences=6, tokens=24).batches
    rows = torch.cat([batch["input_ids"] for batch in windows])
    scored, held_out = rows[:3], rows[3:]
    assert [line.criterion for line in found.lines] == list(CRITERIA)
    for line in found.lines:
        scores = shortgpt.score(blocks, [{"input_ids": scored}], criteria=(line.criterion,))
        assert [point.removed for point in line.points] == [(), *(scores.least_influential(n) for n in range(1, 6))]
        for point in line.points:
            logits = skipped_by_hand(model, "model.layers", point.removed, held_out)
            assert point.quality == pytest.approx(perplexity(logits, held_out), rel=1e-6), point
            assert point.refusal is None


def test_any_evaluator_will_do(llama: Any) -> None:
    model, blocks = llama
    batches = [{"input_ids": ids_of(seed=seed)} for seed in (1, 2)]
    curves = shortgpt.curve(blocks, batches, criteria=("block-influence",), evaluator="accuracy", most=2)
    assert (curves.evaluator, curves.lower_is_better) == ("accuracy", False)
    ids = ids_of(seed=2)
    for point in measured(curves).lines[0].points:
        guesses = skipped_by_hand(model, "model.layers", point.removed, ids)[:, :-1].argmax(-1)
        assert point.quality == pytest.approx((guesses == ids[:, 1:]).double().mean().item(), abs=1e-12)


def test_a_task_will_do_too(tmp_path: Path) -> None:
    """`next-token`: the share of the tokens of the passages' continuations that Hugging Face's model foretells."""
    text = tmp_path / "text.txt"
    text.write_text("".join(f"line {i}: {i * i} is the square of {i}\n" for i in range(2000)))
    model = tiny("llama", max_position_embeddings=1024)
    model.lm_head.weight.data[ord(" ")] *= 30  # a guess that is right now and then
    blocks = shortgpt.wrap(model, tokenizer=byte_tokenizer(), name="llama")
    options: dict[str, Any] = {"sequences": 2, "tokens": 800, "batch_size": 1}
    found = shortgpt.curve(blocks, text, evaluator="next-token", most=2, **options)
    assert (found.evaluator, found.lower_is_better) == ("next-token", False)
    task: Any = task_of("next-token", calibrate_and_hold_out(text, blocks, **options)[1], blocks, 0)
    items = [(task.passages.context(item), task.passages.continuation(item)) for item in range(len(task))]
    assert len(items) == 2
    for point in measured(found).lines[0].points:
        right = []
        for context, continuation in items:
            ids = torch.tensor([list((context + continuation).encode())])  # a token is a byte
            logits = skipped_by_hand(model, "model.layers", point.removed, ids)
            right.append(logits[0, len(context) - 1 : -1].argmax(-1) == ids[0, len(context) :])
        assert point.quality == pytest.approx(torch.cat(right).double().mean().item(), abs=1e-12)
    assert len({point.quality for line in measured(found).lines for point in line.points}) > 2


def test_without_one_block_it_is_the_truths_perplexity(real: Path) -> None:
    truth = json.loads((real / "stories260k-llama" / "bi_truth.json").read_text())["runs"]["tinystories_sample"]
    ids = {"input_ids": torch.tensor(truth["token_ids"])}
    found = measured(shortgpt.curve(real / "stories260k-llama", [ids, ids], most=1, device="cpu"))
    for line in found.lines:
        whole, shorter = line.points
        assert whole.quality == pytest.approx(truth["ppl_full"], rel=1e-4)
        (block,) = shorter.removed
        assert shorter.quality == pytest.approx(truth["ppl_without_block"][block], rel=1e-4)


# -- how it is computed -----------------------------------------------------------------------------------------------


def test_what_is_left_out_is_not_computed_and_what_comes_before_it_is_computed_once(llama: Any) -> None:
    model, blocks = llama
    batch = {"input_ids": ids_of()}
    sets = [(), (4,), (2, 4), (1, 2, 4)]
    expected = [skipped_by_hand(model, "model.layers", blocks_, batch["input_ids"]) for blocks_ in sets]
    list(blocks.logits_without(batch, sets))  # what proves that it may be done so runs once a model
    calls = [0] * 6
    for index, layer in enumerate(model.model.layers):

        def count(module: Any, args: Any, output: Any, index: int = index) -> None:
            calls[index] += 1

        layer.self_attn.register_forward_hook(count)
    found = list(blocks.logits_without(batch, sets))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    # Recorded once, block by block; run again behind the first block that is left out: 5; 3, 5; 3, 5.
    assert calls == [1, 1, 1, 3, 1, 4]


def test_a_model_that_hands_more_than_the_stream_from_block_to_block_is_run_in_full() -> None:
    class Remembering(torch.nn.Module):
        """Each block adds what the block before it was given, which it keeps on the side."""

        def __init__(self) -> None:
            super().__init__()
            self.map, self.given = torch.nn.Linear(8, 8), torch.zeros(())
            self.before: list[Remembering] = []

        def forward(self, x: Tensor) -> Tensor:
            self.given = x
            return x + self.map(x) + (self.before[0].given if self.before else 0)

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = torch.nn.Embedding(257, 8), torch.nn.Linear(8, 257)
            self.layers = torch.nn.ModuleList(Remembering() for _ in range(5))
            for one, other in zip(self.layers, list(self.layers)[1:], strict=False):
                other.before.append(one)  # type: ignore[union-attr, operator]

        def forward(self, input_ids: Tensor) -> Tensor:
            x = self.embed(input_ids)
            for layer in self.layers:
                x = layer(x)
            return self.head(x)

    torch.manual_seed(0)
    blocks = shortgpt.wrap(Net().eval(), architecture="plain-torch")
    batch, sets = {"input_ids": ids_of()}, [(), (1,), (1, 3), (0, 1, 3)]
    for gone, found in zip(sets, blocks.logits_without(batch, sets), strict=True):
        with blocks.skipping(gone):
            assert torch.equal(found, blocks.logits(batch)), gone


def test_a_streamed_model_is_refused(llama_folder: Path) -> None:
    streamed = shortgpt.load(llama_folder, device="cpu", stream=True)
    (row,) = shortgpt.curve(streamed, [{"input_ids": ids_of()}] * 2).rows
    assert "cannot be run without some of its blocks" in (row.error or "")


# -- how far it goes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("most", "last"), [(None, 3), (2, 2), (0.34, 2), (100, 5)])
def test_it_goes_to_a_number_or_a_share_of_the_blocks_and_half_of_them_else(llama: Any, most: Any, last: int) -> None:
    found = measured(shortgpt.curve(llama[1], ["a text", "another"], criteria=("block-influence",), most=most))
    assert [len(point.removed) for point in found.lines[0].points] == list(range(last + 1))


def test_it_stops_where_only_pinned_blocks_are_left(llama: Any) -> None:
    llama[1].pinned = {0: "it stays", 2: "it stays too"}
    found = measured(shortgpt.curve(llama[1], ["a text", "another"], criteria=("block-influence",), most=6))
    assert found.lines[0].points[-1].removed == (1, 3, 4, 5)


def test_a_set_that_cannot_be_removed_says_why_and_is_measured_all_the_same() -> None:
    def make(pattern: list[str]) -> BlockSequence:
        torch.manual_seed(0)
        settings = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
        config = {"num_hidden_layers": 4, "layer_types": pattern, "num_local_experts": 2, "block_size": 16}
        return shortgpt.wrap(tiny_of("minimax", **settings, **config))

    blocks = make(["full_attention", "linear_attention", "full_attention", "linear_attention"])
    found = measured(shortgpt.curve(blocks, [{"input_ids": ids_of(seed=seed)} for seed in (1, 2)], most=3))
    points = [point for line in found.lines for point in line.points]
    assert {point.removed: point.refusal is not None for point in points} == {
        point.removed: bool(point.removed) and refused(blocks, point.removed) for point in points
    }
    assert any(point.refusal for point in points)
    assert all(math.isfinite(point.quality) for point in points)


def refused(blocks: BlockSequence, removed: tuple[int, ...]) -> bool:
    try:
        blocks.without(removed)
    except SelectionError:
        return True
    return False


def tiny_of(name: str, **settings: Any) -> PreTrainedModel:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(name, vocab_size=257, bos_token_id=0, eos_token_id=0, pad_token_id=None, **settings)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("most", [0, -3, 1.5, 0.0, math.nan])
def test_what_is_no_number_of_blocks_and_no_share_is_refused_before_anything_runs(most: Any) -> None:
    with pytest.raises(SelectionError, match="share"):
        shortgpt.curve("nowhere/at/all", most=most)


# -- what the text is -------------------------------------------------------------------------------------------------


def test_of_a_source_the_windows_after_those_that_are_scored_are_held_out(text: Path) -> None:
    model = Playback(torch.randn(3, 257, 4))
    data, held_out = calibrate_and_hold_out(text, model, sequences=5, tokens=16, seed=3)
    both = shortgpt.calibrate(text, model, sequences=10, tokens=16, seed=3)
    rows = [[row.tolist() for batch in part.batches for row in batch["input_ids"]] for part in (data, held_out, both)]
    assert rows[0] + rows[1] == rows[2]
    assert not any(row in rows[0] for row in rows[1])
    assert data.info == shortgpt.calibrate(text, model, sequences=5, tokens=16, seed=3).info


@pytest.mark.parametrize(("sequences", "expected"), [(None, ("abc", "de")), (2, ("ab", "cd")), (1, ("a", "b"))])
def test_of_texts_handed_in_the_second_half_is_held_out(sequences: Any, expected: Any) -> None:
    model = Playback(torch.randn(3, 257, 4))
    halves = calibrate_and_hold_out((sign * 3 for sign in "abcde"), model, sequences=sequences)
    for half, signs in zip(halves, expected, strict=True):
        rows = [row for batch in half.batches for row in batch["input_ids"].tolist()]
        assert rows == [[ord(sign)] * 3 for sign in signs]


def test_of_a_calibration_the_second_half_of_its_batches_is_held_out() -> None:
    model = Playback(torch.randn(3, 257, 4))
    batches = [{"input_ids": ids_of(seed=seed)} for seed in range(3)]
    data, held_out = calibrate_and_hold_out(shortgpt.calibrate(batches, model), model)
    assert [*data.batches, *held_out.batches] == batches
    assert len(data.batches) == 2


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (["one text"], {}, "found one text or token batch.*give two or more"),
        ([], {}, "is empty"),
        (["a", "b"], {"sequences": 0}, "sequences must be at least 1"),
    ],
)
def test_text_that_cannot_serve_both_is_refused(source: Any, options: Any, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        calibrate_and_hold_out(source, Playback(torch.randn(3, 257, 4)), **options)


def test_a_source_too_short_to_hold_anything_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("x" * 16)
    with pytest.raises(CalibrationError, match=r"held out.*ask for fewer"):
        calibrate_and_hold_out(tmp_path / "short.txt", Playback(torch.randn(3, 257, 4)), sequences=1, tokens=16)


# -- several, and what fails ------------------------------------------------------------------------------------------


def test_a_model_that_fails_is_a_row_that_says_why_and_the_others_still_run(llama: Any, tmp_path: Path) -> None:
    broken = shortgpt.wrap(tiny("gpt2", blocks=3), name="broken", tokenizer=byte_tokenizer())
    with torch.no_grad():
        broken.model.lm_head.weight.fill_(math.nan)  # type: ignore[attr-defined]
    curves = shortgpt.curve([broken, tmp_path / "nowhere", llama[1]], (text for text in ["a text", "another"]))
    assert [row.model for row in curves.rows] == ["broken", str(tmp_path / "nowhere"), "llama"]
    reasons = dict(curves.failures())
    assert "NaN or infinity" in reasons["broken"]
    assert "no such file or folder" in reasons[str(tmp_path / "nowhere")]
    assert len(measured(curves, "llama").lines[0].points) == 4


REFUSING = """
from shortgpt import hookimpl, Criterion, Extension

class Picky(Criterion):
    def refuse(self, model):
        return "only on Sundays"
    def values(self, before, after):
        raise AssertionError("never called")

@hookimpl
def shortgpt_criteria():
    return [Extension("picky", __name__ + ":Picky")]
"""


def test_a_criterion_that_the_model_cannot_serve_is_told_and_the_others_go_on(llama: Any, plug: Any) -> None:
    plug("picky", REFUSING)
    curves = shortgpt.curve(llama[1], ["a text", "another"], criteria=("block-influence", "picky"))
    assert [line.criterion for line in measured(curves).lines] == ["block-influence"]
    assert curves.failures() == (("llama", "picky: only on Sundays"),)


RANDOM = """
from shortgpt import hookimpl, OrderCriterion, Extension

class Backwards(OrderCriterion):
    def order(self, model, data, progress):
        return list(range(len(model)))[::-1]

@hookimpl
def shortgpt_criteria():
    return [Extension("random", __name__ + ":Backwards")]
"""


def test_the_default_is_block_influence_beside_the_random_order(llama: Any, plug: Any) -> None:
    from shortgpt import plugins

    if not any(entry.name == "random" for entry in plugins.registry().criteria):
        plug("control", RANDOM)
    found = measured(shortgpt.curve(llama[1], ["a text", "another"]))
    assert [line.criterion for line in found.lines] == ["block-influence", "random"]


def test_names_that_are_not_installed_are_told_before_a_model_is_opened() -> None:
    with pytest.raises(UnknownNameError, match="unknown criterion 'nonsense'"):
        shortgpt.curve("nowhere/at/all", criteria=("nonsense",))
    with pytest.raises(UnknownNameError, match="unknown evaluator 'nonsense'"):
        shortgpt.curve("nowhere/at/all", evaluator="nonsense")


# -- how it is told ---------------------------------------------------------------------------------------------------


def test_it_is_read_back_from_its_json() -> None:
    curves = in_one_row()
    assert Curves.from_json(curves.to_json()) == curves


@pytest.mark.parametrize(
    "line", [Line("random", (Point((1,), 2.0),)), Line("other", (Point((), 2.0),)), Line("random", ())]
)
def test_lines_that_are_no_curve_are_told(line: Line) -> None:
    curves = in_one_row()
    curves.check()
    curve = replace(measured(curves), lines=(line,))
    with pytest.raises(ShortGPTError, match="is no curve of made up"):
        replace(curves, rows=(CurveRow("made up", curve),)).check()


def cells(line: str) -> list[str | float]:
    """What stands in a line, numbers as numbers, however many digits they are told with."""
    found: list[str | float] = []
    for word in line.split():
        try:
            found.append(float(word))
        except ValueError:
            found.append(f"{float(word[:-1]):g}*" if word.endswith("*") and word != "*" else word)
    return found


def test_the_table_has_a_row_a_number_of_blocks_and_a_column_a_criterion() -> None:
    lines = [cells(line) for line in as_text(in_one_row()).splitlines()]
    assert lines[1] == ["removed", "share", "BI", "goes", "random", "goes"]
    assert lines[2] == [0, "0%", 2, 2]
    assert lines[3] == [1, "25%", 3, 3, 400, 1]
    assert lines[4] == [2, "50%", "50*", 2, "-"]
    text = " ".join(as_text(in_one_row()).split())
    assert "perplexity on 1 held-out sequences of texts; blocks chosen on 1 others" in text
    assert "* cannot be removed, only skipped as here: the pair is tied" in text


def test_what_failed_stands_below_the_tables() -> None:
    failed = CurveRow("other", error="other: it would not open")
    assert as_text(in_one_row(rows=(*in_one_row().rows, failed))).splitlines()[-1] == "other: it would not open"
    assert as_text(Curves("perplexity", True, (failed,))) == "other: it would not open"


def test_tables_hold_every_point() -> None:
    curves = in_one_row(rows=(*in_one_row().rows, CurveRow("other", error="other: it would not open")))
    table, failures = curves.tables()
    assert table.columns == ("removed", "share", "block-influence", "without blocks", "random", "without blocks")
    assert table.rows[2] == (2, "50%", 50.0, "2-3", None, None)
    assert failures.rows == (("other", "it would not open"),)
    tidy = curves.tidy()
    assert len(tidy.rows) == 3 + 2 + 1
    assert tidy.rows[2] == (
        *("made up", "block-influence", 2, 0.5, "2 3", "perplexity", 50.0, "the pair is tied", None),
    )


def test_the_picture_of_one_model_counts_blocks_and_that_of_several_shares() -> None:
    one = curve_figure(in_one_row())
    (axes,) = one.axes
    assert axes.get_xlabel() == "blocks removed"
    assert axes.get_ylabel() == "perplexity on held-out texts, log scale"
    assert axes.get_yscale() == "log"
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert drawn["block-influence"] == [[0, 2], [1, 3], [2, 50]]
    assert drawn["random"] == [[0, 2], [1, 400]]
    hollow = [line for line in axes.lines if line.get_markerfacecolor() == "white"]
    assert [line.get_xydata().tolist() for line in hollow] == [[[2, 50]]]

    row = in_one_row().rows[0]
    several = curve_figure(in_one_row(rows=(row, replace(row, model="cheap $5 copy"))))
    (axes,) = several.axes
    assert axes.get_xlabel() == "share of the blocks removed"
    labelled = [line for line in axes.lines if not str(line.get_label()).startswith("_")]
    assert [line.get_xdata().tolist() for line in labelled] == [[0, 0.25, 0.5], [0, 0.25]] * 2
    looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in labelled}
    assert len(looks) == 4
    assert len({line.get_marker() for line in labelled}) == len({line.get_linestyle() for line in labelled}) == 2


@pytest.mark.parametrize("last", [2.2, 9.0, 30.0, 5e6, math.inf])
def test_the_quality_has_ticks_however_far_it_goes(last: float) -> None:
    curve = measured(in_one_row())
    line = Line("random", (Point((), 2.0), Point((1,), last)))
    row = CurveRow("made up", replace(curve, lines=(line,)))
    (axes,) = (figure := curve_figure(in_one_row(rows=(row,)))).axes
    figure.canvas.draw()
    low, high = axes.get_ylim()
    shown = [tick for tick, text in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True) if text.get_text()]
    assert 3 <= sum(low <= tick <= high for tick in shown) <= 24


def test_where_higher_is_better_the_axis_is_linear() -> None:
    (axes,) = curve_figure(in_one_row(evaluator="accuracy", lower_is_better=False)).axes
    assert (axes.get_yscale(), axes.get_ylabel()) == ("linear", "accuracy on held-out texts")


def test_the_first_criterions_removals_are_made_up_for_in_a_line_of_its_own(
    llama_folder: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its points are the models that `shortgpt.compensate` makes, on the same text."""
    monkeypatch.setattr(fit, "worth_it", lambda gain, stderr: True)
    model = shortgpt.load(llama_folder, device="cpu")
    options: Any = {"sequences": 3, "tokens": 24}
    curves = shortgpt.curve(model, text, criteria=CRITERIA[:1], most=1, compensate=True, **options)
    ((_, curve),) = curves.measured()
    plain, compensated = curve.lines
    assert compensated.criterion == f"{CRITERIA[0]}, compensated"
    assert [point.removed for point in compensated.points] == [point.removed for point in plain.points]
    data, held_out = calibrate_and_hold_out(text, model, **options)
    shorter = shortgpt.compensate(model, plain.points[1].removed, data)
    logits = torch.cat([shorter.logits(batch)[:, :-1] for batch in held_out.batches]).flatten(0, 1)
    targets = torch.cat([batch["input_ids"][:, 1:] for batch in held_out.batches]).flatten()
    by_hand = torch.nn.functional.cross_entropy(logits.double(), targets).exp().item()
    assert compensated.points[1].quality == pytest.approx(by_hand, rel=1e-5)
    assert Curves.from_json(curves.to_json()) == curves


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command_prints_draws_and_writes_what_the_library_gives(
    run_cli: Run, llama_folder: Path, text: Path, tmp_path: Path
) -> None:
    on = ("--calibration", text, "--sequences", 3, "--tokens", 24, "--device", "cpu", "--criterion", CRITERIA[0])
    files = {"--json": tmp_path / "curve.json", "--plot": tmp_path / "curve.png"}
    ran = run_cli("curve", llama_folder, *on, "--max", "0.34", *(part for pair in files.items() for part in pair))
    assert (ran.status, ran.err) == (0, "")
    expected = shortgpt.curve(llama_folder, text, criteria=CRITERIA[:1], most=2, sequences=3, tokens=24, device="cpu")
    assert Curves.from_json(files["--json"].read_text()) == expected
    assert files["--plot"].read_bytes().startswith(b"\x89PNG")
    assert "2    33%" in ran.out
    assert run_cli("curve", llama_folder, *on, "--max", "2", "--json", "-").out == expected.to_json() + "\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--max", "many"), "--max 'many' is neither a number of blocks nor a share"),
        (("--max", "0"), "a curve to 0 blocks has no length"),
        (("--max", "1.5"), "a ratio of 1.5 is no share"),
        (("--criterion", "nonsense"), "unknown criterion 'nonsense'"),
        (("--evaluator", "nonsense"), "unknown evaluator 'nonsense'"),
        (("--tokens", "4000"), "no model could be measured"),
        (("--plot", "curve.gif"), "pictures are written as"),
    ],
)
def test_a_mistake_is_one_message_and_nothing_is_written(
    run_cli: Run, llama_folder: Path, text: Path, tmp_path: Path, options: Any, message: str
) -> None:
    target = tmp_path / "curve.json"
    ran = run_cli("curve", llama_folder, "--device", "cpu", "--calibration", text, "--json", target, *options)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.count("\n") == 1
    assert message in ran.err
    assert not target.exists()
