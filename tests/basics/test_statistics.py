"""Standard errors where windows of one document are alike: what is drawn independently is the document."""

import math
import random
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import shortgpt
from shortgpt.basics.statistics import FEWEST_DOCUMENTS, ratio, resampled_means, unit
from shortgpt.errors import CalibrationError
from shortgpt.measuring import effect as effects
from shortgpt.measuring.calibration import Calibration, calibrate, calibrate_and_hold_out
from shortgpt.models.sequence import TokenBatch
from shortgpt.reports import as_text
from shortgpt.values.choosing.choice import run
from shortgpt.values.scores import Scores
from tests.support import Playback, byte_tokenizer, tiny

DOCUMENTS, EACH = 40, 8
BETWEEN, WITHIN = 1.0, 1.0
"""Variances of the documents' means, and of a window's about its document's."""
DEVIATION = math.sqrt((BETWEEN + WITHIN / EACH) / DOCUMENTS)
"""Of the mean over all windows, which are of one length: Var = (between + within / each) / documents."""
ROWS = [document for document in range(DOCUMENTS) for _ in range(EACH)]
TOKENS = [10] * len(ROWS)


def correlated(draw: random.Random) -> list[float]:
    """Sums over the tokens of each window; the mean is 0 in truth."""
    means = [draw.gauss(0, BETWEEN**0.5) for _ in range(DOCUMENTS)]
    return [10 * (means[document] + draw.gauss(0, WITHIN**0.5)) for document in ROWS]


def test_intervals_over_documents_cover_the_truth_where_those_over_windows_do_not() -> None:
    draw = random.Random(0)
    by_document, by_window, errors = 0, 0, []
    for _ in range(300):
        sums = correlated(draw)
        mean, error = ratio(sums, TOKENS, ROWS)
        by_document += abs(mean) <= 1.96 * error
        by_window += abs(mean) <= 1.96 * ratio(sums, TOKENS)[1]
        errors.append(error**2)
    assert statistics.fmean(errors) ** 0.5 == pytest.approx(DEVIATION, rel=0.05)
    assert 0.90 <= by_document / 300 <= 0.98
    assert by_window / 300 < 0.75  # 0.65 by the closed form: the error is 2.1 times too small


def test_the_error_is_that_of_the_documents_own_means() -> None:
    sums = correlated(random.Random(1))
    means = [statistics.fmean(sums[at : at + EACH]) / 10 for at in range(0, len(sums), EACH)]
    mean, error = ratio(sums, TOKENS, ROWS)
    assert mean == pytest.approx(statistics.fmean(means))
    assert error == pytest.approx(statistics.stdev(means) / DOCUMENTS**0.5, rel=1e-12)


def test_whole_documents_are_resampled() -> None:
    sums = [[value] for value in correlated(random.Random(2))]
    expected = ratio([row[0] for row in sums], TOKENS, ROWS)[1] * math.sqrt((DOCUMENTS - 1) / DOCUMENTS)
    assert resampled_means(sums, TOKENS, 4000, 0, ROWS).std() == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        ([], "sequence"),
        ([0] * 32, "sequence"),
        ([row % (FEWEST_DOCUMENTS - 1) for row in range(32)], "sequence"),
        ([row % FEWEST_DOCUMENTS for row in range(32)], "document"),
        ([max(0, row - 20) for row in range(32)], "sequence"),  # 12 documents, one of them with 21 of 32 windows
    ],
)
def test_too_few_documents_leave_the_windows_as_the_unit(documents: list[int], expected: str) -> None:
    sums, counts = [float(row % 5) for row in range(32)], [10] * 32
    assert unit(counts, documents) == expected
    assert (ratio(sums, counts, documents) == ratio(sums, counts)) == (expected == "sequence")


def test_a_sequence_without_tokens_makes_no_document() -> None:
    counts = [10] * 7 + [0]
    assert unit(counts, range(8)) == "sequence"
    assert math.isnan(ratio([1.0, 0.0], [5, 0], [0, 1])[1])


# -- documents on their way to the scores ---------------------------------------------------------------------


@pytest.fixture
def model() -> Playback:
    made = Playback(torch.randn(4, 300, 8, generator=torch.Generator().manual_seed(0)))
    made.tokenizer = byte_tokenizer()
    return made


