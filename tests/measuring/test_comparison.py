"""Many models side by side."""

import json
import math
from pathlib import Path

import pytest
import torch

import shortgpt
from shortgpt import Comparison, Scores
from shortgpt.errors import UnknownNameError
from shortgpt.values.comparison import Row, Summary
from tests.support import Playback, ids_of, tiny


def playback(blocks: int, name: str = "m", seed: int = 0) -> Playback:
    noise = torch.randn(blocks + 1, 257, 16, generator=torch.Generator().manual_seed(seed))
    return Playback(noise.cumsum(0), name=name)


def with_values(values: list[float]) -> Scores:
    scores = shortgpt.score(playback(len(values)), ["a text"])
    return Scores.from_dict(scores.to_dict() | {"sums": [[[v * 10 for v in values]]], "counts": [[10]], "tokens": [10]})


def test_a_row_a_model_in_the_order_they_were_named() -> None:
    found = shortgpt.compare([playback(3, "first"), playback(5, "second")], ["some text", "more"])
    assert [row.model for row in found.rows] == ["first", "second"]
    for row, blocks in zip(found.rows, (3, 5), strict=True):
        assert row.scores == shortgpt.score(playback(blocks, row.model), ["some text", "more"])


def test_a_generator_of_texts_serves_every_model() -> None:
    found = shortgpt.compare([playback(3, "first"), playback(3, "second")], (text for text in ["some text", "more"]))
    assert [row.error for row in found.rows] == [None, None]


def test_models_on_disk_are_loaded_one_after_the_other(llama_folder: Path) -> None:
    batches = [{"input_ids": ids_of()}]
    found = shortgpt.compare([llama_folder, str(llama_folder)], batches, device="cpu")
    assert [row.model for row in found.rows] == [str(llama_folder)] * 2
    expected = shortgpt.score(shortgpt.wrap(tiny("llama")), batches).values
    assert all(row.scores is not None and row.scores.values == expected for row in found.rows)


def test_a_model_that_fails_is_a_row_that_says_why_and_the_others_still_run(tmp_path: Path) -> None:
    broken = playback(3, "nan")
    broken.stream[1] = math.nan
    found = shortgpt.compare([broken, tmp_path / "nowhere", playback(3, "fine")], ["some text"])
    assert [row.model for row in found.rows] == ["nan", str(tmp_path / "nowhere"), "fine"]
    assert "NaN or infinity in the residual stream" in (found.rows[0].error or "")
    assert "no such file or folder" in (found.rows[1].error or "")
    assert found.rows[2].scores is not None


@pytest.mark.parametrize("error", [RuntimeError("inside the model's own code"), torch.OutOfMemoryError("full")])
def test_whatever_a_model_raises_the_others_still_run(error: Exception) -> None:
    class Failing(Playback):
        def trace(self, batch: object, tap: object) -> None:
            raise error

    found = shortgpt.compare([Failing(torch.randn(3, 257, 8), name="bad"), playback(3, "fine")], ["some text"])
    assert found.rows[0].error == f"{type(error).__name__}: {error}"
    assert found.rows[1].scores is not None


def test_scores_at_hand_are_taken_as_they_are(tmp_path: Path) -> None:
    scores = shortgpt.score(playback(3, "before"), ["some text"], criteria=["angular-distance", "block-influence"])
    (tmp_path / "scores.json").write_text(scores.to_json())
    found = shortgpt.compare([scores, tmp_path / "scores.json", str(tmp_path / "scores.json")], ["other text"])
    assert [row.model for row in found.rows] == ["before"] * 3
    assert all(row.scores == scores.of("block-influence") for row in found.rows)


def test_scores_of_another_criterion_are_a_row_that_says_so() -> None:
    scores = shortgpt.score(playback(3, "before"), ["some text"], criteria=["angular-distance"])
    (row,) = shortgpt.compare([scores], ["some text"]).rows
    assert row.model == "before"
    assert "criterion 'block-influence' was not measured" in (row.error or "")


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b'{"rows": []}', b"3"])
def test_a_file_that_holds_no_scores_is_a_row_that_says_so(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "scores.json").write_bytes(content)
    found = shortgpt.compare([tmp_path / "scores.json", playback(3, "fine")], ["some text"])
    assert found.rows[0].model == str(tmp_path / "scores.json")
    assert found.rows[0].error
    assert found.rows[1].scores is not None


