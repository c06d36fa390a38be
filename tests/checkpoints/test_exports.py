"""What is written for other tools: read by their own parsers where they are installed."""

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from shortgpt import Plan, prune_checkpoint
from shortgpt.basics.inputs import Source
from shortgpt.checkpoints.exports import EXPORTS, check_export, mergekit, prune_layers, write_exports
from shortgpt.errors import ModelError, UnknownNameError
from tests.support import Ran, saved, tiny

PLAN = Plan("owner/model", "llama", 10, (0, 3, 4, 8))
KEPT = [1, 2, 5, 6, 7, 9]


def layers_in(text: str) -> list[int]:
    """The layers that a passthrough merge takes, in its order."""
    slices = yaml.safe_load(text)["slices"]
    return [i for part in slices for source in part["sources"] for i in range(*source["layer_range"])]


def test_mergekit_is_told_the_runs_of_blocks_that_stay() -> None:
    found = yaml.safe_load(mergekit(PLAN, "bfloat16"))
    assert layers_in(mergekit(PLAN)) == KEPT
    assert [part["sources"][0]["layer_range"] for part in found["slices"]] == [[1, 3], [5, 8], [9, 10]]
    assert {part["sources"][0]["model"] for part in found["slices"]} == {"owner/model"}
    assert (found["merge_method"], found["dtype"]) == ("passthrough", "bfloat16")
    assert "dtype" not in yaml.safe_load(mergekit(PLAN))


@pytest.mark.parametrize("name", ["a: b", "#x", 'x" y', "- x", "/some/plače 中", "null", "back\\slash"])
def test_a_model_of_any_name_is_named_to_mergekit(name: str) -> None:
    (source,) = yaml.safe_load(mergekit(replace(PLAN, model=name, blocks=(0,))))["slices"][0]["sources"]
    assert source["model"] == name


def test_a_model_that_ships_is_named_by_its_folder() -> None:
    (source,) = yaml.safe_load(mergekit(replace(PLAN, model="zoo:llama", blocks=(0,))))["slices"][0]["sources"]
    assert (Path(source["model"]) / "config.json").is_file()


def test_the_list_of_layers_is_that_of_the_blocks_that_go() -> None:
    assert prune_layers(PLAN) == "0,3,4,8\n"


def test_only_what_the_plan_names_is_written(tmp_path: Path) -> None:
    write_exports(tmp_path, PLAN)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "config.json").write_text('{"text_config": {"dtype": "float16"}}')
    write_exports(tmp_path, replace(PLAN, exports=("mergekit", "llama.cpp")))
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "mergekit.yaml", "llama.cpp.txt"}
    assert yaml.safe_load((tmp_path / "mergekit.yaml").read_text())["dtype"] == "float16"


def test_what_a_tool_cannot_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"n_layer": 3}')
    file = tmp_path / "model.pth"
    file.write_bytes(b"")
    for source in (Source("native", tmp_path), Source("model.pth", file)):
        with pytest.raises(ModelError, match=f"{source.name}: mergekit reads Hugging Face folders"):
            check_export("mergekit", source)
        check_export("llama.cpp", source)
    with pytest.raises(UnknownNameError, match=r"'exl2'; known are mergekit, llama\.cpp"):
        check_export("exl2", Source("native", tmp_path))


# -- through the command line ---------------------------------------------------------------------------------

Run = Callable[..., Ran]


def test_prune_writes_what_it_is_asked_for_beside_the_model(run_cli: Run, llama_folder: Path, tmp_path: Path) -> None:
    options = ("--remove", "1,4", "--no-verify", "--export", "mergekit", "--export", "llama.cpp")
    ran = run_cli("prune", llama_folder, "-o", tmp_path / "out", *options)
    assert ran.status == 0, ran.err
    assert Plan.read(tmp_path / "out").exports == tuple(EXPORTS) == ("mergekit", "llama.cpp")
    assert layers_in((tmp_path / "out" / "mergekit.yaml").read_text()) == [0, 2, 3, 5]
    assert (tmp_path / "out" / "llama.cpp.txt").read_text() == "1,4\n"
    assert f"for mergekit: {tmp_path / 'out' / 'mergekit.yaml'}" in ran.out.replace("\n", "")


