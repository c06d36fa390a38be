"""How far every rule is from the best set of blocks: the numbers of docs/searching.md.

    python examples/search/regret.py                      measures what is missing, and writes the page's tables
    python examples/search/regret.py --compensate         also what compensation makes of some rules' sets
    python examples/search/regret.py --models zoo:llama   of these alone

For each shipped model and 3 or 6 of its 12 blocks: every set is measured on held-out text, which gives the true
optimum, and the sets that each rule chooses on other text are held against it. It may be stopped at any time and goes
on where it was; what it keeps for that lies in `--work`, and a file of results for each model in `results/`.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy
import torch
from tables import write_page

import shortgpt
from shortgpt.basics.statistics import difference, resampled_means
from shortgpt.measuring.calibration import Calibration, calibrate_and_hold_out
from shortgpt.measuring.compensation.fit import fit
from shortgpt.measuring.evaluation import evaluate, open_evaluator
from shortgpt.measuring.search.search import measuring
from shortgpt.plugins import registry
from shortgpt.values.choosing import choice
from shortgpt.values.choosing.search import SearchOptions, Sums

HERE = Path(__file__).parent
MODELS = ("llama", "gpt2", "baichuan", "gpt2-postnorm", "rwkv", "mistral", "mamba")
NUMBERS = (3, 6)
COMPENSATED = ("block-influence", "contiguous", "pairs, kl")
DRAWS = 20
SIZES, SUBSETS = (1, 2, 4, 8), 200
"""Of the choosing text's sequences, of each size, for the question of how much text an objective needs."""


