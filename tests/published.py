"""What works for configs as they were published: each `config.json` shrunken, a model of it pruned on disk, and proven.

    python -m tests.published FOLDER docs/architectures.md      all of FOLDER, and the second table of that page
    python -m tests.published FOLDER - NAME ...                 those whose name begins so, written nowhere

Only what makes a model large is made small: widths, heads, ranks, experts, the vocabulary. Depth, windows, rotary
settings, and every field that depends on the blocks stand as they were published, and so do old names, leftovers and
the order. A quantisation that needs a GPU, or a package that is not here, is left out of the model that is pruned; that
a removal takes the config with it is asked as well, of the text as it was published.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from shortgpt_adapters.transformers.verbosity import quiet
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from shortgpt.errors import SelectionError, ShortGPTError, VerificationError
from shortgpt.models.family import refusal
from shortgpt.models.recognition import recognise, resolve
from shortgpt.verification.removal_on_disk import prune_checkpoint
from tests.support import in_this_process
from tests.tiny_types import randomise
from tests.type_checks import plain

Sets = Mapping[str, Callable[[int], tuple[int, ...]]]
"""Name → depth → the blocks of that set."""
REMOVALS: Sets = {
    "{middle}": lambda depth: (depth // 2,),
    "{1, three quarters}": lambda depth: (1, 3 * depth // 4),
}

_SMALL: dict[int, str] = {
    128: "vocab_size vocab_size_per_layer_input vocab_size_per_layer",
    96: """intermediate_size ffn_dim n_inner intermediate_size_mlp dense_intermediate_size shared_intermediate_size
        prefix_dense_intermediate_size""",
    64: "hidden_size d_model n_embd word_embed_proj_dim out_hidden_size text_hidden_size",
    32: """moe_intermediate_size shared_expert_intermediate_size moe_shared_expert_intermediate_size share_expert_dim
        moe_latent_size""",
    24: "q_lora_rank",
    16: "kv_lora_rank o_lora_rank mamba_head_dim ssm_state_size hidden_size_per_layer_input",
    8: "linear_key_head_dim linear_value_head_dim mamba_num_heads",
    4: """num_attention_heads n_head num_heads swa_num_attention_heads num_experts n_routed_experts num_local_experts
        moe_num_experts index_n_heads linear_num_value_heads""",
    2: """num_key_value_heads swa_num_key_value_heads num_global_key_value_heads num_attention_groups
        linear_num_key_heads n_groups o_groups num_experts_per_tok experts_per_token top_k_experts moe_top_k moe_k""",
    1: "n_group topk_group",
}
SIZES = {name: size for size, names in _SMALL.items() for name in names.split()}
VOCABULARY = SIZES["vocab_size"]
TOWER_BLOCKS = 2
"""Of a tower whose section the published text leaves out."""


@dataclass
class Finding:
    """What came of one published config.

    Attributes:
        removals: name of the set → "verified", "refused", "wrong" or "crashed".
        reasons: why, where it is not verified.
        notes: what the removal left as it was, and what was left out of the shrunken model.
    """

    name: str
    model_type: str = ""
    adapter: str = ""
    blocks: int = 0
    removals: dict[str, str] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def wrong(self) -> bool:
        """Whether something is neither verified nor refused."""
        return any(verdict not in ("verified", "refused") for verdict in self.removals.values())


def check_published(file: Path, removals: Iterable[str] = tuple(REMOVALS)) -> Finding:
    """Try one config. Whatever fails is told, never raised."""
    chosen = {name: REMOVALS[name] for name in removals}
    torch.set_num_threads(1)
    begun, text = time.monotonic(), file.read_text(encoding="utf-8")
    found = Finding(file.stem, str(json.loads(text).get("model_type")))
    with tempfile.TemporaryDirectory() as temporary, in_this_process():
        folder = Path(temporary)
        try:
            ask_of_the_text(text, folder / "published", chosen, found)
            prune_shrunken(text, folder, chosen, found)
        except ShortGPTError as error:
            found.removals |= {name: "refused" for name in chosen if name not in found.removals}
            found.reasons.append(str(error).replace(f"{folder}/", ""))
        except Exception as error:  # the whole point is to name the config
            found.removals |= {name: "crashed" for name in chosen if name not in found.removals}
            found.reasons.append(f"{type(error).__name__}: {error}")
    found.seconds = time.monotonic() - begun
    return found


def ask_of_the_text(text: str, folder: Path, sets: Sets, found: Finding) -> None:
    """Whether a removal takes the config, as it was published, with it: no weights are needed for that.

    Raises:
        ModelError: the config cannot be read at all.
    """
    folder.mkdir()
    (folder / "config.json").write_text(text, encoding="utf-8")
    family = recognise(resolve(folder))
    config = family.read_config(resolve(folder))
    found.adapter, found.blocks = family.architecture, family.depth(config)
    for name, choose in sets.items():
        refused = refusal(family, config, choose(found.blocks))
        if refused is not None:
            found.removals[name] = "refused"
            found.reasons.append(refused)


def prune_shrunken(text: str, folder: Path, sets: Sets, found: Finding) -> None:
    """Build a shrunken model of the config, and prune it with its proof."""
    small, left_out = shrunken(text)
    found.notes += left_out
    source = saved_model(small, folder / "shrunken")
    for name, choose in sets.items():
        if name in found.removals:
            continue
        try:
            blocks = choose(found.blocks)
            output = folder / f"pruned-{len(found.removals)}"
            plan = prune_checkpoint(source, output, blocks, device="cpu", dtype="float32")
        except SelectionError as error:
            found.removals[name] = "refused"
            found.reasons.append(str(error))
        except VerificationError as error:
            found.removals[name] = "wrong"
            found.reasons.append(str(error))
        else:
            done = plan.verification
            assert done is not None
            found.removals[name] = "verified" if done.verified else "wrong"
            found.reasons += [str(done)] if not done.verified else []
            found.notes += [f"generation not compared: {done.not_generated}"] if done.not_generated else []
            found.notes += [note for note in plan.notes if note not in found.notes]


# -- shrinking --------------------------------------------------------------------------------------------------


def shrunken(text: str) -> tuple[str, list[str]]:
    """The text of a config with small sizes, and what was left out of it."""
    written = json.loads(text)
    left_out = []
    for part in (written, *(value for value in written.values() if isinstance(value, dict))):
        method = (part.get("quantization_config") or {}).get("quant_method")
        if method in AUTO_QUANTIZER_MAPPING:
            del part["quantization_config"]
            left_out.append(f"without its quantisation ({method})")
    config_class = class_of(written)
    if config_class is not None:
        _shrink(written, config_class)
    indent = re.search(r"\n( +)", text)
    return json.dumps(written, indent=len(indent[1]) if indent else None, ensure_ascii=False) + "\n", left_out


def class_of(written: dict[str, Any]) -> type[PreTrainedConfig] | None:
    """The config class that the library reads this with."""
    if written.get("model_type") in CONFIG_MAPPING:
        return CONFIG_MAPPING[written["model_type"]]
    named = getattr(transformers, (written.get("architectures") or [""])[0], None)
    return getattr(named, "config_class", None)


def _shrink(written: dict[str, Any], config_class: type[PreTrainedConfig]) -> None:
    """Make the sizes of a section small, and of those inside; add those that the class would take from its defaults."""
    usual, aliases = vars(config_class()), dict(config_class.attribute_map)
    fields = {entry.name for entry in dataclasses.fields(config_class)}
    grouped = len({written.get(name, usual.get(name)) for name in ("num_attention_heads", "num_key_value_heads")}) > 1
    told = {aliases.get(name, name) for name in written}
    for name in [*written, *(name for name in SIZES if name in fields and aliases.get(name, name) not in told)]:
        value = written.get(name, usual.get(name))
        if name in SIZES:
            size = SIZES["num_attention_heads"] if name == "num_key_value_heads" and not grouped else SIZES[name]
            if isinstance(value, int) and not isinstance(value, bool):
                written[name] = min(value, size)
            elif isinstance(value, list):
                written[name] = [min(entry, size) for entry in value]
        elif name in ("bos_token_id", "eos_token_id", "pad_token_id") and value is not None:
            written[name] = [token % VOCABULARY for token in value] if isinstance(value, list) else value % VOCABULARY
    if "rotary_dim" in fields and "head_dim" not in {*fields, *written}:
        written["rotary_dim"] = 8  # part of a head of hidden_size / num_attention_heads = 16
    for key in config_class.sub_configs:
        default = usual.get(key)
        if key not in written and isinstance(default, PreTrainedConfig):
            counts = {"num_hidden_layers", "depth", "num_layers", "encoder_layers"}
            written[key] = {name: TOWER_BLOCKS for name in vars(default) if name in counts}
            written[key]["model_type"] = default.model_type
        if isinstance(written.get(key), dict):
            inner = type(default) if isinstance(default, PreTrainedConfig) else class_of(written[key])
            if inner is not None:
                _shrink(written[key], inner)


def saved_model(text: str, folder: Path) -> Path:
    """A model of random weights of this config, saved with that very text as its config."""
    folder.mkdir()
    (folder / "config.json").write_text(text, encoding="utf-8")
    with quiet():
        config = _read(folder)
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(0)
        model = _built(config)
        randomise(model)
        _calm(model)
        model.save_pretrained(folder)
    (folder / "config.json").write_text(text, encoding="utf-8")
    return folder


@torch.no_grad()
def _calm(model: nn.Module) -> None:
    """Make every matrix shorten a vector: a hundred blocks of random weights would make of a rounding, as there is one
    between a text and a cache, what a wrong cache makes."""
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.ndim >= 2 and parameter.is_floating_point() and not isinstance(module, nn.Embedding):
                parameter.mul_(0.6)


def _read(folder: Path) -> PreTrainedConfig:
    named = class_of(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    return named.from_pretrained(folder) if named is not None else AutoConfig.from_pretrained(folder)


def _built(config: PreTrainedConfig) -> PreTrainedModel:
    named = getattr(transformers, (config.architectures or [""])[0], None)
    if named is not None:
        return named._from_config(config, dtype=torch.float32)
    auto = AutoModelForCausalLM if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else AutoModelForImageTextToText
    return auto.from_config(config, dtype=torch.float32)


# -- all of them, and the table ---------------------------------------------------------------------------------

HEADING = "## Published configs"
INTRODUCTION = """{heading}

