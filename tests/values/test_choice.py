"""Which blocks go, and how sure that is: against brute force, closed forms, and a model of scripted perplexity."""

import itertools
import math
import random
import statistics
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import shortgpt
from shortgpt import Plan, Scores
from shortgpt.basics.statistics import difference, resampled_means
from shortgpt.errors import HiddenStateError, SelectionError
from shortgpt.measuring import evaluation
from shortgpt.measuring.calibration import Calibration
from shortgpt.measuring.selection import within
from shortgpt.models.sequence import TokenBatch
from shortgpt.reports.effect import choice_texts
from shortgpt.values.choosing import choice
from shortgpt.values.choosing.choice import Exchange
from shortgpt.values.choosing.spans import Spans
from tests.support import Playback, raising


def made(sums: list[list[float]], tokens: list[int], pinned: dict[int, str] | None = None) -> Scores:
    """Scores with the given sums, [sequences][blocks]."""
    example = shortgpt.score(Playback(torch.randn(len(sums[0]) + 1, 3, 4)), [{"input_ids": torch.tensor([[0, 1]])}])
    return replace(
        example, sums=(tuple(map(tuple, sums)),), counts=(tuple(tokens),), tokens=tuple(tokens), pinned=pinned or {}
    )


def certain(values: list[float], pinned: dict[int, str] | None = None) -> Scores:
    """Scores of these means, the same for each of four texts."""
    return made([[10 * value for value in values]] * 4, [10] * 4, pinned)


# -- the standard error of a difference -----------------------------------------------------------------------


def test_the_error_of_a_difference_is_that_of_the_mean_of_paired_differences_where_texts_are_equally_long() -> None:
    draw = random.Random(0)
    ours, theirs = ([draw.gauss(5, 1) for _ in range(9)] for _ in range(2))
    apart = [(b - a) / 7 for a, b in zip(ours, theirs, strict=True)]
    mean, error = difference(ours, theirs, [7] * 9)
    assert mean == pytest.approx(statistics.fmean(apart))
    assert error == pytest.approx(statistics.stdev(apart) / 3)


def test_the_error_of_a_difference_is_the_jackknifes_where_texts_differ_in_length() -> None:
    draw = random.Random(1)
    counts = [draw.randint(20, 60) for _ in range(300)]
    ours, theirs = ([count * draw.gauss(m, 1) for count in counts] for m in (0.5, 0.6))
    _, error = difference(ours, theirs, counts)
    total, apart = sum(counts), [b - a for a, b in zip(ours, theirs, strict=True)]
    left_out = [(sum(apart) - a) / (total - c) for a, c in zip(apart, counts, strict=True)]
    jackknife = math.sqrt(299 / 300 * sum((x - statistics.fmean(left_out)) ** 2 for x in left_out))
    assert error == pytest.approx(jackknife, rel=0.02)


def test_a_single_text_has_no_error() -> None:
    assert difference([1.0], [3.0], [2])[0] == 1.0
    assert math.isnan(difference([1.0], [3.0], [2])[1])


def test_resampled_means_are_means_of_whole_sequences_drawn_again() -> None:
    means = resampled_means([[1.0, 2.0], [30.0, 60.0]], [1, 3], 500, seed=0)
    possible = {1.0, 31 / 4, 10.0}  # twice the first, one of each, twice the second
    assert {round(mean, 9) for mean in means[:, 0].tolist()} == possible
    assert torch.equal(torch.tensor(means[:, 1]), 2 * torch.tensor(means[:, 0]))


# -- toss-ups -------------------------------------------------------------------------------------------------


