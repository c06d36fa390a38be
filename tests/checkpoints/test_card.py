"""The model card: what it keeps of the source's card, and that no text from outside becomes more than text."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

import shortgpt
from shortgpt import Plan, Scores
from shortgpt.basics.inputs import CalibrationInfo
from shortgpt.checkpoints.card import model_card, source_metadata

SOURCE = """---
license: other
license_name: llama3.2
license_link: LICENSE.txt
language:
- en
- de
tags:
- facebook
- shortgpt
library_name: transformers
pipeline_tag: text-generation
base_model: meta-llama/Llama-3.2-1B
base_model_relation: finetune
datasets:
- a/b
extra_gated_prompt: Do you agree?
metrics: [accuracy]
model-index:
- name: x
  results:
  - task: {type: text-generation}
    dataset: {name: d, type: d}
    metrics: [{type: acc, value: 0.5}]
---

# The original
"""


def metadata(card: str) -> dict[str, Any]:
    front: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return front


def carried(tmp_path: Path, text: str, name: str = "somewhere") -> dict[str, Any]:
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    return metadata(model_card(Plan(name, "llama", 6, (1,)), source_metadata(tmp_path / "README.md")))


def test_the_card_keeps_licence_language_tags_and_library_and_no_results(tmp_path: Path) -> None:
    assert carried(tmp_path, SOURCE) == {
        "license": "other",
        "license_name": "llama3.2",
        "license_link": "LICENSE.txt",
        "language": ["en", "de"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": "meta-llama/Llama-3.2-1B",
        "base_model_relation": "finetune",
        "datasets": ["a/b"],
        "tags": ["facebook", "shortgpt", "depth-pruning"],
    }


def test_a_source_on_the_hub_is_the_base_model(tmp_path: Path) -> None:
    front = carried(tmp_path, SOURCE, "someone/tuned")
    assert front["base_model"] == "someone/tuned"
    assert "base_model_relation" not in front


def test_norwegian_is_a_language_though_yaml_takes_it_for_false(tmp_path: Path) -> None:
    assert carried(tmp_path, "---\nlanguage: no\n---\n")["language"] == "no"


@pytest.mark.parametrize(
    "text", ["", "# A card without front matter\n", "---\n---\n", "\ufeff---\nlicense: mit\n---\n"]
)
def test_little_is_no_fault(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        front = carried(tmp_path, text)
    assert front == {"tags": ["shortgpt", "depth-pruning"]} | ({"license": "mit"} if "mit" in text else {})
    assert not caplog.records


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("---\nlicense: [\n---\n", "its front matter is damaged"),
        ("---\n- a\n---\n", "its front matter is damaged"),
        ("---\na: !!python/object/apply:os.system [x]\n---\n", "its front matter is damaged"),
        ("---\nlicense: " + "[" * 5000 + "\n---\n", "its front matter is damaged"),
        ("---\na: b\n---\n" + "x" * 1_000_001, "it is larger than 1,000,000 bytes"),
    ],
)
def test_a_card_that_cannot_be_read_is_a_note(tmp_path: Path, llama_folder: Path, text: str, why: str) -> None:
    source = Path(shutil.copytree(llama_folder, tmp_path / "in"))
    (source / "README.md").write_text(text)
    plan = shortgpt.prune_checkpoint(source, tmp_path / "out", [1], verify=False)
    (note,) = plan.notes
    assert note.startswith(f"The licence and what else the card of the source says is not carried over: {why}")
    assert Plan.read(tmp_path / "out") == plan
    assert "licence" in (tmp_path / "out" / "README.md").read_text()


def test_values_that_are_no_text_are_left_out(tmp_path: Path) -> None:
    text = "---\nlicense: {a: b}\ndatasets: 3\ntags: [1, ok, [x]]\nlicense_name: 'two\n\n  lines'\n---\n"
    assert carried(tmp_path, text) == {"tags": ["ok", "shortgpt", "depth-pruning"]}


def test_the_card_of_what_is_pruned_or_saved_has_the_licence_of_its_source(tmp_path: Path, llama_folder: Path) -> None:
    source = Path(shutil.copytree(llama_folder, tmp_path / "in"))
    (source / "README.md").write_text(SOURCE)
    shortgpt.prune_checkpoint(source, tmp_path / "disk", [1], verify=False)
    shortgpt.remove(shortgpt.load(source, device="cpu"), [1]).save(tmp_path / "memory")
    for made in ("disk", "memory"):
        card = ModelCard.load(tmp_path / made / "README.md")
        assert card.data.license_name == "llama3.2"
        assert card.data.language == ["en", "de"]
        assert card.data.eval_results is None
        assert card.text.strip().startswith("# ")


@pytest.mark.parametrize(("documents", "doubtful"), [(1, True), (3, True), (24, False), (None, False)])
def test_errors_that_may_be_too_small_are_said_to_be_so(documents: int | None, doubtful: bool) -> None:
    info = CalibrationInfo("text", 24, 64, 0, None, "a" * 64, "b" * 64, documents)
    of_sequences = tuple(row % documents for row in range(24)) if documents else ()
    scores = Scores(
        model="m",
        architecture="llama",
        norm_placement="pre",
        dtype="float32",
        block_names=("a", "b"),
        parameters=(1, 1),
        total_parameters=4,
        calibration=info,
        criteria=("block-influence",),
        sums=(((1.0, 2.0),) * 24,),
        counts=((64,) * 24,),
        tokens=(64,) * 24,
        stream_norm=(1.0, 1.0),
        update_norm=(1.0, 1.0),
        pinned={},
        documents=of_sequences,
    )
    card = model_card(Plan("m", "llama", 2, (0,), scores=scores))
    assert ("the standard errors may be too small." in card) is doubtful


# -- text from outside ----------------------------------------------------------------------------------------------

HOSTILE = (
    "x\n# heading",
    "<img src=x onerror=alert(1)>",
    "a`<b>`` c",
    "`",
    "---\nlicense: mit\n---",
    "[click](javascript:x)",
    "![x](http://x)",
    "| a | b |",
    "**bold** _em_",
    "```\n</code>",
    "1. x",
)


def rendered(card: str) -> list[Any]:
    """The card's body as a Markdown renderer takes it."""
    from markdown_it import MarkdownIt

    _, _, body = card.split("---\n", 2)
    return MarkdownIt("gfm-like", {"linkify": False}).parse(body)


def shape(card: str) -> list[tuple[str, str]]:
    """What a card is made of, whatever its words are."""
    tokens = [token for block in rendered(card) for token in (block, *(block.children or ()))]
    return [(token.type, token.tag) for token in tokens if token.type not in ("text", "text_special", "softbreak")]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_from_outside_makes_no_heading_link_markup_or_html(text: str) -> None:
    def card(words: str) -> str:
        verification = shortgpt.Verification(False, words)
        plan = Plan(words, words, 6, (1,), notes=(words, f"`field` {words}"), verification=verification)
        return model_card(replace(plan, base=Plan(words, words, 9, (3,)), load=f"x = {words!r}\n```\n{words}"))

    assert shape(card(text)) == shape(card("innocent words"))
    assert metadata(card(text)) == metadata(card("innocent words"))
    assert not [token for token in rendered(card(text)) if token.type.startswith("html")]


def test_code_spans_in_a_note_stay_code(tmp_path: Path) -> None:
    card = model_card(Plan("m", "llama", 6, (1,), notes=("`a_*b*_<c>` is 0 now: x_1 < 2.",)))
    assert "- `a_*b*_<c>` is 0 now: x_1 &lt; 2.\n" in card
