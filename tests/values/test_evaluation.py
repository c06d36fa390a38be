"""What follows from outcomes: scores, ratios and differences with their errors, flips, and what is averaged."""

import math
import random

import pytest

import shortgpt
from shortgpt.values.evaluation.estimates import flips
from shortgpt.values.evaluation.evaluation import EvaluatedModel, Evaluation
from shortgpt.values.evaluation.outcomes import Column, Outcome, TaskRow


def column(rights: list[int], answers: list[str] | None = None) -> Column:
    told = answers or ["abcd"[i % 4] for i in range(len(rights))]
    return Column.of([Outcome(float(r), 1.0, (a,), (bool(r),)) for r, a in zip(rights, told, strict=True)])


def evaluation(*rows: TaskRow, models: int = 2) -> Evaluation:
    return Evaluation(tuple(EvaluatedModel(f"model {at}") for at in range(models)), rows)


def accuracy(name: str, *columns: Column, **fields: object) -> TaskRow:
    items = tuple(range(len(columns[0].scores)))
    return TaskRow(name, "1", "accuracy", columns, items, **fields)  # type: ignore[arg-type]


BEFORE = [1, 1, 1, 1, 1, 1, 0, 0, 0, 0] * 4
AFTER = [1, 1, 1, 1, 0, 0, 1, 0, 0, 0] * 4


def test_a_share_has_the_error_of_a_share() -> None:
    found = evaluation(accuracy("t", column(BEFORE), column(AFTER)))
    row = found.task("t")
    assert found.score(row, 0) == pytest.approx((0.6, math.sqrt(0.6 * 0.4 / 39)))
    assert found.score(row, 1) == pytest.approx((0.5, math.sqrt(0.5 * 0.5 / 39)))


def test_a_difference_is_paired_by_item() -> None:
    found = evaluation(accuracy("t", column(BEFORE), column(AFTER)))
    apart = [b - a for a, b in zip(BEFORE, AFTER, strict=True)]
    spread = sum((d - sum(apart) / 40) ** 2 for d in apart) / 39
    assert found.difference(found.task("t"), 1) == pytest.approx((-0.1, math.sqrt(spread / 40)))


def test_what_is_kept_is_a_ratio_with_the_error_that_resamples_have() -> None:
    found = evaluation(accuracy("t", column(BEFORE), column(AFTER)))
    kept = found.kept(found.task("t"), 1)
    draw = random.Random(0)
    ratios = []
    for _ in range(4000):
        rows = draw.choices(range(40), k=40)
        ratios.append(sum(AFTER[i] for i in rows) / sum(BEFORE[i] for i in rows))
    mean = sum(ratios) / len(ratios)
    spread = math.sqrt(sum((one - mean) ** 2 for one in ratios) / len(ratios))
    assert kept is not None
    assert kept.value == pytest.approx(5 / 6)
    assert kept.stderr == pytest.approx(spread, rel=0.1)


def test_a_score_is_a_ratio_of_sums_and_perplexity_its_exponential() -> None:
    read = Column.of([Outcome(2.0, 4), Outcome(9.0, 6), Outcome(3.0, 5)])
    row = TaskRow("p", "1", "perplexity", (read,), (0, 1, 2), scale="exp", kind="fit", lower_is_better=True)
    found = evaluation(row, models=1)
    mean = 14 / 15
    errors = [2 - 4 * mean, 9 - 6 * mean, 3 - 5 * mean]
    error = math.sqrt(3 / 2 * sum(e * e for e in errors)) / 15
    assert found.score(row) == pytest.approx((math.exp(mean), math.exp(mean) * error))


def test_items_of_one_document_are_not_independent() -> None:
    """Twelve documents of four alike items each: the error is that of twelve."""
    rights = [right for right in [1, 1, 0] * 4 for _ in range(4)]
    groups = tuple(at // 4 for at in range(48))
    found = evaluation(accuracy("t", column(rights), groups=groups), models=1)
    assert found.score(found.task("t")) == pytest.approx((2 / 3, math.sqrt(2 / 9 / 11)))


def test_intervals_hold_the_full_value() -> None:
    """Over 200 seeds, of a population of weighted items: between 92 and 98 of 100."""
    draw = random.Random(1)
    population = [Outcome(weight * draw.betavariate(2, 3), weight) for weight in draw.choices(range(40, 200), k=5000)]
    truth = sum(one.score for one in population) / sum(one.weight for one in population)
    held = 0
    for seed in range(200):
        taken = Column.of(random.Random(seed).sample(population, 80))
        row = TaskRow("t", "1", "share", (taken,), tuple(range(80)))
        score = evaluation(row, models=1).score(row)
        assert score is not None
        held += abs(score.value - truth) <= 1.96 * score.stderr
    assert 184 <= held <= 196


def test_flips_are_counted_by_answer_and_by_right_and_wrong() -> None:
    before = column([1, 1, 0, 0, 0], list("aabbb"))
    after = column([1, 0, 1, 0, 0], list("abacb"))
    assert flips(before, after) == (5, 3, 1, 1)
    assert flips(before, Column((1.0,), (1.0,))) is None


def test_a_task_at_chance_is_left_out_of_the_average() -> None:
    guessed = accuracy("guessed", column([1, 0, 0, 0] * 10), column([1, 1, 0, 0] * 10), chance=0.25)
    able = accuracy("able", column([1, 1, 1, 0] * 10), column([1, 1, 0, 0] * 10), chance=0.25)
    never = accuracy("never", column([0] * 40), column([0] * 40), chance=0.0)
    sign = accuracy("sign", column([1] * 40), column([0] * 40), kind="collapse")
    found = evaluation(guessed, able, never, sign)
    assert [row.task for row in found.tasks if found.is_at_chance(row)] == ["guessed", "never"]
    assert [row.task for row in found.averaged()] == ["able"]
    average, kept = found.average(1), found.average_kept(1)
    assert average is not None
    assert kept is not None
    assert (average.value, kept.value) == pytest.approx((0.5, 2 / 3))
    assert kept == pytest.approx(found.kept(able, 1))


def test_the_average_is_over_tasks_and_its_error_over_both() -> None:
    one = accuracy("one", column([1, 1, 1, 0] * 10), column([1, 1, 0, 0] * 10))
    two = accuracy("two", column([1, 0, 1, 0] * 10), column([1, 0, 0, 0] * 10))
    found = evaluation(one, two)
    average, scores = found.average(0), [found.score(row, 0) for row in (one, two)]
    assert average is not None
    assert average.value == pytest.approx(0.625)
    assert average.stderr == pytest.approx(math.hypot(*(s.stderr for s in scores if s)) / 2)


def test_an_evaluation_reads_back_as_it_was() -> None:
    failed = Column(error="out of ink")
    row = accuracy("t", column(BEFORE), failed)
    found = evaluation(row, TaskRow("gone", "", "", error="no data"))
    assert shortgpt.Evaluation.from_json(found.to_json()) == found
    assert found.failures() == (("t, model 1", "out of ink"), ("gone", "no data"))
    assert found.kept(row, 1) is None
    with pytest.raises(shortgpt.ShortGPTError, match="1 columns for 2 models"):
        shortgpt.Evaluation.from_json(evaluation(accuracy("t", column(BEFORE))).to_json())
