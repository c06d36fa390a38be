"""What people point at that is no model folder: each is named for what it is, and an adapter can be merged."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import pytest
import torch
from safetensors.torch import load_file, save_file

import shortgpt
from shortgpt.errors import ModelError
from shortgpt.values.plan import Plan
from shortgpt.values.scores import Scores
from tests.support import Ran, ids_of

RANK, SCALE = 2, 2.0


@pytest.fixture
def adapter(llama_folder: Path, tmp_path: Path) -> Path:
    """A LoRA of rank 2 on the queries of every block of the tiny Llama, written by hand as peft's format has it."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(llama_folder),
        "r": RANK,
        "lora_alpha": SCALE * RANK,
        "target_modules": ["q_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    generator = torch.Generator().manual_seed(0)
    shapes = {"lora_A": (RANK, 32), "lora_B": (32, RANK)}
    tensors = {
        f"base_model.model.model.layers.{i}.self_attn.q_proj.{part}.weight": torch.randn(shape, generator=generator)
        for i in range(6)
        for part, shape in shapes.items()
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def merged_by_hand(base: Path, adapter: Path, block: int) -> torch.Tensor:
    """W + scale · B A of one block's queries."""
    name = f"model.layers.{block}.self_attn.q_proj"
    low = load_file(adapter / "adapter_model.safetensors")
    product = low[f"base_model.model.{name}.lora_B.weight"] @ low[f"base_model.model.{name}.lora_A.weight"]
    return load_file(base / "model.safetensors")[f"{name}.weight"] + SCALE * product


@pytest.mark.parametrize("together", [False, True])
def test_an_adapter_is_named_as_one_beside_a_model_too(llama_folder: Path, adapter: Path, together: bool) -> None:
    if together:
        copytree(llama_folder, adapter, dirs_exist_ok=True)
    with pytest.raises(ModelError, match="it is a LoRA adapter of peft, made for the model") as told:
        shortgpt.load(adapter)
    assert str(llama_folder) in str(told.value)
    assert "--merge-adapter" in str(told.value)


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("together", [False, True])
def test_an_adapter_is_merged_pruned_and_proven(
    llama_folder: Path, adapter: Path, tmp_path: Path, run_cli: Callable[..., Ran], together: bool
) -> None:
    if together:
        copytree(llama_folder, adapter, dirs_exist_ok=True)
        config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(adapter)}))
    base = adapter if together else llama_folder
    out = tmp_path / "out"
    ran = run_cli("prune", adapter, "--merge-adapter", "--remove", "2", "-o", out, "--device", "cpu", "--quiet")
    assert ran.status == 0, ran.err
    plan = Plan.read(out)
    assert plan.verification is not None
    assert plan.verification.verified
    assert (plan.model, plan.adapter_base) == (str(adapter), str(base))
    assert any("is an adapter; it was merged into" in note for note in plan.notes)
    written = load_file(out / "model.safetensors")
    for new, old in enumerate((0, 1, 3, 4, 5)):
        expected = merged_by_hand(llama_folder, adapter, old)
        torch.testing.assert_close(written[f"model.layers.{new}.self_attn.q_proj.weight"], expected)
    assert not (out / "adapter_config.json").exists()


def test_an_adapter_is_scored_merged(adapter: Path, run_cli: Callable[..., Ran], llama_folder: Path) -> None:
    def values(*arguments: object) -> list[float]:
        options = ("--sequences", "2", "--tokens", "16", "--device", "cpu", "--json", "-", "--quiet")
        ran = run_cli("score", *arguments, *options)
        assert ran.status == 0, ran.err
        return list(Scores.from_json(ran.out).values)

    adapted, whole = values(adapter, "--merge-adapter"), values(llama_folder)
    assert len(adapted) == 6
    assert adapted != whole


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "names no base model"),
        (lambda folder: (folder / "adapter_config.json").unlink(), "takes a folder with the adapter that peft saved"),
        (
            lambda folder: (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "/no/such/place"}'),
            "its base model cannot be opened .*no such file or folder",
        ),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"x"), "cannot merge it into"),
    ],
)
def test_an_adapter_that_cannot_be_merged_says_why(
    adapter: Path, tmp_path: Path, run_cli: Callable[..., Ran], break_it: Callable[[Path], object], message: str
) -> None:
    break_it(adapter)
    ran = run_cli("prune", adapter, "--merge-adapter", "--remove", "2", "-o", tmp_path / "out", "--device", "cpu")
    assert ran.status == 2
    assert "Traceback" not in ran.err
    assert ran.err.count("\n") == 1
    assert re.search(message, ran.err), ran.err
    assert not (tmp_path / "out").exists()


def test_where_peft_is_missing_that_is_told(
    adapter: Path, tmp_path: Path, run_cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    ran = run_cli("prune", adapter, "--merge-adapter", "--remove", "2", "-o", tmp_path / "out", "--device", "cpu")
    assert ran.status == 2
    assert "pip install 'shortgpt-blocks[lora]'" in ran.err


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("model.Q4_K_M.gguf", b"anything", r"a GGUF file of llama\.cpp.*gguf_file='model\.Q4_K_M\.gguf'"),
        ("renamed.bin", b"GGUF\x03\x00", r"a GGUF file of llama\.cpp"),
        ("model.safetensors", b"\x00", "one file of weights.*config.json"),
        ("model.onnx", b"\x00", "an ONNX graph"),
        ("last.ckpt", b"\x00", "a training checkpoint"),
        ("model.safetensors.index.json", b"{}", "an index of weight files"),
    ],
)
def test_a_file_that_is_no_model_is_named(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=told):
        shortgpt.load(tmp_path / name)


def test_a_file_in_a_model_folder_points_to_the_folder(llama_folder: Path, tmp_path: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        with pytest.raises(ModelError, match=f"name the folder {llama_folder}"):
            shortgpt.load(llama_folder / name)
    (tmp_path / "quantised.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="a GGUF file"):
        shortgpt.load(tmp_path)


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("record", ["{", '{"schema": "shortgpt/plan/99", "model": 1}'])
def test_a_record_that_cannot_be_read_is_a_note_beside_a_good_model(
    llama_folder: Path, tmp_path: Path, run_cli: Callable[..., Ran], record: str
) -> None:
    folder = copytree(llama_folder, tmp_path / "whole")
    (folder / "shortgpt.json").write_text(record, encoding="utf-8")
    model = shortgpt.load(folder, device="cpu")
    assert model.plan is None
    assert model.logits({"input_ids": ids_of()}).isfinite().all()
    ran = run_cli("prune", folder, "--remove", "2", "-o", tmp_path / "out", "--device", "cpu")
    assert ran.status == 0, ran.err
    assert "note: how the model had been made shorter is not known" in ran.err
    assert any("is not known" in note for note in Plan.read(tmp_path / "out").notes)
    by_plan = ("prune", llama_folder, "--plan", folder / "shortgpt.json", "-o", tmp_path / "other")
    for arguments in (("verify", folder), by_plan):
        ran = run_cli(*arguments, "--device", "cpu")
        assert ran.status == 2
        assert "not a plan that shortgpt wrote" in ran.err
