"""`evaluate`: the same items for all models, skipped or removed alike; resumed, settled, and told where it fails."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import shortgpt
from shortgpt.errors import (
    CalibrationError,
    ModelError,
    OutputError,
    RequirementError,
    ResumeError,
    SelectionError,
    UnknownNameError,
)
from shortgpt.measuring.tasks import measuring, running
from shortgpt.measuring.tasks.language_model import LanguageModel
from tests.plugins.test_tasks import TEXTS
from tests.support import byte_tokenizer, raising, tiny

LITTLE: dict[str, Any] = {"tasks": ("cloze", "perplexity"), "text": TEXTS, "items": 5, "device": "cpu"}


@pytest.fixture(scope="module")
def blocks() -> Any:
    return shortgpt.wrap(tiny("llama", blocks=4), tokenizer=byte_tokenizer(), name="tiny")


def test_the_original_the_original_without_blocks_and_a_folder_are_columns(blocks: Any, tmp_path: Path) -> None:
    blocks.without((1,)).save(tmp_path / "short")
    found = shortgpt.evaluate([blocks, tmp_path / "short"], [(1,), (2, 3)], **LITTLE)
    assert [one.model for one in found.models] == [
        "tiny",
        "tiny without 1",
        "tiny without 2-3",
        str(tmp_path / "short"),
    ]
    assert [one.removed for one in found.models] == [(), (1,), (2, 3), ()]
    assert [one.blocks for one in found.models] == [4, 4, 4, 3]
    for row in found.tasks:
        assert len(row.items) == 5
        whole, skipped, _, saved = row.columns
        assert skipped == saved != whole, "removal and the saved folder compute the same"
        assert (row.version, row.available > 5, row.settings["documents"]) == ("1", True, 6)
    assert found.score(found.tasks[1], 0) != found.score(found.tasks[1], 2)
    assert {one.dtype for one in found.models} == {"float32"}
    assert len({one.tokenizer_hash for one in found.models}) == 1


def test_a_model_of_a_library_and_one_set_of_blocks_will_do() -> None:
    found = shortgpt.evaluate(tiny("llama", blocks=3), [1], **LITTLE, tokenizer=byte_tokenizer())
    assert [one.removed for one in found.models] == [(), (1,)]
    assert found.failures() == ()


def test_blocks_that_cannot_be_removed_are_skipped(blocks: Any) -> None:
    blocks = shortgpt.wrap(tiny("llama", blocks=4), tokenizer=byte_tokenizer(), name="tiny")
    removed = shortgpt.evaluate(blocks, [1], **LITTLE)
    with raising(type(blocks), "without", SelectionError("pinned")):
        skipped = shortgpt.evaluate(blocks, [1], **LITTLE)
    assert (removed.models[1].skipped, skipped.models[1].skipped) == (False, True)
    for one, other in zip(removed.tasks, skipped.tasks, strict=True):
        assert one.columns[1].scores == pytest.approx(other.columns[1].scores, rel=1e-6)


def test_more_items_begin_with_the_fewer_ones_and_another_seed_takes_others(blocks: Any) -> None:
    few = shortgpt.evaluate(blocks, **LITTLE)
    more = shortgpt.evaluate(blocks, **LITTLE | {"items": 9})
    other = shortgpt.evaluate(blocks, **LITTLE | {"seed": 1})
    for a, b, c in zip(few.tasks, more.tasks, other.tasks, strict=True):
        assert b.items[:5] == a.items != c.items
        assert b.columns[0].scores[:5] == pytest.approx(a.columns[0].scores, rel=1e-5)


def test_a_task_that_cannot_be_made_is_a_row_that_says_why_and_the_others_run(blocks: Any) -> None:
    found = shortgpt.evaluate(blocks, **LITTLE | {"text": ("too short",), "tasks": ("cloze", "copy")})
    assert [row.task for row in found.tasks] == ["cloze", "copy"]
    ((what, why),) = found.failures()
    assert what == "cloze"
    assert "too short" in why
    assert found.score(found.task("copy")) is not None


def test_a_model_that_fails_is_a_column_that_says_why(blocks: Any) -> None:
    found = shortgpt.evaluate([blocks, "nowhere/at/all"], **LITTLE)
    assert found.score(found.tasks[0], 0) is not None
    assert found.score(found.tasks[0], 1) is None
    assert found.models[1].error is not None
    assert found.failures() == (("nowhere/at/all", found.models[1].error),)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tasks": ["cloz"]}, UnknownNameError, "unknown task 'cloz'. Did you mean 'cloze'"),
        ({"items": 0}, CalibrationError, "items must be at least 1, found 0"),
        ({"shots": -1}, CalibrationError, "shots must be at least 0"),
        ({"removed": [9]}, SelectionError, "blocks 9 do not exist"),
        ({"removed": [[1], [1]]}, ModelError, "tiny without 1 stands there twice"),
        ({"require": ["cloze>0.5z"]}, RequirementError, "is no requirement"),
        ({"require": ["copy>=0.5"]}, RequirementError, "'copy', which is not run"),
        ({"require": ["cloze>=0.9x"]}, RequirementError, "name a second model"),
        ({"until_settled": True}, RequirementError, "until what is settled"),
    ],
)
def test_what_makes_no_sense_is_refused(
    options: dict[str, Any], error: type[Exception], message: str, blocks: Any
) -> None:
    with pytest.raises(error, match=message):
        shortgpt.evaluate(blocks, **LITTLE | options)


def test_no_model_at_all_is_refused() -> None:
    with pytest.raises(ModelError, match="no model to evaluate"):
        shortgpt.evaluate([], **LITTLE)


# -- tasks of plugins -----------------------------------------------------------------------------------------

SUITE = """
from shortgpt import Extension, hookimpl
from shortgpt.errors import TaskDataError
from shortgpt.measuring.tasks.task import Task, TaskSuite
from shortgpt.values.evaluation.outcomes import Outcome

