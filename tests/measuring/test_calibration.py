"""Text to token batches: which text is taken, how it is cut, and what is refused."""

import hashlib
import io
import json
import os
import pydoc
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import shortgpt
from shortgpt.errors import CalibrationError, UnknownNameError
from shortgpt.measuring.calibration import calibrate, repacked
from shortgpt.measuring.texts import texts_of
from tests.support import Playback, byte_tokenizer


@pytest.fixture
def model() -> Playback:
    """Of two blocks, with byte tokens."""
    return Playback(torch.randn(3, 257, 8))


def rows(calibration: shortgpt.Calibration) -> list[list[int]]:
    """The real tokens of each sequence."""
    found = []
    for batch in calibration.batches:
        mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
        found += [ids[real.bool()].tolist() for ids, real in zip(batch["input_ids"], mask, strict=True)]
    return found


def write(file: Path, text: str) -> Path:
    file.write_text(text, encoding="utf-8")
    return file


# -- files ----------------------------------------------------------------------------------------------------


def test_windows_of_a_file_are_cut_from_it_without_overlap(tmp_path: Path, model: Playback) -> None:
    text = "".join(f"{i:05d};" for i in range(2000))  # no two places are alike
    found = calibrate(write(tmp_path / "a.txt", text), model, sequences=5, tokens=64)
    starts = [text.index(bytes(row).decode()) for row in rows(found)]
    assert all(len(row) == 64 for row in rows(found))
    assert all(abs(a - b) >= 64 for i, a in enumerate(starts) for b in starts[:i])
    assert (found.info.sequences, found.info.tokens, found.info.seed) == (5, 64, 0)


def test_the_seed_decides_which_windows_are_taken(tmp_path: Path, model: Playback) -> None:
    file = write(tmp_path / "a.txt", "".join(f"{i:05d};" for i in range(20000)))
    first, again, other = (calibrate(file, model, sequences=4, tokens=64, seed=seed) for seed in (1, 1, 2))
    assert rows(first) == rows(again)
    assert first.info == again.info
    assert rows(first) != rows(other)
    assert first.info.token_hash != other.info.token_hash


def test_a_folder_is_read_with_its_subfolders_and_text_files_only(tmp_path: Path, model: Playback) -> None:
    (tmp_path / "deep").mkdir()
    write(tmp_path / "a.md", "a" * 40)
    write(tmp_path / "deep" / "b.txt", "b" * 40)
    write(tmp_path / "deep" / "c.jsonl", json.dumps({"text": "c" * 40}))
    (tmp_path / "weights.bin").write_bytes(bytes(range(256)))
    found = calibrate(tmp_path, model, sequences=3, tokens=32)
    assert sorted(bytes(row) for row in rows(found)) == [b"a" * 32, b"b" * 32, b"c" * 32]


def test_json_lines_give_the_text_of_their_field(tmp_path: Path) -> None:
    lines = ["", json.dumps({"text": "one", "body": "eins"}), "  ", json.dumps({"text": "two", "body": "zwei"})]
    file = write(tmp_path / "a.jsonl", "\n".join(lines) + "\n")
    assert list(texts_of(file)) == ["one", "two"]
    assert list(texts_of(file, field="body")) == ["eins", "zwei"]


def test_json_lines_may_hold_signs_that_python_takes_for_line_ends(tmp_path: Path) -> None:
    text = "a\u2028b\u0085c\u2029d"
    file = write(tmp_path / "a.jsonl", json.dumps({"text": text}, ensure_ascii=False) + "\n")
    assert list(texts_of(file)) == [text]


def test_short_texts_are_joined_by_an_empty_line_until_they_fill_a_window(tmp_path: Path, model: Playback) -> None:
    file = write(tmp_path / "a.jsonl", "\n".join(json.dumps({"text": word}) for word in ["abcd"] * 10))
    (window,) = rows(calibrate(file, model, sequences=1, tokens=16))
    assert bytes(window) == b"abcd\n\nabcd\n\nabcd"


# -- iterables ------------------------------------------------------------------------------------------------


