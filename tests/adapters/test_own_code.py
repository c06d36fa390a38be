"""Types that transformers does not have: their checkpoints carry the code that opens them, without this package."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from shortgpt_adapters import own_code

import shortgpt
from tests.fresh_processes import run_python
from tests.support import ids_of, saved
from tests.support import tiny as tiny_gpt2

from . import test_baichuan

OPEN_WITHOUT_THIS_PACKAGE = """
import sys
sys.modules["shortgpt"] = sys.modules["shortgpt_adapters"] = None  # importing them fails
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
for folder in sys.argv[1:]:
    model, info = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    assert not any(info.values()), info
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    with torch.no_grad():
        save_file({"logits": model.eval()(torch.load(folder + ".ids")).logits.contiguous()}, folder + ".logits")
"""


def original(name: str, folder: Path) -> Path:
    """A tiny model, as it may be published: Baichuan's with code that does not run any more."""
    if name == "gpt2_postnorm":
        return saved(tiny_gpt2(name), folder)
    test_baichuan.tiny(name).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "configuration_baichuan.BaichuanConfig",
        "AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM",
    }
    (folder / "config.json").write_text(json.dumps(config))
    for file in ("configuration_baichuan.py", "modeling_baichuan.py", "tokenization_baichuan.py"):
        (folder / file).write_text("raise RuntimeError('old code was run')\n")
    return folder


def test_what_is_written_opens_where_this_package_is_not(
    tmp_path: Path, one_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    made: dict[Path, torch.Tensor] = {}
    for name in ("gpt2_postnorm", "7B", "Baichuan2-13B"):
        source = original(name, tmp_path / name)
        model = shortgpt.load(source, device="cpu")
        ids = ids_of() % 100
        with model.skipping([1, 4]):
            expected = model.logits({"input_ids": ids})
        disk, memory = tmp_path / f"{name} disk", tmp_path / f"{name} memory"
        plan = shortgpt.prune_checkpoint(source, disk, [1, 4], device="cpu")
        assert plan.verification is not None
        assert plan.verification.verified
        assert "trust_remote_code=True" in (disk / "README.md").read_text()
        written = [disk]
        if name != "7B":
            shortgpt.remove(model, [1, 4]).save(memory)
            written.append(memory)
        for folder in written:
            made[folder] = expected
            torch.save(ids, f"{folder}.ids")
    ran = run_python("-c", OPEN_WITHOUT_THIS_PACKAGE, *made, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    for folder, expected in made.items():
        assert torch.equal(load_file(f"{folder}.logits")["logits"], expected), folder


def test_the_code_of_the_original_stays_beside_and_a_note_says_that_it_is_not_loaded(tmp_path: Path) -> None:
    source = original("7B", tmp_path / "in")
    plan = shortgpt.prune_checkpoint(source, tmp_path / "out", [1], verify=False)
    files = {file.name for file in (tmp_path / "out").glob("*.py")}
    old = {"configuration_baichuan.py", "modeling_baichuan.py", "tokenization_baichuan.py"}
    assert files == old | {own_code.BAICHUAN.file}
    (note,) = plan.notes
    assert "in place of the source's own `configuration_baichuan.py`, `modeling_baichuan.py`" in note
    again = shortgpt.prune_checkpoint(tmp_path / "out", tmp_path / "again", [1], verify=False)
    assert "in place of" not in again.notes[0]


@pytest.mark.parametrize("change", ["another byte", "another class", "custom_generate", "no file"])
def test_code_that_is_not_this_packages_is_not_run_to_verify(tmp_path: Path, change: str) -> None:
    source = saved(tiny_gpt2("gpt2_postnorm"), tmp_path / "in")
    out, code = tmp_path / "out", own_code.POST_NORM_GPT2
    shortgpt.prune_checkpoint(source, out, [1], verify=False)
    assert code.is_in(out)
    if change == "another byte":
        (out / code.file).write_bytes((out / code.file).read_bytes() + b"\n")
    elif change == "another class":
        config: dict[str, Any] = json.loads((out / "config.json").read_text())
        config["auto_map"]["AutoModelForCausalLM"] = "other.Model"
        (out / "config.json").write_text(json.dumps(config))
    elif change == "custom_generate":
        (out / change).mkdir()
    else:
        (out / code.file).unlink()
    assert not code.is_in(out)


def test_an_export_as_llama_carries_no_code(tmp_path: Path) -> None:
    source = original("7B", tmp_path / "in")
    shortgpt.prune_checkpoint(source, tmp_path / "out", [1], verify=False, export_as="llama")
    assert not (tmp_path / "out" / own_code.BAICHUAN.file).exists()
    assert "auto_map" not in json.loads((tmp_path / "out" / "config.json").read_text())