{number} configs as they stand on the hub, each shrunken in widths, heads, experts and vocabulary, but neither in depth
nor in any field that depends on the blocks, and otherwise left as it is: old names and leftovers too. A model of random
weights of each is pruned on disk and proven, without its middle block, and without the second and the one at three
quarters. {verified} are verified; the others are refused for the reason that is told.
"""


def row(found: Finding) -> str:
    """One config as a row of the table."""
    verdicts = [found.removals.get(name, "-") for name in REMOVALS]
    reasons = "; ".join(dict.fromkeys(short(reason) for reason in found.reasons))
    notes = "; ".join(dict.fromkeys(plain(note)[:300] for note in found.notes))
    cells = [found.name, found.model_type, found.adapter or "-", str(found.blocks or "-"), *verdicts, reasons, notes]
    return "| " + " | ".join(cells) + " |"


def short(reason: str) -> str:
    """A reason for the table: without the folder's name, and without what every message of its kind ends with."""
    told = re.sub(r"^(published|shrunken): |\. Installed: .*|, which runs only when you trust it.*", "", plain(reason))
    return told if len(told) <= 300 else f"{told[:299]}…"


def table(findings: list[Finding]) -> str:
    """The second part of the page."""
    verified = sum(all(found.removals.get(name) == "verified" for name in REMOVALS) for found in findings)
    head = ["config", "type", "adapter", "blocks", *REMOVALS, "refused because", "notes"]
    lines = [
        INTRODUCTION.format(heading=HEADING, number=len(findings), verified=verified),
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *(row(found) for found in findings),
        "",
    ]
    return "\n".join(lines)