def test_a_toss_up_is_a_pair_at_the_cut_closer_than_the_error_of_its_difference() -> None:
    noise = [0.3, -0.3, 0.1, -0.1]
    scores = made([[1.0, 2 + e, 2.05 - e, 2.6 + e, 5.0] for e in noise], [1] * 4)
    error = statistics.stdev([2 * e for e in noise]) / 2
    (found,) = scores.toss_ups(2)
    assert (found.gone, found.instead) == ((1,), (2,))
    assert found.difference == pytest.approx(0.05)
    assert found.stderr == pytest.approx(error)
    assert found.probability == pytest.approx(statistics.NormalDist().cdf(-0.05 / error))
    assert scores.toss_ups(1) == ()


def test_what_makes_a_text_hard_for_both_blocks_makes_no_toss_up() -> None:
    scores = made([[hard, hard + 0.1] for hard in (1.0, 4.0, 9.0)], [1] * 3)
    assert scores.values[1] - scores.values[0] < min(scores.stderr)
    assert scores.toss_ups(1) == ()


def test_blocks_that_must_stay_or_whose_exchange_is_refused_are_no_toss_up() -> None:
    scores = made([[1.0 + e, 1.0 - e, 1.1 + 2 * e] for e in (0.5, -0.5, 0.4)], [1] * 3)
    assert {one.instead for one in scores.toss_ups(1)} == {(0,), (2,)} - {(scores.least_influential(1))}
    assert [one.instead for one in choice.exchanges(replace(scores, pinned={2: "x"}), (1,))] == [(0,)]
    assert choice.exchanges(replace(scores, pinned={0: "x", 2: "x"}), (1,)) == ()
    assert [one.instead for one in choice.exchanges(scores, (1,), lambda b: "no" if b == (0,) else None)] == [(2,)]
    assert choice.exchanges(scores, (1,), lambda blocks: "no" if blocks in ((0,), (2,)) else None) == ()


def test_where_there_is_no_toss_up_the_nearest_exchange_is_told() -> None:
    noise = (0.2, -0.1, 0.3, 0.1)
    scores = made([[1.0, 2.0 + e, 4.0 - e, 9.0] for e in noise], [1] * 4)
    chosen = scores.plan(2).choice
    assert chosen is not None
    assert chosen.toss_ups == scores.toss_ups(2) == ()
    (near,) = chosen.exchanges
    assert (near.gone, near.instead) == ((1,), (2,))
    assert choice_texts(chosen)[0].startswith("no toss-up; the nearest is block 1 (out) against 2 (in), 1.75")


def test_the_most_even_toss_up_comes_first_and_equal_blocks_are_the_most_even() -> None:
    noise = (0.2, -0.1, 0.3)
    scores = made([[1.0 + e, 1.0 + e, 1.5 - e] for e in noise], [1] * 3)
    first, second = scores.toss_ups(1)
    assert first == Exchange((1,), (0,), 0.0, 0.0)
    assert first.probability == 0.5 > second.probability


def test_without_a_standard_error_nothing_is_said_of_toss_ups() -> None:
    chosen = made([[1.0, 1.0, 2.0]], [1]).plan(1).choice
    assert chosen is not None
    assert chosen.exchanges == ()
    assert "how sure this is cannot be said" in choice_texts(chosen)[0]


@pytest.mark.parametrize(("difference", "probability"), [(0.0, 0.5), (1.0, 0.0), (-1.0, 1.0)])
def test_without_noise_the_order_is_certain(difference: float, probability: float) -> None:
    assert Exchange((0,), (1,), difference, 0.0).probability == probability


def test_many_toss_ups_are_told_in_part() -> None:
    scores = made([[1.0 + e * (-1) ** i for i in range(8)] for e in (0.5, -0.5, 0.4)], [1] * 3)
    chosen = scores.plan(1).choice
    assert chosen is not None
    assert len(chosen.toss_ups) == 7
    lines = choice_texts(chosen)
    assert len(lines) == 5
    assert lines[0].startswith("toss-up: block 7 (out) against ")
    assert lines[-1] == "and 3 toss-ups more, less even"


# -- blocks that are asked to stay ----------------------------------------------------------------------------


