"""Train and evaluate the models of the zoo: seven architectures, one recipe, no download.

Every model has 12 blocks of width 48, reads bytes, and is trained on the same batches of the same text: the source
of the running Python's own standard library. Files chosen by a hash of their path are held out, and the models are
judged by their bits per byte on these.

::

    python -m shortgpt_adapters.zoo.train --model llama --output DIR      writes DIR/llama
    python -m shortgpt_adapters.zoo.train --all --output DIR              writes all seven
    python -m shortgpt_adapters.zoo.train --evaluate DIR/llama DIR/rwkv   prints the table

The models are plain ``transformers`` classes and are evaluated as such. Only *training* swaps two recurrences,
RWKV's and Mamba's, for faster exact ones (see ``faster_recurrences``).
"""

from __future__ import annotations

import argparse
import hashlib
import math
import platform
import re
import shutil
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.mamba import modeling_mamba
from transformers.models.rwkv import modeling_rwkv

WIDTH, BLOCKS, HEADS, CONTEXT = 48, 12, 4, 256
END_OF_TEXT = 256  # ids 0 to 255 are the bytes themselves
VOCABULARY = 257

BATCH = 8
STEPS = 2400
SEED = 0
EVALUATION_WINDOWS = 512

# Tests, third-party code, generated build data, and packages that newer Pythons lack.
EXCLUDED_FOLDER = re.compile(
    r"(site|dist)-packages|tests?|idle_test|__pycache__|config-.*|_bundled"
    r"|lib2to3|idlelib|turtledemo|tkinter|distutils"
)
DOCUMENT_LIMIT = 65_536  # bytes; one file (pydoc_data/topics.py) would otherwise be half of the held-out text


# ---------------------------------------------------------------------------------------------------------- the text


def standard_library() -> Iterator[tuple[str, bytes]]:
    """Yield ``(relative path, content)`` of the standard library's Python files, sorted by path.

    Folders that match ``EXCLUDED_FOLDER`` are left out, and files are cut at ``DOCUMENT_LIMIT`` bytes.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        relative = path.relative_to(root)
        if any(EXCLUDED_FOLDER.fullmatch(folder) for folder in relative.parts[:-1]):
            continue
        if relative.name.startswith("_sysconfigdata"):
            continue
        yield relative.as_posix(), path.read_bytes()[:DOCUMENT_LIMIT]


def is_held_out(relative_path: str) -> bool:
    """Whether a file belongs to the held-out tenth. Depends on its path alone, never on the other files."""
    return hashlib.sha256(relative_path.encode()).digest()[0] < 26  # 26 of 256


def token_stream(held_out: bool, tables: bool = True) -> Tensor:
    """The training or the held-out documents as one LongTensor [tokens], each document preceded by token 256.

    ``tables=False`` leaves out ``encodings/``: generated tables, of which those held out resemble those trained on.
    """
    pieces = []
    for relative_path, content in standard_library():
        if not tables and relative_path.startswith("encodings/"):
            continue
        if is_held_out(relative_path) == held_out and content:
            pieces += [torch.tensor([END_OF_TEXT]), torch.frombuffer(bytearray(content), dtype=torch.uint8).long()]
    return torch.cat(pieces)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose ids are byte values: byte-level BPE without merges, plus ``<|endoftext|>`` as id 256."""
    # Byte-level BPE writes each byte as one printable character (Radford et al. 2019): a printable byte as itself,
    # the others, in order, as the characters from U+0100 on.
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    alphabet = [chr(byte if byte in printable else next(others)) for byte in range(256)]
    backend = Tokenizer(BPE(vocab={character: byte for byte, character in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    special = "<|endoftext|>"
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=special,
        eos_token=special,
        pad_token=special,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


# -------------------------------------------------------------------------------------------------------- the models

# `pad_token_id` stays unset in the configs: Llama's family gives that id a frozen embedding, and 256 begins a document.
SHARED = {"vocab_size": VOCABULARY, "bos_token_id": END_OF_TEXT, "eos_token_id": END_OF_TEXT, "pad_token_id": None}
LLAMA_LIKE = SHARED | {
    "hidden_size": WIDTH,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": HEADS,
    "intermediate_size": 128,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.1,  # the usual 0.02 is for widths near 1/0.02² = 2,500; at 48 it costs the first 100 steps
}
GPT2_LIKE = SHARED | {
    "n_embd": WIDTH,
    "n_layer": BLOCKS,
    "n_head": HEADS,
    "n_positions": CONTEXT,
    "initializer_range": 0.1,
    "resid_pdrop": 0.0,  # less than one pass over the text leaves dropout nothing to prevent
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}


def llama() -> PreTrainedModel:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA_LIKE))


def mistral() -> PreTrainedModel:
    config = transformers.MistralConfig(**LLAMA_LIKE, num_key_value_heads=HEADS, sliding_window=64)
    return transformers.MistralForCausalLM(config)


def mamba() -> PreTrainedModel:
    config = transformers.MambaConfig(**SHARED, hidden_size=WIDTH, num_hidden_layers=BLOCKS)
    return transformers.MambaForCausalLM(config)


def rwkv() -> PreTrainedModel:
    config = transformers.RwkvConfig(**SHARED, hidden_size=WIDTH, num_hidden_layers=BLOCKS, context_length=CONTEXT)
    return transformers.RwkvForCausalLM(config)


def gpt2() -> PreTrainedModel:
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2_LIKE))


