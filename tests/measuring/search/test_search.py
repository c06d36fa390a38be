"""Searches of a model: against skipping by hand and float64 sums; what they count, keep, and go on from."""

import json
import math
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import shortgpt
from shortgpt import BlockSequence, Search
from shortgpt.errors import HiddenStateError, ModelError, OutputError, SelectionError, ShortGPTError, UnknownNameError
from shortgpt.measuring.scoring.resuming import fingerprint
from shortgpt.values.choosing.search import Sums, best_set
from tests.support import Playback, byte_tokenizer, ids_of, skipped_by_hand, tiny

DEPTH = 6
BATCHES = [{"input_ids": ids_of(2, 12)}, {"input_ids": ids_of(1, 9, seed=5)}]


@pytest.fixture(scope="module")
def llama() -> tuple[PreTrainedModel, BlockSequence]:
    model = tiny("llama", blocks=DEPTH)
    wrapped: Any = shortgpt.wrap(model, tokenizer=byte_tokenizer(), name="llama")
    assert wrapped._replays  # tried once for a model
    return model, wrapped


def by_hand(model: PreTrainedModel, blocks: tuple[int, ...], objective: str) -> float:
    """The objective of Hugging Face's own model with our own hooks, in float64."""
    total, count = 0.0, 0
    for batch in BATCHES:
        ids = batch["input_ids"]
        log_q = skipped_by_hand(model, "model.layers", blocks, ids).double().log_softmax(-1)
        log_p = skipped_by_hand(model, "model.layers", (), ids).double().log_softmax(-1)
        if objective == "kl":
            total += torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="sum").item()
            count += ids.numel()
        else:
            total -= log_q[:, :-1].gather(-1, ids[:, 1:, None]).sum().item()
            count += ids[:, 1:].numel()
    return total / count


@pytest.mark.parametrize("objective", ["perplexity", "kl"])
def test_exact_is_the_best_of_all_sets_by_hand(llama: Any, objective: str) -> None:
    model, blocks = llama
    found = shortgpt.search(blocks, 2, BATCHES, method="exact", objective=objective)
    values = {pair: by_hand(model, pair, objective) for pair in combinations(range(DEPTH), 2)}
    assert found.blocks == min(values, key=lambda pair: values[pair])
    assert {one.blocks: one.value for one in found.candidates} == pytest.approx(values, rel=1e-5)
    assert found.whole == pytest.approx(by_hand(model, (), objective), abs=1e-6)
    assert [one.value for one in found.candidates] == sorted(one.value for one in found.candidates)
    assert found.value == found.candidates[0].value


def test_what_sets_begin_with_is_computed_once_and_counted_so(llama: Any) -> None:
    model, blocks = llama
    calls: Counter[int] = Counter()
    hooks = [
        layer.mlp.register_forward_hook(lambda *_, index=index: calls.update([index]))
        for index, layer in enumerate(model.model.layers)
    ]
    found = shortgpt.search(blocks, 3, BATCHES[:1], method="exact")
    for hook in hooks:
        hook.remove()
    # Once for the whole model, once recorded, and once for each distinct beginning that ends in that block.
    beginnings = {tuple(i in gone for i in range(k + 1)) for gone in combinations(range(6), 3) for k in range(6)}
    kept = [start for start in beginnings if not start[-1]]
    whole = sum(not any(start) for start in kept)  # these are recorded
    assert sum(calls.values()) == 2 * DEPTH + len(kept) - whole
    assert found.passes == pytest.approx(sum(calls.values()) / DEPTH)
    assert found.evaluations == 1 + 20


def test_a_search_finds_what_exact_finds_and_says_what_it_took(llama: Any) -> None:
    _, blocks = llama
    exact = shortgpt.search(blocks, 3, BATCHES, method="exact")
    beam = shortgpt.search(blocks, 3, BATCHES, method="beam", width=20)
    pairs = shortgpt.search(blocks, 3, BATCHES, method="pairs", keep=[] if 0 in exact.blocks else [0])
    assert exact.blocks == beam.blocks == pairs.blocks
    assert {one.blocks: one.value for one in beam.candidates} == {one.blocks: one.value for one in exact.candidates}
    assert all(one.predicted is not None for one in pairs.candidates)
    assert pairs.evaluations <= DEPTH * (DEPTH + 1) // 2 + 20
    assert (exact.width, beam.width, exact.optimal, pairs.optimal) == (None, 20, None, True)
    for one in (exact, beam, pairs):
        assert Search.from_json(one.to_json()) == one


