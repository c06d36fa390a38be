"""`prune` and `score` by a search: the set is the one that the search finds, and the record holds it."""

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch

import shortgpt
from shortgpt import Plan, Scores
from shortgpt.errors import SelectionError
from shortgpt.measuring.calibration import calibrate
from tests.support import Ran, skipped_by_hand

ON: dict[str, Any] = {"sequences": 3, "tokens": 24, "device": "cpu"}
WORDS = ("--sequences", 3, "--tokens", 24, "--device", "cpu")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("".join(f"line {i}: {i * i} is the square of {i}\n" for i in range(300)))
    return file


@pytest.fixture(scope="module")
def best_pair(llama_folder: Path, text: Path) -> tuple[int, ...]:
    """Of all pairs without block 1, that of least log-perplexity, by Hugging Face's model and our own hooks."""
    blocks: Any = shortgpt.load(llama_folder, device="cpu")
    (batch,) = calibrate(text, blocks, sequences=3, tokens=24).batches
    ids = batch["input_ids"]

    def value(pair: tuple[int, ...]) -> float:
        log_q = skipped_by_hand(blocks.model, "model.layers", pair, ids).double().log_softmax(-1)
        return -log_q[:, :-1].gather(-1, ids[:, 1:, None]).mean().item()

    return min(combinations([0, 2, 3, 4, 5], 2), key=value)


def test_prune_removes_the_best_set_and_its_record_tells_the_search(
    run_cli: Any, llama_folder: Path, text: Path, tmp_path: Path, best_pair: tuple[int, ...]
) -> None:
    words = ("--calibration", text, *WORDS, "--no-effect", "--no-verify", "--keep", 1)
    search = ("--search", "exact", "--resume", tmp_path / "kept")
    ran: Ran = run_cli("prune", llama_folder, "-o", tmp_path / "out", "--blocks", 2, *words, *search)
    assert ran.status == 0, ran.err
    plan = Plan.read(tmp_path / "out")
    assert plan.scores is not None
    assert plan.scores.search is not None
    assert plan.blocks == plan.scores.search.blocks == plan.scores.chosen == best_pair
    assert plan.choice == plan.scores.search.choice
    assert "exact: 11 sets measured" in ran.out
    assert "of 10 sets that a search measured" in (tmp_path / "out" / "README.md").read_text()
    again = shortgpt.prune(
        llama_folder,
        tmp_path / "python",
        blocks=2,
        keep=[1],
        search="exact",
        resume=tmp_path / "kept",
        calibration=text,
        effect=False,
        verify=False,
        **ON,
    )
    assert again == plan
    shown: Ran = run_cli("show", tmp_path / "out")
    assert "exact: 11 sets measured" in shown.out


def test_score_marks_the_best_set_and_shows_the_search(
    run_cli: Any, llama_folder: Path, text: Path, tmp_path: Path, best_pair: tuple[int, ...]
) -> None:
    file = tmp_path / "scores.json"
    on = ("--calibration", text, *WORDS, "--blocks", 2, "--keep", 1, "--json", file)
    ran: Ran = run_cli("score", llama_folder, *on, "--search", "beam", "--width", 50)
    assert ran.status == 0, ran.err
    scores = Scores.from_json(file.read_text())
    assert scores.search is not None
    assert scores.chosen == scores.search.blocks == best_pair
    assert "beam of width 50" in ran.out
    assert run_cli("show", file).out == ran.out
    table = run_cli("show", file, "--format", "markdown").out
    assert "the best sets of 2 of 6 blocks" in table


def test_with_compensation_the_best_sets_and_that_of_least_score_are_compensated_before_the_choice(
    llama_folder: Path, text: Path, tmp_path: Path
) -> None:
    plan = shortgpt.prune(
        llama_folder,
        tmp_path / "out",
        blocks=2,
        search="exact",
        compensate=True,
        calibration=text,
        effect=False,
        verify=False,
        **ON,
    )
    assert plan is not None
    assert plan.scores is not None
    assert plan.scores.search is not None
    assert plan.compensation is not None
    finalists = {one.blocks: one.compensated for one in plan.scores.search.candidates if one.compensated is not None}
    assert plan.scores.least_influential(2) in finalists
    assert plan.blocks == min(finalists, key=lambda blocks: finalists[blocks])


def test_neighbours_of_texts_that_can_be_read_once_only(llama_folder: Path, tmp_path: Path) -> None:
    texts = (f"text {i} of some words, {i * i} of them" for i in range(4))
    blocks = shortgpt.load(llama_folder, device="cpu")
    plan = shortgpt.prune(
        blocks, tmp_path / "out", contiguous=3, search="beam", calibration=texts, verify=False, effect=False
    )
    assert plan is not None
    first, _, last = plan.blocks
    assert last - first == 2
    assert torch.isfinite(torch.tensor(plan.choice.stability if plan.choice else torch.nan))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"remove": "1", "search": "pairs"}, "--remove says no number of them"),
        ({"max_perplexity_ratio": 1.5, "search": "pairs"}, "--max-perplexity-ratio says no number"),
        ({"blocks": 1, "search": "beam", "stream": True}, "--stream leaves its weights"),
        ({"blocks": 1, "objective": "kl"}, "--objective: nothing is searched for without --search"),
        ({"blocks": 3, "search": "exact", "evaluations": 5}, "20 sets of 3 blocks"),
    ],
)
def test_what_cannot_be_searched_is_told_and_nothing_is_written(
    llama_folder: Path, text: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SelectionError, match=message):
        shortgpt.prune(llama_folder, tmp_path / "out", calibration=text, **options, **ON)
    assert not (tmp_path / "out").exists()
