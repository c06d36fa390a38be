"""`shortgpt prune` and `score`: how blocks are chosen, how sure that is, and what it does to the model."""

import inspect
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import shortgpt
from shortgpt import Plan
from shortgpt.measuring.calibration import held_out
from shortgpt.measuring.scoring import score as scoring
from shortgpt.values.choosing.choice import exchanges
from shortgpt.values.choosing.spans import Spans
from tests.support import Ran, message_of, saved, skipped_by_hand, tiny

Run = Callable[..., Ran]
ON = ("--sequences", 4, "--tokens", 32, "--device", "cpu")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("".join(f"line {i}: {i * i} is the square of {i}\n" for i in range(400)))
    return file


@pytest.fixture
def prune(run_cli: Run, llama_folder: Path, text: Path, tmp_path: Path) -> Callable[..., tuple[Ran, Plan]]:
    """`prune(*options)`: what it prints and the plan that it writes; on the CPU, without verification."""

    def run(*options: object, scored: bool = True) -> tuple[Ran, Plan]:
        given = (*options, *(("--calibration", text, *ON) if scored else ("--device", "cpu")), "--no-verify")
        ran = run_cli("prune", llama_folder, "-o", tmp_path / "out", *given)
        assert ran.status == 0, ran.err
        return ran, Plan.read(tmp_path / "out")

    return run


@pytest.fixture
def refused(run_cli: Run, llama_folder: Path, text: Path, tmp_path: Path) -> Callable[..., str]:
    """`refused(*options)`: the one message of a removal that cannot be; nothing is written."""

    def run(*options: object, model: Path = llama_folder) -> str:
        ran = run_cli("prune", model, "-o", tmp_path / "out", *options)
        assert not (tmp_path / "out").exists()
        return message_of(ran)

    return run


def ratio_by_hand(folder: Path, text: Path, gone: tuple[int, ...]) -> float:
    """Perplexity without blocks over that of the whole model, on the held-out windows: Hugging Face's model."""
    data = held_out(text, shortgpt.load(folder, device="cpu"), sequences=4, tokens=32)
    ids = torch.cat([batch["input_ids"] for batch in data.batches])
    nats = []
    for blocks in ((), gone):
        logits = skipped_by_hand(tiny("llama"), "model.layers", blocks, ids).double()[:, :-1]
        nats.append(torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item())
    return math.exp(nats[1] - nats[0])


# -- how sure -------------------------------------------------------------------------------------------------


def test_prune_and_score_tell_the_same_toss_ups(
    prune: Callable[..., tuple[Ran, Plan]], run_cli: Run, llama_folder: Path, text: Path
) -> None:
    ran, plan = prune("--blocks", 3)
    assert plan.scores is not None
    assert plan.choice is not None
    assert plan.choice.exchanges == exchanges(plan.scores, plan.blocks)
    assert plan.choice.stability == plan.scores.stability(3)
    told = re.findall(r"^(?:toss-up: block|no toss-up; the nearest).*$", ran.out, re.MULTILINE)
    assert len(told) == len(plan.choice.exchanges)
    scored = run_cli("score", llama_folder, "--calibration", text, *ON, "--blocks", 3)
    assert [line in scored.out for line in told] == [True] * len(told)


# -- blocks that stay -----------------------------------------------------------------------------------------


