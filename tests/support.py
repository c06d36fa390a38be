"""What many tests need: small models, a model that plays back a given stream, and the command line in this process."""

import contextlib
import inspect
import io
import math
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import shortgpt_adapters.families.gpt2_postnorm_model  # noqa: F401  (registers its classes with transformers)
import torch
from shortgpt_adapters.families import gpt2_postnorm_model  # noqa: F401  (registers its classes with transformers)
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.mamba2.modeling_mamba2 import MambaRMSNormGated

from shortgpt import prune_checkpoint, score
from shortgpt.cli import main
from shortgpt.models.sequence import BlockSequence, Tap, TokenBatch
from shortgpt.values.scores import Scores
from shortgpt.verification import fresh_process as reloading

VOCABULARY = 257  # the bytes, and one special token
SPECIAL = {"bos_token_id": 256, "eos_token_id": 256, "pad_token_id": None}
LLAMA = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
GPT = {"n_embd": 32, "n_head": 4, "n_positions": 512, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
MAMBA = {"hidden_size": 32, "state_size": 8, "expand": 2, "conv_kernel": 4}
GROUPS = 2 if "group_size" in inspect.signature(MambaRMSNormGated).parameters else 1
"""Of Mamba 2: older versions of transformers norm all groups as one."""
MAMBA2 = MAMBA | {"num_heads": 4, "head_dim": 16, "n_groups": GROUPS, "chunk_size": 16}
SIZES: dict[str, dict[str, Any]] = {
    "llama": LLAMA | {"max_position_embeddings": 512},
    "mistral": LLAMA | {"max_position_embeddings": 512, "sliding_window": 8},
    "gpt2": GPT,
    "gpt2_postnorm": GPT,
    "openai-gpt": GPT,
    "mamba": MAMBA,
    "mamba2": MAMBA2,
    "falcon_mamba": MAMBA,
    "rwkv": {"hidden_size": 32, "attention_hidden_size": 32, "context_length": 512, "rescale_every": 0},
}


def tiny(name: str, blocks: int = 6, **config: Any) -> PreTrainedModel:
    """A model of that type of transformers, of random weights that make every block turn the stream visibly."""
    torch.manual_seed(0)
    settings = {"vocab_size": VOCABULARY, **SPECIAL, **SIZES[name], "num_hidden_layers": blocks} | config
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


@contextlib.contextmanager
def in_this_process() -> Iterator[None]:
    """What verification does in a fresh process is done in this one, for speed."""
    run = subprocess.run

    def here(command: list[str], **options: Any) -> Any:
        if not any("_child" in str(part) for part in command):
            return run(command, **options)
        try:
            reloading._child(command[-1])
        except ValueError as error:
            return SimpleNamespace(returncode=1, stderr=str(error))
        return SimpleNamespace(returncode=0, stderr="")

    with mock.patch.object(subprocess, "run", here):
        yield


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose ids are the bytes of the text; 256 ends it."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}  # these stand for themselves
    others = iter(range(0x100, 0x200))
    alphabet = [chr(byte if byte in printable else next(others)) for byte in range(256)]
    backend = Tokenizer(BPE(vocab={sign: byte for byte, sign in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    end = "<|end|>"
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=end, eos_token=end, pad_token=end)


def saved(model: PreTrainedModel, folder: Path, *, tokenizer: bool = True, **options: Any) -> Path:
    """Save a model as transformers does, with the byte tokenizer."""
    model.save_pretrained(folder, **options)
    if tokenizer:
        byte_tokenizer().save_pretrained(folder)
    return folder


def ids_of(rows: int = 2, tokens: int = 24, seed: int = 0) -> Tensor:
    """Random byte tokens, [rows, tokens]."""
    return torch.randint(0, 256, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def skipped_by_hand(model: PreTrainedModel, path: str, blocks: Iterable[int], ids: Tensor) -> Tensor:
    """Logits with blocks bypassed by a hook written here: Hugging Face's model, none of our code."""
    hooks = []
    for index in blocks:
        block = model.get_submodule(f"{path}.{index}")

        def bypass(module: Any, args: tuple[Any, ...], kwargs: Any, output: Any) -> Any:
            return args[0] if isinstance(output, Tensor) else type(output)([args[0], *output[1:]])

        hooks.append(block.register_forward_hook(bypass, with_kwargs=True))
    try:
        with torch.no_grad():
            return model(input_ids=ids, use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()


class Playback(BlockSequence):
    """Plays back a given stream: token id t has the vectors `stream[boundary, t]`, whatever stands around it.

    Args:
        stream: [boundaries, tokens, width]; as a list where dtypes differ.
    """

    architecture = "playback"
    norm_placement = "unknown"

    def __init__(
        self, stream: Tensor | list[Tensor], *, name: str = "playback", pinned: Mapping[int, str] = {}
    ) -> None:
        self.stream = stream
        self.name = name
        self.pinned = pinned
        self.vocab_size = len(stream[0])
        self.block_names = tuple(f"blocks.{i}" for i in range(len(stream) - 1))
        self.tokenizer = byte_tokenizer()

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def trace(self, batch: TokenBatch, tap: Tap) -> None:
        for boundary, vectors in enumerate(self.stream):
            tap(boundary, vectors[batch["input_ids"]])

    def parameter_counts(self) -> tuple[int, ...]:
        return tuple(100 + i for i in range(len(self)))

    def total_parameters(self) -> int:
        return sum(self.parameter_counts()) + 1000

    def logits(self, batch: TokenBatch) -> Tensor:
        raise NotImplementedError

    def skipping(self, blocks: Iterable[int]) -> Any:
        raise NotImplementedError

    def without(self, blocks: Iterable[int]) -> BlockSequence:
        raise NotImplementedError

    def write(self, directory: Path) -> None:
        raise NotImplementedError


def turned(before: Tensor, distance: float, scale: Tensor | float = 1.0, seed: int = 1) -> Tensor:
    """`before`, [tokens, width] in float64, turned so that each token's cosine distance is `distance`, and rescaled."""
    other = torch.randn(before.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    unit = before / before.norm(dim=-1, keepdim=True)
    other -= (other * unit).sum(-1, keepdim=True) * unit
    other /= other.norm(dim=-1, keepdim=True)
    sine = (distance * (2 - distance)) ** 0.5
    scales = torch.as_tensor(scale, dtype=torch.float64).reshape(-1, 1)
    return scales * before.norm(dim=-1, keepdim=True) * ((1 - distance) * unit + sine * other)


@dataclass(frozen=True)
class Ran:
    """What a command gave."""

    status: int
    out: str
    err: str


def run_cli(*arguments: object) -> Ran:
    """Run the command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return Ran(int(stop.code or 0), out.getvalue(), err.getvalue())
    finally:
        signal.signal(signal.SIGTERM, handler)
    raise AssertionError("main() must exit")


def message_of(ran: Ran, status: int = 2) -> str:
    """The one message of a command that failed."""
    assert (ran.status, ran.out, ran.err.count("\n")) == (status, "", 1), ran
    assert ran.err.startswith("shortgpt: error: " if status == 2 else "shortgpt: ")
    assert "Traceback" not in ran.err
    return ran.err


def removal_refused(source: Path, error: type[Exception], message: str) -> None:
    """Removing blocks 1 and 4 from that folder is one error of one line, and nothing is written beside it."""
    with pytest.raises(error, match=message) as raised:
        prune_checkpoint(source, source.parent / "out", (1, 4), verify=False)
    assert "\n" not in str(raised.value)
    assert not list(source.parent.glob("*out*"))


def perplexity(logits: Tensor, ids: Tensor) -> float:
    """exp of the mean over all next tokens of −log p, in float64; of logits [rows, tokens, vocabulary]."""
    wide = logits.double()[:, :-1]
    chosen = wide.gather(-1, ids[:, 1:, None])[..., 0]
    return math.exp((wide.logsumexp(-1) - chosen).mean().item())


def scores_of(values: list[float], name: str = "model", **changes: Any) -> Scores:
    """Scores of two sequences with these values, whose standard errors are 1% of them."""
    stream = torch.randn(len(values) + 1, 20, 8, generator=torch.Generator().manual_seed(0))
    measured = score(Playback(stream, name=name), [{"input_ids": torch.arange(20).reshape(2, 10)}])
    sums = tuple(tuple(10 * v * factor for v in values) for factor in (0.99, 1.01))
    return replace(measured, sums=(sums,), **changes)


def opened(folder: Path, by: Any = AutoModelForCausalLM, **options: Any) -> Any:
    """By plain transformers, which must miss nothing and find nothing left over."""
    model, info = by.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(info.values()), info
    return model.eval()


@contextlib.contextmanager
def raising(owner: Any, name: str, error: BaseException, after: int = 0) -> Iterator[None]:
    """`owner.name` works `after` times, then raises."""
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def broken(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > after:
            raise error
        return original(*args, **kwargs)

    setattr(owner, name, broken)
    try:
        yield
    finally:
        setattr(owner, name, original)
