"""A `BlockSequence` as lm-evaluation-harness asks it, held to the library's own model of transformers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import shortgpt_adapters
from lm_eval.models.huggingface import HFLM
from shortgpt_plugins.harness.lm import BlocksLM
from transformers import AutoModelForCausalLM, AutoTokenizer

import shortgpt
from shortgpt.errors import ModelError
from tests.plugins.harness.support import KINDS, answers, load_tasks, run, write_tasks
from tests.support import byte_tokenizer, tiny

FAMILIES = ["llama", "mistral", "gpt2", "openai-gpt", "mamba", "mamba2", "falcon_mamba", "rwkv"]
SHIPPED = ["llama", "mistral", "gpt2", "gpt2-postnorm", "baichuan", "mamba", "rwkv"]
WINDOW = 40


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return load_tasks(write_tasks(tmp_path_factory.mktemp("tasks")), KINDS, shots=2)


def theirs(model: Any, tokenizer: Any, batch_size: int) -> HFLM:
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, max_length=WINDOW, device="cpu")


def differing(ours: Mapping[str, Any], expected: Mapping[str, Any]) -> list[Any]:
    """The answers that are not the same: log-likelihoods to 1e-5 of them, whether greedy, and texts exactly."""
    pairs = [(task, *pair) for task in KINDS for pair in zip(answers(ours, task), answers(expected, task), strict=True)]
    assert len(pairs) > 5 * len(KINDS)
    return [pair for pair in pairs if not same(*pair[1:])]


def same(ours: Any, library: Any) -> bool:
    if isinstance(ours, str):
        return bool(ours == library)
    if isinstance(ours, tuple):
        return bool(ours[0] == pytest.approx(library[0], rel=1e-5) and ours[1] == library[1])
    return bool(ours == pytest.approx(library, rel=1e-5))


@pytest.mark.sampled("llama", "rwkv")
@pytest.mark.parametrize("name", FAMILIES)
def test_each_request_is_answered_as_by_the_librarys_own_model(name: str, tasks: dict[str, Any]) -> None:
    model = tiny(name, blocks=2)
    if name == "rwkv":
        model.config.rescale_every = 0
    lm = BlocksLM(shortgpt.wrap(model, tokenizer=byte_tokenizer()), batch_size=1, max_length=WINDOW)
    assert not differing(run(lm, tasks), run(theirs(model, byte_tokenizer(), 1), tasks))
    assert lm.language_model.truncated


@pytest.mark.sampled("llama", "rwkv")
@pytest.mark.parametrize("name", SHIPPED)
def test_so_it_is_in_batches_by_the_models_that_ship(name: str, tasks: dict[str, Any]) -> None:
    folder = Path(shortgpt_adapters.__path__[0]) / "zoo" / name
    lm = BlocksLM(f"zoo:{name}", batch_size=4, device="cpu", max_length=WINDOW)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    # RWKV's code takes no mask: in batches the library would have it read the padding in front of shorter prompts.
    assert not differing(run(lm, tasks), run(theirs(model, tokenizer, 1 if name == "rwkv" else 4), tasks))


def test_prompts_in_a_chat_template_are_the_librarys_own(tasks: dict[str, Any]) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
    )
    model = tiny("llama", blocks=2)
    lm = BlocksLM(shortgpt.wrap(model, tokenizer=tokenizer), batch_size=1, max_length=4 * WINDOW)
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, max_length=4 * WINDOW, device="cpu")
    ours, plain = (run(lm, tasks, apply_chat_template=chat) for chat in (True, False))
    assert not differing(ours, run(theirs, tasks, apply_chat_template=True))
    assert differing(ours, plain)
    prompt = ours["samples"]["tiny_choice"][0]["arguments"][0][0]
    assert (prompt.startswith("<user>"), prompt.endswith("<a>")) == (True, True)


def test_a_tokenizer_without_a_chat_template_is_refused_by_name(tasks: dict[str, Any]) -> None:
    lm = BlocksLM(shortgpt.wrap(tiny("llama", blocks=2), tokenizer=byte_tokenizer(), name="tiny"), batch_size=1)
    with pytest.raises(ModelError, match="tiny: its tokenizer has no chat template; leave --chat-template out"):
        run(lm, tasks, apply_chat_template=True)