def folder_of(directory: Path, documents: int, windows: int, length: int) -> Path:
    """Files of one letter each, long enough for so many windows of `length` bytes."""
    for number in range(documents):
        (directory / f"{number:02}.txt").write_text(chr(ord("a") + number) * (16 * length * windows))
    return directory


def test_each_window_of_a_folder_bears_the_number_of_its_file(tmp_path: Path, model: Playback) -> None:
    data = calibrate(folder_of(tmp_path, documents=9, windows=3, length=20), model, sequences=20, tokens=20)
    letters = [int(ids[0]) for batch in data.batches for ids in batch["input_ids"]]
    pairs = set(zip(letters, data.documents, strict=True))
    assert len(pairs) == len(set(letters)) == len(set(data.documents)) == data.info.documents
    assert len(set(letters)) < 20


def test_a_window_of_several_documents_is_of_that_which_most_of_it_is_from(tmp_path: Path, model: Playback) -> None:
    draw, file = random.Random(0), tmp_path / "a.jsonl"
    texts = [letter * draw.choice((7, 25, 1500)) for letter in "abcdefghijklmnopqrstuvwxyz"]
    file.write_text("".join(f'{{"text": "{text}"}}\n' for text in texts))
    data = calibrate(file, model, sequences=20, tokens=40)
    windows = [bytes(ids.tolist()).decode() for batch in data.batches for ids in batch["input_ids"]]
    most = [max(text, key=text.count) for text in windows]
    assert any(len(set(text.replace("\n", ""))) > 1 for text in windows)
    assert len(set(zip(most, data.documents, strict=True))) == len(set(most)) == len(set(data.documents)) < 20


def test_texts_are_documents_of_their_own_and_a_file_is_one(tmp_path: Path, model: Playback) -> None:
    assert calibrate(["one text", "another"], model).documents == (0, 1)
    file = tmp_path / "a.txt"
    file.write_text("x" * 5000)
    data = calibrate(file, model, sequences=5, tokens=20)
    assert (data.documents, data.info.documents) == ((0,) * 5, 1)


def batch_of(documents: list[int], tokens: int = 6) -> TokenBatch:
    ids = torch.arange(len(documents) * tokens).view(len(documents), tokens) % 300
    return {"input_ids": ids, "document_ids": torch.tensor(documents)}