def gpt2_postnorm() -> PreTrainedModel:
    from shortgpt_adapters.families.gpt2_postnorm_model import PostNormGPT2Config, PostNormGPT2LMHeadModel

    return PostNormGPT2LMHeadModel(PostNormGPT2Config(**GPT2_LIKE))


def baichuan() -> PreTrainedModel:
    """The 13B layout of Baichuan2: ALiBi and NormHead."""
    from shortgpt_adapters.baichuan.model import BaichuanConfig, BaichuanForCausalLM

    shape = {key: value for key, value in LLAMA_LIKE.items() if key != "max_position_embeddings"}
    config = BaichuanConfig(**shape, model_max_length=CONTEXT, position_embedding="alibi", norm_head=True)
    return BaichuanForCausalLM(config)


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": llama,
    "mistral": mistral,
    "mamba": mamba,
    "rwkv": rwkv,
    "gpt2": gpt2,
    "gpt2-postnorm": gpt2_postnorm,
    "baichuan": baichuan,
}

PEAK_LEARNING_RATE = dict.fromkeys(MODELS, 6e-3) | {"mamba": 4e-3, "rwkv": 4e-3, "gpt2-postnorm": 2e-3}
# Post-norm gradients are large near the output at initialisation (Xiong et al. 2020, arXiv:2002.04745).
WARMUP_STEPS = dict.fromkeys(MODELS, 100) | {"gpt2-postnorm": 300}


# ----------------------------------------------------------------------------------- faster recurrences for training