def main() -> None:
    parser = argparse.ArgumentParser(description="The regret of every rule that chooses blocks.")
    parser.add_argument("--models", nargs="*", default=[f"zoo:{name}" for name in MODELS])
    parser.add_argument("--sequences", type=int, default=16, help="to choose on, and as many others to judge on")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--compensate", action="store_true", help="also what compensation makes of some rules' sets")
    parser.add_argument("--work", type=Path, default=HERE / "kept")
    parser.add_argument("--page", type=Path, default=HERE.parents[1] / "docs" / "searching.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(exist_ok=True)
    (HERE / "results").mkdir(exist_ok=True)
    for name in options.models:
        file = HERE / "results" / f"{name.removeprefix('zoo:')}.json"
        found = json.loads(file.read_text()) if file.exists() else {}
        stages = ["cases", "certainty", *(["compensated"] if options.compensate else [])]
        if missing := [stage for stage in stages if stage not in found]:
            regret = Regret(name, options.work / file.stem, options.sequences, options.tokens)
            for stage in missing:
                found |= getattr(regret, stage)()
                file.write_text(json.dumps(found, indent=1) + "\n")
                print(f"{name}: {stage}", flush=True)
    write_page(options.page, HERE / "results")


class Regret:
    """One model: what its rules choose, and what every set is worth.

    Args:
        kept: where measurements are kept; a beginning of file names.
    """

    def __init__(self, name: str, kept: Path, sequences: int, tokens: int) -> None:
        self.model: Any = shortgpt.load(name, device="cpu")
        self.kept = kept
        self.choosing, self.judging = calibrate_and_hold_out(
            "stdlib", self.model, sequences=sequences, tokens=tokens, batch_size=sequences
        )
        self.calls = 0

    def cases(self) -> dict[str, Any]:
        """For each number of blocks the optimum, and what each rule's set is worth beside it."""
        judged, passes = self.judged()
        made = []
        for n in NUMBERS:
            sets = list(combinations(range(len(self.model)), n))
            best = min(sets, key=lambda blocks: judged[blocks].mean)
            draws = [tuple(sorted(random.Random(seed).sample(range(len(self.model)), n))) for seed in range(DRAWS)]
            made.append(
                {
                    "blocks": n,
                    "sets": len(sets),
                    "optimum": {"blocks": best, "value": judged[best].mean},
                    "median": float(numpy.median([judged[blocks].mean for blocks in sets])),
                    "rules": [self.row(rule, judged, best) for rule in self.rules(n)],
                    "random": [judged[blocks].mean / judged[best].mean - 1 for blocks in draws],
                    "values": [round(judged[blocks].mean, 6) for blocks in sets],
                }
            )
        return {
            "model": self.model.name,
            "depth": len(self.model),
            "choosing": self.choosing.info.to_dict(),
            "judging": self.judging.info.to_dict(),
            "whole": judged[()].mean,
            "judging_sets": len(judged),
            "judging_passes": passes,
            "cases": made,
        }

    def judged(self) -> tuple[dict[tuple[int, ...], Sums], float]:
        """What every set of the numbers asked for, and each one and two blocks, are worth on the judging text."""
        return self.every_set(self.judging, "judge", (1, 2, *NUMBERS))

    def every_set(
        self, data: Calibration, what: str, sizes: Sequence[int], objective: str = "perplexity"
    ) -> tuple[dict[tuple[int, ...], Sums], float]:
        """The objective without every set of these sizes, and the passes of the whole model that it takes."""
        sets = [blocks for size in sizes for blocks in combinations(range(len(self.model)), size)]
        wanted = SearchOptions("exact", objective, resume=f"{self.kept}-{what}-{objective}.jsonl")
        with measuring(self.model, data, wanted) as measurements:
            found = measurements.of([(), *sets])
            return found, measurements.passes

    def rules(self, n: int) -> Iterator[dict[str, Any]]:
        """What each rule chooses on the choosing text, and what that takes."""
        names = sorted({entry.name for entry in registry().criteria} - {"random"})
        for name in names:
            scores, calls = self.kept_value(f"scores-{name}", lambda name=name: self.scored((name,)))
            yield {"rule": name, "blocks": choice.least(scores, n)[0], "calls": calls}
        scores, calls = self.kept_value("scores-spans", lambda: self.scored(("block-influence",), spans=True))
        yield {"rule": "contiguous", "blocks": choice.run(scores, n)[0], "calls": calls}
        for objective in ("perplexity", "kl"):
            for method in ("pairs", "beam"):
                resume = f"{self.kept}-choose-{objective}.jsonl"
                found = shortgpt.search(self.model, n, self.choosing, method=method, objective=objective, resume=resume)
                yield {
                    "rule": f"{method}, {objective}",
                    "blocks": found.blocks,
                    "evaluations": found.evaluations,
                    "passes": found.passes,
                    "stability": found.choice.stability,
                }

    def scored(self, criteria: tuple[str, ...], spans: bool = False) -> tuple[shortgpt.Scores, int]:
        with self.counting():
            scores = shortgpt.score(self.model, self.choosing, criteria=criteria, spans=spans)
        return scores, self.calls

    def kept_value(self, what: str, make: Callable[[], tuple[shortgpt.Scores, int]]) -> tuple[shortgpt.Scores, int]:
        file = Path(f"{self.kept}-{what}.json")
        if not file.exists():
            scores, calls = make()
            file.write_text(json.dumps([scores.to_dict(), calls]))
        data, calls = json.loads(file.read_text())
        return shortgpt.Scores.from_dict(data), calls

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Counts how often the model is called, for all of its sequences at once."""
        self.calls = 0

        def count(*_: Any) -> None:
            self.calls += 1

        hook = self.model.model.register_forward_pre_hook(count)
        try:
            yield
        finally:
            hook.remove()

    def row(self, rule: dict[str, Any], judged: dict[tuple[int, ...], Sums], best: tuple[int, ...]) -> dict[str, Any]:
        """A rule's set on the judging text, whole sequences resampled for its interval."""
        ours, least = judged[rule["blocks"]], judged[best]
        rows = list(zip(ours.sums, least.sums, strict=True))
        means = resampled_means(rows, ours.counts, 10_000, 0, self.judging.documents)
        low, high = numpy.quantile(means[:, 0] / means[:, 1] - 1, (0.025, 0.975)).tolist()
        return {
            **rule,
            "value": ours.mean,
            "regret": ours.mean / least.mean - 1,
            "low": low,
            "high": high,
        }

    def compensated(self) -> dict[str, Any]:
        """Log-perplexity on the judging text of some rules' sets, with what the removal did made up for by maps that
        were fitted to the choosing text: over that of the true optimum, which is not compensated, less 1."""
        judged, _ = self.judged()
        file = Path(f"{self.kept}-compensated.json")
        known = json.loads(file.read_text()) if file.exists() else {}
        made = []
        for n in NUMBERS:
            best = min(combinations(range(len(self.model)), n), key=lambda blocks: judged[blocks].mean)
            chosen = {rule["rule"]: rule["blocks"] for rule in self.rules(n) if rule["rule"] in COMPENSATED}
            row: dict[str, Any] = {"blocks": n}
            for rule, blocks in {**chosen, "optimum": best}.items():
                key = " ".join(map(str, blocks))
                if key not in known:
                    fitted = fit(self.model, blocks, self.choosing)
                    with fitted.on(self.model):
                        known[key] = evaluate(self.model, self.judging, open_evaluator("perplexity"), blocks).mean
                    file.write_text(json.dumps(known))
                row[rule] = known[key] / judged[best].mean - 1
            made.append(row)
        return {"compensated": made}

    def certainty(self) -> dict[str, Any]:
        """How much text an objective needs, by the sets of two blocks.

        `curve`: the regret on the judging text of the best pair by a few sequences of the choosing text, the mean over
        random subsets. `tokens`: how many standard errors two pairs are apart on all of it, squared, by KL over that by
        perplexity; its median over all twos of pairs is by how much less text KL needs to tell them apart.
        """
        judged, _ = self.judged()
        pairs = list(combinations(range(len(self.model)), 2))
        worth = numpy.array([judged[pair].mean for pair in pairs])
        curve, apart = [], {}
        for objective in ("perplexity", "kl"):
            chosen, _ = self.every_set(self.choosing, "choose", (2,), objective)
            sums = numpy.array([chosen[pair].sums for pair in pairs])
            counts = numpy.array(chosen[pairs[0]].counts)
            draw = numpy.random.default_rng(0)
            for size in SIZES:
                rows = numpy.stack([draw.permutation(len(counts))[:size] for _ in range(SUBSETS)])
                means = sums[:, rows].sum(2) / counts[rows].sum(1)
                regret = worth[means.argmin(0)] / worth.min() - 1
                curve.append({"objective": objective, "sequences": size, "regret": float(regret.mean())})
            errors = [difference(one, other, counts.tolist()) for one, other in combinations(sums.tolist(), 2)]
            apart[objective] = numpy.array([(mean / stderr) ** 2 for mean, stderr in errors])
        ratio = float(numpy.median(apart["kl"] / apart["perplexity"]))
        return {"certainty": {"curve": curve, "tokens": ratio}}


if __name__ == "__main__":
    main()