def test_a_model_by_its_path_and_one_of_a_library_are_taken_too(llama_folder: Path) -> None:
    ask: dict[str, Any] = {"calibration": BATCHES, "method": "exact"}
    by_path = shortgpt.search(llama_folder, 1, device="cpu", **ask)
    opened: Any = shortgpt.load(llama_folder, device="cpu")
    assert by_path == shortgpt.search(opened, 1, **ask)
    assert by_path.candidates == shortgpt.search(opened.model, 1, **ask).candidates


def test_blocks_that_stay_stay_and_neighbours_are_neighbours(llama: Any) -> None:
    _, blocks = llama
    for method in ("exact", "pairs", "beam"):
        found = shortgpt.search(blocks, 3, BATCHES, method=method, keep=[1], contiguous=True)
        assert {one.blocks for one in found.candidates} == {(2, 3, 4), (3, 4, 5)}
        assert 1 in found.stays


# -- how sure --------------------------------------------------------------------------------------------------------


def test_the_choice_is_as_sure_as_resampling_by_hand_says() -> None:
    measured = {(0,): Sums((1.0, 5.0), (1, 1)), (1,): Sums((4.0, 3.0), (1, 1)), (2,): Sums((9.0, 9.0), (1, 1))}
    best, choice = best_set(measured, "exact")
    assert best == (0,)
    assert choice.stability == pytest.approx(0.75, abs=0.02)  # not where the second sequence is drawn twice
    assert [(one.gone, one.instead, one.difference) for one in choice.exchanges] == [((0,), (1,), 0.5)]


def test_of_equal_sets_the_deeper_goes_and_one_without_a_number_never_does() -> None:
    nothing = Sums((math.inf, 1.0), (1, 1))
    equal = Sums((1.0, 1.0), (1, 1))
    best, choice = best_set({(0, 5): equal, (1, 4): equal, (2, 5): equal, (3, 4): nothing}, "exact")
    assert best == (2, 5)
    assert all(math.isfinite(one.difference) for one in choice.exchanges)


class Block(nn.Module):
    """Adds to the stream, to its first channel nothing; the second block adds 1 to that."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.map, self.index = nn.Linear(8, 8), index

    def forward(self, x: Tensor) -> Tensor:
        change = self.map(x)
        change[..., 0] = float(self.index == 1)
        return x + change


class Needing(nn.Module):
    """Gives no number without its second block, whose sign its head takes the logarithm of."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.factor = factor
        self.embed, self.head = nn.Embedding(257, 8), nn.Linear(8, 257)
        self.layers = nn.ModuleList(Block(index) for index in range(4))

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        x[..., 0] = 0
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(x) + (self.factor * x[..., :1]).log()
        return logits


@pytest.mark.parametrize(("method", "objective"), [("exact", "perplexity"), ("pairs", "kl"), ("beam", "kl")])
def test_a_set_that_gives_no_number_is_not_chosen(method: str, objective: str, tmp_path: Path) -> None:
    blocks = shortgpt.wrap(Needing(), architecture="plain-torch")
    for resume in (None, tmp_path, tmp_path):
        found = shortgpt.search(blocks, 3, BATCHES, method=method, objective=objective, resume=resume)
        assert found.blocks == (0, 2, 3)


def test_a_model_that_gives_no_number_is_told() -> None:
    with pytest.raises(HiddenStateError, match="NaN or infinity"):
        shortgpt.search(shortgpt.wrap(Needing(-1.0), architecture="plain-torch"), 1, BATCHES)


# -- compensated ------------------------------------------------------------------------------------------------------


