"""Published numbers as data, and runs beside them."""

import math
from pathlib import Path
from typing import Any

import pytest
from shortgpt_plugins.published import shortgpt_paper

import shortgpt
from shortgpt.errors import SelectionError, UnknownNameError
from shortgpt.measuring.published import evaluation_beside, open_published, scores_beside
from shortgpt.values.evaluation.evaluation import EvaluatedModel, Evaluation
from shortgpt.values.evaluation.outcomes import Column, TaskRow
from shortgpt.values.published import Published
from tests.support import byte_tokenizer, saved, tiny

PAGE = Path(__file__).parents[2] / "docs" / "published.md"


def of(paper: Published, table: int, way: str, column: str) -> float:
    (found,) = [n.value for n in paper.numbers if (n.table, n.way, n.column) == (table, way, column)]
    return found


def test_every_model_of_the_tables_is_found_by_name() -> None:
    for name in shortgpt_paper.names():
        found = open_published(name)
        assert found.model == name
        assert found.numbers
    with pytest.raises(UnknownNameError, match=r"llama-2-7b"):
        open_published("llama-2-7")


def test_numbers_carry_their_table_and_disagreements_are_kept() -> None:
    llama = open_published("llama-2-7b")
    assert llama.removed == (27, 26, 25, 28, 24, 29, 23, 21, 22)
    assert of(llama, 2, "ShortGPT, 27.1%", "BoolQ") == 74.71
    assert of(llama, 6, "ShortGPT, 27.1%", "BoolQ") == 74.41
    assert of(llama, 1, "last block without its whole block", "perplexity") == 13.37
    assert of(llama, 8, "dense", "WinoGrande") == 69.06
    assert of(open_published("llama-2-13b"), 2, "ShortGPT, 24.6%", "MMLU") == 54.69
    told = " ".join(llama.notes)
    assert all(part in told for part in ("52.2", "54.69", "74.41", "XSum and C3", "do not follow from the cells"))


def test_averages_are_those_of_the_cells_but_where_a_note_says_otherwise() -> None:
    for table in ("table_2", "table_3"):
        for model, rows in shortgpt_paper.data()[table].items():
            for row in rows:
                mean = sum(row["scores"].values()) / len(row["scores"])
                noted = model == "mamba-2.8b" and row["ratio_percent"] in (20.3, 31.3)
                assert noted != (abs(mean - row["average"]) < 0.011), (model, row["method"], mean)


def test_the_page_is_made_from_the_data() -> None:
    assert PAGE.read_text(encoding="utf-8") == shortgpt_paper.page()


def test_the_sets_and_the_order_of_removed_blocks_are_put_beside_those_of_the_paper() -> None:
    scores = shortgpt.score(shortgpt.wrap(tiny("llama", blocks=32), tokenizer=byte_tokenizer()), ["some text of it"])
    found = scores_beside(scores, open_published("llama-2-7b"))
    least = sorted(range(32), key=lambda block: (scores.values[block], -block))[:9]
    assert list(found.removed_here) == least
    assert found.shared == tuple(sorted(set(least) & {27, 26, 25, 28, 24, 29, 23, 21, 22}))
    assert found.overlap == len(found.shared) / (18 - len(found.shared))
    by_score = sorted(found.removed, key=lambda block: scores.values[block])
    apart = sum((place - by_score.index(block)) ** 2 for place, block in enumerate(found.removed))
    assert found.rank_correlation == pytest.approx(1 - 6 * apart / (9 * (81 - 1)))


def test_a_model_of_another_depth_or_without_a_list_is_refused() -> None:
    scores = shortgpt.score(shortgpt.wrap(tiny("llama"), tokenizer=byte_tokenizer()), ["some text of it"])
    with pytest.raises(SelectionError, match="has 32 blocks, and"):
        scores_beside(scores, open_published("llama-2-7b"))
    with pytest.raises(SelectionError, match=r"lists no removed blocks of mamba-2\.8b"):
        scores_beside(scores, open_published("mamba-2.8b"))


def test_tasks_are_put_beside_the_columns_that_measure_the_like() -> None:
    columns = (Column((1.0, 0.0), (1.0, 1.0)), Column((0.0, 0.0), (1.0, 1.0)))
    rows = (TaskRow("hellaswag", "1", "accuracy", columns), TaskRow("copy", "1", "accuracy", columns))
    models = (EvaluatedModel("mine", blocks=32), EvaluatedModel("mine", (21, 22), blocks=32))
    found = evaluation_beside(Evaluation(models, rows), open_published("llama-2-7b"))
    (suite,) = [number for number in found.numbers if (number.column, number.table) == ("HellaSwag", 2)]
    assert (suite.published, suite.published_shorter, suite.task) == (71.26, 53.02, "hellaswag")
    assert (suite.here, suite.here_shorter) == (50.0, 0.0)
    assert found.removed_here == (21, 22)
    assert all(math.isnan(number.here) for number in found.numbers if number.column != "HellaSwag")


def test_the_commands_show_it(tmp_path: Path, run_cli: Any) -> None:
    folder = saved(tiny("llama", blocks=32), tmp_path / "deep")
    text = tmp_path / "text.txt"
    text.write_text("words and words of this text " * 20, encoding="utf-8")
    how = ("--calibration", text, "--sequences", 2, "--tokens", 32, "--device", "cpu")
    ran = run_cli("compare", folder, "--published", "llama-2-7b", *how)
    assert ran.status == 0
    assert "removed there: 27, 26, 25, 28, 24, 29, 23, 21, 22" in ran.out
    assert "rank correlation over the blocks of the list" in ran.out
    refused = run_cli("compare", "zoo:llama", "--published", "llama-2-7b", *how)
    assert (refused.status, refused.out) == (2, "")
    shown = run_cli(
        "evaluate", "zoo:llama", "--task", "copy", "--items", 1, "--device", "cpu", "--published", "llama-2-7b"
    )
    assert shown.status == 0
    assert "HellaSwag" in shown.out
