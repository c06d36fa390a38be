"""Sets that are to be enough for a budget: held against brute force over all sets, and against what is then written."""

import re
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import shortgpt
from shortgpt import Plan
from shortgpt.errors import SelectionError
from shortgpt.measuring.search import methods
from shortgpt.measuring.search.space import Space
from shortgpt.measuring.selection import enough
from shortgpt.values.choosing.budget import Bound, Budget
from tests.measuring.search.test_methods import DEPTH, MadeUp, bent, best_of, quadratic
from tests.support import Ran, ids_of, message_of, saved, scores_of, tiny

Blocks = tuple[int, ...]
COSTS = (3.0, 7.0, 4.0, 9.0, 2.0, 6.0, 5.0, 8.0)
OTHERS = (5.0, 1.0, 2.0, 2.0, 7.0, 1.0, 6.0, 3.0)
WORDS = ("--sequences", 2, "--tokens", 16, "--device", "cpu", "--no-effect")


def bound(amounts: Sequence[float], share: float, outside: float = 10.0) -> Bound:
    return Budget.parse(f"parameters<={share}x").bound((*amounts, outside))


def space(*bounds: Bound, stays: Blocks = (), refuse: Any = lambda blocks: None) -> Space:
    return Space(DEPTH, 0, dict.fromkeys(stays, "it stays"), False, refuse, bounds)


def enough_by_hand(blocks: Blocks, *needs: tuple[Sequence[float], float]) -> bool:
    return all(sum(amounts[i] for i in blocks) >= need for amounts, need in needs)


def all_sets(stays: Blocks = ()) -> list[Blocks]:
    free = [block for block in range(DEPTH) if block not in stays]
    return [one for size in range(1, DEPTH) for one in combinations(free, size)]


# 54 in all is left 27 of, and 37 is left 25.9 of: 27 and 11.1 must go.
BOUNDS = (bound(COSTS, 0.5), bound(OTHERS, 0.7))
NEEDS = ((COSTS, 27.0), (OTHERS, 0.3 * 37))


@pytest.mark.parametrize("stays", [(), (3, 6)])
def test_by_scores_the_set_is_that_of_least_sum_of_all_that_are_enough(stays: Blocks) -> None:
    values = [0.30, 0.10, 0.25, 0.35, 0.05, 0.20, 0.15, 0.40]
    scores = scores_of(values, pinned=dict.fromkeys(stays, "it stays"))
    blocks, choice = enough(scores, BOUNDS)
    fitting = [one for one in all_sets(stays) if enough_by_hand(one, *NEEDS)]
    assert blocks == min(fitting, key=lambda one: sum(values[i] for i in one))
    assert (choice.rule, choice.refused) == ("target", None)
    assert [met.left for met in choice.budgets] == [
        pytest.approx(sum(amounts) + 10 - sum(amounts[i] for i in blocks)) for amounts in (COSTS, OTHERS)
    ]
    assert all(enough_by_hand(tuple({*blocks} - {*one.gone} | {*one.instead}), *NEEDS) for one in choice.exchanges)


def test_one_dear_block_goes_in_the_place_of_two_cheap_ones_that_score_less() -> None:
    costs = (10.0, 5.0, 5.0, 1.0)
    assert enough(scores_of([0.3, 0.2, 0.2, 0.1]), [bound(costs, 0.67, 9.0)])[0] == (0,)
    assert enough(scores_of([0.5, 0.2, 0.2, 0.1]), [bound(costs, 0.67, 9.0)])[0] == (1, 2)


def test_scores_below_zero_take_no_block_that_need_not_go() -> None:
    blocks, _ = enough(scores_of([-4.0, -3.0, -2.0, -1.0]), [bound((1.0,) * 4, 0.86)])
    assert blocks == (0, 1)


def test_what_the_family_refuses_is_passed_over_and_told() -> None:
    blocks, choice = enough(
        scores_of([0.1, 0.2, 0.3, 0.4]), [bound((1.0,) * 4, 0.86)], lambda one: "odd" if 0 in one else None
    )
    assert (blocks, choice.refused) == ((1, 2), "odd")


