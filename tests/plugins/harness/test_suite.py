"""Tasks of lm-evaluation-harness as rows of an `Evaluation`, held to the library's own run."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import shortgpt_adapters
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from shortgpt_plugins.harness.__main__ import register
from shortgpt_plugins.harness.catalogue import task_manager
from transformers import AutoModelForCausalLM, AutoTokenizer

import shortgpt
from shortgpt.errors import UnknownNameError
from shortgpt.values.evaluation.outcomes import TaskRow
from tests.plugins.harness.support import load_tasks, run, write_tasks
from tests.support import Ran

ZOO = Path(shortgpt_adapters.__path__[0]) / "zoo" / "llama"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def library() -> HFLM:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(ZOO).eval(), AutoTokenizer.from_pretrained(ZOO)
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8, device="cpu")


def evaluated(folder: Path, *tasks: str, **options: Any) -> dict[str, TaskRow]:
    found = shortgpt.evaluate("zoo:llama", tasks=tasks, include_path=[folder], device="cpu", **options)
    return {row.task: row for row in found.tasks}


def score(row: Any) -> float:
    """By its definition: Σ score / Σ weight, or the exponential of it."""
    (column,) = row.columns
    assert column.error is None
    mean = sum(column.scores) / sum(column.weights)
    return math.exp(mean) if row.scale == "exp" else mean


def test_scores_are_those_of_the_librarys_own_run(folder: Path, library: HFLM) -> None:
    names = ("tiny_choice", "tiny_choice:acc", "tiny_last:perplexity", "tiny_rolling", "tiny_rolling:bits_per_byte")
    rows = evaluated(folder, *names, "tiny_until") | evaluated(folder, *names[:2], shots=2)
    tasks = load_tasks(folder, ["tiny_choice", "tiny_last", "tiny_rolling", "tiny_until"], shots=2)
    expected = run(library, tasks)["results"]
    assert score(rows["tiny_choice"]) == expected["tiny_choice"]["acc_norm,none"]
    assert score(rows["tiny_choice:acc"]) == expected["tiny_choice"]["acc,none"]
    assert score(rows["tiny_last:perplexity"]) == pytest.approx(expected["tiny_last"]["perplexity,none"], rel=1e-5)
    assert score(rows["tiny_rolling"]) == pytest.approx(expected["tiny_rolling"]["word_perplexity,none"], rel=1e-5)
    found = score(rows["tiny_rolling:bits_per_byte"])
    assert found == pytest.approx(expected["tiny_rolling"]["bits_per_byte,none"], rel=1e-5)
    assert score(rows["tiny_until"]) == expected["tiny_until"]["exact_match,none"]


def test_what_moves_a_result_is_recorded_with_it(folder: Path) -> None:
    row = evaluated(folder, "tiny_choice", shots=1, items=2)["tiny_choice"]
    assert (row.version, row.available, len(row.items), row.chance, row.kind) == ("3.0", 5, 2, 0.25, "skill")
    assert row.settings["shots"] == 1
    assert row.settings["metric"] == "acc_norm"
    assert {"lm_eval", "datasets", "few_shot_seed", "chat_template", "split"} <= set(row.settings)
    assert evaluated(folder, "tiny_rolling")["tiny_rolling"].kind == "fit"


def test_an_item_comes_out_alike_whatever_others_are_asked_with_it(folder: Path) -> None:
    few, all_of_them = (evaluated(folder, "tiny_choice", shots=2, items=n)["tiny_choice"] for n in (2, 5))
    whole = dict(zip(all_of_them.items, all_of_them.columns[0].answers, strict=True))
    assert [whole[item] for item in few.items] == list(few.columns[0].answers)
    manager = task_manager("tiny_choice", [folder])
    assert manager is not None
    (task,) = manager.load("tiny_choice")["tasks"].values()
    choices = {item: {choice for doc in [task.eval_docs[item]] for choice in doc["choices"]} for item in range(5)}
    assert all(answer[0] in choices[item] for item, answer in whole.items())


def test_a_group_is_a_row_for_each_member_or_one_where_it_is_averaged(folder: Path, library: HFLM) -> None:
    averaged = "group: tiny_mean\ntask: [tiny_choice, tiny_letter]\nmetadata: {version: 1}\n"
    metrics = "aggregate_metric_list: [{metric: acc, weight_by_size: false}]\n"
    (folder / "tiny_mean.yaml").write_text(averaged + metrics, encoding="utf-8")
    rows = evaluated(folder, "tiny_group", "tiny_mean:acc")
    assert list(rows) == ["tiny_choice", "tiny_last", "tiny_mean:acc"]
    expected = run(library, load_tasks(folder, ["tiny_mean"]))["groups"]["tiny_mean"]["acc,none"]
    assert score(rows["tiny_mean:acc"]) == pytest.approx(expected)


def test_a_task_whose_data_cannot_be_had_is_told_and_the_others_go_on(folder: Path, run_cli: Any) -> None:
    broken = (folder / "tiny_letter.yaml").read_text(encoding="utf-8").replace("choice.jsonl", "gone.jsonl")
    (folder / "tiny_gone.yaml").write_text(broken.replace("tiny_letter", "tiny_gone"), encoding="utf-8")
    ran: Ran = run_cli(
        *("evaluate", "zoo:llama", "--device", "cpu", "--include-path", folder, "--format", "csv"),
        *("--task", "tiny_gone", "--task", "tiny_last"),
    )
    assert ran.status == 2
    assert "tiny_last" in ran.out
    assert ran.err.count("\n") <= 2
    assert "tiny_gone: its data cannot be had" in ran.err


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("tiny_choise", "Did you mean 'tiny_choice'"),
        ("hellaswagg", "Did you mean 'hellaswag'"),
    ],
)
def test_an_unknown_name_is_told_with_those_that_are_close(folder: Path, name: str, told: str) -> None:
    with pytest.raises(UnknownNameError, match=told):
        evaluated(folder, name)


def test_a_metric_of_the_whole_set_or_of_no_task_is_refused_by_name(folder: Path) -> None:
    matthews = "  - {metric: mcc, aggregation: matthews_corrcoef, higher_is_better: true}\nmetadata:"
    text = (folder / "tiny_choice.yaml").read_text(encoding="utf-8").replace("metadata:", matthews)
    (folder / "tiny_mcc.yaml").write_text(text.replace("tiny_choice", "tiny_mcc"), encoding="utf-8")
    rows = evaluated(folder, "tiny_mcc:mcc", "tiny_choice:nothing", "tiny_last", items=1)
    assert "mcc is of all answers together" in str(rows["tiny_mcc:mcc"].error)
    assert "those that serve are: acc, acc_norm" in str(rows["tiny_choice:nothing"].error)
    assert rows["tiny_last"].error is None


def test_a_task_whose_own_code_fails_is_told(folder: Path) -> None:
    text = (folder / "tiny_last.yaml").read_text(encoding="utf-8").replace("tiny_last", "tiny_failing")
    (folder / "tiny_failing.yaml").write_text(f"{text}process_results: !function code.results\n", encoding="utf-8")
    (folder / "code.py").write_text("def results(doc, answers):\n    return 1 / 0\n", encoding="utf-8")
    row = evaluated(folder, "tiny_failing")["tiny_failing"]
    assert row.columns[0].error == "ZeroDivisionError: division by zero"


def test_sampled_text_is_refused(folder: Path) -> None:
    text = (folder / "tiny_until.yaml").read_text(encoding="utf-8").replace("do_sample: false", "do_sample: true")
    (folder / "tiny_sampled.yaml").write_text(text.replace("tiny_until", "tiny_sampled"), encoding="utf-8")
    assert "asks for sampled text" in str(evaluated(folder, "tiny_sampled")["tiny_sampled"].columns[0].error)


def test_the_library_is_imported_only_for_its_own_tasks() -> None:
    code = (
        "import sys, shortgpt; shortgpt.evaluate('zoo:llama', tasks=['copy'], items=1, device='cpu');"
        "print([name for name in ('lm_eval', 'datasets', 'evaluate') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_the_library_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "lm_eval" else there(name, *a))
    with pytest.raises(UnknownNameError, match=r"shortgpt-blocks\[eval\]"):
        shortgpt.evaluate("zoo:llama", tasks=["hellaswag"], device="cpu")


def test_the_library_itself_knows_the_model_by_name(folder: Path) -> None:
    register()
    found = lm_eval.simple_evaluate(
        model="shortgpt",
        model_args="pretrained=zoo:llama,remove=4-5",
        tasks=["tiny_last"],
        batch_size=4,
        device="cpu",
        bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
    )
    removed = shortgpt.evaluate(
        "zoo:llama", [4, 5], tasks=["tiny_last:perplexity"], include_path=[folder], device="cpu", batch_size=4
    )
    scores = removed.tasks[0].columns[1].scores
    expected = math.exp(sum(scores) / len(scores))
    assert found["results"]["tiny_last"]["perplexity,none"] == pytest.approx(expected, rel=1e-6)
    assert found["config"]["model_architecture"] == "llama"
    assert (found["config"]["model_window"], found["config"]["model_batch_size"]) == (256, 4)
