"""What the tap costs on models of the `rwkv` package: a `trace` of all boundaries over the package's own forward pass.

    python benchmarks/rwkv_tap.py MODEL.pth ... [--tokens 512] [--repeats 15]

Both run the same sequence from a zero state, in turns, after a warm-up for torch.jit. The package's pass ends with the
last block's norm and the head, which a trace leaves out; `logits`, which has them, is timed as well. Printed are the
median times and the medians of the ratios of neighbouring runs, which a busy machine moves least.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

import shortgpt


def seconds(call: Callable[[], Any]) -> float:
    """The time of one call, with everything an accelerator was given done."""
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for path in arguments.models:
        blocks = shortgpt.load(path)
        ids = torch.randint(0, blocks.vocab_size, (1, arguments.tokens), generator=torch.Generator().manual_seed(0))
        tokens, batch = ids[0].tolist(), {"input_ids": ids}
        calls: dict[str, Callable[[], Any]] = {
            "package": lambda tokens=tokens, model=blocks.model: model.forward(tokens, None, full_output=True),
            "trace": lambda batch=batch, blocks=blocks: blocks.trace(batch, lambda boundary, hidden: None),
            "logits": lambda batch=batch, blocks=blocks: blocks.logits(batch),
        }
        times: dict[str, list[float]] = {name: [] for name in calls}
        for repeat in range(arguments.repeats + 3):
            for name, call in calls.items():
                taken = seconds(call)
                if repeat >= 3:
                    times[name].append(taken)
        print(f"{path}: {len(blocks)} blocks, {arguments.tokens} tokens, {blocks.device}")
        for name, values in times.items():
            ratio = statistics.median(a / b for a, b in zip(values, times["package"], strict=True))
            print(f"  {name:8} {statistics.median(values) * 1000:8.1f} ms   {ratio:.3f} of the package's own forward")


if __name__ == "__main__":
    main()