def parallel_wkv(
    time_decay: Tensor, time_first: Tensor, key: Tensor, value: Tensor, state: None = None, return_state: bool = False
) -> tuple[Tensor, None]:
    """RWKV-4's weighted average as matrix products over chunks of 32 tokens, from an empty state.

    ``wkv_t = (Σ_{i<t} e^{-w(t-1-i)+k_i} v_i + e^{u+k_t} v_t) / (the same without v)`` for each channel (Peng et al.
    2023, arXiv:2305.13048), with w = exp(time_decay), u = time_first. The decays depend on t − i alone, so
    one small matrix per channel serves every chunk; what came before a chunk enters as one decayed sum. The largest
    key of the sequence is subtracted from the keys, which cancels in the quotient. Exact as long as the keys of one
    channel spread by less than about 80 (e⁻⁸⁷ is about the least normal fp32 number).

    Args: ``time_decay``, ``time_first`` [channels]; ``key``, ``value`` [batch, tokens, channels], tokens divisible
    by 32. Returns [batch, tokens, channels].
    """
    if state is not None or return_state or key.shape[1] % 32:
        raise ValueError("parallel_wkv is for training: no state, and a number of tokens divisible by 32")
    batch, tokens, channels = key.shape
    size = 32
    decay = torch.exp(time_decay)[:, None]
    position = torch.arange(size)
    lag = position[:, None] - position - 1
    current = torch.where(lag == -1, time_first[:, None, None], -torch.inf)
    log_mix = torch.where(lag >= 0, -decay[..., None] * lag, current)
    weight = torch.exp(key - key.amax(dim=1, keepdim=True))
    terms = torch.stack([weight * value, weight]).view(2, batch, tokens // size, size, channels)
    terms = terms.permute(2, 4, 3, 0, 1).flatten(-2)  # [chunks, channels, size, 2 * batch]
    within = log_mix.exp() @ terms
    leaving = torch.exp(-decay * (size - 1 - position))[:, None] @ terms  # each chunk's own sum at its end
    earlier, before = torch.zeros_like(leaving[0]), []
    for chunk in leaving:
        before.append(earlier)
        earlier = earlier * torch.exp(-decay * size)[..., None] + chunk
    sums = within + torch.exp(-decay * position)[..., None] * torch.stack(before)
    numerator, denominator = sums.chunk(2, dim=-1)
    return (numerator / denominator).permute(3, 0, 2, 1).reshape(batch, tokens, channels), None


class SelectiveScan(torch.autograd.Function):
    """Mamba's ``h_t = exp(Δ_t A) h_{t-1} + Δ_t B_t x_t``, ``y_t = C_t h_t``, token by token in cache-sized pieces.

    The plain form lets autograd keep several tensors [batch, channels, tokens, state]; here the states alone are
    kept and the decays computed again on the way back (as in Gu and Dao 2023, arXiv:2312.00752, section 3.3.2).

    ``step`` (Δ), ``inputs`` (x) [tokens, batch, channels]; ``rates`` (A) [channels, state]; ``write`` (B), ``read``
    (C) [tokens, batch, state]; the result is [tokens, batch, channels].
    """

    @staticmethod
    def forward(ctx, step: Tensor, inputs: Tensor, rates: Tensor, write: Tensor, read: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        states = step.new_empty(*step.shape, rates.shape[1])
        output, drive = torch.empty_like(step), step * inputs
        for t in range(len(step)):
            torch.mul(drive[t].unsqueeze(-1), write[t].unsqueeze(1), out=states[t])
            if t:
                states[t].addcmul_(torch.exp(step[t].unsqueeze(-1) * rates), states[t - 1])
            torch.bmm(states[t], read[t].unsqueeze(-1), out=output[t].unsqueeze(-1))
        ctx.save_for_backward(step, inputs, rates, write, read, states)
        return output

    @staticmethod
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor, ...]:  # type: ignore[no-untyped-def]
        step, inputs, rates, write, read, states = ctx.saved_tensors
        drive = step * inputs
        grad_step, grad_drive = torch.zeros_like(step), torch.empty_like(step)
        grad_rates, grad_write = torch.zeros_like(rates), torch.empty_like(write)
        grad_read = (grad_output.unsqueeze(2) @ states).squeeze(2)
        grad_state = torch.zeros_like(states[0])
        for t in reversed(range(len(step))):
            grad_state.addcmul_(grad_output[t].unsqueeze(-1), read[t].unsqueeze(1))
            torch.bmm(grad_state, write[t].unsqueeze(-1), out=grad_drive[t].unsqueeze(-1))
            torch.bmm(drive[t].unsqueeze(1), grad_state, out=grad_write[t].unsqueeze(1))
            if t:
                grad_state.mul_(torch.exp(step[t].unsqueeze(-1) * rates))
                grad_exponent = grad_state * states[t - 1]
                grad_step[t] = (grad_exponent * rates).sum(-1)
                grad_rates += (grad_exponent * step[t].unsqueeze(-1)).sum(0)
        return grad_step + grad_drive * inputs, grad_drive * step, grad_rates, grad_write, grad_read


def sliced_selective_scan(
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
    return_last_state: bool = False,
    **kwargs: object,
) -> Tensor:
    """``mamba_selective_scan`` of ``transformers`` by ``SelectiveScan``: tensors come as [batch, ..., tokens]."""
    if return_last_state:
        raise ValueError("sliced_selective_scan is for training: it returns no state")
    inputs, write, read = (tensor.permute(2, 0, 1).contiguous() for tensor in (hidden_states, B, C))
    step = F.softplus(dt + delta_bias[:, None]).permute(2, 0, 1).contiguous()
    output = SelectiveScan.apply(step, inputs, A, write, read) + inputs * D
    return output.permute(1, 2, 0) * F.silu(z)


@contextmanager
def faster_recurrences() -> Iterator[None]:
    """Within this context transformers' RWKV and Mamba train with the recurrences above.

    Same results to rounding: loss and gradients agree to 2e-6, relative. On one core a step of RWKV takes 0.23 s
    instead of 1.5 s, a step of Mamba 0.56 s instead of 12.9 s (1.5 s with ``mambapy``). Saved models are evaluated
    outside this context, so that a difference would show as a bad result.
    """
    original = modeling_rwkv.rwkv_linear_attention, modeling_mamba.mamba_selective_scan
    modeling_rwkv.rwkv_linear_attention = parallel_wkv
    modeling_mamba.mamba_selective_scan = sliced_selective_scan
    try:
        yield
    finally:
        modeling_rwkv.rwkv_linear_attention, modeling_mamba.mamba_selective_scan = original


# ------------------------------------------------------------------------------------------- training and evaluation


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up to ``peak``, then a cosine down to a twentieth of it."""
    warmup = min(warmup, steps // 4)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))


def train(name: str, folder: Path, steps: int = STEPS, seed: int = SEED) -> None:
    """Train the model ``name`` and save it, with its tokenizer, to ``folder``, which must not exist yet.

    The same ``seed`` gives every model the same batches. The folder appears when it is complete.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists: choose another --output, or move it away")
    torch.manual_seed(seed)
    model = MODELS[name]().train()
    stream = token_stream(held_out=False)
    batches = torch.Generator().manual_seed(seed)
    # No weight decay: the budget is less than one pass over the text, too little to learn it by heart.
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    print(f"{name}: {model.num_parameters():,} parameters, {steps} steps of {BATCH} x {CONTEXT} tokens", flush=True)
    start, recent = time.perf_counter(), []
    with faster_recurrences():
        for step in range(steps):
            first = torch.randint(len(stream) - CONTEXT, (BATCH, 1), generator=batches)
            window = stream[first + torch.arange(CONTEXT)]
            loss = model(input_ids=window, labels=window, use_cache=False).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, PEAK_LEARNING_RATE[name], WARMUP_STEPS[name])
            optimizer.step()
            recent.append(loss.item() / math.log(2))
            if (step + 1) % 50 == 0 or step + 1 == steps:
                seconds = time.perf_counter() - start
                mean = sum(recent) / len(recent)
                print(f"{name}: step {step + 1}, {mean:.3f} bits per byte, {seconds:.0f} s", flush=True)
                recent.clear()
    save(model, folder)


