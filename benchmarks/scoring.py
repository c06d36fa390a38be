"""What scoring costs beside the model's own forward pass, and beside the way that is usually taken.

    python benchmarks/scoring.py [--width 1024] [--blocks 8] [--device cuda]

Measured in one run, alternating, medians of several rounds, on a random Llama of the given size:

    trunk    the forward pass up to the last block: the floor
    score    shortgpt.score on the same batch: trunk, tap and float64 sums
    usual    the library's forward with output_hidden_states, an N x N product of the normalised streams, its diagonal

Printed are times over the trunk's and, on CUDA, what each way allocates at its peak.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import shortgpt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("width", 1024), ("blocks", 8), ("tokens", 512), ("batch", 4), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default=None)
    sizes = parser.parse_args()
    dtype = getattr(torch, sizes.dtype or ("bfloat16" if sizes.device != "cpu" else "float32"))
    config = LlamaConfig(
        hidden_size=sizes.width,
        intermediate_size=sizes.width * 11 // 4,
        num_hidden_layers=sizes.blocks,
        num_attention_heads=sizes.width // 64,
        num_key_value_heads=sizes.width // 64,
        vocab_size=4096,
    )
    model = LlamaForCausalLM(config).to(sizes.device, dtype).eval()
    sequence = shortgpt.wrap(model)
    batch = {"input_ids": torch.randint(0, 4096, (sizes.batch, sizes.tokens))}
    placed = {"input_ids": batch["input_ids"].to(sizes.device)}

    def usual() -> None:
        with torch.no_grad():
            states = model(**placed, output_hidden_states=True).hidden_states
        for x, y in zip(states, states[1:], strict=False):  # noqa: RUF007
            x, y = (torch.nn.functional.normalize(v.flatten(0, 1), dim=-1) for v in (x, y))
            (1 - (x @ y.T).diagonal()).mean().item()

    ways: dict[str, Callable[[], object]] = {
        "trunk": lambda: sequence.trace(batch, lambda boundary, hidden: None),
        "score": lambda: shortgpt.score(sequence, [batch]),
        "usual": usual,
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(sizes.rounds + 1):
        for name, way in ways.items():
            times[name].append(timed(way, sizes.device))
    floor = statistics.median(times["trunk"][1:])
    print(f"{sizes.device} {dtype}, width {sizes.width}, {sizes.blocks} blocks, {sizes.batch} x {sizes.tokens} tokens")
    for name in ways:
        ratio = statistics.median(times[name][1:]) / floor
        memory = f", {peak(ways[name]) / 2**20:.1f} MiB at the peak" if sizes.device != "cpu" else ""
        print(f"{name:>6}: {ratio:5.2f} x the trunk's time{memory}")


def timed(way: Callable[[], object], device: str) -> float:
    begin = time.perf_counter()
    way()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def peak(way: Callable[[], object]) -> int:
    """Bytes of the device's memory beyond what was taken before."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    way()
    return torch.cuda.max_memory_allocated() - before


if __name__ == "__main__":
    main()