def test_token_batches_say_of_which_documents_their_sequences_are(model: Playback) -> None:
    batches = [batch_of([7, 7, 3]), batch_of([3, 9])]
    data = calibrate(batches, model)
    assert (data.documents, data.info.documents) == ((0, 0, 1, 1, 2), 3)
    assert all("document_ids" not in batch for batch in data.batches)
    assert calibrate([{"input_ids": batches[0]["input_ids"]}], model).info.documents is None
    scored, kept = calibrate_and_hold_out(data, model)
    assert (scored.documents, kept.documents) == ((0, 0, 1), (0, 1))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0, 1], "must be a LongTensor"),
        (torch.tensor([0.5, 1.0]), "must be a LongTensor"),
        (torch.tensor([1, 2, 3]), "3 document_ids for 2 sequences"),
    ],
)
def test_document_ids_that_do_not_fit_are_refused(model: Playback, ids: object, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        calibrate([{"input_ids": torch.tensor([[1, 2], [3, 4]]), "document_ids": ids}], model)
    with pytest.raises(CalibrationError, match="must be in every batch, or in none"):
        calibrate([batch_of([1]), {"input_ids": torch.tensor([[1, 2]])}], model)


@pytest.fixture
def scores(model: Playback) -> Scores:
    """12 documents of 2 windows each; criteria and spans."""
    batches = [batch_of([2 * at, 2 * at, 2 * at + 1, 2 * at + 1], 12) for at in range(6)]
    return shortgpt.score(model, batches, criteria=["block-influence", "norm", "sequential"], spans=True)


def test_scores_keep_the_documents_and_cluster_by_them(scores: Scores) -> None:
    assert scores.documents == tuple(row // 2 for row in range(24))
    for name in ("block-influence", "norm"):
        one = scores.of(name)
        assert one.unit == "document"
        for block, error in enumerate(one.stderr):
            means = [(one.sums[0][row][block] + one.sums[0][row + 1][block]) / 24 for row in range(0, 24, 2)]
            assert error == pytest.approx(statistics.stdev(means) / 12**0.5, rel=1e-9)
    assert all(map(math.isnan, scores.of("sequential").stderr))  # a place in an order has none
    read = Scores.from_json(scores.to_json())
    assert (read, read.stderr) == (scores, scores.stderr)


def test_choices_and_runs_resample_documents(scores: Scores) -> None:
    apart = replace(scores, documents=())
    assert scores.stability(1) != apart.stability(1)
    assert run(scores, 2)[1] != run(apart, 2)[1]
    (one,), (other,) = (choice.plan(1).choice.exchanges[:1] for choice in (scores, apart))  # type: ignore[union-attr]
    assert one.difference == other.difference
    assert one.stderr != other.stderr


def test_scores_of_before_have_the_sequence_as_the_unit(scores: Scores) -> None:
    old = scores.to_dict()
    del old["documents"]
    del old["calibration"]["documents"]
    read = Scores.from_dict(old)
    assert (read.documents, read.unit) == ((), "sequence")
    assert "documents" not in as_text(read)


def test_documents_that_do_not_fit_the_sequences_are_refused(scores: Scores) -> None:
    with pytest.raises(shortgpt.ShortGPTError, match="do not fit"):
        Scores.from_json(replace(scores, documents=(0, 1)).to_json())


def test_a_model_in_batches_of_any_size_keeps_the_documents_in_order(tmp_path: Path) -> None:
    llama = shortgpt.wrap(tiny("llama", blocks=2), tokenizer=byte_tokenizer())
    folder = folder_of(tmp_path, documents=10, windows=2, length=16)
    whole, one_by_one = (shortgpt.score(llama, folder, sequences=16, tokens=16, batch_size=size) for size in (16, 1))
    assert whole.documents == one_by_one.documents
    assert len(set(whole.documents)) < 16


# -- what the reports say -------------------------------------------------------------------------------------


def test_reports_say_that_windows_are_of_too_few_documents(tmp_path: Path, model: Playback) -> None:
    file = tmp_path / "a.txt"
    file.write_text("".join(chr(97 + at % 7) for at in range(9000)))
    told = " ".join(as_text(shortgpt.score(model, file, sequences=6, tokens=20)).split())
    assert "6 sequences of 1 document," in told
    assert "all 6 sequences are of one document: how much other documents differ cannot be said" in told
    told = " ".join(as_text(shortgpt.score(model, [batch_of([0, 1, 1])])).split())
    assert "the 3 sequences are of 2 documents, too few" in told
    assert "standard errors may be too small" not in as_text(shortgpt.score(model, ["abc", "def"]))


def test_the_ratio_of_perplexities_is_paired_by_document(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effects, "ROUNDS", 1)
    monkeypatch.setattr(effects, "NEW_TOKENS", 1)
    llama = shortgpt.wrap(tiny("llama", blocks=3), tokenizer=byte_tokenizer())
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 250, (20, 12), generator=draw)

    def effect(documents: Callable[[int], int]) -> shortgpt.Effect:
        batch = {"input_ids": ids, "document_ids": torch.tensor([documents(row) for row in range(20)])}
        data: Calibration = calibrate([batch], llama)
        return shortgpt.effect(llama, [1], data)

    paired, apart, one = effect(lambda row: row // 2), effect(lambda row: row), effect(lambda row: 0)
    assert (paired.ratio_unit, apart.ratio_unit, one.ratio_unit) == ("document", "document", "sequence")
    assert paired.ratio == apart.ratio == one.ratio
    assert paired.ratio_stderr != apart.ratio_stderr == one.ratio_stderr
    assert "all 20 sequences are of one document" in " ".join(as_text(one).split())
    nll = []
    for gone in ((), (1,)):
        with llama.skipping(gone), torch.no_grad():
            logits = llama.logits({"input_ids": ids})[:, :-1].double()
        nll.append(torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").sum(1))
    apart_by_document = ((nll[1] - nll[0]).view(10, 2).sum(1) / 22).tolist()
    error = statistics.stdev(apart_by_document) / 10**0.5
    assert paired.ratio_stderr == pytest.approx(paired.ratio * error, rel=1e-4)  # type: ignore[operator]
