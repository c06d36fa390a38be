"""The tables of docs/searching.md, from the files of results/."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

BEGIN, END = "<!-- tables: examples/search/tables.py writes what follows -->", "<!-- end of the tables -->"
MODELS = ("llama", "mistral", "gpt2", "gpt2-postnorm", "baichuan", "rwkv", "mamba")
SEARCHES = ("pairs, perplexity", "pairs, kl", "beam, perplexity", "beam, kl")
GOAL = 0.02


def write_page(page: Path, results: Path) -> None:
    """Put the tables between the page's marks; all else of it stays as it is."""
    head, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    page.write_text(f"{head}{BEGIN}\n\n{tables(results)}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def tables(results: Path) -> str:
    """All tables, as Markdown."""
    files = [results / f"{name}.json" for name in MODELS]
    found = [json.loads(file.read_text()) for file in files if file.exists()]
    columns = ("model", "removed", "whole", "best set", "its value", "BI", "contiguous", *SEARCHES)
    parts = [
        "## Regret by model\n",
        *_table(columns, _by_model(found)),
        *(f"- {line}" for line in _goals(found)),
        "\n## Regret of every rule\n",
        *_table(("rule", *_titles(found), "mean", "worst"), _by_rule(found)),
        "\n## What a rule takes\n",
        *_table(("rule", "sets measured", "passes of the whole model", "calls of the model"), _spent(found)),
        "\n## How much text an objective needs\n",
        *_table(("sequences to choose on", *map(str, _sizes(found))), _certainty(found)),
        "To tell two pairs of blocks apart as surely, perplexity needs so many times the text that KL needs (the "
        f"median over all twos of pairs): {_tokens(found)}.\n",
    ]
    texts = {(one["choosing"]["sequences"], one["choosing"]["tokens"]) for one in found}
    if len(texts) > 1:
        parts.append(f"Text: {_texts(found)}.\n")
    if any("compensated" in one for one in found):
        rules = ("block-influence", "contiguous", "pairs, kl", "optimum")
        parts += ["\n## Compensated\n", *_table(("model", "removed", *rules), _compensated(found, rules))]
    return "\n".join(parts)


def _table(columns: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def _cases(found: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    return ((one, case) for one in found for case in one["cases"])


def _rule(case: dict[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in case["rules"] if row["rule"] == name)


def _by_model(found: list[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    for one, case in _cases(found):
        best = case["optimum"]
        cells = (_rule(case, name) for name in ("block-influence", "contiguous", *SEARCHES))
        yield (
            one["model"],
            f"{case['blocks']} of {one['depth']}",
            f"{one['whole']:.3f}",
            ", ".join(map(str, best["blocks"])),
            f"{best['value']:.3f}",
            *(f"{_percent(row['regret'])} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]" for row in cells),
        )


def _goals(found: list[dict[str, Any]]) -> Iterator[str]:
    cases = [case for _, case in _cases(found)]
    for name in ("block-influence", "greedy", *SEARCHES):
        near = sum(_rule(case, name)["regret"] <= GOAL for case in cases)
        yield f"within {GOAL:.0%} of the optimum by {name}: {near} of {len(cases)} cases"


def _titles(found: list[dict[str, Any]]) -> tuple[str, ...]:
    return tuple(f"{one['model'].removeprefix('zoo:')} {case['blocks']}" for one, case in _cases(found))


def _by_rule(found: list[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    cases = [case for _, case in _cases(found)]
    rows = {row["rule"]: [_rule(case, row["rule"])["regret"] for case in cases] for row in cases[0]["rules"]}
    rows["20 random draws, mean"] = [fmean(case["random"]) for case in cases]
    rows["20 random draws, best"] = [min(case["random"]) for case in cases]
    rows["the median set"] = [case["median"] / case["optimum"]["value"] - 1 for case in cases]
    for name, regrets in sorted(rows.items(), key=lambda item: fmean(item[1])):
        yield (name, *map(_percent, regrets), _percent(fmean(regrets)), _percent(max(regrets)))


def _spent(found: list[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    cases = [case for _, case in _cases(found)]
    for row in cases[0]["rules"]:
        rows = [_rule(case, row["rule"]) for case in cases]
        if "evaluations" in row:
            sets = [one["evaluations"] for one in rows]
            told = f"{min(sets)} to {max(sets)}" if min(sets) < max(sets) else str(sets[0])
            yield row["rule"], told, f"{fmean(one['passes'] for one in rows):.0f}", ""
        else:
            yield row["rule"], "", "", f"{fmean(one['calls'] for one in rows):.0f}"


def _sizes(found: list[dict[str, Any]]) -> list[int]:
    return sorted({row["sequences"] for one in found for row in one["certainty"]["curve"]})


def _certainty(found: list[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    for objective in ("perplexity", "kl"):
        cells = []
        for size in _sizes(found):
            rows = [row for one in found for row in one["certainty"]["curve"]]
            regrets = [r["regret"] for r in rows if (r["objective"], r["sequences"]) == (objective, size)]
            cells.append(f"{100 * fmean(regrets):.2f}%")
        yield (objective, *cells)


def _texts(found: list[dict[str, Any]]) -> str:
    shapes = {one["model"]: (one["choosing"]["sequences"], one["choosing"]["tokens"]) for one in found}
    return "; ".join(f"{name} {rows} × {tokens} tokens" for name, (rows, tokens) in shapes.items())


def _tokens(found: list[dict[str, Any]]) -> str:
    ratios = {one["model"]: one["certainty"]["tokens"] for one in found}
    return "; ".join(f"{name} {ratio:.1f}" for name, ratio in ratios.items())


def _compensated(found: list[dict[str, Any]], rules: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for one in found:
        for case, row in zip(one["cases"], one.get("compensated", ()), strict=False):
            plain = {name: _rule(case, name)["regret"] for name in rules[:-1]} | {"optimum": 0.0}
            cells = (f"{_percent(plain[name])} → {_percent(row[name])}" for name in rules)
            yield (one["model"], f"{row['blocks']} of {one['depth']}", *cells)
