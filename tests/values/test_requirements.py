"""Requirements: read, and judged so that what is wrong passes in at most 5 of 100 runs, however often one looks."""

import random
from collections.abc import Sequence

import pytest

from shortgpt.errors import RequirementError
from shortgpt.values.evaluation.evaluation import EvaluatedModel, Evaluation
from shortgpt.values.evaluation.outcomes import Column, Outcome, TaskRow
from shortgpt.values.evaluation.requirements import Requirement, judge, requirements_of, unsettled
from shortgpt.values.evaluation.sequential import bounded_above_zero, unbounded_above_zero

RUNS = 500


@pytest.mark.parametrize(
    ("text", "task", "statistic", "at_least", "limit"),
    [
        ("cloze>=0.95x", "cloze", "ratio", True, 0.95),
        (" perplexity-ratio <= 1.3 ", "perplexity", "ratio", False, 1.3),
        ("bits-per-byte-difference<=.1", "bits-per-byte", "difference", False, 0.1),
        ("next-token>-1e-2", "next-token", "score", True, -0.01),
        ("my-ratio>=0.5", "my-ratio", "score", True, 0.5),
    ],
)
def test_a_requirement_is_read(text: str, task: str, statistic: str, at_least: bool, limit: float) -> None:
    found = Requirement.parse(text, ("my-ratio",))
    assert (found.task, found.statistic, found.at_least, found.limit) == (task, statistic, at_least, limit)


@pytest.mark.parametrize("text", ["", "cloze", "cloze=0.5", "cloze>=", "cloze>=x", ">=0.5", "cloze>=0.5y", "a b>=1"])
def test_what_is_no_requirement_is_refused_with_examples(text: str) -> None:
    with pytest.raises(RequirementError, match="is no requirement; write a task"):
        Requirement.parse(text)


@pytest.mark.parametrize(
    ("text", "models", "message"),
    [
        ("copy>=0.5", 2, "the task 'copy', which is not run; those that are: cloze"),
        ("cloze>=0.9x", 1, "compares with the original; name a second model"),
        ("cloze-ratio>=0.9x", 2, "compared with a plain number, without x"),
        ("cloze>=0x", 2, "a ratio is above 0"),
    ],
)
def test_a_requirement_that_makes_no_sense_is_refused(text: str, models: int, message: str) -> None:
    with pytest.raises(RequirementError, match=message):
        requirements_of([text], ["cloze"], models)


def drawn(draw: random.Random, items: int, kept: float) -> tuple[list[float], list[float]]:
    """Right and wrong answers of two models, the second right as often as `kept` times the first one, 0.6."""
    ours = [float(draw.random() < 0.6) for _ in range(items)]
    gained = 0.1
    stays = (kept * 0.6 - gained * 0.4) / 0.6
    return ours, [float(draw.random() < (stays if a else gained)) for a in ours]


def test_a_ratio_below_the_limit_passes_in_at_most_5_of_100_runs_whenever_one_looks() -> None:
    """The test stops at the first item at which it passes, which is as much peeking as there can be."""
    wrong = 0
    for seed in range(RUNS):
        ours, theirs = drawn(random.Random(seed), 250, 0.949)
        wrong += bounded_above_zero([b - 0.95 * a for a, b in zip(ours, theirs, strict=True)], -0.95)
    assert wrong <= 0.05 * RUNS


def test_a_ratio_above_the_limit_passes_in_the_end() -> None:
    ours, theirs = drawn(random.Random(0), 2000, 1.05)
    values = [b - 0.95 * a for a, b in zip(ours, theirs, strict=True)]
    assert bounded_above_zero(values, -0.95)
    assert not bounded_above_zero([-value for value in values], -1.0)


