"""What the fit of `--compensate` costs, beside scoring on the same text.

    python benchmarks/compensation.py [zoo:llama ...] [--sequences 32] [--tokens 256] [--rounds 5]

A quarter of the blocks by Block Influence is removed and made up for. Ways, taken in turn, one warm-up round first:

    score    shortgpt.score of all of the text
    fit      the maps of all removed runs: three quarters of the text are fitted, the last one chooses

Told are the ratio of the processor times, and that of the work: blocks computed, weighed by their tokens (a score
computes every block of every token once). The work does not depend on what else the machine does, and leaves out the
head, the normal equations, and finding out which projections can be changed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import shortgpt
from shortgpt.measuring.compensation.fit import fit


@contextmanager
def counting(model: Any) -> Iterator[list[int]]:
    """Inside it the tokens that blocks compute are noted; a block that hands on what it is given computes nothing."""
    counted: list[int] = []
    classes = {type(block) for block in model.blocks}
    forwards = {cls: cls.forward for cls in classes}

    def noted(forward: Callable[..., Any]) -> Callable[..., Any]:
        def called(block: Any, hidden: Any, *args: Any, **kwargs: Any) -> Any:
            counted.append(hidden.shape[0] * hidden.shape[1])
            return forward(block, hidden, *args, **kwargs)

        return called

    try:
        for cls in classes:
            cls.forward = noted(cls.forward)
        yield counted
    finally:
        for cls, forward in forwards.items():
            cls.forward = forward


def measure(name: str, sequences: int, tokens: int, rounds: int) -> str:
    """A line of Markdown for a model."""
    model: Any = shortgpt.load(name)
    data = shortgpt.calibrate("stdlib", model, sequences=sequences, tokens=tokens)
    gone = shortgpt.score(model, data).least_influential(max(1, round(len(model) / 4)))
    fit(model, gone, data)
    work, ratios = [], []
    for run in (lambda: shortgpt.score(model, data), lambda: fit(model, gone, data)):
        with counting(model) as counted:
            run()
        work.append(sum(counted))
    for _ in range(rounds):
        begun = time.process_time()
        shortgpt.score(model, data)
        between = time.process_time()
        fit(model, gone, data)
        ratios.append((time.process_time() - between) / (between - begun))
    return f"| {name} | {gone} of {len(model)} | {work[1] / work[0]:.2f} | {statistics.median(ratios):.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["zoo:llama"])
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    print("| model | removed | work, of scoring's | processor time, of scoring's |\n|---|---|---|---|")
    for name in given.models:
        print(measure(name, given.sequences, given.tokens, given.rounds), flush=True)


if __name__ == "__main__":
    main()