def test_kept_blocks_stay_and_are_marked(
    prune: Callable[..., tuple[Ran, Plan]], run_cli: Run, llama_folder: Path, text: Path
) -> None:
    scores = shortgpt.score(shortgpt.load(llama_folder, device="cpu"), text, sequences=4, tokens=32)
    first, second, third, *_ = scores.ranking()
    ran, plan = prune("--blocks", 2, "--keep", first)
    assert plan.blocks == tuple(sorted((second, third)))
    assert plan.scores is not None
    assert plan.scores.pinned == {first: "it was asked to stay"}
    assert plan.scores.sums == scores.sums
    assert re.search(rf"^ +{first} .* pinned *$", ran.out, re.MULTILINE)
    marked = run_cli("score", llama_folder, "--calibration", text, *ON, "--blocks", 2, "--keep", first).out
    assert len(re.findall(r"remove *$", marked, re.MULTILINE)) == 2
    assert re.search(rf"^ +{first} .* pinned *$", marked, re.MULTILINE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--blocks", 1, "--keep", "5-6"), "blocks 6 cannot be kept: the model has 6 blocks, numbered 0 to 5"),
        (("--blocks", 1, "--keep", "0-5"), "all 6 blocks are to stay"),
        (("--blocks", 3, "--keep", "0-3"), "from 1 to 2 of the 6 blocks may be removed (0-3 must stay)"),
        (("--blocks", 1, "--keep", "x"), "'x' is not a list of blocks"),
        (("--remove", 1, "--keep", "2"), "--keep: nothing is scored with --remove"),
        (("--contiguous", 3, "--keep", "2,4"), "no run of 3 of the 6 blocks without those that stay (2, 4)"),
        (("--contiguous", 6), "a run of 6 blocks cannot be chosen: from 1 to 5 of the 6"),
        (("--contiguous", 0), "a run of 0 blocks cannot be chosen"),
        (("--contiguous", 2, "--blocks", 2), "two choices at once (--blocks, --contiguous)"),
        (("--contiguous", 2, "--ratio", 0.5), "two choices at once (--ratio, --contiguous)"),
        (("--max-perplexity-ratio", 1.1, "--ratio", 0.5), "two choices at once (--ratio, --max-perplexity-ratio)"),
        (("--max-perplexity-ratio", 0.9), "a perplexity ratio of 0.9 is no limit"),
        (("--max-perplexity-ratio", "nan"), "a perplexity ratio of nan is no limit"),
        (("--max-perplexity-ratio", 1.1, "--stream"), "--stream leaves its weights in their files"),
        (
            ("--remove", 1, "--seed", 3),
            "--seed: nothing is scored with --remove; leave them out, or measure the --effect",
        ),
        (("--remove", 1, "--effect", "--criterion", "x"), "--criterion: nothing is scored with --remove"),
        (("--remove", "7", "--effect"), "blocks 7 do not exist"),
    ],
)
def test_a_mistake_is_told_before_the_model_is_loaded(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, options: Any, message: str
) -> None:
    def load(*args: Any, **options: Any) -> None:
        raise AssertionError("it was loaded")

    monkeypatch.setattr(shortgpt.models.loading, "load", load)
    assert message in refused(*options)


def test_score_refuses_to_keep_what_is_not_there(run_cli: Run, llama_folder: Path) -> None:
    ran = run_cli("score", llama_folder, *ON, "--keep", "9")
    assert ran.status == 2
    assert "blocks 9 cannot be kept" in ran.err


# -- runs -----------------------------------------------------------------------------------------------------


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> None:
    """`score(..., spans=True)` by a float64 computation of its own, where it does not give them itself."""
    if "spans" in inspect.signature(scoring.score).parameters:
        return
    score = scoring.score

    def with_spans(model: Any, source: Any, *, spans: bool = False, **options: Any) -> shortgpt.Scores:
        scores = score(model, source, **options)
        return replace(scores, spans=spans_by_hand(model, source)) if spans else scores

    monkeypatch.setattr(scoring, "score", with_spans)


def spans_by_hand(model: Any, source: Any) -> Spans:
    """1 − cos between all pairs of boundaries, token by token, float64."""
    (batch,) = shortgpt.calibrate(source, model, sequences=4, tokens=32).batches
    stream: list[torch.Tensor] = []
    model.trace(batch, lambda boundary, hidden: stream.append(hidden.double()))
    pairs = [(i, j) for i in range(len(model)) for j in range(i + 1, len(model) + 1)]
    columns = [1 - torch.cosine_similarity(stream[i], stream[j], dim=-1).sum(1) / 32 for i, j in pairs]
    return Spans("block-influence", len(model), tuple(map(tuple, (32 * torch.stack(columns, 1)).tolist())), (32,) * 4)


