"""What the task files beside this one call: rows of public data sets as questions, texts and scores.

lm-evaluation-harness imports this file by its path (`!function rows.NAME`).
"""

from __future__ import annotations

import re
from typing import Any

from datasets import Dataset

PAGES = 16_384
"""Characters of each book of PG-19."""
AFTER = 64
"""Characters behind an idiom's blank that are judged with it."""
BLANK = re.compile(r"#idiom\d+#")
OTHER_BLANK = "____"


def labelled(docs: Dataset) -> Dataset:
    """The rows whose label is known; that of a hidden test set is -1, and a few of CMNLI's have none either."""
    return docs.filter(lambda row: row["label"] >= 0)


def cmnli_sentences(row: dict[str, Any]) -> list[str]:
    """Both sentences joined by each relation, in the order of the labels: neutral, entailment, contradiction."""
    first, second = row["sentence1"].rstrip("。.！!，,"), row["sentence2"]
    return [f"{first}，{relation}，{second}" for relation in ("也许", "所以", "而不是")]


def chid_blanks(docs: Dataset) -> Dataset:
    """A row for each blank: the passage before it, and each idiom with what comes behind it."""
    return Dataset.from_list([blank for row in docs for blank in _blanks(row)])


def _blanks(row: dict[str, Any]) -> list[dict[str, Any]]:
    answers = row["answers"]
    if isinstance(answers, dict):
        right = list(answers["candidate_id"])
    else:  # the same as a list of records, as some readers give it
        right = [answer["candidate_id"] for answer in answers]
    found: list[dict[str, Any]] = []
    labels = iter(right)
    for passage in row["content"]:
        for place in BLANK.finditer(passage):
            before, after = BLANK.sub(OTHER_BLANK, passage[: place.start()]), passage[place.end() :]
            after = BLANK.sub(OTHER_BLANK, after)[:AFTER]
            endings = [idiom + after for idiom in row["candidates"]]
            found.append({"before": before, "endings": endings, "label": int(next(labels)), "idx": row["idx"]})
    return found


def c3_questions(docs: Dataset) -> Dataset:
    """The passage in one piece, and which choice is the answer."""

    def question(row: dict[str, Any]) -> dict[str, Any]:
        label = row["choice"].index(row["answer"]) if row["answer"] in row["choice"] else -1
        return {"passage": "\n".join(row["context"]), "label": label}

    return labelled(docs.map(question))


def race_questions(docs: Dataset) -> Dataset:
    """Which of the options is the answer, of a row a question."""
    return docs.map(lambda row: {"label": "ABCD".index(row["answer"])})


def first_pages(docs: Dataset) -> Dataset:
    """The beginning of each book: whole ones have some 400,000 characters."""
    return docs.map(lambda row: {"text": row["text"][:PAGES]})


def rouge(row: dict[str, Any], results: list[str]) -> dict[str, float]:
    """ROUGE-1 and ROUGE-L (F1) of one summary against the one that came with the document: Lin 2004."""
    from rouge_score.rouge_scorer import RougeScorer

    scores = RougeScorer(["rouge1", "rougeL"], use_stemmer=True).score(row["summary"], results[0].strip())
    return {name: score.fmeasure for name, score in scores.items()}
