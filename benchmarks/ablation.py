"""What leaving out every block in turn costs, beside as many passes of the whole model.

    python benchmarks/ablation.py [--vocabulary 2000] [--blocks 32] [--shape 4x512] [--device cuda --dtype bfloat16]

On a random Llama (by default 71 million parameters: 12 blocks of width 512, a vocabulary of 32,000) and one batch, in
one process, the ways taken in turn, one warm-up round and then as many as --rounds says:

    trunk      the blocks alone: model.model(...) without a cache
    forward    the model's own forward pass, with the head
    loss       a forward pass and the loss of the next token by transformers' own code, model(labels=...)
    blocks     all L ablations, each up to the last block's output; no head
    ablations  the criterion "perplexity": all L ablations with head and loss
    skipping   the same by plain skipping: L whole passes, with our loss

Ratios are taken within a round, and their median is told with the quartiles: the blocks' to L trunks, that of all else
to L forward passes, and to L of them with the loss. What comes before a left-out block is computed once, so
the blocks cost L passes through (L + 1) / 2 of them; the head is needed L times by either way.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from scoring import Row, Setting, Ways, ids_of, llama, rounds, row

import shortgpt
from shortgpt.measuring.evaluation import batch_sums, open_evaluator
from shortgpt.models.sequence import Cut
from shortgpt.torch_models.replay import PassEnded, Replay


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Setting(shape="4x512")
    for name in ("width", "blocks", "vocabulary", "rounds"):
        parser.add_argument(f"--{name}", type=int, default=getattr(default, name))
    parser.add_argument("--shape", default=default.shape, help="sequences x tokens")
    parser.add_argument("--device", default=default.device)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default=default.dtype)
    for one in measure(**vars(parser.parse_args())):
        print(one)


def measure(shape: str = "4x512", **options: Any) -> Iterator[Row]:
    """A row for each ratio; the options are those of `scoring.Setting`."""
    setting = Setting(shape=shape, **options)
    depth = setting.blocks
    times = rounds(ways(llama(setting), setting), setting)
    for over in ("trunk", "forward", "loss"):
        times[f"{depth} x {over}"] = [depth * seconds for seconds in times[over]]
    for what, over in (
        ("blocks", "trunk"),
        *((what, over) for over in ("forward", "loss") for what in ("ablations", "skipping")),
    ):
        yield row(setting, times, what, f"{depth} x {over}")


def ways(model: Any, setting: Setting) -> Ways:
    sequence: Any = shortgpt.wrap(model)
    ids = ids_of(setting).to(setting.device)
    batch = {"input_ids": ids}
    evaluator = open_evaluator("perplexity")
    cuts = [Cut(block) for block in range(setting.blocks)]
    for _ in sequence.ablated({"input_ids": ids[:1, :8]}, cuts[:1]):
        pass  # whether this model's passes can be shared is tried once, here

    def end(module: Any, args: Any, output: Any) -> None:
        raise PassEnded

    def blocks() -> None:
        replay = Replay(sequence, batch)
        hook = sequence.blocks[-1].register_forward_hook(end)
        try:
            for cut in cuts:
                with suppress(PassEnded):
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
