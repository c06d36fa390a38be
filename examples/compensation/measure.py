"""How much of what a removal costs is won back by compensation: the numbers of docs/quality.md.

    python examples/compensation/measure.py zoo:llama zoo:gpt2 ...                          a quarter by Block Influence
    python examples/compensation/measure.py FOLDER --blocks 8 --calibration prose --sequences 32 --tokens 256

Maps are fitted on three quarters of the calibration's windows and chosen on the last one; what is told is measured
on as many windows that come after them. A line of Markdown a model, and what was done about each run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import shortgpt
from shortgpt.basics import statistics
from shortgpt.basics.block_lists import format_blocks
from shortgpt.measuring.calibration import calibrate_and_hold_out
from shortgpt.measuring.compensation.fit import fit
from shortgpt.measuring.evaluation import evaluate, open_evaluator

HEAD = (
    "| model | removed | whole | shortened | compensated | gap closed | time of scoring | of the fit |",
    "|---|---|---|---|---|---|---|---|",
)


def measure(name: str, blocks: int | None, remove: str | None, calibration: str, options: dict[str, int]) -> str:
    """The line of one model: log-perplexities on held-out text, and the share of the gap that is closed."""
    model = shortgpt.load(name)
    data, held_out = calibrate_and_hold_out(calibration, model, **options)
    begun = time.monotonic()
    scores = shortgpt.score(model, data)
    scored = time.monotonic() - begun
    gone: Sequence[int] = scores.least_influential(blocks or max(1, round(len(model) / 4)))
    if remove is not None:
        gone = shortgpt.Plan(model.name, model.architecture, len(model), parsed(remove)).blocks
    begun = time.monotonic()
    fitted = fit(model, gone, data)
    spent = time.monotonic() - begun
    evaluator = open_evaluator("perplexity")
    whole, shortened = evaluate(model, held_out, evaluator), evaluate(model, held_out, evaluator, gone)
    with fitted.on(model):
        compensated = evaluate(model, held_out, evaluator, gone)
    gap = shortened.mean - whole.mean
    won, error = statistics.difference(compensated.sums, shortened.sums, whole.counts, held_out.documents)
    print(fitted.record, flush=True)
    removed = f"{format_blocks(gone)} of {len(model)}"
    return (
        f"| {model.name.rstrip('/').rpartition('/')[2]} | {removed} | {whole.mean:.3f} | {shortened.mean:.3f} | "
        f"{compensated.mean:.3f} | {won / gap:.0%} ± {error / gap:.0%} | {scored:.1f} s | {spent:.1f} s |"
    )


def parsed(blocks: str) -> tuple[int, ...]:
    """Block numbers of a list such as 3-5,12."""
    from shortgpt.basics.block_lists import parse_blocks

    return parse_blocks(blocks)


def main() -> None:
    """Measure every model that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--blocks", type=int, help="Remove so many. Default: a quarter.")
    parser.add_argument("--remove", help="Remove these, such as 3-5,12.")
    parser.add_argument("--calibration", default="stdlib")
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--tokens", type=int)
    arguments = parser.parse_args()
    options = {"sequences": arguments.sequences} | ({} if arguments.tokens is None else {"tokens": arguments.tokens})
    rest = (arguments.blocks, arguments.remove, arguments.calibration, options)
    lines = [measure(name, *rest) for name in arguments.models]
    print("\n".join((*HEAD, *lines)))


if __name__ == "__main__":
    main()
