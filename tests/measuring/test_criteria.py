"""Every criterion against a float64 computation of its definition, on the stream and logits of Hugging Face's models as
plain hooks see them; and on models that this project did not make."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import shortgpt
from shortgpt import Scores, plugins
from shortgpt.errors import CalibrationError, ShortGPTError
from shortgpt.models.sequence import TokenBatch
from tests.support import Playback, Ran, ids_of, skipped_by_hand, tiny
from tests.test_zoo import ZOO
from tests.tiny_types import tiny_batch, tiny_model

PATH = "model.layers"
IDS = ids_of(rows=3, tokens=20)
LENGTHS = (20, 9, 14)
MASK = (torch.arange(20) < torch.tensor(LENGTHS)[:, None]).long()
PADDED: TokenBatch = {"input_ids": IDS, "attention_mask": MASK}
ALL = tuple(entry.name for entry in plugins.registry().criteria)


def hooked(model: Any, ids: Tensor, gone: Sequence[int] = ()) -> list[Tensor]:
    """The residual stream of a model whose blocks are at `model.layers`, without some of them, in float64."""
    stream: list[Tensor] = []
    blocks = model.get_submodule(PATH)
    seen = [
        block.register_forward_pre_hook(lambda module, args, kwargs: stream.append(args[0].double()), with_kwargs=True)
        for i, block in enumerate(blocks)
        if i not in gone
    ]
    last = blocks[max(set(range(len(blocks))) - set(gone))]
    seen.append(last.register_forward_hook(lambda module, args, output: stream.append(output.double())))
    try:
        skipped_by_hand(model, PATH, gone, ids)
    finally:
        for hook in seen:
            hook.remove()
    return stream


def log_losses(logits: Tensor, ids: Tensor) -> Tensor:
    """−log p of each next token, [sequences, tokens − 1], in float64."""
    logits = logits.double()[:, :-1]
    return logits.logsumexp(-1) - logits.gather(-1, ids[:, 1:, None])[..., 0]


def real_mean(values: Tensor) -> float:
    """The mean of [sequences, tokens] over the real ones."""
    mask = MASK[:, -values.shape[1] :].bool()
    return values[mask].mean().item()


@pytest.fixture(scope="module")
def llama() -> Any:
    return tiny("llama")


@pytest.fixture(scope="module")
def scores(llama: Any) -> Scores:
    return shortgpt.score(shortgpt.wrap(llama), [PADDED], criteria=ALL)


# -- of the stream --------------------------------------------------------------------------------------------

FORMULAS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "block-influence": lambda x, y: 1 - cosine(x, y),
    "angular-distance": lambda x, y: torch.arccos(cosine(x, y)) / math.pi,
    "relative-magnitude": lambda x, y: length(y - x) / length(x + (y - x)),
    "norm": lambda x, y: -length(y),
    "euclidean-distance": lambda x, y: length(y - x),
    "relative-euclidean-distance": lambda x, y: length(y - x) / length(x),
}


def cosine(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(-1) / (x.square().sum(-1) * y.square().sum(-1)).sqrt()


def length(x: Tensor) -> Tensor:
    return x.square().sum(-1).sqrt()


@pytest.mark.parametrize("name", FORMULAS)
def test_a_criterion_of_the_stream_is_the_mean_of_its_formula_over_real_tokens(
    name: str, llama: Any, scores: Scores
) -> None:
    expected = [real_mean(FORMULAS[name](x, y)) for x, y in pairwise(hooked(llama, IDS))]
    assert scores.of(name).values == pytest.approx(expected, rel=1e-9)
    assert scores.of(name).counts[0] == LENGTHS


@pytest.mark.parametrize("name", FORMULAS)
def test_its_sums_are_those_of_each_sequence(name: str, llama: Any, scores: Scores) -> None:
    for block, (x, y) in enumerate(pairwise(hooked(llama, IDS))):
        expected = [row[:n].sum().item() for row, n in zip(FORMULAS[name](x, y), LENGTHS, strict=True)]
        assert [row[block] for row in scores.of(name).sums[0]] == pytest.approx(expected, rel=1e-9)


def test_the_angle_at_the_last_token_is_that_of_the_last_real_one(llama: Any, scores: Scores) -> None:
    last = torch.tensor(LENGTHS) - 1
    expected = [
        FORMULAS["angular-distance"](x, y)[torch.arange(3), last].mean().item() for x, y in pairwise(hooked(llama, IDS))
    ]
    assert scores.of("angular-distance-last").values == pytest.approx(expected, rel=1e-9)
    assert scores.of("angular-distance-last").counts[0] == (1, 1, 1)


def test_the_longest_stream_goes_first_by_the_norm() -> None:
    growing = torch.randn(1, 30, 8) * torch.tensor([1.0, 3.0, 2.0, 9.0]).reshape(4, 1, 1)
    scores = shortgpt.score(Playback(growing), [{"input_ids": torch.arange(30)[None]}], criteria=["norm"])
    assert scores.ranking() == (2, 0, 1)  # they leave 9, 3 and 2 behind


# -- orders ---------------------------------------------------------------------------------------------------


def test_sequential_takes_the_first_block_first_and_reverse_order_the_last(scores: Scores) -> None:
    assert scores.of("sequential").ranking() == (0, 1, 2, 3, 4, 5)
    assert scores.of("sequential").least_influential(2) == (0, 1)
    assert scores.of("reverse-order").ranking() == (5, 4, 3, 2, 1, 0)
    assert scores.of("reverse-order").least_influential(2) == (4, 5)


def test_an_order_has_places_and_no_uncertainty(scores: Scores) -> None:
    order = scores.of("reverse-order")
    assert order.values == (5, 4, 3, 2, 1, 0)
    assert all(math.isnan(error) for error in order.stderr)


def test_random_is_an_order_that_the_seed_tells(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("one after another " * 200)
    model = Playback(torch.randn(13, 257, 4))

    def order(seed: int) -> tuple[int, ...]:
        found = shortgpt.score(
            model, tmp_path / "text.txt", criteria=["random"], sequences=2, tokens=8, seed=seed
        ).ranking()
        assert sorted(found) == list(range(12))
        return found

    assert order(1) == order(1)
    assert len({order(seed) for seed in range(5)}) == 5
    unsampled = shortgpt.score(model, [{"input_ids": torch.arange(5)[None]}], criteria=["random"])
    assert unsampled.ranking() == order(0)


# -- by what the model predicts -------------------------------------------------------------------------------


def test_perplexity_is_the_log_perplexity_without_the_block(llama: Any, scores: Scores) -> None:
    expected = [real_mean(log_losses(skipped_by_hand(llama, PATH, [block], IDS), IDS)) for block in range(6)]
    measured = scores.of("perplexity")
    assert measured.values == pytest.approx(expected, rel=1e-6)
    assert measured.counts[0] == tuple(n - 1 for n in LENGTHS)  # the predictions
    assert all(error > 0 for error in measured.stderr)


def test_texts_without_a_single_prediction_have_no_perplexity(llama: Any) -> None:
    model = shortgpt.wrap(llama)
    with pytest.raises(CalibrationError, match="two tokens"):
        shortgpt.score(model, [{"input_ids": IDS[:, :1]}], criteria=["perplexity"])
    short = torch.tensor([[5, 0, 0], [1, 2, 3]])
    mask = torch.tensor([[1, 0, 0], [1, 1, 1]])
    scores = shortgpt.score(model, [{"input_ids": short, "attention_mask": mask}], criteria=["perplexity"])
    assert scores.counts == ((0, 2),)
    alone = shortgpt.score(model, [{"input_ids": short[1:]}], criteria=["perplexity"])
    assert scores.values == pytest.approx(alone.values, rel=1e-6)


def test_kl_divergence_is_that_of_the_prediction_behind_the_block_from_the_one_before_it(
    llama: Any, scores: Scores
) -> None:
    weight, head = llama.model.norm.weight.double(), llama.lm_head.weight.double()
    epsilon = llama.config.rms_norm_eps

    def prediction(x: Tensor) -> Tensor:
        return (weight * x / (x.square().mean(-1, keepdim=True) + epsilon).sqrt() @ head.T).log_softmax(-1)

    with torch.no_grad():
        predictions = [prediction(x) for x in hooked(llama, IDS)]
    expected = [real_mean((q.exp() * (q - p)).sum(-1)) for p, q in pairwise(predictions)]
    other_way = [real_mean((p.exp() * (p - q)).sum(-1)) for p, q in pairwise(predictions)]
    assert scores.of("kl-divergence").values == pytest.approx(expected, rel=1e-4)
    assert scores.of("kl-divergence").values != pytest.approx(other_way, rel=1e-2)
    assert scores.of("kl-divergence").counts[0] == LENGTHS


class Readable(Playback):
    """Reads each boundary out as the logits given."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__(torch.ones(len(logits), 1, 1))
        self.read = logits

    def refuse_readouts(self) -> None:
        return None

    def readouts(self, batch: TokenBatch) -> Iterator[Tensor]:
        return (logits[None, None] for logits in self.read)