@pytest.mark.parametrize("peeking", [False, True])
def test_a_mean_below_zero_without_bounds_passes_in_at_most_5_of_100_runs(peeking: bool) -> None:
    wrong = 0
    for seed in range(RUNS):
        draw = random.Random(seed)
        values = [draw.gammavariate(4, 0.5) - 2.002 for _ in range(96)]
        looks = range(32, 97, 16) if peeking else (96,)
        wrong += any(unbounded_above_zero(values[:look], peeking=peeking) for look in looks)
    assert wrong <= 0.05 * RUNS


def test_a_mean_above_zero_without_bounds_passes() -> None:
    values = [random.Random(seed).gauss(0.5, 1) for seed in range(200)]
    assert unbounded_above_zero(values, peeking=False)
    assert unbounded_above_zero(values, peeking=True)
    assert not unbounded_above_zero(values[:4], peeking=False), "of four items nothing is said"


def test_nothing_is_seen_where_nothing_differs() -> None:
    assert not bounded_above_zero([0.0] * 1000, -1.0)
    assert not bounded_above_zero([], -1.0)
    assert not unbounded_above_zero([0.0] * 1000, peeking=True)


def run(before: Sequence[float], after: Sequence[float]) -> Evaluation:
    columns = tuple(Column.of([Outcome(one) for one in scores]) for scores in (before, after))
    items = tuple(range(len(before)))
    row = TaskRow("cloze", "1", "accuracy", columns, items, bounds=(0.0, 1.0))
    return Evaluation((EvaluatedModel("whole"), EvaluatedModel("short")), (row,))


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("cloze>=0.5x", "holds"),
        ("cloze>=0.95x", "fails"),
        ("cloze<=0.95x", "holds"),
        ("cloze>=0.8x", "not settled"),
        ("cloze>=0.2", "holds"),
        ("cloze-difference>=-0.01", "fails"),
    ],
)
def test_a_requirement_holds_fails_or_is_not_settled(text: str, state: str) -> None:
    ours, theirs = drawn(random.Random(0), 400, 0.8)
    found = run(ours, theirs)
    requirements = requirements_of([text], ["cloze"], 2)
    (verdict,) = judge(found, requirements, peeking=False)
    assert (verdict.state, verdict.model, verdict.items) == (state, "short", 400)
    assert verdict.low < verdict.value < verdict.high
    assert unsettled(found, requirements) == (frozenset({"cloze"}) if state == "not settled" else frozenset())


def test_the_bounds_are_the_limits_at_which_the_verdict_changes() -> None:
    ours, theirs = drawn(random.Random(0), 400, 0.8)
    found = run(ours, theirs)
    (verdict,) = judge(found, requirements_of(["cloze>=0.8x"], ["cloze"], 2), peeking=False)
    for limit, state in (
        (verdict.low - 1e-3, "holds"),
        (verdict.low + 1e-3, "not settled"),
        (verdict.high + 1e-3, "fails"),
    ):
        (moved,) = judge(found, requirements_of([f"cloze>={limit}x"], ["cloze"], 2), peeking=False)
        assert moved.state == state


def test_a_perplexity_is_required_by_its_ratio() -> None:
    draw = random.Random(0)
    before = [Outcome(draw.gauss(100, 10), 50.0) for _ in range(64)]
    after = [Outcome(one.score + draw.gauss(5, 1), 50.0) for one in before]  # exp(5 / 50) = 1.105
    row = TaskRow("perplexity", "1", "perplexity", (Column.of(before), Column.of(after)), tuple(range(64)), scale="exp")
    found = Evaluation((EvaluatedModel("whole"), EvaluatedModel("short")), (row,))

    def state(text: str) -> str:
        return judge(found, requirements_of([text], ["perplexity"], 2), peeking=False)[0].state

    assert state("perplexity-ratio<=1.2") == "holds"
    assert state("perplexity-ratio<=1.05") == "fails"
    assert state("perplexity<=20") == "holds"
    with pytest.raises(RequirementError, match="a score or a ratio, no difference"):
        state("perplexity-difference<=1")
