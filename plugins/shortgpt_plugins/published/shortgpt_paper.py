"""The tables of *ShortGPT: Layers in Large Language Models are More Redundant Than You Expect* (arXiv:2403.03853),
typed from its text.

`python -m shortgpt_plugins.published.shortgpt_paper docs/published.md` writes them as a page.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from shortgpt.values.published import Published, PublishedNumber

DATA = Path(__file__).parent / "shortgpt_2403.03853.json"
BLOCKS = {"llama-2-7b": 32, "llama-2-13b": 40, "baichuan2-7b": 32, "baichuan2-13b": 40}
"""Of the models whose removed blocks are listed (Table 9)."""
SUITES = ("table_2", "table_3")
SMALL_SUITES = ("table_7", "table_8")
NO_COLUMN = frozenset({"method", "way", "ratio_percent", "scores", "blocks"})
TASKS = {
    "CMNLI": ("clue_cmnli",),
    "HellaSwag": ("hellaswag",),
    "PIQA": ("piqa",),
    "CHID": ("clue_chid",),
    "WSC": ("clue_wsc2020", "wsc"),
    "CommonSenseQA": ("commonsense_qa",),
    "BoolQ": ("boolq",),
    "RACE-High": ("race_high_questions", "race"),
    "RACE-Middle": ("race_middle_questions",),
    "XSum": ("xsum_summaries",),
    "C3": ("clue_c3",),
    "MMLU": ("mmlu",),
    "CMMLU": ("cmmlu",),
    "WinoGrande": ("winogrande",),
    "ARC-e": ("arc_easy",),
    "ARC-c": ("arc_challenge",),
    "OBQA": ("openbookqa",),
    "perplexity": ("pg19_books",),
}
"""Columns of the tables, and the tasks here that measure the like."""
SUITE_NOTE = (
    "the paper's suite is another one (LaCo's settings), with other prompts and metrics: compare what is kept of the "
    "whole model's score, not the scores"
)


@cache
def data() -> Mapping[str, Any]:
    """All tables as typed."""
    found: Mapping[str, Any] = json.loads(DATA.read_text(encoding="utf-8"))
    return found


def llama_2_7b() -> Published:
    return published("llama-2-7b")


def llama_2_13b() -> Published:
    return published("llama-2-13b")


def llama_2_70b() -> Published:
    return published("llama-2-70b")


def llama_7b() -> Published:
    return published("llama-7b")


def llama_13b() -> Published:
    return published("llama-13b")


def baichuan2_7b() -> Published:
    return published("baichuan2-7b")


def baichuan2_13b() -> Published:
    return published("baichuan2-13b")


def mamba_2_8b() -> Published:
    return published("mamba-2.8b")


def rwkv_v5_7b() -> Published:
    return published("rwkv-v5-7b")


def published(model: str) -> Published:
    """All that the paper says of one model."""
    tables = data()
    removed = tuple(tables["table_9"].get(model, ()))
    return Published(
        model=model,
        source=tables["source"],
        blocks=BLOCKS.get(model),
        removed=removed,
        removed_table=9 if removed else None,
        numbers=tuple(_numbers(model)),
        tasks=TASKS,
        notes=(SUITE_NOTE, *tables["disagreements"]),
    )


def _numbers(model: str) -> Iterator[PublishedNumber]:
    tables = data()
    if tables["table_1"]["model"] == model:
        yield PublishedNumber(1, "dense", "perplexity", tables["table_1"]["none"])
        for part in ("whole block", "attention", "mlp"):
            yield PublishedNumber(1, f"last block without its {part}", "perplexity", tables["table_1"][part])
    for name in (*SUITES, *SMALL_SUITES):
        yield from _of_rows(int(name.removeprefix("table_")), tables[name].get(model, ()))
    for name in ("table_4", "table_5", "table_6"):
        if tables[name]["model"].startswith(f"{model},") or tables[name]["model"] == model:
            yield from _of_rows(int(name.removeprefix("table_")), tables[name]["rows"])


def _of_rows(table: int, rows: list[Mapping[str, Any]]) -> Iterator[PublishedNumber]:
    ours = [row["ratio_percent"] for row in rows if row.get("method") == "ShortGPT"]
    for row in rows:
        way = str(row.get("method") or row.get("way") or "ShortGPT, 4-bit")
        ratio = row.get("ratio_percent")
        shortened = table in (2, 3, 7, 8) and way == "ShortGPT" and ratio == max(ours)
        label = way if way == "dense" or ratio is None else f"{way}, {ratio:g}%"
        for column, value in {**row, **row.get("scores", {})}.items():
            if column not in NO_COLUMN and value is not None:
                yield PublishedNumber(table, label, column, float(value), shortened)


# -- the page -------------------------------------------------------------------------------------------------


def page() -> str:
    """All of it in Markdown."""
    tables = data()
    parts = [
        "<!-- Made from the data by `python -m shortgpt_plugins.published.shortgpt_paper docs/published.md`. -->",
        "# Published numbers",
        f"What {tables['source']} prints, as `--published NAME` of `shortgpt compare` and `shortgpt evaluate` puts it "
        f"beside a run: {tables['note']}. Shares are in percent.",
        "## Removed blocks (Table 9)",
        _grid(
            ("model", "blocks", "removed, the least influential first"),
            [(name, BLOCKS[name], ", ".join(map(str, blocks))) for name, blocks in tables["table_9"].items()],
        ),
    ]
    for model in names():
        numbers = published(model).numbers
        for table in sorted({number.table for number in numbers}):
            here = [number for number in numbers if number.table == table]
            columns = list(dict.fromkeys(number.column for number in here))
            values = {(number.way, number.column): number.value for number in here}
            rows = [
                (way, *(_printed(values.get((way, column))) for column in columns))
                for way in dict.fromkeys(number.way for number in here)
            ]
            parts += [f"## {model} (Table {table})", _grid(("", *columns), rows)]
    parts += ["## Where the paper disagrees with itself", "\n".join(f"- {note}" for note in tables["disagreements"])]
    return "\n\n".join(parts) + "\n"


def names() -> tuple[str, ...]:
    """The models of which anything is printed."""
    tables = data()
    found = [name for table in (*SUITES, *SMALL_SUITES, "table_9") for name in tables[table]]
    return tuple(dict.fromkeys(found))


def _printed(value: float | None) -> str:
    return "" if value is None else f"{value:,.2f}"


def _grid(columns: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> str:
    lines = [columns, ("---",) * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