def test_kept_blocks_are_never_chosen_and_the_plan_says_that_they_were_asked_for() -> None:
    scores = certain([3.0, 1.0, 2.0, 4.0, 5.0], {4: "the family's"}).keeping((1,))
    assert scores.least_influential(2) == (0, 2)
    assert scores.plan(2).scores == scores
    assert scores.pinned == {1: "it was asked to stay", 4: "the family's"}
    assert scores.keeping(()) is scores
    assert scores.keeping((4,)).pinned[4] == "the family's"


@pytest.mark.parametrize(
    ("kept", "message"),
    [((1, 5, 7), r"blocks 5, 7 cannot be kept: the model has 3"), ((0, 1), "all 3 blocks are to stay")],
)
def test_blocks_that_cannot_be_kept(kept: tuple[int, ...], message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        certain([1.0, 2.0, 3.0], {2: "x"}).keeping(kept)


def test_more_blocks_than_kept_ones_leave_cannot_be_chosen() -> None:
    with pytest.raises(SelectionError, match=r"from 1 to 2 of the 4 .* \(0, 2 must stay\)"):
        certain([1.0, 2.0, 3.0, 4.0]).keeping((0, 2)).least_influential(3)


# -- sets that a family refuses -------------------------------------------------------------------------------


def test_a_refused_set_gives_way_to_the_one_of_least_score_that_differs_in_one_block() -> None:
    draw = random.Random(3)
    values = [draw.random() for _ in range(8)]
    scores = certain(values, {5: "x"})
    lowest = scores.least_influential(3)
    allowed = {c for c in itertools.combinations(range(8), 3) if sum(c) % 3 == 0 and 5 not in c} - {lowest}
    near = [c for c in allowed if len({*c} - {*lowest}) == 1]
    blocks, told = choice.least(scores, 3, lambda b: None if b in allowed else "the sum is wrong")
    assert blocks == min(near, key=lambda c: sum(values[i] for i in c))
    assert told.refused == "the sum is wrong"
    assert math.isnan(told.stability)
    assert choice_texts(told)[0].endswith("which cannot be removed: the sum is wrong")


def test_where_no_near_set_is_allowed_the_message_says_what_to_do() -> None:
    with pytest.raises(
        SelectionError, match=r"blocks of least score \(0-1\).*: never\..*--keep.*--contiguous.*--remove"
    ):
        choice.least(certain([1.0, 2.0, 3.0]), 2, lambda blocks: "never")


# -- runs -----------------------------------------------------------------------------------------------------


def spans(depth: int = 6, sequences: int = 12, seed: int = 0) -> Spans:
    draw, pairs = random.Random(seed), depth * (depth + 1) // 2
    level = [draw.uniform(1, 9) for _ in range(pairs)]
    sums = tuple(tuple(10 * (v + draw.gauss(0, 0.3)) for v in level) for _ in range(sequences))
    return Spans("block-influence", depth, sums, (10,) * sequences)


def with_spans(found: Spans, pinned: dict[int, str] | None = None) -> Scores:
    return replace(certain([1.0] * found.depth, pinned), spans=found)


@pytest.mark.parametrize("count", [1, 2, 4, 5])
@pytest.mark.parametrize("pinned", [{}, {0: "x"}])
def test_the_run_of_least_influence_goes(count: int, pinned: dict[int, str]) -> None:
    found = spans()
    runs = [tuple(range(i, i + count)) for i in range(7 - count) if not {*range(i, i + count)} & {*pinned}]
    best = min(runs, key=lambda r: found.value(r[0], count))
    plan = with_spans(found, pinned).plan(count, contiguous=True)
    assert plan.blocks == best == found.best(count, pinned)
    assert plan.choice is not None
    assert plan.choice.rule == "contiguous"


def test_of_equal_runs_the_deeper_goes() -> None:
    flat = Spans("x", 4, ((1.0,) * 10,) * 3, (1,) * 3)
    assert with_spans(flat).plan(2, contiguous=True).blocks == (2, 3)


def test_a_refused_run_gives_way_to_the_next() -> None:
    found = spans()
    best, second, *_ = sorted(range(4), key=lambda i: found.value(i, 3))
    blocks, told = choice.run(with_spans(found), 3, lambda b: "not this" if b[0] == best else None)
    assert blocks == tuple(range(second, second + 3))
    assert told.refused == "not this"
    with pytest.raises(SelectionError, match=r"no run of 3 blocks can be removed.*not this.*--remove"):
        choice.run(with_spans(found), 3, lambda blocks: "not this")


def test_how_sure_a_run_is() -> None:
    pairs = [(i, j) for i in range(4) for j in range(i + 1, 5)]
    level = {(0, 2): 3.0, (1, 3): 1.0, (2, 4): 1.1}
    noise = (0.4, -0.4, 0.3, -0.3, 0.2)
    sums = tuple(tuple(level.get(p, 9.0) + (e if p == (2, 4) else 0.0) for p in pairs) for e in noise)
    blocks, told = choice.run(with_spans(Spans("x", 4, sums, (1,) * 5)), 2)
    assert blocks == (1, 2)
    (even,) = told.exchanges
    assert (even.gone, even.instead) == ((1,), (3,))
    assert even.stderr == pytest.approx(statistics.stdev(noise) / 5**0.5)
    assert 0.5 < told.stability < 0.95
    lines = choice_texts(told)
    assert lines[0] == f"the same run in {told.stability:.0%} of bootstrap resamples"
    assert lines[1].startswith("toss-up: block 1 (out) against 3 (in), 0.14")
    single = Spans("x", 4, sums[:1], (1,))
    assert math.isnan(choice.run(with_spans(single), 2)[1].stability)
    assert choice.run(with_spans(single), 2)[1].exchanges == ()


def test_runs_that_cannot_be_had() -> None:
    with pytest.raises(SelectionError, match="not measured; score with spans=True"):
        certain([1.0, 2.0]).plan(1, contiguous=True)
    for count in (0, 6, 7):
        with pytest.raises(SelectionError, match=f"a run of {count} blocks cannot be chosen: from 1 to 5 of the 6"):
            choice.run(with_spans(spans()), count)
    with pytest.raises(SelectionError, match=r"no run of 3 of the 6 blocks without those that stay \(2, 5\)"):
        choice.run(with_spans(spans(), {2: "x", 5: "x"}), 3)


# -- as many as a ratio of perplexities allows ----------------------------------------------------------------


class Scripted(Playback):
    """A model whose mean surprise, in nats, is `script(skipped blocks)`: token t is followed by token t + 1."""

    def __init__(self, depth: int, script: dict[frozenset[int], float]) -> None:
        super().__init__(torch.randn(depth + 1, 8, 4))
        self.script, self.skipped = script, frozenset[int]()

    @contextmanager
    def skipping(self, blocks: Iterable[int]) -> Iterator[None]:
        self.skipped = frozenset(blocks)
        yield
        self.skipped = frozenset()

    def logits(self, batch: TokenBatch) -> Tensor:
        surprise = self.script[self.skipped]
        found = torch.zeros(*batch["input_ids"].shape, 8, dtype=torch.float64)
        raised = math.log(7 / (math.exp(surprise) - 1))  # then −log softmax is the surprise
        return found.scatter(-1, ((batch["input_ids"] + 1) % 8)[..., None], raised)


ORDER = (2, 0, 3, 1)
TEXT = [{"input_ids": torch.arange(8).repeat(2, 1)}]


def scripted(*ratios: float) -> tuple[Scores, Scripted, Calibration]:
    """A model whose perplexity is 2, and that times the ratios without the first 1, 2, ... blocks of `ORDER`."""
    script = {frozenset[int](): math.log(2.0)}
    script |= {frozenset(ORDER[: n + 1]): math.log(2.0 * ratio) for n, ratio in enumerate(ratios)}
    model = Scripted(4, script)
    scores = certain([float(ORDER.index(block)) + 1 for block in range(4)])
    return scores, model, shortgpt.calibrate(TEXT, model)


@pytest.mark.parametrize(("limit", "count"), [(1.06, 1), (1.07, 1), (1.1, 3), (1.31, 3)])
def test_the_largest_number_that_stays_within_the_ratio_is_taken_though_a_smaller_one_may_not(
    limit: float, count: int
) -> None:
    blocks, told = within(*scripted(1.05, 1.3, 1.08), limit)
    assert blocks == tuple(sorted(ORDER[:count]))
    assert told.ratios == pytest.approx((1.05, 1.3, 1.08), rel=1e-6)
    assert (told.rule, told.limit) == ("max-perplexity-ratio", limit)
    assert f"1.05, 1.3, 1.08; the largest number that stays within {limit:g} is taken" in choice_texts(told)[0]


def test_a_removal_that_changes_nothing_is_within_a_ratio_of_one() -> None:
    assert within(*scripted(1.0, 1.2, 1.0), 1.0)[0] == (0, 2, 3)


def test_where_not_even_one_block_fits_the_best_that_can_be_had_is_told() -> None:
    with pytest.raises(SelectionError, match=r"within 1\.01 times the original's: the best .* gives 1\.05 times"):
        within(*scripted(1.05, 1.3, 1.08), 1.01)


def test_numbers_that_the_family_refuses_are_left_out() -> None:
    scores, model, text = scripted(1.05, 1.3, 1.08)
    blocks, told = within(scores, model, text, 1.1, lambda b: "no" if len(b) == 3 else None)
    assert blocks == (2,)
    assert math.isnan(told.ratios[2])
    assert ": 1.05, 1.3, -; " in choice_texts(told)[0]
    with pytest.raises(SelectionError, match="none may be removed"):
        within(scores, model, text, 1.1, lambda blocks: "no")


def test_a_number_that_leaves_no_finite_logits_is_left_out() -> None:
    scores, model, text = scripted(1.05, 1.3, 1.08)
    with raising(evaluation, "evaluate", HiddenStateError("NaN"), after=3):
        blocks, told = within(scores, model, text, 1.4)
    assert blocks == (0, 2)
    assert math.isnan(told.ratios[2])


def test_kept_blocks_are_passed_over_and_progress_is_told() -> None:
    scores, model, text = scripted(1.05, 1.3, 1.08)
    model.script[frozenset({0})] = model.script[frozenset({0, 3})] = math.log(2.0)
    model.script[frozenset({0, 1, 3})] = math.log(4.0)
    seen = []
    blocks, _ = within(
        scores.keeping((2,)), model, text, 1.1, progress=lambda what, done, total: seen.append((what, done, total))
    )
    assert blocks == (0, 3)
    assert seen == [("numbers", 1, 3), ("numbers", 2, 3), ("numbers", 3, 3)]


@pytest.mark.parametrize("limit", [0.25, 0.999, 0.0, -1.0, math.inf, math.nan])
def test_what_is_no_limit_is_refused(limit: float) -> None:
    with pytest.raises(SelectionError, match=r"is no limit; .* such as 1\.1"):
        within(*scripted(1.05, 1.3, 1.08), limit)


# -- a choice is a value --------------------------------------------------------------------------------------


def test_a_choice_survives_the_plans_file() -> None:
    scores, model, text = scripted(1.05, 1.3, 1.08)
    plan = Plan.chosen(scores, within(scores, model, text, 1.1))
    assert Plan.from_json(plan.to_json()) == plan
    by_run = with_spans(spans()).plan(2, contiguous=True)
    assert Plan.from_json(by_run.to_json()) == by_run
