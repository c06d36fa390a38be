"""The task files of ours, on rows in the format of the data sets that they name."""

import re
from pathlib import Path
from typing import Any

import pytest
from lm_eval.tasks import TaskManager
from shortgpt_plugins.harness.catalogue import OWN
from shortgpt_plugins.harness.tasks import rows as task_rows

from tests.plugins.harness.support import write_rows

CHID = {
    "idx": 0,
    "candidates": ["一心一意", "半途而废", "画蛇添足"],
    "content": ["他做事#idiom000001#，从不#idiom000002#。", "不要#idiom000003#。"],
    "answers": {"text": ["一心一意", "半途而废", "画蛇添足"], "candidate_id": [0, 1, 2]},
}
C3 = {
    "id": 1,
    "context": ["男：几点了？", "女：三点。"],
    "question": "现在几点？",
    "choice": ["两点", "三点"],
    "answer": "三点",
}
WSC = {
    "idx": 0,
    "text": "小明告诉小红他饿了。",
    "label": 0,
    "target": {"span1_text": "小明", "span1_index": 0, "span2_text": "他", "span2_index": 6},
}
CMNLI = {"sentence1": "他在睡觉。", "sentence2": "他醒着。", "label": 2, "idx": 0}
UNKNOWN = {"sentence1": "一", "sentence2": "二", "label": -1, "idx": 1}
RACE = {
    "example_id": "high1.txt",
    "article": "A cat sat.",
    "question": "Who sat?",
    "options": ["A dog", "A cat", "A cow", "A hen"],
    "answer": "B",
}
XSUM = {"document": "The cat sat on the mat.\nIt slept.", "summary": "A cat slept on a mat.", "id": "1"}
PG19 = {"short_book_title": "B", "publication_date": 1900, "url": "u", "text": "word " * 5000}


@pytest.fixture
def load(tmp_path: Path) -> Any:
    """Gives a task of ours whose data are local rows: a file that includes ours and names them."""

    def loaded(name: str, *rows: dict[str, Any]) -> Any:
        write_rows(tmp_path / "rows.jsonl", list(rows))
        (file,) = (file for file in OWN.glob("*.yaml") if f"task: {name}\n" in file.read_text(encoding="utf-8"))
        (split,) = re.findall(r"^(?:test|validation)_split: (\w+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
        local = f"include: {file}\ntask: local\ndataset_path: json\ndataset_name: null\n"
        data = f'dataset_kwargs: {{data_files: {{{split}: "{tmp_path}/rows.jsonl"}}}}\n'
        (tmp_path / "local.yaml").write_text(local + data, encoding="utf-8")
        return TaskManager(include_path=str(tmp_path), include_defaults=False).load(["local"])["tasks"]["local"]

    return loaded


def asked(task: Any, item: int = 0) -> tuple[str, list[str], Any]:
    """The prompt, the choices and the right one."""
    doc = task.eval_docs[item]
    return task.doc_to_text(doc), task.doc_to_choice(doc), task.doc_to_target(doc)


def test_cmnli_joins_both_sentences_by_each_relation(load: Any) -> None:
    task = load("clue_cmnli", CMNLI, UNKNOWN)
    assert len(task.eval_docs) == 1  # a label that nobody knows is left out
    assert asked(task) == (
        "",
        ["他在睡觉，也许，他醒着。", "他在睡觉，所以，他醒着。", "他在睡觉，而不是，他醒着。"],
        2,
    )


@pytest.mark.parametrize("form", ["lists", "records"])
def test_chid_has_an_item_for_each_blank(load: Any, form: str) -> None:
    answers: Any = CHID["answers"]
    records = [{"text": t, "candidate_id": i} for t, i in zip(answers["text"], answers["candidate_id"], strict=True)]
    task = load("clue_chid", CHID | {"answers": answers if form == "lists" else records})
    assert len(task.eval_docs) == 3
    assert asked(task) == ("他做事", [f"{idiom}，从不____。" for idiom in CHID["candidates"]], 0)
    assert asked(task, 1) == ("他做事____，从不", [f"{idiom}。" for idiom in CHID["candidates"]], 1)
    assert asked(task, 2)[2] == 2


def test_c3_asks_for_the_answer_behind_the_passage(load: Any) -> None:
    prompt, choices, right = asked(load("clue_c3", C3))
    assert prompt == "男：几点了？\n女：三点。\n问题：现在几点？\n答案："
    assert (choices, right) == (["两点", "三点"], 1)


def test_wsc_asks_whether_the_pronoun_means_the_noun(load: Any) -> None:
    prompt, choices, right = asked(load("clue_wsc2020", WSC, WSC | {"label": 1}))
    assert "“他”指的是“小明”吗" in prompt
    assert (choices, right) == (["是", "否"], 0)


@pytest.mark.parametrize("name", ["race_high_questions", "race_middle_questions"])
def test_race_asks_one_question(load: Any, name: str) -> None:
    prompt, choices, right = asked(load(name, RACE))
    assert prompt == "Article: A cat sat.\n\nQuestion: Who sat?\nAnswer:"
    assert (choices[right], right) == ("A cat", 1)


def test_xsum_is_judged_by_the_words_that_it_shares_with_the_summary(load: Any) -> None:
    task = load("xsum_summaries", XSUM)
    assert task.doc_to_text(task.eval_docs[0]).endswith("It slept.\nSummary of the document in one sentence:")
    assert task.process_results(XSUM, [" A cat slept on a mat."]) == {"rouge1": 1.0, "rougeL": 1.0}
    half = task.process_results(XSUM, ["mat a on slept cat a"])  # in order are at most three of six: a, cat, a
    assert half["rouge1"] == 1.0
    assert half["rougeL"] == pytest.approx(3 / 6)
    assert task.config.generation_kwargs["until"] == ["\n"]


def test_pg19_takes_the_beginning_of_each_book(load: Any) -> None:
    task = load("pg19_books", PG19)
    assert task.doc_to_target(task.eval_docs[0]) == PG19["text"][: task_rows.PAGES]
    assert set(task.aggregation()) == {"word_perplexity", "byte_perplexity", "bits_per_byte"}


def test_the_group_names_all_columns() -> None:
    config = TaskManager(include_path=str(OWN), include_defaults=False).task_index["shortgpt-paper"].cfg
    assert config is not None
    assert len(config["task"]) == 14
