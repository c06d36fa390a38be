"""The model card of a shorter checkpoint: its README.md, with the front matter that the hub reads."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shortgpt.basics.block_lists import format_blocks
from shortgpt.reports.cells import too_few_documents
from shortgpt.reports.effect import choice_texts, continuation_lines, effect_rows, reasons
from shortgpt.values.choosing.choice import CONTIGUOUS, LEAST
from shortgpt.values.choosing.search import PERPLEXITY

if TYPE_CHECKING:
    from shortgpt.values.effect import Effect
    from shortgpt.values.plan import Plan
    from shortgpt.values.scores import Scores

CARRIED = (
    *("license", "license_name", "license_link", "language", "library_name", "pipeline_tag", "base_model"),
    *("base_model_relation", "datasets", "tags"),
)
"""Fields of a card's front matter, in their order here, that are as true of a shorter model. Results of the whole model
(`model-index`, `metrics`), its size, and what the hub asks before it gives the files are not."""

TAGS = ("shortgpt", "depth-pruning")
MAX_CARD = 1_000_000  # bytes of a source's card that are read
MAX_LINE = 500  # characters of a value that is carried
MAX_ITEMS = 200


def model_card(plan: Plan, source: Mapping[str, Any] | None = None) -> str:
    """The README.md of a shorter checkpoint, with the front matter that the hub reads.

    Args:
        source: the front matter of the source's card, as `source_metadata` gives it.
    """
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCardData(**_metadata(plan, source or {}))
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_body(plan)}"))


def source_metadata(card: Path) -> dict[str, Any]:
    """What the front matter of a model's card says that is true of a shorter one too: licence, language, ...

    Raises:
        ValueError: it cannot be read; the message says why.
    """
    from huggingface_hub import ModelCard
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    if not card.is_file():
        return {}
    if card.stat().st_size > MAX_CARD:
        raise ValueError(f"it is larger than {MAX_CARD:,} bytes")
    text = card.read_text(encoding="utf-8-sig", errors="replace")
    if not REGEX_YAML_BLOCK.search(text):
        return {}
    try:
        metadata = ModelCard(text, ignore_metadata_errors=True).data.to_dict()
    except Exception as error:  # YAML has errors of its own, and what it holds can break the library in any way
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"its front matter is damaged ({reason[:200]})") from None
    if metadata.get("language") is False:
        metadata["language"] = "no"  # Norwegian, which YAML takes for a truth value
    return {field: value for field in CARRIED if (value := _text(metadata.get(field))) is not None}


def _text(value: Any) -> str | list[str] | None:
    """A text of one line, or some of them; None for anything else."""
    if isinstance(value, list):
        texts = [text for item in value[:MAX_ITEMS] if isinstance(text := _text(item), str)]
        return texts or None
    is_text = isinstance(value, str) and value.isprintable() and 0 < len(value) <= MAX_LINE
    return value if is_text else None


def _metadata(plan: Plan, source: Mapping[str, Any]) -> dict[str, Any]:
    """The source's, but that it is the base model where the hub has it; results of the whole model are not among it."""
    data = dict(source)
    if _is_hub_id(plan.model):
        data["base_model"] = plan.model
        data.pop("base_model_relation", None)
    tags = data.get("tags") or []
    data["tags"] = list(dict.fromkeys([*([tags] if isinstance(tags, str) else tags), *TAGS]))
    return {field: data[field] for field in CARRIED if field in data}


def _body(plan: Plan) -> str:
    kept = plan.depth - len(plan.blocks)
    lines = [
        f"# {prose(Path(plan.model).name)}, {kept} of {plan.depth} blocks",
        "",
        f"Made from {code(plan.model)} (architecture {code(plan.architecture)}) by shortgpt {prose(plan.version)}: "
        f"the blocks {format_blocks(plan.blocks)} were removed (numbered from 0), {_afterwards(plan)}.",
    ]
    if plan.parameters_before and plan.parameters_after:
        share = 1 - plan.parameters_after / plan.parameters_before
        lines += ["", f"Parameters: {plan.parameters_after:,} of {plan.parameters_before:,} ({share:.1%} removed)."]
    if plan.scores is not None:
        lines += ["", "## Scores", "", *_scores(plan, plan.scores)]
    if plan.compensation is not None:
        lines += ["", "## Compensation", "", *(f"- {prose(str(run))}" for run in plan.compensation.runs)]
    if plan.healing is not None:
        lines += ["", "## Training", "", *(f"- {prose(line)}" for line in str(plan.healing).splitlines())]
    if plan.effect is not None:
        lines += ["", "## Effect", "", *_effect(plan.effect)]
    verification = str(plan.verification or "not verified: it was not asked for")
    lines += ["", "## Verification", "", _sentence(verification)]
    if plan.notes:
        lines += ["", "## Notes", "", *(f"- {prose(note)}" for note in plan.notes)]
    if plan.load:
        lines += ["", "## Loading", "", *_fenced(plan.load.splitlines(), "python", "```")]
    if plan.base is not None:
        base = plan.base
        lines += [
            "",
            f"The base model is {code(base.model)} ({base.depth} blocks) without {format_blocks(base.blocks)}.",
        ]
    lines += [
        "",
        "`shortgpt.json` holds all that is needed to do it again: `shortgpt prune MODEL --plan shortgpt.json`.",
        "",
    ]
    return "\n".join(lines)