def test_of_the_best_sets_that_which_is_best_compensated_is_taken(llama: Any, tmp_path: Path) -> None:
    model, blocks = llama
    batches = [{"input_ids": ids_of(4, 24, seed=seed)} for seed in (1, 2)]
    ask: dict[str, Any] = {"method": "exact", "objective": "kl"}
    plain = shortgpt.search(blocks, 2, batches, **ask)
    worst = plain.candidates[-1].blocks
    ask |= {"compensate": True, "besides": [worst], "resume": tmp_path}
    found = shortgpt.search(blocks, 2, batches, **ask)
    finalists = {one.blocks: one.compensated for one in found.candidates if one.compensated is not None}
    assert set(finalists) == {worst, *(one.blocks for one in plain.candidates[:4])}
    assert found.blocks == found.candidates[0].blocks == min(finalists, key=lambda one: finalists[one])
    assert "compensated" in str(found)
    ids, changed = batches[1]["input_ids"][2:], 0  # the last quarter
    for gone, value in finalists.items():
        shorter: Any = shortgpt.compensate(blocks, gone, batches)
        changed += sum(run.kept for run in shorter.plan.compensation.runs)
        with torch.no_grad():
            log_q = shorter.model(ids).logits.double().log_softmax(-1)
            log_p = model(ids).logits.double().log_softmax(-1)
        expected = torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="sum").item() / ids.numel()
        assert value == pytest.approx(expected, rel=1e-5)
    assert changed
    before = (tmp_path / "search.jsonl").read_bytes()
    assert shortgpt.search(blocks, 2, batches, **ask) == found
    assert (tmp_path / "search.jsonl").read_bytes() == before


# -- where it was stopped --------------------------------------------------------------------------------------------


class Stopped(Exception): ...


def stopping(after: int) -> Callable[[str, int, int], None]:
    """A progress that ends the search after so many measurements."""
    seen: list[int] = []

    def progress(what: str, done: int, total: int) -> None:
        assert what == "sets"
        assert done <= total
        seen.append(done)
        if len(seen) == after:
            raise Stopped

    return progress


@pytest.mark.parametrize(("method", "after"), [("exact", 1), ("pairs", 30), ("beam", 7)])
def test_a_search_that_was_stopped_goes_on_to_the_very_same_result(
    llama: Any, tmp_path: Path, method: str, after: int
) -> None:
    _, blocks = llama
    whole = shortgpt.search(blocks, 3, BATCHES, method=method, objective="kl")
    ask = {"method": method, "objective": "kl", "resume": tmp_path / "kept"}
    with pytest.raises(Stopped):
        shortgpt.search(blocks, 3, BATCHES, progress=stopping(after), **ask)
    file = tmp_path / "kept" / "search.jsonl"
    kept = file.read_bytes()
    assert len(kept.splitlines()) == 1 + after
    file.write_bytes(kept + b'{"blocks": [1, 2], "fir')  # it was killed while it wrote
    assert shortgpt.search(blocks, 3, BATCHES, **ask).to_json() == whole.to_json()
    assert file.read_bytes().startswith(kept)
    lines = len(file.read_bytes().splitlines())
    assert shortgpt.search(blocks, 3, BATCHES, **ask).to_json() == whole.to_json()
    assert len(file.read_bytes().splitlines()) == lines  # nothing was measured again


def test_a_search_that_does_not_begin_leaves_no_file(llama: Any, tmp_path: Path) -> None:
    _, blocks = llama
    for place in (tmp_path, tmp_path / "kept.jsonl"):
        with pytest.raises(SelectionError, match="are allowed"):
            shortgpt.search(blocks, 3, BATCHES, method="exact", evaluations=2, resume=place)
    assert not list(tmp_path.iterdir())