def test_an_unknown_criterion_is_told_before_anything_is_loaded() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'block-influence'"):
        shortgpt.compare(["nowhere"], criteria=["block-infuence"])


def test_models_measured_on_other_text_are_marked() -> None:
    one, two = (shortgpt.score(playback(3, name), [text]) for name, text in (("a", "some text"), ("b", "other text")))
    again = shortgpt.score(playback(5, "c", seed=1), ["some text"])
    found = shortgpt.compare([one, two, again])
    assert found.mismatched() == ("b",)
    assert "* measured on other text" in str(found)
    assert "b *" in str(found)
    assert "other text" not in str(shortgpt.compare([one, again]))


def test_of_one_model_on_two_texts_the_row_on_the_other_text_is_marked() -> None:
    one, two = (shortgpt.score(playback(3, "a"), [text]) for text in ("some text", "other text"))
    lines = [line.split()[:2] for line in str(shortgpt.compare([one, two])).splitlines() if line.startswith("a ")]
    assert [line[1] == "*" for line in lines] == [False, True] * 2


def test_a_comparison_survives_json() -> None:
    found = shortgpt.compare([playback(3, "first"), Path("nowhere")], ["some text"])
    assert Comparison.from_json(found.to_json()) == found
    assert json.loads(found.to_json())["rows"][1]["scores"] is None


def test_progress_names_the_models() -> None:
    seen: list[tuple[str, int, int]] = []
    shortgpt.compare([playback(2), playback(2)], ["text"], progress=lambda *now: seen.append(now))
    assert [now for now in seen if now[0] == "models"] == [("models", 0, 2), ("models", 1, 2)]


# -- the summary ----------------------------------------------------------------------------------------------


def test_a_summary_is_mean_least_most_and_shares_below_thresholds() -> None:
    found = Summary.of(with_values([0.5, 0.1, 0.009, 0.04, 0.05, 0.2, 0.001, 0.3]))
    assert found.mean == pytest.approx(0.15)
    assert (found.least, found.most) == pytest.approx((0.001, 0.5))
    assert found.shares == (2 / 8, 3 / 8, 4 / 8)  # below 0.01, 0.05, 0.1


@pytest.mark.parametrize(
    ("values", "span"),
    [
        ([0.5, 0.1, 0.2, 0.04, 0.05, 0.2, 0.3, 0.3], (3, 4)),  # a quarter of 8 is 2
        ([0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1], (6, 7)),  # of equal ones the deeper
        ([0.3, 0.2], (1, 1)),
        ([0.3], (0, 0)),
    ],
)
def test_the_most_redundant_span_is_the_quarter_of_consecutive_blocks_of_least_mean(
    values: list[float], span: tuple[int, int]
) -> None:
    found = Summary.of(with_values(values))
    assert found.span == span
    assert found.span_mean == pytest.approx(sum(values[span[0] : span[1] + 1]) / (span[1] - span[0] + 1))


def test_a_row_has_scores_or_an_error() -> None:
    found = Comparison((Row("m", error="why"),))
    assert "m: why" in str(found)


def test_a_tokenizer_given_serves_the_models_that_bring_none() -> None:
    without, own = Playback(torch.randn(3, 257, 8)), Playback(torch.randn(3, 257, 8), name="own")
    own_tokenizer = own.tokenizer
    given, without.tokenizer = without.tokenizer, None
    rows = shortgpt.compare([without, own], ["some text", "other"], tokenizer=given).rows
    assert [row.error for row in rows] == [None, None]
    assert own.tokenizer is own_tokenizer
    assert rows[0].scores is not None
    assert sum(rows[0].scores.tokens) == len("some textother")