def test_a_second_removal_does_not_inherit_what_was_written_for_the_first(
    run_cli: Run, llama_folder: Path, tmp_path: Path
) -> None:
    prune_checkpoint(
        llama_folder, tmp_path / "a", replace(Plan("m", "llama", 6, (1,)), exports=("mergekit",)), verify=False
    )
    prune_checkpoint(tmp_path / "a", tmp_path / "b", [0], verify=False)
    assert (tmp_path / "a" / "mergekit.yaml").exists()
    assert not (tmp_path / "b" / "mergekit.yaml").exists()
    again = ("--plan", tmp_path / "a", "--export", "llama.cpp", "--no-verify")
    run_cli("prune", llama_folder, "-o", tmp_path / "c", *again)
    assert Plan.read(tmp_path / "c").exports == ("mergekit", "llama.cpp")
    assert (tmp_path / "c" / "mergekit.yaml").read_bytes() == (tmp_path / "a" / "mergekit.yaml").read_bytes()


# -- the tools themselves -------------------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Path]:
    """A model and what we make of it, with both exports."""
    source = saved(tiny("llama", torch_dtype="float32"), tmp_path / "source")
    plan = Plan(str(source), "llama", 6, (1, 4), exports=tuple(EXPORTS))
    prune_checkpoint(source, tmp_path / "ours", plan, verify=False)
    return source, tmp_path / "ours"


def test_mergekit_makes_of_it_the_tensors_that_we_write(made: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("mergekit")
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    config = MergeConfiguration.model_validate(yaml.safe_load((made[1] / "mergekit.yaml").read_text()))
    assert config.merge_method == "passthrough"
    run_merge(config, str(tmp_path / "theirs"), MergeOptions(copy_tokenizer=False, quiet=True))
    ours = load_file(made[1] / "model.safetensors")
    theirs = {k: v for file in (tmp_path / "theirs").glob("*.safetensors") for k, v in load_file(file).items()}
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in ours.items())


def test_llama_cpp_keeps_the_blocks_that_we_keep(made: tuple[Path, Path], tmp_path: Path) -> None:
    """Set LLAMA_QUANTIZE to the program where it is not on the path."""
    gguf = pytest.importorskip("gguf")
    program = os.environ.get("LLAMA_QUANTIZE") or shutil.which("llama-quantize")
    if program is None:
        pytest.skip("llama-quantize is not installed")
    writer = gguf.GGUFWriter(tmp_path / "in.gguf", "llama")
    for field, value in {
        "block_count": 6,
        "context_length": 512,
        "embedding_length": 32,
        "feed_forward_length": 48,
        "head_count": 4,
        "head_count_kv": 2,
        "layer_norm_rms_eps": 1e-6,
    }.items():
        getattr(writer, f"add_{field}")(value)
    parts = {"self_attn.q_proj": "attn_q", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm"}
    names = {
        f"model.layers.{i}.{ours}.weight": f"blk.{i}.{theirs}.weight"
        for i in range(6)
        for ours, theirs in parts.items()
    }
    for name, tensor in load_file(made[0] / "model.safetensors").items():
        if name in names:
            writer.add_tensor(names[name], tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    layers = (made[1] / "llama.cpp.txt").read_text().strip()
    command = [program, "--prune-layers", layers, str(tmp_path / "in.gguf"), str(tmp_path / "out.gguf"), "COPY"]
    subprocess.run(command, check=True, capture_output=True)
    found = gguf.GGUFReader(tmp_path / "out.gguf")
    theirs = {tensor.name: torch.tensor(tensor.data) for tensor in found.tensors}
    ours = {names[name]: tensor for name, tensor in load_file(made[1] / "model.safetensors").items() if name in names}
    assert found.fields["llama.block_count"].contents() == 4
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name].reshape(tensor.shape), tensor) for name, tensor in ours.items())
