"""A curve's line of a search: the sets are those that the search finds, the quality is that of text it did not see."""

import math
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

import shortgpt
from shortgpt import Curves
from shortgpt.errors import SelectionError, UnknownNameError
from tests.support import Ran, byte_tokenizer, ids_of, skipped_by_hand, tiny

BATCHES = [{"input_ids": ids_of(2, 12, seed)} for seed in range(4)]


@pytest.fixture(scope="module")
def llama() -> Any:
    return shortgpt.wrap(tiny("llama"), tokenizer=byte_tokenizer(), name="llama")


def by_hand(model: Any, blocks: tuple[int, ...], batches: list[Any]) -> float:
    total = count = 0.0
    for batch in batches:
        ids = batch["input_ids"]
        log_q = skipped_by_hand(model, "model.layers", blocks, ids).double().log_softmax(-1)
        total -= log_q[:, :-1].gather(-1, ids[:, 1:, None]).sum().item()
        count += ids[:, 1:].numel()
    return total / count


def test_a_line_is_of_the_best_sets_on_the_first_half_of_the_text_and_is_worth_what_the_other_says(llama: Any) -> None:
    curves = shortgpt.curve(llama, BATCHES, criteria=["block-influence"], most=2, search="exact")
    ((_, found),) = curves.measured()
    line = found.lines[-1]
    assert (line.criterion, line.evaluations) == ("exact-search", 1 + 6 + 15)
    for n, point in enumerate(line.points):
        values = {blocks: by_hand(llama.model, blocks, BATCHES[:2]) for blocks in combinations(range(6), n)}
        assert point.removed == min(values, key=lambda blocks: values[blocks])
        assert point.quality == pytest.approx(math.exp(by_hand(llama.model, point.removed, BATCHES[2:])), rel=1e-5)
    assert Curves.from_json(curves.to_json()) == curves
    assert "exact-search: 22 sets measured" in str(curves)


def test_a_search_that_takes_too_much_is_a_row_that_says_so_and_one_with_nothing_left_ends(llama: Any) -> None:
    (row,) = shortgpt.curve(llama, BATCHES, most=3, search="exact", evaluations=16).rows
    assert "20 sets of 3 blocks" in (row.error or "")
    model: Any = shortgpt.wrap(tiny("llama", blocks=4), tokenizer=byte_tokenizer(), name="llama")
    model.refuse_removal = lambda blocks: "they go alone" if len(tuple(blocks)) > 1 else None
    ((_, found),) = shortgpt.curve(model, BATCHES, criteria=["block-influence"], most=3, search="beam").measured()
    assert [len(line.points) for line in found.lines] == [4, 2]


def test_each_of_several_models_keeps_its_own_measurements(llama: Any, tmp_path: Path) -> None:
    other = shortgpt.wrap(tiny("llama", blocks=3), tokenizer=byte_tokenizer(), name="other")
    ask: dict[str, Any] = {"most": 1, "criteria": ["block-influence"], "search": "beam", "resume": tmp_path}
    for _ in range(2):
        curves = shortgpt.curve([llama, other], BATCHES, **ask)
        assert not curves.failures()
    assert sorted(file.name for file in tmp_path.glob("*.jsonl")) == ["search-1.jsonl", "search-2.jsonl"]


def test_options_of_a_search_without_one_and_names_that_are_not_are_told_at_once() -> None:
    with pytest.raises(SelectionError, match=r"--width: nothing is searched for without --search"):
        shortgpt.curve("nowhere", width=2, resume="here")
    with pytest.raises(UnknownNameError, match="unknown search 'luck'"):
        shortgpt.curve("nowhere", search="luck")


def test_the_command_does_what_the_library_does(run_cli: Any, llama_folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"line {i}: {i * i} is the square of {i}\n" for i in range(200)))
    on = ("--calibration", text, "--sequences", 2, "--tokens", 24, "--device", "cpu", "--criterion", "block-influence")
    search = ("--search", "beam", "--objective", "kl", "--width", 2, "--evaluations", 50, "--resume", tmp_path / "kept")
    ran: Ran = run_cli("curve", llama_folder, *on, "--max", 2, "--json", "-", *search)
    assert (ran.status, ran.err) == (0, "")
    expected = shortgpt.curve(
        llama_folder,
        text,
        criteria=["block-influence"],
        most=2,
        search="beam",
        objective="kl",
        width=2,
        sequences=2,
        tokens=24,
        device="cpu",
    )
    assert ran.out == expected.to_json() + "\n"
    assert (tmp_path / "kept" / "search.jsonl").is_file()
    refused = run_cli("curve", llama_folder, *on, "--width", 2)
    assert (refused.status, refused.err.count("\n")) == (2, 1)
    assert "without --search" in refused.err