def test_each_text_of_an_iterable_is_a_sequence_of_its_own(model: Playback) -> None:
    found = calibrate(["hello", "a longer text", "x"], model, tokens=8)
    assert [bytes(row) for row in rows(found)] == [b"hello", b"a longer", b"x"]
    (batch,) = found.batches
    assert batch["attention_mask"].sum(1).tolist() == [5, 8, 1]
    assert (found.info.source, found.info.seed) == ("texts", None)


def test_a_generator_of_texts_is_read_once(model: Playback) -> None:
    assert len(rows(calibrate((text for text in ("one", "two")), model))) == 2


def test_token_batches_are_taken_as_they_are(model: Playback) -> None:
    batch = {"input_ids": torch.tensor([[5, 6, 7]]), "token_type_ids": torch.tensor([[0, 0, 1]])}
    found = calibrate([batch], model)
    assert found.batches == (batch,)
    assert (found.info.sequences, found.info.tokens, found.info.source) == (1, 3, "token batches")


def test_sequences_bounds_what_is_taken_of_texts(model: Playback) -> None:
    assert len(rows(calibrate(["a", "b", "c"], model, sequences=2))) == 2


def test_a_calibration_can_be_handed_on_to_score(model: Playback) -> None:
    data = calibrate(["hello world"], model)
    assert shortgpt.score(model, data) == shortgpt.score(model, ["hello world"])


# -- the standard library and the hub -------------------------------------------------------------------------


def test_stdlib_is_text_of_the_running_pythons_own_modules_the_same_each_time(model: Playback) -> None:
    first, second = (calibrate("stdlib", model, sequences=3, tokens=48) for _ in range(2))
    assert first.info == second.info
    sources = [Path(m.__file__).read_text("utf-8") for m in (json, hashlib) if m.__file__]
    texts = "".join(texts_of("stdlib"))
    assert all(source in texts for source in sources)
    assert all(bytes(row).decode("utf-8", "ignore") in texts for row in rows(first))


def test_prose_is_what_the_running_pythons_help_shows_shuffled_by_the_seed(model: Playback) -> None:
    first, second = (calibrate("prose", model, sequences=3, tokens=48, seed=seed) for seed in (0, 1))
    assert rows(first) != rows(second)
    texts = list(texts_of("prose"))
    shown = io.StringIO()
    pydoc.Helper(output=shown).help("BOOLEAN")
    assert shown.getvalue().strip() in "\n".join(texts)
    assert all(any(bytes(row).decode("utf-8", "ignore") in text for text in texts) for row in rows(first))


def test_the_defaults_are_32_windows_of_512_tokens(model: Playback) -> None:
    found = calibrate("stdlib", model)
    assert [len(row) for row in rows(found)] == [512] * 32
    assert [len(batch["input_ids"]) for batch in found.batches] == [8] * 4  # 4,096 tokens at a time


def test_a_model_with_a_short_window_is_given_shorter_ones(model: Playback) -> None:
    model.max_tokens = 100
    assert {len(row) for row in rows(calibrate("stdlib", model, sequences=2))} == {100}
    with pytest.raises(CalibrationError, match="takes at most 100 tokens, 101 were asked for"):
        calibrate("stdlib", model, tokens=101)


class FakeStream(list[dict[str, Any]]):
    def shuffle(self, seed: int, buffer_size: int) -> "FakeStream":
        return FakeStream(self[seed:] + self[:seed])


