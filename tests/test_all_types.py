"""A sample of transformers' model types that holds every rule and every quirk; `make types` tries them all."""

import re
from pathlib import Path

import pytest
from shortgpt_adapters.catalog import ARCHITECTURES

from shortgpt.models.configs.rules import FILTER_FIRST, GROUPS, RULES, SECTION, rules_for
from tests.tiny_types import MODEL_TYPES, tiny_config
from tests.type_checks import REMOVALS, TOLERANCE, check_type

PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"

# fmt: off
SAMPLE = (
    # every rule of the config
    "afmoe", "bamba", "bailing_hybrid", "deepseek_v3", "dots3_note_text", "ernie4_5_moe", "glm_moe_dsa", "gpt_neo",
    "granite_swa", "hunyuan_v1_moe", "jamba", "laguna", "lfm2_moe", "llama4_text", "nemotron_h", "qwen3_moe",
    "recurrent_gemma", "smollm3",
    # every quirk
    "beam", "blt", "cpmant", "diffllama", "gemma3n_text", "gemma4_text", "gemma4_assistant", "gpt_neox_japanese",
    "hrm_text", "inkling2_text", "minicpm3", "minimax", "mllama", "modernbert-decoder", "musicgen", "prophetnet",
    "qwen4_exp_text", "reformer", "xlm", "zamba", "zamba2", "zaya",
    # every layout of the stream, composite models, decoders of other kinds, names that files do not have
    "axk1", "deepseek_v4", "gemma3", "xlnet", "xlstm", "bart", "bert", "falcon", "gpt_oss", "opt",
)
# fmt: on


def documented(model_type: str) -> dict[str, str]:
    """The verdicts of the support table on a type's models of six blocks."""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] == model_type:
            verdicts = dict(zip(REMOVALS, cells[4:], strict=False))
            return {name: at_six[1] if (at_six := re.search(r"(\w+) of 6", v)) else v for name, v in verdicts.items()}
    raise AssertionError(f"{model_type} is not in {PAGE.name}")


@pytest.mark.sampled(
    "gpt_neo", "jamba", "qwen3_moe", "recurrent_gemma", "beam", "gemma4_text", "mllama", "zamba2", "gemma3", "opt"
)
@pytest.mark.parametrize("model_type", SAMPLE)
def test_a_type_is_scored_right_and_each_removal_is_verified_or_refused_as_the_support_table_says(
    model_type: str,
) -> None:
    found = check_type(model_type, depths=(6,), seeds=(0,), compensated=False)
    assert found.faults == []
    assert found.influence_error <= TOLERANCE
    assert {name: removal.verdict for (name, _, _), removal in found.removals.items()} == documented(model_type)


def test_the_support_table_has_a_row_for_each_type() -> None:
    first = PAGE.read_text(encoding="utf-8").partition("\n## ")[0]
    rows = re.findall(r"^\| (\S+) \|", first, re.MULTILINE)
    assert sorted(set(rows) - {"type"}) == sorted(MODEL_TYPES)


def test_the_sample_holds_every_adapter_of_a_quirk() -> None:
    tested_alone = {"llama", "mistral", "gpt2", "openai-gpt", "mamba", "mamba2", "falcon_mamba", "rwkv"}
    rows = [row for row in ARCHITECTURES if set(row.model_types) & set(MODEL_TYPES)]
    assert len(rows) > 20
    assert {row.name for row in rows if not set(row.model_types) & set(SAMPLE)} == tested_alone


def test_the_sample_holds_every_rule() -> None:
    used: set[str] = set()
    for model_type in SAMPLE:
        config = tiny_config(model_type)
        parts = [config, *(getattr(config, key) for key in config.sub_configs)]
        for part in parts:
            if part is not None:
                used |= {rule.name for _, rule in rules_for(part.to_dict(), 6) if rule is not None}
    of_old_fields = {FILTER_FIRST.name, SECTION.name}  # which no config holds that transformers 5 writes
    assert {rule.name for rule in (*RULES.values(), *GROUPS)} - of_old_fields <= used