@pytest.mark.usefixtures("spans")
@pytest.mark.parametrize("keep", [(), (2,)])
def test_the_neighbours_that_score_least_as_one_go(
    prune: Callable[..., tuple[Ran, Plan]], llama_folder: Path, text: Path, keep: tuple[int, ...]
) -> None:
    found = spans_by_hand(shortgpt.load(llama_folder, device="cpu"), text)
    runs = [first for first in range(5) if not {first, first + 1} & {*keep}]
    best = min(runs, key=lambda first: found.value(first, 2))
    ran, plan = prune("--contiguous", 2, *(("--keep", ",".join(map(str, keep))) if keep else ()))
    assert plan.blocks == (best, best + 1)
    assert plan.choice is not None
    assert plan.choice.rule == "contiguous"
    assert f"the same run in {plan.choice.stability:.0%} of bootstrap resamples" in ran.out
    card = (Path(ran.out.split("written to ")[1].strip().replace("\n", "")) / "README.md").read_text()
    assert "the run of least score removed (Gromov et al." in card


# -- as many as a ratio allows --------------------------------------------------------------------------------


def test_the_number_of_blocks_is_the_largest_within_the_ratio(
    prune: Callable[..., tuple[Ran, Plan]], llama_folder: Path, text: Path
) -> None:
    order = shortgpt.score(shortgpt.load(llama_folder, device="cpu"), text, sequences=4, tokens=32).ranking()
    ratios = [ratio_by_hand(llama_folder, text, tuple(sorted(order[:n]))) for n in range(1, 6)]
    limit = (sorted(ratios)[2] + sorted(ratios)[3]) / 2
    ran, plan = prune("--max-perplexity-ratio", limit)
    assert plan.choice is not None
    assert plan.choice.ratios == pytest.approx(ratios, rel=1e-4)
    n = max(n for n, ratio in enumerate(ratios, start=1) if ratio <= limit)
    assert plan.blocks == tuple(sorted(order[:n]))
    assert plan.effect is not None
    assert plan.effect.ratio == pytest.approx(ratios[n - 1], rel=1e-4)
    assert "times the original's:" in ran.out


def test_a_ratio_that_no_removal_stays_within_writes_nothing(refused: Callable[..., str]) -> None:
    message = refused("--max-perplexity-ratio", 1, *ON, "--keep", 2, model=Path("zoo:llama"))
    best = re.search(r"within 1 times the original's: the best of all numbers of blocks gives ([\d.]+) times", message)
    assert best is not None
    assert float(best[1]) > 1