class Sides(Task):
    name, version, metric = "coin/sides", "3", "accuracy"
    chance = 0.5
    def __len__(self):
        return 10
    def outcomes(self, model, items):
        return [Outcome(float(item % 2), 1.0, (str(item % 2),), (item % 2 == 1,)) for item in items]

class Coins(TaskSuite):
    def refuse(self):
        return None
    def names(self, options):
        return ("coin", "lost")
    def knows(self, name, options):
        return name in self.names(options)
    def find(self, name, options):
        if name == "lost":
            raise TaskDataError("lost: its data is gone")
        return (Sides(),)

@hookimpl
def shortgpt_task_suites():
    return [Extension("coins", f"{__name__}:Coins")]
"""


def test_a_suite_is_asked_for_what_is_no_single_task(blocks: Any, plug: Callable[[str, str], str]) -> None:
    plug("coins", SUITE)
    found = shortgpt.evaluate(blocks, **LITTLE | {"tasks": ("coin", "lost"), "items": None})
    assert [row.task for row in found.tasks] == ["coin/sides", "lost"]
    assert found.score(found.tasks[0]) == pytest.approx((0.5, (0.25 / 9) ** 0.5))
    assert sorted(found.tasks[0].items) == list(range(10)), "all of them, where nobody says how many"
    assert found.is_at_chance(found.tasks[0])
    assert found.failures() == (("lost", "lost: its data is gone"),)


# -- resuming -------------------------------------------------------------------------------------------------


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Items are asked four at a time."""
    monkeypatch.setattr(running, "CHUNK", 4)
    monkeypatch.setattr(measuring, "CHUNK", 4)


