"""`load`, `wrap` and finding a model by its name."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects

import shortgpt
from shortgpt.errors import ModelError
from shortgpt.models.recognition import resolve
from tests.support import byte_tokenizer, ids_of, saved, tiny


def test_a_loaded_model_gives_the_logits_of_transformers(llama_folder: Path) -> None:
    model, ids = shortgpt.load(llama_folder, device="cpu"), ids_of()
    with torch.no_grad():
        expected = tiny("llama")(ids).logits
    assert torch.equal(model.logits({"input_ids": ids}), expected)
    assert (model.name, model.architecture, len(model)) == (str(llama_folder), "llama", 6)
    assert (model.vocab_size, model.max_tokens, str(model.device)) == (257, 512, "cpu")
    assert model.tokenizer("hi")["input_ids"] == list(b"hi")


def test_parameters_are_counted_by_block_and_tied_ones_once() -> None:
    model: Any = tiny("gpt2")  # its head is its embedding
    wrapped = shortgpt.wrap(model)
    assert wrapped.parameter_counts() == (sum(p.numel() for p in model.transformer.h[0].parameters()),) * 6
    assert wrapped.total_parameters() == sum(p.numel() for p in set(model.parameters()))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_model_is_opened_in_the_dtype_asked_for(llama_folder: Path, dtype: str) -> None:
    model: Any = shortgpt.load(llama_folder, device="cpu", dtype=dtype)
    assert model.model.dtype == getattr(torch, dtype)


def test_auto_is_the_dtype_it_was_saved_in(tmp_path: Path) -> None:
    model: Any = shortgpt.load(saved(tiny("llama").bfloat16(), tmp_path / "m"), device="cpu")
    assert model.model.dtype == torch.bfloat16


def test_a_dtype_that_models_do_not_run_in_is_refused(llama_folder: Path) -> None:
    with pytest.raises(ModelError, match="dtype 'int8' is not supported; take one of auto, float32"):
        shortgpt.load(llama_folder, dtype="int8")


def test_a_tokenizer_can_be_handed_over(tmp_path: Path) -> None:
    folder = saved(tiny("llama", blocks=2), tmp_path / "m", tokenizer=False)
    assert shortgpt.load(folder, device="cpu").tokenizer is None
    mine = byte_tokenizer()
    model = shortgpt.load(folder, device="cpu", tokenizer=mine)
    assert model.tokenizer is mine
    assert sum(shortgpt.score(model, ["some text"]).tokens) == len("some text")


def test_wrapping_puts_a_model_into_eval_mode_and_leaves_it_as_it_is() -> None:
    model = tiny("llama", blocks=2).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wrapped = shortgpt.wrap(model, name="mine")
    assert not model.training
    assert wrapped.name == "mine"
    assert shortgpt.wrap(wrapped) is wrapped
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_neither_tracing_nor_logits_keep_a_gradient() -> None:
    model, batch = shortgpt.wrap(tiny("llama", blocks=2)), {"input_ids": ids_of()}
    seen: list[torch.Tensor] = []
    model.trace(batch, lambda boundary, hidden: seen.append(hidden))
    assert len(seen) == 3
    assert not any(hidden.requires_grad for hidden in seen)
    assert not model.logits(batch).requires_grad


def test_tracing_runs_no_head() -> None:
    model = tiny("llama", blocks=2)
    model.lm_head.register_forward_hook(lambda *_: pytest.fail("the head ran"))
    shortgpt.score(shortgpt.wrap(model), [{"input_ids": ids_of()}])


# -- the hub --------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], list[list[str]]]:
    """`hub(folder)`: the hub gives this folder for every name. Returns the patterns that it is asked for."""

    def serve(folder: Path) -> list[list[str]]:
        asked: list[list[str]] = []

        def snapshot_download(name: str, *, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
            asked.append(allow_patterns)
            return str(folder)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        return asked

    return serve


def test_of_a_hub_repository_one_weight_format_is_fetched(hub: Any, llama_folder: Path, tmp_path: Path) -> None:
    asked = hub(llama_folder)
    assert resolve("owner/name").path == llama_folder
    weights = [{pattern for pattern in patterns if pattern in ("*.safetensors", "*.bin")} for patterns in asked]
    assert weights == [set(), {"*.safetensors"}]
    (tmp_path / "config.json").write_bytes((llama_folder / "config.json").read_bytes())
    asked = hub(tmp_path)  # without safetensors
    resolve("owner/name")
    assert ["*.bin" in patterns for patterns in asked] == [False, False, True]


def test_a_hub_model_that_no_adapter_knows_is_told_of_before_its_weights_are_fetched(hub: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "alien"}')
    asked = hub(tmp_path)
    with pytest.raises(shortgpt.ShortGPTError, match="no installed adapter knows"):
        resolve("owner/name")
    assert len(asked) == 1
    assert "*.safetensors" not in asked[0]


@pytest.mark.parametrize(("files", "found"), [(["a.pth", "b.pth", "old/c.pth"], "a.pth, b.pth"), ([], "none")])
def test_of_a_hub_repository_of_files_one_is_to_be_named(
    hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], found: str
) -> None:
    hub(tmp_path)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda self, name: files)
    with pytest.raises(ModelError, match=rf"found: {found}\)"):
        resolve("owner/name")


def test_a_hub_model_keeps_its_name(hub: Any, llama_folder: Path) -> None:
    hub(llama_folder)
    assert shortgpt.load("owner/name", device="cpu").name == "owner/name"


def test_a_folder_here_goes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gpt2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve("gpt2").path == Path("gpt2")


def test_a_path_is_never_looked_for_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    for name in ("./owner/name", "/owner/name", "~/owner/name", "a/b/c", Path("owner/name")):
        with pytest.raises(ModelError, match="no such file or folder"):
            resolve(name)


def test_of_a_hub_repositorys_folders_those_are_fetched_that_transformers_looks_into(
    monkeypatch: pytest.MonkeyPatch, llama_folder: Path
) -> None:
    files = [
        *("config.json", "modeling_x.py", "model.safetensors", "consolidated.safetensors"),
        *(
            "additional_chat_templates/tool_use.jinja",
            "custom_generate/generate.py",
            "custom_generate/requirements.txt",
        ),
        *("additional_chat_templates/old/x.jinja", "additional/x.jinja", "a/config.json", "onnx/config.json"),
        *("additional_chat_templates2/x.jinja", "custom/x.py", "original/params.json", "custom_generation/x.txt"),
    ]
    taken: set[str] = set()

    def snapshot_download(name: str, *, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        taken.update(filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns))
        return str(llama_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    resolve("owner/name")
    assert taken == set(files[:3] + files[4:7])


def test_code_in_folders_is_fetched_from_the_hub_where_it_is_loaded_from_there(
    hub: Any, llama_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(llama_folder, tmp_path / "model"))
    (folder / "modeling_x.py").write_text("from .layers.attention import A\nfrom .configuration_x import C\n")
    (folder / "configuration_x.py").write_text("")
    asked = hub(folder)
    resolve("owner/name")
    assert [patterns for patterns in asked if "*.json" not in patterns] == [["layers/*.py"]]