def test_hub_data_sets_are_asked_for_by_name_config_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load_dataset(*names: Any, **options: Any) -> FakeStream:
        asked.append((*names, options["split"], options["streaming"]))
        return FakeStream([{"id": 1, "title": "t1", "text": "one"}, {"id": 2, "title": "t2", "text": "two"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert list(texts_of("hub:owner/name/config@test", seed=1)) == ["two", "one"]
    assert list(texts_of("hub:name")) == ["one", "two"]
    assert list(texts_of("wikitext2")) == ["one", "two"]
    assert asked == [
        ("owner/name", "config", "test", True),
        ("name", None, "train", True),
        ("Salesforce/wikitext", "wikitext-2-raw-v1", "train", True),
    ]


SQUAD = [
    {"id": "5733", "title": "Notre_Dame", "context": "Architecturally, the school " * 9, "answers": {"text": ["x"]}},
    {"id": "5734", "title": "Notre_Dame", "context": "In front of it", "answers": {"text": ["y"]}},
]


def data_set(monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]], **columns: Any) -> None:
    """`datasets.load_dataset` gives these rows, from memory."""
    import datasets

    features = datasets.Features(columns) if columns else None
    made = datasets.Dataset.from_list(rows, features=features).to_iterable_dataset()
    monkeypatch.setattr(datasets, "load_dataset", lambda *names, **options: made)


def test_of_several_columns_of_strings_none_is_taken_unasked(monkeypatch: pytest.MonkeyPatch, model: Playback) -> None:
    data_set(monkeypatch, SQUAD)
    with pytest.raises(CalibrationError) as refusal:
        calibrate("hub:squad", model, sequences=1, tokens=20)
    excerpt = ("Architecturally, the school " * 2)[:40]
    assert str(refusal.value) == (
        "hub:squad: id, title, context could each be the text; name the field with --field (field=) among "
        f"id (string: 5733), title (string: Notre_Dame), context (string: {excerpt}…), "
        'answers (dict: {"text": ["x"]})'
    )
    found = calibrate("hub:squad", model, sequences=1, tokens=20, field="context")
    assert bytes(rows(found)[0]) in ("Architecturally, the"[:20].encode(), b"In front of it\n\nArch")
    assert found.info.field == "context"
    scores = shortgpt.score(model, found)
    assert json.loads(scores.to_json())["calibration"]["field"] == "context"
    assert "hub:squad, field context: 1 sequences of" in " ".join(str(scores).split())


@pytest.mark.parametrize("field", ["story", "answers"])
def test_a_column_that_is_not_there_or_holds_no_strings_is_refused(
    monkeypatch: pytest.MonkeyPatch, model: Playback, field: str
) -> None:
    data_set(monkeypatch, SQUAD)
    with pytest.raises(CalibrationError, match=rf"no text in field '{field}'.*among id \(string: 5733\)"):
        calibrate("hub:squad", model, field=field)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"id": 1, "story": "once"}, "story"),
        ({"id": "a", "text": "once", "url": "b"}, "text"),
        ({"id": 1, "story": None}, None),  # a column of strings, as its type says
    ],
)
def test_the_only_column_of_strings_or_text_is_taken_and_told(
    monkeypatch: pytest.MonkeyPatch, row: dict[str, Any], expected: str | None
) -> None:
    from datasets import Value

    types = {key: Value("int64" if isinstance(value, int) else "string") for key, value in row.items()}
    data_set(monkeypatch, [row], **types)
    texts = texts_of("hub:x")
    assert texts.field == (expected or "story")
    assert list(texts) == (["once"] if expected else [])


def test_a_data_set_without_text_or_without_rows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data_set(monkeypatch, [{"id": 1, "words": ["a"]}])
    with pytest.raises(CalibrationError, match=r'no field holds text.* id \(int64: 1\), words \(List: \["a"\]\)'):
        texts_of("hub:x")
    monkeypatch.setattr("datasets.load_dataset", lambda *names, **options: FakeStream())
    with pytest.raises(CalibrationError, match="the data set is empty"):
        texts_of("hub:x")


def test_of_json_lines_the_field_is_found_by_the_same_rule(tmp_path: Path, model: Playback) -> None:
    one, squad = tmp_path / "one.jsonl", tmp_path / "squad.jsonl"
    one.write_text('{"n": 1, "story": "once upon a time"}\n')
    squad.write_text("".join(json.dumps(row) + "\n" for row in SQUAD))
    assert calibrate(one, model, sequences=1, tokens=8).info.field == "story"
    assert calibrate(squad, model, sequences=1, tokens=8, field="title").info.field == "title"
    with pytest.raises(CalibrationError, match=r"squad.jsonl, line 1: id, title, context could each be the text"):
        calibrate(squad, model)
    one.write_text('{"id": "a", "story": null}\n{"id": "b", "story": "once"}\n')
    with pytest.raises(CalibrationError, match=r"id, story could each be the text"):
        calibrate(one, model)


