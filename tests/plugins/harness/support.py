"""Small tasks of lm-evaluation-harness on local files, one of each kind, and runs of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.tasks import TaskManager

TEXT = "the cat sat on a mat and looked at some birds that were far away in trees of this old garden"
WORDS = TEXT.split()

CHOICE = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{folder}/choice.jsonl", train: "{folder}/shots.jsonl"}}}}
output_type: multiple_choice
test_split: test
fewshot_split: train
doc_to_text: "{{{{question}}}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: gold
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
metadata: {{version: 3.0}}
"""
LETTER = """
task: tiny_letter
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{folder}/choice.jsonl"}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["A", "B", "C", "D"]
doc_to_target: gold
metadata: {{version: 1}}
"""
LAST = """
task: tiny_last
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{folder}/text.jsonl"}}}}
output_type: loglikelihood
test_split: test
doc_to_text: "{{{{text.split(' ')[:-1]|join(' ')}}}}"
doc_to_target: "{{{{' '+text.split(' ')[-1]}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: perplexity, aggregation: perplexity, higher_is_better: false}}
metadata: {{version: 1}}
"""
ROLLING = """
task: tiny_rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{folder}/text.jsonl"}}}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - {{metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}}
  - {{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}}
metadata: {{version: 1}}
"""
UNTIL = """
task: tiny_until
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{folder}/text.jsonl"}}}}
output_type: generate_until
test_split: test
doc_to_text: "{{{{text}}}}"
doc_to_target: "{{{{text}}}}"
generation_kwargs: {{until: ["e", "\\n"], max_gen_toks: 6, do_sample: false}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1}}
"""
KINDS = {
    "tiny_choice": CHOICE,
    "tiny_letter": LETTER,
    "tiny_last": LAST,
    "tiny_rolling": ROLLING,
    "tiny_until": UNTIL,
}


def sentence(number: int, length: int) -> str:
    """Words, another text for each number."""
    return " ".join(WORDS[(number * 7 + place * (number % 5 + 1)) % len(WORDS)] for place in range(length))


def write_tasks(folder: Path) -> Path:
    """Task files of every kind with their data; the folder is returned."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in KINDS.items():
        (folder / f"{name}.yaml").write_text(text.format(folder=folder), encoding="utf-8")
    (folder / "tiny_group.yaml").write_text(
        "group: tiny_group\ntask: [tiny_choice, tiny_last]\nmetadata: {version: 1}\n", encoding="utf-8"
    )
    for file, first in (("choice", 0), ("shots", 50)):
        rows = [
            {
                "question": sentence(number, 3 + number % 6),
                "choices": [sentence(number + place, 1 + (number + place) % 3) for place in range(4)],
                "gold": number % 4,
            }
            for number in range(first, first + 5)
        ]
        write_rows(folder / f"{file}.jsonl", rows)
    write_rows(folder / "text.jsonl", [{"text": sentence(number, 4 + 2 * number)} for number in range(4)])
    return folder


def write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def load_tasks(folder: Path, names: Iterable[str], shots: int = 0) -> dict[str, Any]:
    """The library's tasks of local files."""
    found = TaskManager(include_path=str(folder), include_defaults=False).load(list(names))
    for task in found["tasks"].values():
        task.set_config(key="num_fewshot", value=shots if task.config.fewshot_split else 0)
    return dict(found)


def run(lm: Any, tasks: Mapping[str, Any], **options: Any) -> Mapping[str, Any]:
    """The library's own run of tasks."""
    for task in tasks["tasks"].values():
        task.set_fewshot_seed(seed=1234)
    found = lm_eval.evaluate(lm, dict(tasks), bootstrap_iters=0, **options)
    assert found is not None
    return found


def answers(result: Mapping[str, Any], task: str) -> list[Any]:
    """What the model answered to each request of a task, item after item."""
    samples = sorted(result["samples"][task], key=lambda sample: sample["doc_id"])
    return [answer[0] for sample in samples for answer in sample["resps"]]
