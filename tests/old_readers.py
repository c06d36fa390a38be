"""What transformers 4 makes of pruned checkpoints whose configs have its names: `make test-old-readers`.

Not part of the default tests: it needs a folder with transformers 4, named by OLD_TRANSFORMERS. For each type a tiny
model is given the config that such models were published with and is pruned. Transformers 4, in a process of its own,
computes the logits of the result and those of the original without those blocks: they must be equal.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shortgpt import prune_checkpoint
from tests.support import saved
from tests.tiny_types import tiny_model

GONE = (1, 3)
COMPARE = """
import json, sys, torch, transformers
from transformers import AutoModelForCausalLM
whole, short = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval() for folder in sys.argv[1:3])
owner = whole.get_submodule(sys.argv[3].rpartition(".")[0])
blocks = getattr(owner, sys.argv[3].rpartition(".")[2])
kept = [block for number, block in enumerate(blocks) if number not in json.loads(sys.argv[4])]
setattr(owner, sys.argv[3].rpartition(".")[2], torch.nn.ModuleList(kept))
ids = torch.arange(2, 62)[None]
with torch.no_grad():
    one, other = (model(ids, use_cache=False).logits for model in (whole, short))
print(json.dumps([transformers.__version__, (one - other).abs().max().item(), one.abs().max().item()]))
"""

LLAMA_3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
TYPES: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    # type: the block list, fields of an older config, and those of today that it does not have
    "llama": ("model.layers", {"rope_theta": 5e5, "rope_scaling": LLAMA_3}, ("rope_parameters",)),
    "mistral": ("model.layers", {"rope_theta": 1e6}, ("rope_parameters",)),
    "qwen3": ("model.layers", {"rope_theta": 1e6}, ("rope_parameters", "layer_types")),
    "gpt2": ("transformer.h", {"num_hidden_layers": 6, "n_layer": 6}, ()),
    "gpt_neox": ("gpt_neox.layers", {"rotary_emb_base": 20000, "rotary_pct": 0.5}, ("rope_parameters",)),
    "qwen3_moe": ("model.layers", {"rope_theta": 1e6}, ("rope_parameters", "num_local_experts", "layer_types")),
    "mixtral": ("model.layers", {"rope_theta": 1e6}, ("rope_parameters",)),
    "gemma3_text": (
        "model.layers",
        {"rope_theta": 1e6, "rope_local_base_freq": 2e4, "sliding_window_pattern": 3},
        ("rope_parameters", "layer_types"),
    ),
    "cohere2": ("model.layers", {"rope_theta": 5e4, "sliding_window_pattern": 3}, ("rope_parameters", "layer_types")),
    "lfm2": ("model.layers", {"rope_theta": 1e6, "full_attn_idxs": []}, ("rope_parameters", "layer_types")),
    "gpt_oss": ("model.layers", {"rope_theta": 150000}, ("rope_parameters",)),
    "phi": ("model.layers", {"rope_theta": 2e4, "partial_rotary_factor": 0.5}, ("rope_parameters",)),
}


@pytest.fixture(scope="module")
def old() -> dict[str, str]:
    folder = os.environ.get("OLD_TRANSFORMERS", "")
    if not (Path(folder) / "transformers").is_dir():
        pytest.skip("no transformers 4: set OLD_TRANSFORMERS to a folder that holds it")
    return {**os.environ, "PYTHONPATH": folder}


@pytest.mark.parametrize("model_type", TYPES)
def test_transformers_4_computes_the_shorter_model(
    model_type: str, old: dict[str, str], tmp_path: Path, one_process: None
) -> None:
    path, fields, newer = TYPES[model_type]
    source, result = saved(tiny_model(model_type), tmp_path / "in"), tmp_path / "out"
    config = json.loads((source / "config.json").read_text())
    if "num_local_experts" in newer:
        fields = {**fields, "num_experts": config["num_local_experts"]}
    if "full_attn_idxs" in fields:
        full = [block for block, kind in enumerate(config["layer_types"]) if kind == "full_attention"]
        fields = {**fields, "full_attn_idxs": full}
    config = {name: value for name, value in config.items() if name not in (*newer, "dtype")}
    (source / "config.json").write_text(json.dumps({**config, "torch_dtype": "float32", **fields}, indent=2))
    verification = prune_checkpoint(source, result, GONE).verification
    assert verification is not None
    assert verification.verified
    command = [sys.executable, "-c", COMPARE, str(source), str(result), path, json.dumps(GONE)]
    done = subprocess.run(command, env=old, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    version, difference, largest = json.loads(done.stdout.splitlines()[-1])
    assert version.startswith("4.")
    assert largest > 0.1
    assert difference == 0.0