def save(model: PreTrainedModel, folder: Path) -> None:
    """Write model, tokenizer and generation config beside ``folder``, then rename: no half-written folder."""
    # RWKV divides weights in place when it is run in eval mode; still in training mode, these are the true ones.
    assert model.training
    model.generation_config = GenerationConfig(
        bos_token_id=END_OF_TEXT, eos_token_id=END_OF_TEXT, pad_token_id=END_OF_TEXT
    )
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    byte_tokenizer().save_pretrained(unfinished)
    unfinished.rename(folder)


def held_out_windows(tables: bool = True) -> Tensor:
    """Windows spread evenly over the held-out text, without overlap: LongTensor [windows, CONTEXT]."""
    stream = token_stream(held_out=True, tables=tables)
    windows = stream[: len(stream) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    chosen = torch.linspace(0, len(windows) - 1, min(EVALUATION_WINDOWS, len(windows))).long()
    return windows[chosen]


@torch.inference_mode()
def bits_per_byte(model: PreTrainedModel, windows: Tensor) -> float:
    """Mean bits that ``model`` needs for a token of ``windows`` given those before it in the window.

    The first token of a window is not counted. Nearly all tokens are bytes; the others are the ends of documents.
    """
    bits = 0.0
    for window in windows.split(BATCH):
        logits = model(input_ids=window, use_cache=False).logits[:, :-1]
        bits += F.cross_entropy(logits.flatten(0, 1).double(), window[:, 1:].flatten(), reduction="sum").item()
    return bits / math.log(2) / windows[:, 1:].numel()


def unigram_bits_per_byte(windows: Tensor) -> float:
    """The same measure for a model that knows only how often each token occurs in the training text."""
    counts = torch.bincount(token_stream(held_out=False), minlength=VOCABULARY).double() + 1
    return -torch.log2(counts / counts.sum())[windows[:, 1:]].mean().item()


def evaluate(folders: Sequence[Path]) -> None:
    """Print the table of the saved models: parameters, size on disk and bits per byte on the held-out text.

    The last line is what the byte frequencies of the training text alone achieve.
    """

    text, code = held_out_windows(), held_out_windows(tables=False)
    print(f"held-out text of Python {platform.python_version()}: {len(text)} windows of {CONTEXT} tokens\n")
    print("| model | parameters | model.safetensors | bits per byte | without `encodings/` |")
    print("|---|---:|---:|---:|---:|")
    for folder in folders:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        size = (folder / "model.safetensors").stat().st_size
        bits = f"{bits_per_byte(model, text):.3f} | {bits_per_byte(model, code):.3f}"
        print(f"| {folder.name} | {model.num_parameters():,} | {size / 1e6:.2f} MB | {bits} |", flush=True)
    bits = f"{unigram_bits_per_byte(text):.3f} | {unigram_bits_per_byte(code):.3f}"
    print(f"| byte frequencies alone | | | {bits} |")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m shortgpt_adapters.zoo.train", description="Train or evaluate the models of the zoo."
    )
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--model", choices=MODELS, help="train this model")
    action.add_argument("--all", action="store_true", help="train every model, one after another")
    action.add_argument("--evaluate", nargs="+", type=Path, metavar="DIR", help="print the table of saved models")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where the model's folder is written")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of {BATCH} x {CONTEXT} tokens (default {STEPS})")
    parser.add_argument("--seed", type=int, default=SEED, help=f"of weights and batches (default {SEED})")
    parser.add_argument("--threads", type=int, default=1, help="of torch; sums differ in the last digits (default 1)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    if options.evaluate:
        evaluate(options.evaluate)
        return
    if options.output is None:
        parser.error("--model and --all need --output DIR")
    options.output.mkdir(parents=True, exist_ok=True)
    for name in MODELS if options.all else [options.model]:
        train(name, options.output / name, options.steps, options.seed)


if __name__ == "__main__":
    main()