def write_table(page: Path, findings: list[Finding]) -> None:
    """Put the table at the end of the page, in the place of the one that is there."""
    first = page.read_text(encoding="utf-8").partition(f"\n{HEADING}\n")[0]
    page.write_text(f"{first.rstrip()}\n\n{table(findings)}", encoding="utf-8")


def all_published(files: Iterable[Path], workers: int = 2) -> Iterator[Finding]:
    """Each config, so many at a time, in the order in which they are done."""
    with multiprocessing.get_context("fork").Pool(workers, maxtasksperchild=4) as pool:
        yield from pool.imap_unordered(check_published, files)


def main(arguments: list[str]) -> int:
    """Try them, write the table, say what is wrong."""
    folder, page, *names = arguments
    files = [file for file in sorted(Path(folder).glob("*.json")) if not names or file.stem.startswith(tuple(names))]
    findings = []
    for found in all_published(files):
        findings.append(found)
        verdicts = " ".join(f"{name} {verdict}" for name, verdict in found.removals.items())
        print(f"{found.name}: {verdicts} ({found.seconds:.1f} s)", flush=True)
        for told in (*found.reasons, *found.notes):
            print(f"    {told[:400]}", flush=True)
    findings.sort(key=lambda found: found.name)
    wrong = [found.name for found in findings if found.wrong]
    print(f"{len(findings)} configs, {len(wrong)} of them neither verified nor refused: {', '.join(wrong) or 'none'}")
    if page != "-" and not names:
        write_table(Path(page), findings)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
