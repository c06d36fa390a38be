"""What arrives quantised stays quantised: every tensor of a format goes with its block, and what names modules follows.

The folders are made up: a tiny Llama whose projections are held as each format holds them, with numbers of no meaning.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import shortgpt
from shortgpt.errors import CheckpointError, ConfigRewriteError, ShortGPTError

KEPT = (0, 2, 4, 5)
SKIPPED = ["model.layers.1.mlp.down_proj", "model.layers.4.self_attn.q_proj", "lm_head"]
LEFT = ["model.layers.2.self_attn.q_proj", "lm_head"]
Parts = Callable[[Tensor], Mapping[str, Tensor]]


def numbers(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.randint(0, 100, shape, dtype=dtype)


def fp8(weight: Tensor) -> Mapping[str, Tensor]:
    return {"weight": weight.to(torch.float8_e4m3fn), "weight_scale_inv": torch.rand(1, 1) + 0.5}


def gptq(weight: Tensor) -> Mapping[str, Tensor]:
    rows, columns = weight.shape
    packed = {"qweight": numbers(columns // 8, rows), "qzeros": numbers(1, rows // 8)}
    return packed | {"scales": torch.rand(1, rows).half(), "g_idx": numbers(columns)}


def awq(weight: Tensor) -> Mapping[str, Tensor]:
    rows, columns = weight.shape
    return {
        "qweight": numbers(columns, rows // 8),
        "qzeros": numbers(1, rows // 8),
        "scales": torch.rand(1, rows).half(),
    }


def packed(weight: Tensor) -> Mapping[str, Tensor]:
    rows, columns = weight.shape
    held = {"weight_packed": numbers(rows, columns // 8), "weight_scale": torch.rand(rows, 1)}
    return held | {"weight_shape": torch.tensor(weight.shape)}


def nf4(weight: Tensor) -> Mapping[str, Tensor]:
    held = {
        "weight": numbers(weight.numel() // 2, 1, dtype=torch.uint8),
        "weight.absmax": torch.rand(weight.numel() // 64),
    }
    return held | {
        "weight.quant_map": torch.rand(16),
        "weight.quant_state.bitsandbytes__nf4": numbers(80, dtype=torch.uint8),
    }


def int8(weight: Tensor) -> Mapping[str, Tensor]:
    return {"weight": weight.to(torch.int8), "SCB": torch.rand(len(weight))}


def hqq(weight: Tensor) -> Mapping[str, Tensor]:
    return {"W_q": numbers(weight.numel(), dtype=torch.uint8), "scale": torch.rand(4, 1), "zero": torch.rand(4, 1)}


GROUP = {"weights": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "channel"}}
FORMATS: dict[str, tuple[Parts, dict[str, Any], dict[str, Any], str]] = {
    "gptq": (
        gptq,
        {"bits": 4, "dynamic": {r"-:model\.layers\.4\..*": {}}},
        {"dynamic": {r"-:model\.layers\.2\..*": {}}},
        "optimum",
    ),
    "awq": (awq, {"bits": 4, "modules_to_not_convert": SKIPPED}, {"modules_to_not_convert": LEFT}, "gptqmodel"),
    "compressed-tensors": (
        packed,
        {
            "format": "pack-quantized",
            "ignore": SKIPPED,
            "config_groups": {"group_0": {**GROUP, "targets": [r"re:.*layers\.[1-4]\..*"]}},
        },
        {"ignore": LEFT, "config_groups": {"group_0": {**GROUP, "targets": [r"re:.*layers\.(1|2)\..*"]}}},
        "compressed-tensors",
    ),
    "bitsandbytes": (
        nf4,
        {"load_in_4bit": True, "llm_int8_skip_modules": SKIPPED},
        {"llm_int8_skip_modules": LEFT},
        "bitsandbytes",
    ),
    "hqq": (hqq, {"quant_config": {}, "skip_modules": SKIPPED}, {"skip_modules": LEFT}, "HQQ"),
    "of-tomorrow": (gptq, {"ignore": SKIPPED}, {"ignore": LEFT}, "transformers knows no quantisation 'of-tomorrow'"),
}
"""By method: how a weight is held, the section, what of it is other after the removal, and what is missing here."""


def quantised(source: Path, folder: Path, parts: Parts, section: Mapping[str, Any]) -> Path:
    shutil.copytree(source, folder)
    made: dict[str, Tensor] = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if name.endswith("_proj.weight"):
            module = name.removesuffix("weight")
            made |= {module + part: held.contiguous() for part, held in parts(tensor).items()}
        else:
            made[name] = tensor
    save_file(made, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": section}), encoding="utf-8")
    return folder


def moved(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
    """Every tensor of the blocks 0, 2, 4 and 5 is one of the blocks 0 to 3, bit for bit, and nothing else is there."""
    expected = {}
    for name, tensor in before.items():
        if name.startswith("model.layers."):
            block, _, rest = name.removeprefix("model.layers.").partition(".")
            if int(block) in KEPT:
                expected[f"model.layers.{KEPT.index(int(block))}.{rest}"] = tensor
        else:
            expected[name] = tensor
    assert {name: (t.dtype, t.shape) for name, t in after.items()} == {
        n: (t.dtype, t.shape) for n, t in expected.items()
    }
    assert [
        n for n, t in after.items() if not t.flatten().view(torch.uint8).equal(expected[n].flatten().view(torch.uint8))
    ] == []


@pytest.mark.parametrize("method", FORMATS)
def test_all_tensors_of_a_format_that_cannot_run_here_go_with_their_block_and_what_is_missing_is_told(
    method: str, llama_folder: Path, tmp_path: Path
) -> None:
    parts, section, becomes, missing = FORMATS[method]
    section = {"quant_method": method, **section}
    source = quantised(llama_folder, tmp_path / "in", parts, section)
    plan = shortgpt.prune_checkpoint(source, tmp_path / "out", (1, 3), device="cpu")
    moved(load_file(source / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors"))
    written = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert written["quantization_config"] == section | becomes
    assert plan.verification is not None
    assert plan.verification.verified is False
    assert plan.verification.reason is not None
    assert missing in plan.verification.reason


def test_a_format_that_runs_here_is_verified(llama_folder: Path, tmp_path: Path, one_process: None) -> None:
    section = {"quant_method": "fp8", "weight_block_size": [128, 128], "modules_to_not_convert": SKIPPED}
    source = quantised(llama_folder, tmp_path / "in", fp8, section)
    plan = shortgpt.prune_checkpoint(source, tmp_path / "out", (1, 3), device="cpu")
    moved(load_file(source / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors"))
    assert plan.verification is not None
    assert plan.verification.verified
    written = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert written["quantization_config"] == section | {"modules_to_not_convert": LEFT}


@pytest.mark.parametrize(("lost", "parts"), [("qweight", gptq), ("weight", fp8), ("weight_packed", packed)])
def test_a_weight_that_is_lost_beside_its_scales_is_an_error(
    lost: str, parts: Parts, llama_folder: Path, tmp_path: Path
) -> None:
    source = quantised(llama_folder, tmp_path / "in", parts, {"quant_method": "gptq", "bits": 4})
    tensors = load_file(source / "model.safetensors")
    del tensors[f"model.layers.2.mlp.up_proj.{lost}"]
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors .*layers\.2\.mlp\.up_proj\.weight"):
        shortgpt.prune_checkpoint(source, tmp_path / "out", (1, 3), device="cpu")
    assert not (tmp_path / "out").exists()


def test_a_pattern_that_may_name_a_block_is_refused(llama_folder: Path, tmp_path: Path) -> None:
    section = {"quant_method": "compressed-tensors", "ignore": [r"re:.*\.3\..*"]}
    source = quantised(llama_folder, tmp_path / "in", packed, section)
    with pytest.raises(ConfigRewriteError, match="which blocks that means is not certain"):
        shortgpt.prune_checkpoint(source, tmp_path / "out", (1, 3), device="cpu")


def test_scoring_a_format_that_cannot_run_here_names_what_is_missing(llama_folder: Path, tmp_path: Path) -> None:
    source = quantised(llama_folder, tmp_path / "in", nf4, {"quant_method": "bitsandbytes", "load_in_4bit": True})
    with pytest.raises(ShortGPTError, match="requires bitsandbytes"):
        shortgpt.load(source, device="cpu")