def test_a_plugins_source_may_take_a_field_and_say_which_it_took(plug: Any, model: Playback) -> None:
    plug(
        "verses",
        "from shortgpt import hookimpl, plugins\n"
        "from shortgpt.measuring.texts import Texts\n"
        "@hookimpl\n"
        "def shortgpt_calibrations():\n"
        "    yield plugins.Extension('verses', __name__ + ':verses')\n"
        "def verses(argument, seed, field=None):\n"
        "    return Texts(['a verse of it'], field or 'line')\n",
    )
    assert calibrate("verses", model, sequences=1, tokens=4).info.field == "line"
    assert calibrate("verses", model, sequences=1, tokens=4, field="foot").info.field == "foot"
    with pytest.raises(
        CalibrationError, match=r"stdlib: a field \('foot'\) is chosen in JSON Lines files and data sets"
    ):
        calibrate("stdlib", model, field="foot")


@pytest.mark.parametrize("name", ["pg19", "c4", "hub:owner/name"])
def test_a_hub_that_cannot_be_reached_is_told_in_one_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*args: Any, **options: Any) -> None:
        raise ConnectionError("no route\nto the host")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(
        CalibrationError, match=r"cannot be had \(no route to the host\); check its name and the network"
    ):
        list(texts_of(name))


def test_without_the_package_datasets_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(CalibrationError, match=r"pip install 'shortgpt-blocks\[datasets\]'"):
        list(texts_of("wikitext2"))


# -- hashes ---------------------------------------------------------------------------------------------------


def test_hashes_are_those_of_the_texts_and_of_the_tokens(model: Playback) -> None:
    def sha(parts: list[bytes]) -> str:
        return hashlib.sha256(b"".join(len(p).to_bytes(8, "little") + p for p in parts)).hexdigest()

    info = calibrate(["abc", "de"], model).info
    assert info.text_hash == sha([b"abc", b"de"])
    assert info.token_hash == sha([torch.tensor(list(t)).numpy().tobytes() for t in (b"abc", b"de")])


def test_another_tokenizer_on_the_same_text_gives_the_same_text_hash(tmp_path: Path, model: Playback) -> None:
    class Words:
        """A token for each word."""

        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": [len(word) for word in text.split(" ")]}

    file = write(tmp_path / "a.txt", "the quick brown fox jumps over the lazy dog " * 200)
    other = Playback(torch.randn(3, 50, 8))
    other.tokenizer = Words()
    mine, theirs = (calibrate(file, m, sequences=3, tokens=24).info for m in (model, other))
    assert mine.text_hash == theirs.text_hash
    assert mine.token_hash != theirs.token_hash


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_batch_size_and_padding_leave_the_hashes_alone(model: Playback, batch_size: int) -> None:
    texts = ["one", "a second", "the third text", "4", "five"]
    assert calibrate(texts, model, batch_size=batch_size).info == calibrate(texts, model).info


# -- repacking ------------------------------------------------------------------------------------------------