def _afterwards(plan: Plan) -> str:
    """What was done to the weights that stayed."""
    done = []
    if plan.compensation is not None and plan.compensation.kept:
        done.append("linear maps that make up for it were multiplied into weights that stay")
    if plan.healing is None:
        return " and ".join([*done, "nothing was trained afterwards"])
    return " and ".join([*done, "what is left was trained afterwards"])


def _scores(plan: Plan, scores: Scores) -> list[str]:
    info = scores.calibration
    lines = [
        f"Criterion: {prose(scores.criteria[0])}, {_rule(plan)}; a block's Block Influence is "
        "1 − E cos(x_i, x_{i+1}) (ShortGPT, arXiv:2403.03853, Eq. 1).",
        f"Calibration: {prose(info.source)}, {info.sequences} sequences of up to {info.tokens} tokens"
        + ("" if info.seed is None else f", seed {info.seed}")
        + f"; SHA-256 of the tokens {info.token_hash[:16]}…",
        "",
        "| block | score | standard error | |",
        "|---|---|---|---|",
    ]
    rows = zip(scores.block_names, scores.values, scores.stderr, strict=True)
    for index, (name, value, error) in enumerate(rows):
        mark = "removed" if index in plan.blocks else "kept" if index in scores.pinned else ""
        lines.append(f"| {_cell(name)} | {value:.6f} | {'-' if error != error else f'{error:.6f}'} | {mark} |")
    if doubt := too_few_documents(info, scores.unit):
        lines += ["", _sentence(doubt)]
    if plan.choice is not None:
        lines += ["", *(f"- {prose(line)}" for line in choice_texts(plan.choice))]
    return lines


def _rule(plan: Plan) -> str:
    """By what rule the blocks go, for a sentence."""
    rule = plan.choice.rule if plan.choice else LEAST
    if rule == CONTIGUOUS:
        return (
            "taken between the ends of runs of blocks, and the run of least score removed (Gromov et al., "
            "arXiv:2403.17887)"
        )
    search = plan.scores.search if plan.scores else None
    if search is not None:
        by = "perplexity" if search.objective == PERPLEXITY else "divergence from the whole model"
        return (
            f"which chose nothing here: of {search.measured:,} sets that a search measured ({search.method}) the best "
            f"one by {by} was removed"
        )
    limit = plan.choice.limit if plan.choice else None
    most = "" if limit is None else f", as many as keep held-out perplexity within {limit:g} times the original's"
    return f"the lowest removed first{most}"


def _effect(effect: Effect) -> list[str]:
    """Before and after, as a table, then the model's own words."""
    rows = [[_cell(cell) for cell in row] for row in effect_rows(effect)]
    words = continuation_lines(effect)
    lines = []
    if rows:
        lines += ["| | before | after | | |", "|---|---|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows), ""]
    if words:
        lines += ["Greedy continuation of held-out text:", "", *_fenced(words, "text", "~~~~"), ""]
    lines += [line for reason in reasons(effect) for line in (_sentence(reason), "")]
    return lines[:-1]


def _is_hub_id(name: str) -> bool:
    """Whether a name can be a hub repository's, which is all that the hub takes for a base model."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not Path(name).exists()


def _sentence(text: str) -> str:
    return prose(text[:1].upper() + text[1:] + ".")


# -- text that may come from anywhere: names of models and files, errors of libraries ----------------------------


def prose(text: str) -> str:
    """A text as a part of a line of Markdown, with its code spans and nothing else that Markdown or HTML acts upon."""
    line = " ".join(text.split())
    parts = re.split(r"((?<!`)(`+)(?!`).+?(?<!`)\2(?!`))", line)  # text, span, its mark, text, span, its mark, ...
    spans = {place + 1: part for place, part in enumerate(parts[1::3])}
    texts = [_escaped(part) for part in parts[0::3]]
    return texts[0] + "".join(spans[place] + texts[place] for place in range(1, len(texts)))


def code(text: str) -> str:
    """A text as a code span."""
    line = " ".join(text.split()) or " "
    mark = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    room = " " if line[0] == "`" or line[-1] == "`" else ""
    return f"{mark}{room}{line}{room}{mark}"


def _escaped(text: str) -> str:
    """Without what opens a tag, a link, an image, emphasis or a code span anywhere, or a block at its begin."""
    text = html.escape(text, quote=False)
    text = re.sub(r"[`\[\]\\*~]|(?<!\w)_|_(?!\w)", lambda sign: f"\\{sign[0]}", text)
    text = re.sub(r"^(\s*\d+)([.)])(?=\s|$)", r"\1\\\2", text)
    return re.sub(r"^\s*([#>+=-])", r"\\\1", text)


def _cell(text: str) -> str:
    return prose(text).replace("|", "\\|")


def _fenced(lines: Sequence[str], language: str, mark: str) -> list[str]:
    """A block of code, whatever its lines hold; `mark` is what it is begun and ended with at the least."""
    runs = re.findall(rf"^\s*({mark[0]}+)", "\n".join(lines), re.MULTILINE)
    mark = max([mark, *(run + mark[0] for run in runs)], key=len)
    return [f"{mark}{language}", *lines, mark]
