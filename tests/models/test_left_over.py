"""Tensors of a checkpoint that its class has no place for: heads, towers, masks, scales."""

from collections.abc import Mapping
from pathlib import Path
from shutil import copytree

import pytest
import torch
from safetensors.torch import load_file, save_file
from shortgpt_adapters.families.llama import Llama
from shortgpt_adapters.transformers.family import out_of_place
from torch import Tensor, nn
from transformers import CodeGenConfig, CodeGenForCausalLM

import shortgpt
from shortgpt.errors import CheckpointError, ModelError, VerificationError
from shortgpt.models.removal import starred

HEAD = {"v_head.summary.weight": torch.ones(1, 32), "score.weight": torch.ones(2, 32)}
TOWER = {"vision_tower.encoder.layers.0.norm.weight": torch.ones(8), "vision_tower.layers.9.bias": torch.ones(8)}


@pytest.fixture
def holding(llama_folder: Path, tmp_path: Path):
    """`holding(extra)`: a Llama of 6 blocks whose file holds these tensors too."""

    def make(extra: Mapping[str, Tensor]) -> Path:
        folder = copytree(llama_folder, tmp_path / "whole")
        file = folder / "model.safetensors"
        save_file(load_file(file) | dict(extra), file, metadata={"format": "pt"})
        return folder

    return make


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("stream", [False, True])
def test_what_no_block_holds_is_left_as_it_is_and_told(holding, tmp_path: Path, stream: bool) -> None:
    plan = shortgpt.prune_checkpoint(holding(HEAD | TOWER), tmp_path / "out", [2], device="cpu", stream=stream)
    assert plan.verification is not None
    assert plan.verification.verified
    written = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in (HEAD | TOWER).items():
        assert torch.equal(written[name], tensor)
    assert any("v_head.summary.weight" in note and "vision_tower" in note for note in plan.notes)
    assert "v_head.summary.weight" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("stream", [False, True])
def test_scales_in_every_block_alike_go_and_stay_with_their_blocks(holding, tmp_path: Path, stream: bool) -> None:
    scales = {f"model.layers.{i}.self_attn.k_scale": torch.tensor(float(i)) for i in range(6)}
    folder = holding(scales)
    assert len(shortgpt.load(folder, device="cpu", stream=stream)) == 6
    plan = shortgpt.prune_checkpoint(folder, tmp_path / "out", [2], device="cpu", stream=stream)
    assert plan.verification is not None
    assert plan.verification.verified
    written = load_file(tmp_path / "out" / "model.safetensors")
    kept = {name: float(value) for name, value in written.items() if "k_scale" in name}
    assert kept == {f"model.layers.{new}.self_attn.k_scale": old for new, old in enumerate((0, 1, 3, 4, 5))}
    assert any("model.layers.*.self_attn.k_scale" in note for note in plan.notes)


@pytest.mark.usefixtures("one_process")
def test_masks_of_old_checkpoints_are_no_reason_to_refuse_a_model(tmp_path: Path) -> None:
    config = CodeGenConfig(
        n_embd=32, n_layer=4, n_head=4, rotary_dim=4, n_positions=64, n_ctx=64, vocab_size=99, bos_token_id=1
    )
    CodeGenForCausalLM(config).save_pretrained(tmp_path / "whole")
    file = tmp_path / "whole" / "model.safetensors"
    masks = {f"transformer.h.{i}.attn.causal_mask": torch.ones(1, 1, 8, 8, dtype=torch.bool) for i in range(4)}
    save_file(load_file(file) | masks, file, metadata={"format": "pt"})
    plan = shortgpt.prune_checkpoint(tmp_path / "whole", tmp_path / "out", [2], device="cpu")
    assert plan.verification is not None
    assert plan.verification.verified


@pytest.mark.parametrize(
    "name",
    ["model.layers.3.self_attn.k_scale", "model.layers.6.self_attn.k_scale", "model.layers.6.mlp.up_proj.weight"],
)
def test_what_one_block_holds_alone_says_that_files_and_config_do_not_belong_together(
    holding, tmp_path: Path, name: str
) -> None:
    folder = holding({name: torch.ones(1)})
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        shortgpt.load(folder, device="cpu")
    with pytest.raises(ModelError, match=r"layers\.[36]"):
        shortgpt.prune_checkpoint(folder, tmp_path / "out", [2], device="cpu")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("one_process")
def test_a_tensor_of_a_block_that_the_removal_leaves_over_is_no_proof(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Llama.rename

    def with_one_too_many(self, names, depth, keep):
        old = "model.layers.2.mlp.up_proj.weight"
        return rename(self, names, depth, keep) | {"model.layers.5.mlp.up_proj.weight": old}

    monkeypatch.setattr(Llama, "rename", with_one_too_many)
    with pytest.raises(VerificationError, match=r"model\.layers\.5\.mlp"):
        shortgpt.prune_checkpoint(llama_folder, tmp_path / "out", [2], device="cpu")
    assert not (tmp_path / "out").exists()


def test_a_name_is_starred_in_the_block_list_alone() -> None:
    names = ["model.layers.0.mask", "layers.1.mask", "model.layers.2.mask", "tower.layers.1.mask", "head.weight"]
    expected = {"model.layers.*.mask", "layers.*.mask", "model.layers.2.mask", "tower.layers.1.mask", "head.weight"}
    assert starred(names, "model.layers", 2) == expected


def test_alike_is_asked_of_the_blocks_that_have_the_place() -> None:
    def block(mixer: str) -> nn.Module:
        return nn.ModuleDict({mixer: nn.ModuleDict({"proj": nn.Linear(2, 2)})})

    model = nn.ModuleDict({"layers": nn.ModuleList([block("attn"), block("ssm"), block("attn")])})
    everywhere = ["layers.0.attn.rotary.inv_freq", "layers.2.attn.rotary.inv_freq"]
    assert out_of_place(model, "layers", everywhere) == []
    assert out_of_place(model, "layers", everywhere[:1]) == everywhere[:1]
    assert out_of_place(model, "layers", ["layers.1.attn.mask"]) == ["layers.1.attn.mask"]
    assert out_of_place(model, "layers", ["other.0.weight", "head.weight"]) == []