def test_left_padding_is_moved_to_the_right_with_every_tensor_of_that_shape() -> None:
    batch = {
        "input_ids": torch.tensor([[0, 0, 5, 6], [1, 2, 3, 4]]),
        "attention_mask": torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]),
        "token_type_ids": torch.tensor([[9, 9, 7, 8], [1, 1, 2, 2]]),
        "pixel_values": torch.ones(2, 3),
    }
    packed = repacked(batch)
    assert packed["input_ids"].tolist() == [[5, 6, 0, 0], [1, 2, 3, 4]]
    assert packed["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert packed["token_type_ids"].tolist() == [[7, 8, 9, 9], [1, 1, 2, 2]]
    assert torch.equal(packed["pixel_values"], batch["pixel_values"])


def test_a_batch_padded_on_the_right_or_not_at_all_is_left_as_it_is() -> None:
    plain = {"input_ids": torch.tensor([[1, 2]])}
    right = {"input_ids": torch.tensor([[1, 2, 0]]), "attention_mask": torch.tensor([[1, 1, 0]])}
    assert repacked(plain) is plain
    assert repacked(right) is right


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"ids": torch.tensor([[1]])}, "input_ids must be a LongTensor .* found NoneType"),
        ({"input_ids": [[1, 2]]}, "found list"),
        ({"input_ids": torch.tensor([1, 2])}, r"found \(2,\) torch.int64"),
        ({"input_ids": torch.tensor([[1.0]])}, r"found \(1, 1\) torch.float32"),
        ({"input_ids": torch.zeros(2, 0, dtype=torch.long)}, r"found \(2, 0\)"),
        (
            {"input_ids": torch.tensor([[1, 2]]), "attention_mask": torch.tensor([[1]])},
            r"shape \(1, 1\), input_ids \(1, 2\)",
        ),
        (
            {"input_ids": torch.tensor([[1, 2], [3, 4]]), "attention_mask": torch.tensor([[1, 1], [0, 0]])},
            "row 1: no real token",
        ),
        (
            {"input_ids": torch.tensor([[1, 2, 3]]), "attention_mask": torch.tensor([[1, 0, 1]])},
            "row 0: padding between real tokens",
        ),
    ],
)
def test_what_is_no_token_batch_is_refused(model: Playback, batch: dict[str, Any], message: str) -> None:
    with pytest.raises(CalibrationError, match=f"token batch 0.*{message}"):
        calibrate([batch], model)


# -- what is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ids", [[[1, 257]], [[-100, 3]]])
def test_token_ids_outside_the_vocabulary_are_refused(model: Playback, ids: list[list[int]]) -> None:
    with pytest.raises(CalibrationError, match=r"token id -?\d+ is outside the vocabulary of playback"):
        calibrate([{"input_ids": torch.tensor(ids)}], model)


def test_a_foreign_tokenizer_is_told_apart_by_its_ids() -> None:
    small = Playback(torch.randn(3, 100, 8))
    with pytest.raises(CalibrationError, match="not the model's own tokenizer"):
        calibrate(["zebra"], small)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "iterable is empty"),
        ([1, 2], r"texts \(str\) or token batches \(mappings\), found \['int'\]"),
        (["text", {"input_ids": None}], r"found \['dict', 'str'\]"),
        (["fine", ""], "has no tokens"),
        (None, "texts or of token batches, found NoneType"),
        (5, "texts or of token batches, found int"),
    ],
)
def test_an_iterable_of_neither_texts_nor_batches_is_refused(model: Playback, source: Any, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        calibrate(source, model)


@pytest.mark.parametrize("option", ["sequences", "tokens", "batch_size"])
def test_numbers_below_one_are_refused(model: Playback, option: str) -> None:
    with pytest.raises(CalibrationError, match=f"{option.replace('_', ' ')} must be at least 1, found 0"):
        calibrate("stdlib", model, **{option: 0})


@pytest.mark.parametrize("number", [0, "2", 1.5])
def test_what_is_no_number_of_sequences_is_refused(model: Playback, number: Any) -> None:
    for source in ("stdlib", [{"input_ids": torch.ones(2, 3, dtype=torch.long)}]):
        with pytest.raises(CalibrationError, match=f"sequences must be at least 1, found {number!r}"):
            calibrate(source, model, sequences=number)


def test_what_a_tokenizer_gives_is_one_token_batch(model: Playback) -> None:
    encoded = byte_tokenizer()(["some text", "more of it"], return_tensors="pt", padding=True)
    found, expected = calibrate(encoded, model), calibrate([encoded], model)
    assert found.info == expected.info
    assert found.info.source == "token batches"


def test_of_token_batches_the_first_are_taken(model: Playback) -> None:
    batches = [{"input_ids": torch.full((2, 5), number)} for number in (1, 2, 3)]
    assert calibrate(batches, model, sequences=2).info == calibrate(batches[:2], model).info


@pytest.mark.parametrize("name", ["a.JSONL", "a.NdJson", "a.json"])
def test_json_lines_are_known_by_a_suffix_of_any_case(tmp_path: Path, name: str) -> None:
    assert list(texts_of(write(tmp_path / name, '{"text": "one"}\n{"text": "two"}\n'))) == ["one", "two"]


def test_a_field_of_what_is_no_json_is_refused(tmp_path: Path, model: Playback) -> None:
    file = write(tmp_path / "a.txt", "x" * 5000)
    for path in (file, tmp_path):
        with pytest.raises(CalibrationError, match=r"a field \('body'\) is chosen in JSON Lines files and data sets"):
            calibrate(path, model, field="body")


def test_a_mark_of_the_byte_order_and_half_a_surrogate_pair_are_no_text(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"text": "a\\ud800b"}\n')
    assert list(texts_of(file)) == ["a?b"]


def test_a_pipe_is_refused_for_it_can_be_read_only_once(tmp_path: Path, model: Playback) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CalibrationError, match="no regular file, and it is read more than once"):
        calibrate(tmp_path / "pipe", model)


