"""Tasks of lm-evaluation-harness through us, over the same requests through the library's own `hf` model.

    python benchmarks/harness.py [--model FOLDER] [--batch-size 8] [--rounds 7] [--clock cpu]

On one model in float32, by default zoo:llama, in one process: what is compared is taken in turn, one warm-up round and
then as many as --rounds says. A number is the median over rounds of our speed over the library's, requests a second of
the same round, with its quartiles; the batch size is the same, and so are the tokens. The requests, of the running
Python's documentation:

choices     four continuations of some 20 words for each context of some 60
letters     four single letters for each context, which differ in their last token alone
rolling     whole texts of some 300 words
until       24 greedy tokens behind some 60 words, with a stop string

On a busy machine --clock cpu counts the processor's time in place of the wall's; take OMP_NUM_THREADS=1 with it.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import shortgpt_adapters
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from shortgpt_plugins.harness.lm import BlocksLM
from transformers import AutoModelForCausalLM, AutoTokenizer

ZOO = Path(shortgpt_adapters.__path__[0]) / "zoo"


class Row(NamedTuple):
    """Our speed over the library's."""

    requests: str
    number: int
    ratio: float
    low: float
    high: float


def measure(
    model: Path = ZOO / "llama",
    *,
    batch_size: int = 8,
    rounds: int = 7,
    contexts: int = 16,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Row]:
    """Each kind of requests, in so many rounds."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    ours = BlocksLM(str(model), batch_size=batch_size, device="cpu", dtype="float32")
    library = HFLM(pretrained=loaded, tokenizer=tokenizer, batch_size=batch_size, max_length=ours.max_length)
    for name, kind, requests in _requests(contexts):
        speeds: list[float] = []
        for number in range(rounds + 1):  # the first one warms up
            taken = []
            for lm in (ours, library) if number % 2 else (library, ours):
                began = clock()
                getattr(lm, kind)(requests, disable_tqdm=True)
                taken.append(clock() - began)
            mine, theirs = taken if number % 2 else taken[::-1]
            speeds.append(theirs / mine)
        low, _, high = statistics.quantiles(speeds[1:], n=4)
        yield Row(name, len(requests), statistics.median(speeds[1:]), low, high)


def _requests(contexts: int) -> Iterator[tuple[str, str, list[Instance]]]:
    words = " ".join(topics[name] for name in sorted(topics)).split()
    spans = [words[at : at + 400] for at in range(0, 400 * contexts, 400)]
    choices, letters, rolling, until = [], [], [], []
    for number, span in enumerate(spans):
        context = " ".join(span[: 50 + number % 20])
        for place in range(4):
            ending = spans[(number + place) % len(spans)][80 : 95 + (number + place) % 10]
            choices.append(_instance("loglikelihood", (context, " " + " ".join(ending))))
            letters.append(_instance("loglikelihood", (context, f" {'ABCD'[place]}")))
        rolling.append(_instance("loglikelihood_rolling", (" ".join(span[:300]),)))
        settings = {"until": ["@@@"], "max_gen_toks": 24, "do_sample": False}
        until.append(_instance("generate_until", (context, settings)))
    yield "choices", "loglikelihood", choices
    yield "letters", "loglikelihood", letters
    yield "rolling", "loglikelihood_rolling", rolling
    yield "until", "generate_until", until


def _instance(kind: Any, arguments: tuple[Any, ...]) -> Instance:
    return Instance(kind, doc={}, arguments=arguments, idx=0, metadata=("benchmark", 0, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ZOO / "llama")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--contexts", type=int, default=16)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    options = parser.parse_args()
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    for row in measure(
        options.model,
        batch_size=options.batch_size,
        rounds=options.rounds,
        contexts=options.contexts,
        clock=clock,
    ):
        print(f"{row.requests:8} {row.number:4} requests  x {row.ratio:.3f}  ({row.low:.3f} to {row.high:.3f})")


if __name__ == "__main__":
    main()
