"""What scoring costs beside the model's own passes, and beside the way of the paper's own code.

    python benchmarks/scoring.py [--batch 4 --tokens 2048] [--dtype bfloat16] [--device cuda]

On a random Llama (by default 70 million parameters: 12 blocks of width 512, a vocabulary of 32,000), in one process,
the ways taken in turn, one warm-up round and then as many as --rounds says:

    trunk       model.model(...) without a cache: the floor, all that scoring needs of the model
    score       shortgpt.score on the same batch: trunk, tap and float64 sums
    forward     the model's own forward pass, with the head
    official    the paper's code: a forward pass that keeps all hidden states, for each block an N x N product of the
                whole batch's tokens in the model's dtype, of which the diagonal is read
    cosine      the same with `cosine_similarity` in float32 in place of the N x N product

A time is the median over rounds of the ratio to the trunk's in the same round; `score over it` is score's, to that way.
Memory is what a way takes at its peak beyond what was there before, less what the trunk takes, in boundaries: the
residual stream of the whole batch, once. On the CPU each way is measured in a process of its own, in which freed memory
goes back at once.

    python benchmarks/scoring.py --budgets     speed of shortgpt.score by tokens a batch, over that of the default
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import shortgpt
from shortgpt.calibration import TOKENS_PER_BATCH

BUDGETS = (512, 1024, 2048, 4096, 8192, 16384)
Ways = dict[str, Callable[[], object]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = {"width": 512, "blocks": 12, "vocabulary": 32_000, "batch": 8, "tokens": 512, "rounds": 7}
    for name, value in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--budgets", action="store_true")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)  # in a process of its own
    options = parser.parse_args()
    model = llama(options)
    if options.budgets:
        return budgets(model, options)
    made = ways(model, options)
    if options.peak_of:
        return print(peak_on_cpu(made[options.peak_of]))
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"{options.device} {options.dtype}, {parameters / 1e6:.0f}M parameters, {options.blocks} blocks of width "
        f"{options.width}, {options.batch} x {options.tokens} tokens, {options.rounds} rounds"
    )
    times = rounds(made, options.rounds, options.device)
    boundary = options.batch * options.tokens * options.width * getattr(torch, options.dtype).itemsize
    peaks = {name: peak(name, way, options.device) for name, way in made.items()}
    for name in made:
        over = [f"{ratio(times, a, b):5.2f}" for a, b in ((name, "trunk"), ("score", name))]
        memory = (peaks[name] - peaks["trunk"]) / boundary
        print(f"{name:>9}: {over[0]} x the trunk's time, score over it {over[1]}, {memory:+7.1f} boundaries of memory")


def llama(options: argparse.Namespace) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=options.width,
        intermediate_size=options.width * 8 // 3 // 16 * 16,
        num_hidden_layers=options.blocks,
        num_attention_heads=options.width // 64,
        num_key_value_heads=options.width // 64,
        vocab_size=options.vocabulary,
        max_position_embeddings=1 << 15,
    )
    return LlamaForCausalLM(config).to(options.device, getattr(torch, options.dtype)).eval()


def ways(model: LlamaForCausalLM, options: argparse.Namespace) -> Ways:
    ids = torch.randint(0, options.vocabulary, (options.batch, options.tokens))
    placed = ids.to(options.device)
    sequence = shortgpt.wrap(model)

    @torch.inference_mode()
    def states() -> tuple[torch.Tensor, ...]:
        return model(placed, output_hidden_states=True).hidden_states

    @torch.inference_mode()
    def official() -> None:
        hidden = states()
        for before, after in zip(hidden, hidden[1:], strict=False):  # noqa: RUF007
            x, y = before.flatten(0, 1), after.flatten(0, 1)
            cosines = (x @ y.T) / (x.norm(dim=-1, keepdim=True) * y.norm(dim=-1, keepdim=True))
            (1 - cosines.diagonal().nan_to_num(nan=0.5)).sum().item()

    @torch.inference_mode()
    def cosine() -> None:
        hidden = states()
        for before, after in zip(hidden, hidden[1:], strict=False):  # noqa: RUF007
            (1 - torch.cosine_similarity(before.float(), after.float(), dim=-1)).sum().item()

    return {
        "trunk": torch.no_grad()(lambda: model.model(placed, use_cache=False)),
        "score": lambda: shortgpt.score(sequence, [{"input_ids": ids}]),
        "forward": torch.no_grad()(lambda: model(placed, use_cache=False)),
        "official": official,
        "cosine": cosine,
    }


def budgets(model: LlamaForCausalLM, options: argparse.Namespace) -> None:
    sequence = shortgpt.wrap(model)
    ids = torch.randint(0, options.vocabulary, (max(BUDGETS) // options.tokens, options.tokens))
    made: Ways = {}
    for budget in BUDGETS:
        batches = [{"input_ids": part} for part in ids.split(max(1, budget // options.tokens))]
        made[str(budget)] = lambda batches=batches: shortgpt.score(sequence, batches)
    times = rounds(made, options.rounds, options.device)
    for name in made:
        print(f"{name:>6} tokens a batch: {ratio(times, str(TOKENS_PER_BATCH), name):.2f} x the default's speed")


def rounds(made: Ways, count: int, device: str) -> dict[str, list[float]]:
    """Seconds of each way in each round, the first round left out."""
    times: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(count + 1):
        for name, way in made.items():
            begin = time.perf_counter()
            way()
            if device != "cpu":
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - begin)
    return {name: taken[1:] for name, taken in times.items()}


def ratio(times: dict[str, list[float]], one: str, other: str) -> float:
    return statistics.median(a / b for a, b in zip(times[one], times[other], strict=True))


def peak(name: str, way: Callable[[], object], device: str) -> int:
    """Bytes that a way takes at its peak beyond what was taken before."""
    if device == "cpu":
        command = [sys.executable, *sys.argv, "--peak-of", name]
        small = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
        return int(subprocess.run(command, env=small, capture_output=True, text=True, check=True).stdout)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    way()
    return torch.cuda.max_memory_allocated() - before


def peak_on_cpu(way: Callable[[], object]) -> int:
    way()
    before = _kilobytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    way()
    return (_kilobytes("VmHWM") - before) * 1024


def _kilobytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


if __name__ == "__main__":
    main()