def test_without_held_out_text_no_ratio_can_be_stayed_within(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("some words to measure with " * 64)
    message = refused("--max-perplexity-ratio", 2, "--calibration", tmp_path / "short.txt", *ON)
    assert "and the first 4 were scored, so none is held out" in message


# -- sets that cannot be removed ------------------------------------------------------------------------------


def test_a_choice_that_no_exchange_mends_says_what_to_do(
    refused: Callable[..., str], text: Path, tmp_path: Path
) -> None:
    model = saved(tiny("rwkv", blocks=3), tmp_path / "rwkv")
    message = refused("--blocks", 2, "--calibration", text, *ON, model=model)
    assert "rwkv: one block alone cannot be loaded" in message
    assert "or name the blocks (--remove; `shortgpt inspect MODEL --remove LIST` says whether they may go)" in message


def test_a_set_that_the_family_refuses_gives_way_to_another(
    run_cli: Run, llama_folder: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shortgpt_adapters.transformers.family import TransformersFamily

    scores = shortgpt.score(shortgpt.load(llama_folder, device="cpu"), text, sequences=4, tokens=32)
    lowest = scores.ranking()[0]
    refuse = lambda self, config, keep: f"block {lowest} holds the rest" if lowest not in keep else None  # noqa: E731
    monkeypatch.setattr(TransformersFamily, "refuse", refuse)
    options = ("--blocks", 1, "--calibration", text, *ON, "--no-verify", "--no-effect")
    ran = run_cli("prune", llama_folder, "-o", tmp_path / "out", *options)
    assert ran.status == 0, ran.err
    assert Plan.read(tmp_path / "out").blocks == scores.ranking()[1:2]
    assert f"not the set of least score, which cannot be removed: llama: block {lowest} holds" in " ".join(
        ran.out.split()
    )


# -- the effect -----------------------------------------------------------------------------------------------


def test_prune_measures_what_the_removal_does(
    prune: Callable[..., tuple[Ran, Plan]], llama_folder: Path, text: Path, tmp_path: Path
) -> None:
    ran, plan = prune("--blocks", 2)
    found = plan.effect
    assert found is not None
    assert found.ratio == pytest.approx(ratio_by_hand(llama_folder, text, plan.blocks), rel=1e-4)
    assert found.not_measured == {}
    assert f"× {found.ratio:.4g} ±" in ran.out
    for name in ("prompt: ", "before: ", "after: "):
        assert len(re.findall(f"^{name}", ran.out, re.MULTILINE)) == 1
    # The table is parted where the text's path is long.
    assert re.search("^tokens per second  .* × ", ran.out, re.MULTILINE)
    free = ("removed ", "not verified", "written to ", "/", "verified")
    assert max(len(line) for line in ran.out.splitlines() if not line.startswith(free)) <= 80
    assert "| perplexity | " in (tmp_path / "out" / "README.md").read_text()


def test_the_effect_can_be_left_out(prune: Callable[..., tuple[Ran, Plan]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shortgpt.measuring.effect.effect", None)
    ran, plan = prune("--blocks", 2, "--no-effect")
    assert plan.effect is None
    assert "perplexity" not in ran.out


def test_what_is_named_is_measured_where_that_is_asked_for_on_the_same_text(
    prune: Callable[..., tuple[Ran, Plan]], llama_folder: Path, text: Path, tmp_path: Path
) -> None:
    _, plan = prune("--remove", "1,4", "--effect")
    assert plan.scores is plan.choice is None
    assert plan.effect is not None
    assert plan.effect.ratio == pytest.approx(ratio_by_hand(llama_folder, text, (1, 4)), rel=1e-4)
    (tmp_path / "out").rename(tmp_path / "first")
    _, without = prune("--remove", "1,4", scored=False)
    assert without.effect is None
    (tmp_path / "out").rename(tmp_path / "second")
    _, again = prune("--plan", tmp_path / "second", "--effect")
    assert again.effect is not None
    assert again.effect.before.perplexity == plan.effect.before.perplexity


def test_a_streamed_model_is_pruned_and_not_measured(prune: Callable[..., tuple[Ran, Plan]]) -> None:
    ran, plan = prune("--blocks", 1, "--stream")
    assert plan.effect is not None
    assert set(plan.effect.not_measured) == {"perplexity", "continuation", "tokens per second"}
    assert "not measured: the weights are still in their files (stream)" in " ".join(ran.out.split())


def test_an_effect_measured_on_other_weights_is_not_told_again(
    prune: Callable[..., tuple[Ran, Plan]], run_cli: Run, tmp_path: Path
) -> None:
    _, plan = prune("--blocks", 1)
    assert plan.effect is not None
    other = saved(tiny("llama", rms_norm_eps=1e-5), tmp_path / "other")
    run_cli("prune", other, "-o", tmp_path / "again", "--plan", tmp_path / "out", "--no-verify")
    assert Plan.read(tmp_path / "again").effect is None
    assert Plan.read(tmp_path / "again").scores == plan.scores


def test_a_plan_written_before_there_were_effects_is_still_read(
    prune: Callable[..., tuple[Ran, Plan]], run_cli: Run, llama_folder: Path, tmp_path: Path
) -> None:
    _, plan = prune("--blocks", 1)
    file = tmp_path / "out" / "shortgpt.json"
    older = json.loads(file.read_text())
    for name in ("choice", "effect", "exports"):
        del older[name]
    file.write_text(json.dumps(older))
    ran = run_cli("prune", llama_folder, "-o", tmp_path / "again", "--plan", file, "--no-verify")
    assert ran.status == 0, ran.err
    assert Plan.read(tmp_path / "again") == replace(plan, choice=None, effect=None)