def test_kl_divergence_reads_a_mask_of_any_numbers_as_all_criteria_do(llama: Any) -> None:
    criteria = ["block-influence", "perplexity", "kl-divergence"]
    whole, other = (
        shortgpt.score(shortgpt.wrap(llama), [{"input_ids": IDS, "attention_mask": mask}], criteria=criteria)
        for mask in (MASK, MASK.float())
    )
    assert (other.sums, other.counts) == (whole.sums, whole.counts)


def test_kl_divergence_of_known_distributions() -> None:
    shares = torch.tensor([[0.5, 0.5, 0.0], [0.9, 0.1, 0.0], [0.9, 0.1, 0.0]])  # what cannot come has the logit −inf
    model = Readable(shares.double().log())
    scores = shortgpt.score(model, [{"input_ids": torch.zeros(1, 1, dtype=torch.long)}], criteria=["kl-divergence"])
    assert scores.values[0] == pytest.approx(0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5), rel=1e-6)
    assert scores.values[1] == pytest.approx(0, abs=1e-12)


# -- one block after another ----------------------------------------------------------------------------------


def one_by_one(depth: int, cost: Callable[[list[int]], float], stays: tuple[int, ...] = ()) -> list[int]:
    """The blocks in the order in which the cheapest goes, by costs of the blocks that are then gone."""
    gone: list[int] = []
    while len(gone) < depth - max(1, len(stays)):
        free = [block for block in range(depth) if block not in gone and block not in stays]
        gone.append(min(free, key=lambda block: cost([*gone, block])))
    return gone


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A tiny Llama with a pinned block, as some families have one."""

    def made(block: int) -> Any:
        model: Any = shortgpt.wrap(tiny("llama"))
        monkeypatch.setattr(model, "pinned", {block: "all others read it"})
        monkeypatch.setattr(model.family, "pinned", lambda config: {block: "all others read it"})
        return model

    return made


def mean_loss(model: Any, gone: Sequence[int]) -> float:
    return real_mean(log_losses(skipped_by_hand(model, PATH, gone, IDS), IDS))


def influence_of_the_last(model: Any, gone: list[int]) -> float:
    """Block Influence of the last of these blocks in the model without the others."""
    *others, block = gone
    stream = hooked(model, IDS, others)
    place = [b for b in range(len(model.model.layers)) if b not in others].index(block)
    return real_mean(1 - cosine(stream[place], stream[place + 1]))


def test_greedy_removes_what_costs_the_least_perplexity_again_and_again(llama: Any, scores: Scores) -> None:
    expected = one_by_one(6, lambda gone: mean_loss(llama, gone))
    assert list(scores.of("greedy").ranking())[:5] == expected
    assert scores.of("greedy").ranking() != scores.of("perplexity").ranking()  # it does make a difference here


def test_iterative_block_influence_measures_again_without_what_is_gone(llama: Any, scores: Scores) -> None:
    expected = one_by_one(6, lambda gone: influence_of_the_last(llama, gone))
    assert list(scores.of("iterative-block-influence").ranking())[:5] == expected


@pytest.mark.parametrize("block", [0, 3])
def test_a_pinned_block_never_goes_and_comes_last(block: int, llama: Any, pinned: Callable[..., Any]) -> None:
    model = pinned(block)
    scores = shortgpt.score(model, [PADDED], criteria=["greedy", "iterative-block-influence"])
    expected = one_by_one(6, lambda gone: mean_loss(llama, gone), stays=(block,))
    assert scores.ranking() == (*expected, block)
    iterative = one_by_one(6, lambda gone: influence_of_the_last(llama, gone), stays=(block,))
    assert scores.of("iterative-block-influence").ranking() == (*iterative, block)


def test_of_equal_blocks_the_deeper_goes_first() -> None:
    model = tiny("llama")
    with torch.no_grad():  # blocks 1, 2 and 4 do nothing
        for block in (1, 2, 4):
            model.model.layers[block].self_attn.o_proj.weight.zero_()
            model.model.layers[block].mlp.down_proj.weight.zero_()
    scores = shortgpt.score(shortgpt.wrap(model), [PADDED], criteria=["greedy", "iterative-block-influence"])
    assert scores.of("iterative-block-influence").ranking()[:3] == (4, 2, 1)
    assert [block for block in scores.of("greedy").ranking() if block in (1, 2, 4)] == [4, 2, 1]


def test_sets_that_the_adapter_refuses_are_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = shortgpt.wrap(tiny("llama"))
    free = shortgpt.score(model, [PADDED], criteria=["greedy"]).ranking()
    first, second = free[:2]

    def refuse(config: Any, keep: Sequence[int]) -> str | None:
        return "these two share their keys" if first not in keep and second not in keep else None

    monkeypatch.setattr(model.family, "refuse", refuse)
    order = shortgpt.score(model, [PADDED], criteria=["greedy"]).ranking()
    assert order[0] == first
    assert order[1] != second
    assert second in order[-2:]  # it can go no more
    assert all(model.refuse_removal(order[:n]) is None for n in range(1, 5))
    assert "share their keys" in str(model.refuse_removal((first, second)))


def test_progress_counts_what_has_gone() -> None:
    seen: list[tuple[str, int, int]] = []
    model = shortgpt.wrap(tiny("llama", blocks=3))
    shortgpt.score(model, [PADDED], criteria=["greedy"], progress=lambda *now: seen.append(now))
    assert [now for now in seen if now[0] == "removals"] == [("removals", n, 3) for n in (1, 2, 3)]
    assert [now for now in seen if now[0] == "cuts"] == [("cuts", n, 3) for n in (1, 2, 3)] + [
        ("cuts", n, 2) for n in (1, 2)
    ]


# -- on every kind of model -----------------------------------------------------------------------------------


def agrees(model: Any, scores: Scores, batch: TokenBatch) -> None:
    """Whatever was not refused is there; and perplexity is that of plain skipping."""
    assert {*scores.criteria, *scores.refused, "greedy"} == set(ALL)
    for block in range(len(model)):
        with model.skipping([block]):
            logits = model.logits(batch)
        expected = log_losses(logits, batch["input_ids"]).mean().item()
        assert scores.of("perplexity").values[block] == pytest.approx(expected, rel=1e-6)


@pytest.mark.sampled("zoo:llama", "zoo:baichuan")
@pytest.mark.parametrize("name", ZOO)
def test_the_models_that_ship_serve_all_criteria(name: str) -> None:
    model = shortgpt.load(name, device="cpu")
    batch = {"input_ids": ids_of(rows=1, tokens=6)}
    scores = shortgpt.score(model, [batch], criteria=ALL)
    assert scores.refused == {}
    agrees(model, scores, batch)
    assert all(value >= 0 for value in scores.of("kl-divergence").values)


@pytest.mark.parametrize(
    "name", ["gpt2", "gpt2_postnorm", "openai-gpt", "mistral", "mamba", "mamba2", "falcon_mamba", "rwkv"]
)
def test_small_models_of_named_families_serve_all_criteria(name: str) -> None:
    model = shortgpt.wrap(tiny(name, blocks=4))
    scores = shortgpt.score(model, [{"input_ids": IDS}], criteria=ALL)
    assert scores.refused == {}
    agrees(model, scores, {"input_ids": IDS})


REFUSING = {
    "mllama": "what a MllamaForCausalLM does behind its blocks needs all of them",
    "xlm": "a block ends in another list than it begins in",
}
SERVED = ("gemma3n_text", "zamba2", "bart", "bert", "xlnet", "zaya", "glm_moe_dsa", "gpt_oss", "xlstm")


@pytest.mark.sampled("gemma3n_text", "bart", "xlstm", "gpt_oss")
@pytest.mark.parametrize("name", [*REFUSING, *SERVED])
def test_odd_types_serve_all_criteria_or_say_why_not(name: str) -> None:
    model = tiny_model(name, blocks=6)
    batch = tiny_batch(name, model)
    wrapped = shortgpt.wrap(model)
    criteria = [criterion for criterion in ALL if criterion != "greedy"]
    scores = shortgpt.score(wrapped, [batch], criteria=criteria)
    assert scores.refused == ({"kl-divergence": REFUSING[name]} if name in REFUSING else {})
    agrees(wrapped, scores, batch)


# -- models and texts that this project did not make ----------------------------------------------------------

REAL = ("stories260k-llama", "rwkv-4v0-660K-hf", "rwkv-5v2-730K", "rwkv-7v0-834K")


@pytest.mark.sampled("stories260k-llama", "rwkv-5v2-730K")
@pytest.mark.parametrize("name", REAL)
def test_perplexity_without_each_block_is_the_truths(name: str, real: Path) -> None:
    if name.startswith(("rwkv-5", "rwkv-7")):
        pytest.importorskip("rwkv")
    model = shortgpt.load(real / name, device="cpu")
    runs = json.loads((real / name / "bi_truth.json").read_text())["runs"].values()
    for truth in list(runs)[:1] if model.architecture == "rwkv-package" else runs:  # which runs token by token
        batch = {"input_ids": torch.tensor(truth["token_ids"])}
        scores = shortgpt.score(model, [batch], criteria=["perplexity"])
        for block, expected in enumerate(truth["ppl_without_block"]):
            if block not in model.pinned:  # without that one the truth has the values of block 1 in all others
                assert math.exp(scores.values[block]) == pytest.approx(expected, rel=1e-6), f"block {block}"


# -- how they are asked for -----------------------------------------------------------------------------------


def test_texts_are_scored_by_criteria_of_every_kind_at_once() -> None:
    model = shortgpt.load("zoo:gpt2", device="cpu")
    texts = ["def f(x):\n    return x + 1\n", "import math\n\nprint(math.pi)\n"]
    scores = shortgpt.score(model, texts, criteria=("block-influence", "perplexity", "random"))
    assert scores.criteria == ("block-influence", "perplexity", "random")
    assert scores.counts == (scores.tokens, tuple(n - 1 for n in scores.tokens), (1,))
    assert Scores.from_json(scores.to_json()) == scores


@pytest.fixture
def on(tmp_path: Path) -> tuple[object, ...]:
    (tmp_path / "text.txt").write_text("".join(f"{i} squared is {i * i}\n" for i in range(200)))
    return ("--calibration", tmp_path / "text.txt", "--sequences", 2, "--tokens", 16, "--device", "cpu")


def test_a_criterion_that_cannot_be_served_is_told_while_the_others_go_on(
    run_cli: Callable[..., Ran], llama_folder: Path, on: tuple[object, ...]
) -> None:
    asked = [part for name in ("perplexity", "block-influence", "random") for part in ("--criterion", name)]
    ran = run_cli("score", llama_folder, *on, "--stream", *asked)
    assert ran.status == 0
    assert "it runs the model itself" in " ".join(ran.out.split())
    assert ran.out.split()[ran.out.split().index("block") :][:4] == ["block", "BI", "±", "s.e."]
    found = json.loads(run_cli("score", llama_folder, *on, "--stream", *asked, "--json", "-").out)
    assert found["criteria"] == ["block-influence", "random"]
    assert list(found["refused"]) == ["perplexity"]
    assert "runs the model itself" in found["refused"]["perplexity"]


def test_where_none_is_left_the_command_ends_with_the_reasons(
    run_cli: Callable[..., Ran], llama_folder: Path, on: tuple[object, ...], tmp_path: Path
) -> None:
    asked = ("--criterion", "perplexity", "--criterion", "kl-divergence", "--json", tmp_path / "scores.json")
    ran = run_cli("score", llama_folder, *on, "--stream", *asked)
    assert (ran.status, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert "perplexity: it runs the model itself" in ran.err
    assert "kl-divergence: it runs the model itself" in ran.err
    assert not (tmp_path / "scores.json").exists()


def test_a_model_that_cannot_be_read_out_says_so() -> None:
    model = Playback(torch.randn(4, 257, 4))
    batch = [{"input_ids": torch.arange(9)[None]}]
    both = shortgpt.score(model, batch, criteria=["kl-divergence", "block-influence"])
    assert both.refused == {"kl-divergence": "models of the adapter 'playback' cannot be read out at inner boundaries"}
    with pytest.raises(ShortGPTError, match="cannot be read out"):
        shortgpt.score(model, batch, criteria=["kl-divergence"])
    with pytest.raises(ShortGPTError, match="'kl-divergence' was not measured here: models of the adapter"):
        both.of("kl-divergence")