def test_another_model_text_objective_or_version_is_refused(
    llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, blocks = llama
    file = tmp_path / "kept.jsonl"
    shortgpt.search(blocks, 1, BATCHES, method="exact", resume=file)
    before = file.read_bytes()
    other = tiny("llama", blocks=DEPTH)
    with torch.no_grad():
        other.model.layers[2].mlp.down_proj.weight[0, 0] += 1e-3
    for model, text, objective, why in (
        (shortgpt.wrap(other, name="llama"), BATCHES, "perplexity", "weights or config"),
        (blocks, BATCHES[:1], "perplexity", "another text"),
        (blocks, BATCHES, "kl", "another objective"),
    ):
        with pytest.raises(ShortGPTError, match=why):
            shortgpt.search(model, 1, text, method="exact", objective=objective, resume=file)
    monkeypatch.setattr("shortgpt.measuring.search.resuming.__version__", "9")
    with pytest.raises(ShortGPTError, match="another version of shortgpt"):
        shortgpt.search(blocks, 1, BATCHES, method="exact", resume=file)
    assert file.read_bytes() == before


def test_a_damaged_line_and_a_file_of_another_kind_are_told_and_left_as_they_are(llama: Any, tmp_path: Path) -> None:
    _, blocks = llama
    file = tmp_path / "kept.jsonl"
    shortgpt.search(blocks, 1, BATCHES, method="exact", resume=file)
    lines = file.read_text().splitlines()
    record = json.loads(lines[2])
    record["value"]["sums"][0] += 1.0
    other = tmp_path / "notes.jsonl"
    for target, text, why in (
        (file, "\n".join([*lines[:2], json.dumps(record), *lines[3:]]) + "\n", "line 3: damaged"),
        (other, "a note\n", "line 1: damaged"),
        (other, "a note", "nothing that shortgpt wrote"),
    ):
        target.write_text(text)
        with pytest.raises(ShortGPTError, match=why):
            shortgpt.search(blocks, 1, BATCHES, method="exact", resume=target)
        assert target.read_text() == text
    with pytest.raises(OutputError, match="cannot be written"):
        shortgpt.search(blocks, 1, BATCHES, method="exact", resume=other / "below" / "it.jsonl")


# -- what cannot be --------------------------------------------------------------------------------------------------


def test_what_cannot_be_searched_is_told_before_anything_is_measured(llama: Any, llama_folder: Path) -> None:
    _, blocks = llama

    def never(what: str, done: int, total: int) -> None:
        raise AssertionError

    for error, why, ask in (
        (UnknownNameError, "unknown search 'luck'", {"method": "luck"}),
        (UnknownNameError, "unknown objective 'taste'", {"objective": "taste"}),
        (SelectionError, "1 or more", {"width": 0}),
        (SelectionError, "1 or more", {"evaluations": 0}),
        (SelectionError, "20 sets of 3 blocks.*20 are allowed", {"method": "exact", "evaluations": 20}),
        (SelectionError, "up to .* at a width of 4.*smaller width", {"method": "beam", "evaluations": 30}),
        (SelectionError, "cannot be chosen", {"keep": [0, 1, 2, 3]}),
        (SelectionError, "do not exist", {"keep": [9]}),
        (SelectionError, "no run", {"keep": [1, 4], "contiguous": True}),
    ):
        with pytest.raises(error, match=why):
            shortgpt.search(blocks, 3, BATCHES, progress=never, **ask)
    with pytest.raises(ModelError, match="cannot be run without"):
        shortgpt.search(shortgpt.load(llama_folder, stream=True), 1, BATCHES)
    with pytest.raises(ModelError, match="nowhere"):
        shortgpt.search("nowhere/at-all.pth", 1, BATCHES)


class Spoken(Playback):
    """Its logits are its last boundary, whatever is skipped."""

    def logits(self, batch: Any) -> Tensor:
        assert isinstance(self.stream, Tensor)
        return self.stream[-1][batch["input_ids"]]

    def skipping(self, blocks: Any) -> Any:
        return nullcontext()


def test_a_model_that_is_not_of_torch_modules_is_known_by_its_logits() -> None:
    streams = [torch.randn(5, 257, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    one, same, other = (fingerprint(Spoken(stream)) for stream in streams)
    assert one == same != other


def test_it_prints_the_best_sets_what_was_predicted_and_what_it_took(llama: Any) -> None:
    _, blocks = llama
    pairs = str(shortgpt.search(blocks, 3, BATCHES, method="pairs", keep=[0, 1]))
    beam = str(shortgpt.search(blocks, 3, BATCHES, method="beam", objective="kl", width=2))
    assert "predicted" in pairs
    assert "perplexity" in pairs
    assert "beam of width 2" in beam
    assert "KL, nats a token" in beam
    for text in (pairs, beam):
        assert "passes of the whole model" in text
        assert max(map(len, text.splitlines())) <= 80
