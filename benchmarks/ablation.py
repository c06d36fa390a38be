"""What leaving out every block in turn costs, beside as many passes of the whole model.

    python benchmarks/ablation.py [--vocabulary 2000] [--blocks 32] [--device cuda --dtype bfloat16]

On a random Llama (by default 71 million parameters: 12 blocks of width 512, a vocabulary of 32,000) and one batch, in
one process, the ways taken in turn, one warm-up round and then as many as --rounds says:

    trunk      the blocks alone: model.model(...) without a cache
    forward    the model's own forward pass, with the head
    loss       a forward pass and the loss of the next token by transformers' own code, model(labels=...)
    blocks     all L ablations, each up to the last block's output; no head
    ablations  the criterion "perplexity": all L ablations with head and loss
    skipping   the same by plain skipping: L whole passes, with our loss

Ratios are taken within a round, and their median is told with the least and the most: the blocks' to L trunks, that of
all else to L forward passes, and to L of them with the loss. What comes before a left-out block is computed once, so
the blocks cost L passes through (L + 1) / 2 of them; the head is needed L times by either way.
"""

from __future__ import annotations

import argparse
import statistics
from contextlib import suppress
from typing import Any

import torch
from scoring import Ways, llama, rounds

import shortgpt
from shortgpt.blocks import Cut
from shortgpt.evaluation import batch_sums, open_evaluator
from shortgpt.replay import Enough, Replay

NUMBERS = {"width": 512, "blocks": 12, "vocabulary": 32_000, "batch": 4, "tokens": 512, "rounds": 7}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in NUMBERS.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    rows = measure(**vars(parser.parse_args()))
    first = rows[0]
    print(
        f"{first['device']} {first['dtype']}, {first['parameters'] / 1e6:.0f}M parameters, {first['blocks']} blocks, "
        f"{first['batch']} x {first['tokens']} tokens, {first['rounds']} rounds"
    )
    for row in rows:
        print(f"{row['way']:>9} over {row['over']:<11} {row['median']:.3f} ({row['least']:.3f} to {row['most']:.3f})")


def measure(device: str = "cpu", dtype: str = "float32", **sizes: int) -> list[dict[str, Any]]:
    """A row for each ratio: the way, what it is over, median, least and most; and what was measured on."""
    options = argparse.Namespace(device=device, dtype=dtype, **(NUMBERS | sizes))
    model = llama(options)
    depth = options.blocks
    times = rounds(ways(model, options), options.rounds, device)
    about = {"device": device, "dtype": dtype, "parameters": sum(p.numel() for p in model.parameters())}
    about |= {name: getattr(options, name) for name in NUMBERS}
    pairs = [("blocks", "trunk"), *((way, over) for over in ("forward", "loss") for way in ("ablations", "skipping"))]
    rows = []
    for way, over in pairs:
        ratios = [a / (depth * b) for a, b in zip(times[way], times[over], strict=True)]
        spread = {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
        rows.append({"way": way, "over": f"{depth} x {over}"} | spread | about)
    return rows


def ways(model: Any, options: argparse.Namespace) -> Ways:
    sequence: Any = shortgpt.wrap(model)
    ids = torch.randint(0, options.vocabulary, (options.batch, options.tokens)).to(options.device)
    batch = {"input_ids": ids}
    evaluator = open_evaluator("perplexity")
    cuts = [Cut(block) for block in range(options.blocks)]
    for _ in sequence.ablated({"input_ids": ids[:1, :8]}, cuts[:1]):
        pass  # whether this model's passes can be shared is tried once, here

    def end(module: Any, args: Any, output: Any) -> None:
        raise Enough

    def blocks() -> None:
        replay = Replay(sequence, batch)
        hook = sequence.blocks[-1].register_forward_hook(end)
        try:
            for cut in cuts:
                with suppress(Enough):
                    replay.without(cut)
        finally:
            hook.remove()

    def ablations() -> None:
        for logits in sequence.ablated(batch, cuts):
            batch_sums(logits, batch, evaluator)

    def skipping() -> None:
        for cut in cuts:
            with sequence.skipping((cut.block,)):
                batch_sums(sequence.logits(batch), batch, evaluator)

    return {
        "trunk": torch.no_grad()(lambda: model.model(ids, use_cache=False)),
        "forward": torch.no_grad()(lambda: model(ids, use_cache=False)),
        "loss": torch.no_grad()(lambda: model(ids, labels=ids, use_cache=False)),
        "blocks": blocks,
        "ablations": ablations,
        "skipping": skipping,
    }


if __name__ == "__main__":
    main()
