"""The models that ship: plain transformers loads them, they have learnt something, and they are small."""

import importlib
import json
import math
from pathlib import Path

import pytest
import shortgpt_adapters.baichuan.model
import shortgpt_adapters.families.gpt2_postnorm_model
import torch
from transformers import AutoTokenizer

from shortgpt.plugins import registry
from tests.fresh_processes import run_python
from tests.support import opened

ZOO = {model.name: Path(model.target) for model in registry().models if model.name.startswith("zoo:")}
REGISTERED = (shortgpt_adapters.baichuan.model, shortgpt_adapters.families.gpt2_postnorm_model)


def test_there_is_a_model_of_each_family_and_together_they_are_small() -> None:
    assert set(ZOO) == {
        f"zoo:{name}" for name in ("llama", "mistral", "mamba", "rwkv", "gpt2", "gpt2-postnorm", "baichuan")
    }
    assert sum(file.stat().st_size for folder in ZOO.values() for file in folder.iterdir()) <= 12_000_000


def test_types_that_transformers_lacks_open_where_nothing_else_was_imported() -> None:
    code = "import shortgpt; [shortgpt.load(f'zoo:{name}', device='cpu') for name in ('gpt2-postnorm', 'baichuan')]"
    ran = run_python("-c", code)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("name", ZOO)
def test_each_has_12_blocks_of_one_width_and_learnt_python(name: str) -> None:
    model = opened(ZOO[name])
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (12, 48)
    train = importlib.import_module("shortgpt_adapters.zoo.train")
    text = train.token_stream(held_out=True)
    starts = torch.linspace(0, len(text) - 256, 16).long()  # spread over all the text
    windows = torch.stack([text[start : start + 256] for start in starts.tolist()]).long()
    with torch.no_grad():
        logits = model(windows).logits.double()
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), windows[:, 1:].flatten())
    assert loss.item() / math.log(2) < 3
    counts = torch.bincount(windows.flatten(), minlength=257).double()
    shares = counts[counts > 0] / counts.sum()
    assert -(shares * shares.log2()).sum() > 4  # what knowing the frequency of each byte alone would give


@pytest.mark.parametrize("name", ZOO)
def test_a_token_is_a_byte(name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(ZOO[name])
    text = "def f(x):\n\treturn 'é ☃ 𝔘'  # \x00"
    assert tokenizer(text)["input_ids"] == list(text.encode())
    assert tokenizer.decode(list(text.encode())) == text


@pytest.mark.parametrize("name", ZOO)
def test_no_saved_file_names_a_machines_path(name: str) -> None:
    for file in ZOO[name].glob("*.json"):
        assert "_name_or_path" not in json.loads(file.read_text())


def test_the_training_script_trains_and_repeats_itself(tmp_path: Path) -> None:
    train = importlib.import_module("shortgpt_adapters.zoo.train")
    threads = torch.get_num_threads()
    try:
        for run in ("first", "second"):
            train.main(["--model", "llama", "--steps", "2", "--output", str(tmp_path / run)])
    finally:
        torch.set_num_threads(threads)
    first, second = (tmp_path / run / "llama" / "model.safetensors" for run in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()