def test_windows_of_one_token_are_refused(model: Playback) -> None:
    with pytest.raises(CalibrationError, match="too short to say anything"):
        calibrate("stdlib", model, tokens=1)


@pytest.mark.parametrize("text", ["", " \n\t "])
def test_an_empty_file_is_refused(tmp_path: Path, model: Playback, text: str) -> None:
    with pytest.raises(CalibrationError, match="is empty"):
        calibrate(write(tmp_path / "a.txt", text), model)


def test_a_file_that_is_too_short_says_how_much_it_gives(tmp_path: Path, model: Playback) -> None:
    file = write(tmp_path / "a.txt", "x" * 1000)
    with pytest.raises(CalibrationError, match="too short: it gives 1 windows of 512 tokens, 32 were asked for"):
        calibrate(file, model)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"body": "x"}', r"line 2: no text in field 'text' \(found \['body'\]\); name it with --field"),
        ('["x"]', r"line 2: no object with a field for the text \(found list\)"),
        ('{"text": 3}', r"line 2: no text in field 'text' \(found int there\)"),
        ('{"text": ', "line 2: not JSON"),
        ('{"text": "x", "n": ' + "9" * 5000 + "}", "line 2: not JSON"),
        ("[" * 100_000, "line 2: not JSON"),
    ],
)
def test_json_lines_without_the_field_are_refused_by_line(
    tmp_path: Path, model: Playback, line: str, message: str
) -> None:
    with pytest.raises(CalibrationError, match=message):
        calibrate(write(tmp_path / "a.jsonl", f'{{"text": "fine"}}\n{line}\n'), model)


def test_a_folder_without_text_is_refused(tmp_path: Path, model: Playback) -> None:
    (tmp_path / "weights.bin").write_bytes(b"x")
    with pytest.raises(CalibrationError, match="the folder holds no text"):
        calibrate(tmp_path, model)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path, model: Playback) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CalibrationError, match="cannot be read as UTF-8 text"):
        calibrate(tmp_path / "a.txt", model)


def test_a_missing_file_and_an_unknown_source_are_told_apart(model: Playback) -> None:
    with pytest.raises(CalibrationError, match="no such file or folder"):
        calibrate("nowhere/text.txt", model)
    with pytest.raises(UnknownNameError, match=r"unknown calibration source 'wikitext'. Did you mean 'wikitext2'"):
        calibrate("wikitext", model)
    with pytest.raises(CalibrationError, match="stdlib takes no argument"):
        calibrate("stdlib:x", model)


def test_a_model_without_a_tokenizer_takes_token_batches_only(model: Playback) -> None:
    model.tokenizer = None
    with pytest.raises(CalibrationError, match=r"playback has no tokenizer.*--tokenizer NAME.*or give token batches"):
        calibrate("stdlib", model)
    assert calibrate([{"input_ids": torch.tensor([[1, 2]])}], model).info.sequences == 1


def test_special_tokens_are_those_that_the_tokenizer_adds_by_itself(model: Playback) -> None:
    class Beginning:
        def __call__(self, text: str, *, truncation: bool, max_length: int) -> dict[str, list[int]]:
            return {"input_ids": [256, *byte_tokenizer()(text)["input_ids"]][:max_length]}

    model.tokenizer = Beginning()
    assert rows(calibrate(["abc"], model, tokens=3)) == [[256, 97, 98]]
