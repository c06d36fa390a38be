"""Passages of a source: cut at white space, never overlapping, each of one document."""

import json
import random
from pathlib import Path

import pytest

import shortgpt
from shortgpt.basics.inputs import CalibrationInfo
from shortgpt.errors import CalibrationError
from shortgpt.measuring.tasks.passages import NEARBY, Passages
from shortgpt.measuring.tasks.task import TaskOptions
from tests.support import byte_tokenizer, tiny

TEXT = " ".join(f"word{number}" for number in range(400))


def passages(*texts: str, context: int = 40, continuation: int = 80) -> Passages:
    return Passages(TaskOptions(text=texts), context, continuation)


def test_passages_follow_one_another_and_are_cut_at_white_space() -> None:
    found = passages(TEXT)
    assert len(found) > 10
    for at, passage in enumerate(found):
        assert TEXT[passage.middle].isspace()
        assert 40 - NEARBY <= passage.middle - passage.start <= 40
        assert 80 - NEARBY <= passage.end - passage.middle <= 80 + NEARBY
        if at:
            assert passage.start == found[at - 1].end
        assert TEXT[passage.start : passage.end] == found.context(at) + found.continuation(at)


def test_text_without_white_space_is_cut_where_it_must_be() -> None:
    found = passages("日本語" * 100)
    assert [(p.middle - p.start, p.end - p.middle) for p in found][:2] == [(40, 80), (40, 80)]


def test_a_short_document_gives_a_short_passage_and_a_shorter_one_none() -> None:
    found = passages(TEXT[:60], "too short", "   " * 100, TEXT[100:180])
    assert [passage.document for passage in found] == [0, 3]
    assert found.settings()["documents"] == 4


def test_a_source_that_gives_none_is_told() -> None:
    with pytest.raises(CalibrationError, match="too short: no document has the 30 characters"):
        passages("hardly any")
    with pytest.raises(CalibrationError, match="an iterable of str"):
        Passages(TaskOptions(text=(1, 2)), 40, 80)


def test_a_file_is_read_as_calibration_texts_are(tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"body": text, "id": "x"}) + "\n" for text in (TEXT, TEXT[::-1])), "utf-8")
    found = Passages(TaskOptions(text=str(file), field="body"), 40, 80)
    assert {passage.document for passage in found} == {0, 1}
    assert found.settings()["text_hash"] == passages(TEXT, TEXT[::-1]).settings()["text_hash"]


def test_nothing_is_taken_from_where_blocks_were_chosen(tmp_path: Path) -> None:
    """No window that `calibrate` takes begins in a passage that is left."""
    file = tmp_path / "text.txt"
    file.write_text(TEXT * 4, encoding="utf-8")
    model = shortgpt.wrap(tiny("llama", blocks=2), tokenizer=byte_tokenizer())
    data = shortgpt.calibrate(file, model, sequences=6, tokens=24, seed=3)
    whole = Passages(TaskOptions(text=str(file)), 40, 80)
    left = Passages(TaskOptions(text=str(file), scored=(data.info,)), 40, 80)
    kept = {(p.start, p.end) for p in left}
    of_all = [(p.start, p.end) for p in whole]
    assert 0 < len(kept) < len(of_all)
    assert left.settings()["passages_scored"] == len(of_all) - len(kept)
    assert not any(start <= at < end for at in _scored_places(data, TEXT * 4) for start, end in kept)


def _scored_places(data: shortgpt.Calibration, text: str) -> list[int]:
    """Where the windows begin: at segments of 16 characters a token, in a seeded order."""
    order = list(range(0, len(text), 16 * 24))
    random.Random(3).shuffle(order)
    found = [bytes(ids.tolist()).decode() for batch in data.batches for ids in batch["input_ids"]]
    assert [text[at : at + 24] for at in order[: len(found)]] == found
    return order[: len(found)]


def test_a_text_on_which_all_was_scored_has_none_held_out() -> None:
    info = CalibrationInfo("texts", 100, 64, 0, None, "", "")
    with pytest.raises(CalibrationError, match="blocks were chosen on all of it"):
        Passages(TaskOptions(text=(TEXT,), scored=(info,)), 40, 80)