def test_exact_measures_each_set_without_a_block_to_spare() -> None:
    value, measurements = bent(), MadeUp(bent())
    outcome = methods.exact(space(*BOUNDS), measurements, 2000)  # type: ignore[arg-type]
    fitting = {one for one in all_sets() if enough_by_hand(one, *NEEDS)}
    least = {
        one
        for one in fitting
        if not any(tuple({*one} - {b}) in fitting or {*one} - {b} in map(set, fitting) for b in one)
    }
    assert set(outcome.measured) == least
    assert best_of(outcome) == min(least, key=value)


@pytest.mark.parametrize("seed", [2])
def test_pairs_finds_the_best_of_all_sets_that_are_enough(seed: int) -> None:
    value, measurements = quadratic(seed), MadeUp(quadratic(seed))
    outcome = methods.pairs(space(*BOUNDS), measurements, 2000)  # type: ignore[arg-type]
    fitting = [one for one in all_sets() if enough_by_hand(one, *NEEDS)]
    assert best_of(outcome) == min(fitting, key=value)
    assert set(outcome.measured) <= set(fitting)
    assert len(measurements.asked) < 60


def test_sets_of_unlike_sizes_are_corrected_by_what_was_measured() -> None:
    value, measurements = bent(1), MadeUp(bent(1))
    outcome = methods.pairs(space(*BOUNDS), measurements, 2000)  # type: ignore[arg-type]
    fitting = sorted((one for one in all_sets() if enough_by_hand(one, *NEEDS)), key=value)
    assert best_of(outcome) in fitting[:3]


@pytest.mark.parametrize("width", [1, 100])
def test_a_beam_stops_where_it_is_enough(width: int) -> None:
    value, measurements = bent(), MadeUp(bent())
    outcome = methods.beam(space(*BOUNDS), measurements, 5000, width)  # type: ignore[arg-type]
    assert all(enough_by_hand(one, *NEEDS) for one in outcome.measured)
    if width == 100:  # all sets of which no beginning is enough
        fitting = [one for one in all_sets() if enough_by_hand(one, *NEEDS)]
        least = [one for one in fitting if not any({*other} < {*one} for other in fitting)]
        assert value(best_of(outcome)) <= min(map(value, least))


@pytest.mark.parametrize(
    ("text", "what", "amount", "tokens", "sequences"),
    [
        ("parameters<=110M", "parameters", 110e6, 0, 0),
        (" bytes <= 1.5 GiB ", "bytes", 1.5 * 2**30, 0, 0),
        ("bytes<=200MB", "bytes", 200e6, 0, 0),
        ("memory<=1.5GB@4096x8", "memory", 1.5e9, 4096, 8),
        ("kv<=0.5x@32768x1", "kv", 0.5, 32768, 1),
        ("tokens/s>=1.3x@2x512", "tokens/s", 1.3, 512, 2),
        ("new-tokens/s>=40", "new-tokens/s", 40, 512, 1),
    ],
)
def test_a_budget_is_read(text: str, what: str, amount: float, tokens: int, sequences: int) -> None:
    found = Budget.parse(text)
    assert (found.what, found.tokens, found.sequences) == (what, tokens, sequences)
    assert found.amount == pytest.approx(amount)
    assert found.relative == ("x" in text.partition("@")[0])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("size<=3", "there is no cost 'size'"),
        ("parameters>=3M", "of parameters a bound is <="),
        ("tokens/s<=3", "of tokens/s a bound is >="),
        ("bytes<=3M", "'M' is no unit of bytes"),
        ("parameters<=3MB", "'MB' is no unit of parameters"),
        ("kv<=1GB", "say at how many tokens of how many sequences"),
        ("bytes<=1GB@4x4", "leave the @ out"),
        ("parameters<=1.2x", "no shorter model is such, or every one"),
        ("tokens/s>=0.9x", "no shorter model is such, or every one"),
        ("memory<=1GB@0x4", "it has another form"),
        ("parameters<=", "it has another form"),
    ],
)
def test_what_says_nothing_is_refused(text: str, problem: str) -> None:
    with pytest.raises(SelectionError, match=f"is no target .*{re.escape(problem)}.*; write such as 'parameters"):
        Budget.parse(text)