@pytest.mark.usefixtures("small_chunks")
def test_a_run_that_was_interrupted_goes_on_where_it_stopped(blocks: Any, tmp_path: Path) -> None:
    options = LITTLE | {"tasks": ("cloze",)}
    whole = shortgpt.evaluate(blocks, [1], **options)
    with (
        raising(LanguageModel, "likelihoods", KeyboardInterrupt(), after=3),
        pytest.raises(KeyboardInterrupt),
    ):
        shortgpt.evaluate(blocks, [1], **options, resume=tmp_path / "run")
    file = tmp_path / "run" / "journal.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines, lines[-1][:30]]))  # a line that was cut off while it was written
    asked: list[int] = []
    likelihoods = LanguageModel.likelihoods

    def counting(lm: LanguageModel, requests: Sequence[Any], progress: Any = None) -> Any:
        asked.append(len(requests))
        return likelihoods(lm, requests, progress)

    LanguageModel.likelihoods = counting  # type: ignore[method-assign]
    try:
        resumed = shortgpt.evaluate(blocks, [1], **options, resume=tmp_path / "run")
        assert resumed == whole
        assert len(asked) == 1, "the last chunk of the cloze"
        asked.clear()
        assert shortgpt.evaluate(blocks, [1], **options, resume=tmp_path / "run") == whole
        assert asked == []
    finally:
        LanguageModel.likelihoods = likelihoods  # type: ignore[method-assign]


def test_what_was_measured_of_something_else_is_refused(blocks: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shortgpt.evaluate(blocks, **LITTLE, resume=folder)
    before = (folder / "journal.jsonl").read_bytes()

    def refused(message: str, model: Any = blocks, **options: Any) -> None:
        with pytest.raises(ResumeError, match=message):
            shortgpt.evaluate(model, **LITTLE | options, resume=folder)

    refused("asked for: seed was 0, now it is 1", seed=1)
    refused("asked for: batch_size was null, now it is 2", batch_size=2)
    refused("asked for: tasks copy was null", tasks=("cloze", "perplexity", "copy"))
    refused("text_hash was", text=(TEXTS[1], TEXTS[0], *TEXTS[2:]))
    other = shortgpt.wrap(tiny("llama", blocks=5), tokenizer=byte_tokenizer(), name="tiny")
    refused("another model 'tiny': blocks was 4, now it is 5", other)
    changed = tiny("llama", blocks=4)
    changed.lm_head.weight.data += 0.1
    refused("another model 'tiny': its logits", shortgpt.wrap(changed, tokenizer=byte_tokenizer(), name="tiny"))
    assert (folder / "journal.jsonl").read_bytes() == before
    (folder / "journal.jsonl").write_text('{"some": "thing"}\n{"task": 1}\n')
    refused("line 1: damaged")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="this is a file"):
        shortgpt.evaluate(blocks, **LITTLE, resume=tmp_path / "file")


# -- until it is settled --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_chunks")
def test_items_are_taken_until_the_requirement_is_settled_or_they_end(
    blocks: Any, tmp_path: Path, plug: Callable[[str, str], str]
) -> None:
    plug("coins", SUITE.replace("return 10", "return 400").replace("    chance", "    default_items = 4\n    chance"))
    options = LITTLE | {"items": None, "tasks": ("perplexity",), "require": ["perplexity-ratio<=100"]}
    few = {**options, "items": 5}
    fixed = shortgpt.evaluate(blocks, [1, 2], **few)
    assert fixed.verdicts[0].state == "not settled", "5 items are too few to say"
    blocks.save(tmp_path / "same")
    never = shortgpt.evaluate(
        [blocks, tmp_path / "same"], **options | {"tasks": ("cloze",), "require": ["cloze>=1x"]}, until_settled=True
    )
    assert (never.verdicts[0].state, never.verdicts[0].value) == ("not settled", 1.0)
    assert never.verdicts[0].items == never.tasks[0].available, "the source ended"
    settled = shortgpt.evaluate(
        blocks, [1], **options | {"tasks": ("coin",), "require": ["coin/sides<=0.9"]}, until_settled=True
    )
    assert settled.verdicts[0].state == "holds"
    assert settled.verdicts[0].items < settled.tasks[0].available, "and no more than that took"


def test_a_result_says_how_it_came_about(blocks: Any) -> None:
    found = shortgpt.evaluate(blocks, **LITTLE)
    told = json.loads(found.to_json())
    assert told["schema"] == "shortgpt/evaluation/1"
    assert set(told["settings"]) == {"text", "chat_template", "shortgpt", "torch", "transformers"}
    assert {"architecture", "dtype", "window", "batch_size", "tokenizer_hash"} <= set(told["models"][0])