def test_a_rate_is_a_bound_on_seconds() -> None:
    seconds = (1.0, 2.0, 3.0, 2.0)  # 8 s for 64 tokens
    relative = Budget.parse("tokens/s>=1.6x@2x32").bound(seconds)
    assert relative.needed == pytest.approx(3.0)
    assert [relative.holds(blocks) for blocks in [(2,), (0, 1), (1,), (0,)]] == [True, True, False, False]
    assert str(relative.met((2,))) == "tokens/s>=1.6x@2x32: 8 → 12.8 tokens/s"
    assert Budget.parse("new-tokens/s>=0.5@2x32").bound(seconds).needed == pytest.approx(4.0)


def test_what_cannot_be_reached_or_is_there_already_is_told() -> None:
    with pytest.raises(SelectionError, match="the whole model has 64 parameters already, so no block needs to go"):
        Budget.parse("parameters<=64").bound((*COSTS, *OTHERS[:1], 15.0))
    with pytest.raises(SelectionError, match="without all 7 blocks that may go the model still has 12 parameters"):
        space(bound(COSTS, 0.1))


# -- what is written ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Blocks that cost unlike: attention and convolutions, and MLPs of experts from the third block on."""
    from tests.tiny_types import tiny_model

    return saved(tiny_model("lfm2_moe", blocks=6), tmp_path_factory.mktemp("models") / "hybrid")


def test_what_is_written_meets_the_budgets(run_cli: Any, hybrid: Path, tmp_path: Path) -> None:
    targets = ("--target", "bytes<=0.8x", "--target", "kv<=0.9x@100x2")
    ran: Ran = run_cli("prune", hybrid, "-o", tmp_path / "out", *targets, *WORDS, "--no-verify")
    assert ran.status == 0, ran.err
    plan = Plan.read(tmp_path / "out")
    assert plan.choice is not None
    of_bytes, of_kv = plan.choice.budgets
    before, after = (
        sum(tensor.nbytes for tensor in load_file(folder / "model.safetensors").values())
        for folder in (hybrid, tmp_path / "out")
    )
    assert (of_bytes.whole, of_bytes.left) == (before, after)
    assert after <= 0.8 * before
    assert _cache_bytes(tmp_path / "out", 100) * 2 == of_kv.left <= 0.9 * of_kv.whole
    assert "bytes<=0.8x: " in ran.out
    assert "0.8x: " in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def _cache_bytes(folder: Path, tokens: int) -> int:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        cache = AutoModelForCausalLM.from_pretrained(folder)(torch.ones(1, tokens, dtype=torch.long), use_cache=True)
    held = 0
    for layer in cache.past_key_values.layers:
        for value in vars(layer).values():
            held += sum(
                t.nbytes
                for t in (value.values() if isinstance(value, dict) else [value])
                if torch.is_tensor(t) and t.dim() > 1
            )
    return held


def test_a_search_to_a_budget_gives_a_set_that_meets_it() -> None:
    model = shortgpt.wrap(tiny("llama", blocks=4))
    text = [{"input_ids": ids_of()}]
    plan = shortgpt.prune(
        model, target="parameters<=0.7x", search="pairs", calibration=text, dry_run=True, effect=False
    )
    assert plan is not None
    assert plan.parameters_before is not None
    assert plan.parameters_after is not None
    assert plan.parameters_after <= 0.7 * plan.parameters_before
    assert plan.choice is not None
    assert plan.choice.budgets[0].left == plan.parameters_after


def test_two_rules_at_once_and_bad_budgets_end_before_anything_is_measured(run_cli: Any, llama_folder: Path) -> None:
    both = run_cli("prune", llama_folder, "--dry-run", "--target", "bytes<=0.5x", "--blocks", 2)
    assert "two choices at once (--blocks, --target)" in message_of(both)
    assert "is no target" in message_of(run_cli("prune", llama_folder, "--dry-run", "--target", "half"))
    long = run_cli("prune", llama_folder, "--dry-run", "--target", "tokens/s>=1.2x@1x513")
    assert "its window is 512 tokens, 513 were asked for" in message_of(long)
