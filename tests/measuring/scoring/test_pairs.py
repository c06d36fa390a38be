"""Spans out of the same pass: against float64 sums written here, Hugging Face's own stream, and known angles."""

import math
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import shortgpt
from shortgpt.errors import AdapterError, HiddenStateError, ShortGPTError
from shortgpt.measuring import angles as angles_of
from shortgpt.models.sequence import Tap, TokenBatch
from tests.support import Playback, ids_of, tiny
from tests.values.test_scores import BLOCKS, LENGTHS, WIDTH, Small, batches, stream

PAIRS = list(combinations(range(BLOCKS + 1), 2))
HEAD = (
    "from shortgpt import Criterion, BatchCriterion, OrderCriterion, hookimpl\nfrom shortgpt.plugins import Extension\n"
)
Measure = Callable[[Tensor, Tensor], Tensor]


def cosine(x: Tensor, y: Tensor) -> Tensor:
    return 1 - (x * y).sum(-1) / (x.square().sum(-1) * y.square().sum(-1)).sqrt()


MEASURES: dict[str, Measure] = {
    "block-influence": cosine,
    "angular-distance": lambda x, y: (1 - cosine(x, y)).arccos() / math.pi,
    "relative-magnitude": lambda x, y: (y - x).norm(dim=-1) / y.norm(dim=-1),
}


def by_hand(boundaries: Tensor, measure: Measure, lengths: list[int]) -> list[list[float]]:
    """Sums by sequence and pair, of boundaries [boundaries, tokens, width] whose sequences follow one another."""
    wide = boundaries[:, : sum(lengths)].double()
    values = torch.stack([measure(wide[i], wide[j]) for i, j in combinations(range(len(wide)), 2)], 1)
    return [part.sum(0).tolist() for part in values.split(lengths)]


@pytest.mark.parametrize("criterion", MEASURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_spans_are_the_float64_sums_between_all_pairs_of_boundaries(criterion: str, dtype: torch.dtype) -> None:
    boundaries = stream().to(dtype)
    scores = shortgpt.score(Playback(boundaries), batches(LENGTHS, rows=4), criteria=[criterion], spans=True)
    assert scores.spans is not None
    assert (scores.spans.criterion, scores.spans.depth, scores.spans.counts) == (criterion, BLOCKS, tuple(LENGTHS))
    expected = by_hand(boundaries, MEASURES[criterion], LENGTHS)
    for sums, of_sequence in zip(scores.spans.sums, expected, strict=True):
        assert sums == pytest.approx(of_sequence, rel=1e-12 if dtype == torch.float32 else 2e-7)


def test_spans_of_a_real_model_are_those_of_the_stream_that_hooks_on_it_see() -> None:
    model, ids = tiny("llama"), ids_of(3, 40)
    seen: list[Tensor] = []
    hooks = [layer.register_forward_pre_hook(lambda module, args: seen.append(args[0])) for layer in model.model.layers]
    hooks.append(model.model.norm.register_forward_pre_hook(lambda module, args: seen.append(args[0])))
    with torch.no_grad():
        model(ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    assert len(seen) == 7
    scores = shortgpt.score(shortgpt.wrap(model), [{"input_ids": part} for part in ids.split(2)], spans=True)
    assert scores.spans is not None
    (expected,) = by_hand(torch.stack(seen).flatten(1, 2), cosine, [3 * 40])
    assert scores.spans.means == pytest.approx([sums / 120 for sums in expected], rel=1e-5)  # batches of other sizes


@pytest.mark.parametrize("criterion", MEASURES)
def test_a_run_of_one_block_is_that_block_bit_for_bit(criterion: str) -> None:
    scores = shortgpt.score(Playback(stream()), batches(LENGTHS, rows=4), criteria=[criterion], spans=True)
    assert scores.spans is not None
    for sums, of_blocks in zip(scores.spans.sums, scores.sums[0], strict=True):
        assert [sums[PAIRS.index((i, i + 1))] for i in range(BLOCKS)] == list(of_blocks)


def test_blocks_that_turn_the_stream_in_one_plane_add_up_their_angles() -> None:
    angles = [0.3, 0.01, 0.5, 0.2]
    ends = [sum(angles[:n]) for n in range(5)]
    sizes = torch.rand(5, 20, 1, dtype=torch.float64) + 0.5
    plane = torch.linalg.qr(torch.randn(16, 2, dtype=torch.float64)).Q.T
    turning = torch.stack([math.cos(a) * plane[0] + math.sin(a) * plane[1] for a in ends])
    boundaries = sizes * turning[:, None]
    spans = shortgpt.score(Playback(boundaries), [{"input_ids": torch.arange(20)[None]}], spans=True).spans
    assert spans is not None
    for i, j in combinations(range(5), 2):
        assert spans.value(i, j - i) == pytest.approx(1 - math.cos(ends[j] - ends[i]), rel=1e-12)


@pytest.mark.parametrize("criterion", MEASURES)
def test_a_run_that_gives_the_stream_back_as_it_was_has_no_influence(criterion: str) -> None:
    boundaries = stream()
    boundaries[4] = boundaries[1]
    spans = shortgpt.score(Playback(boundaries), batches(LENGTHS, 6), criteria=[criterion], spans=True).spans
    assert spans is not None
    assert spans.value(1, 3) == pytest.approx(0, abs=1e-14)
    assert spans.best(3) == (1, 2, 3)


def test_batch_size_padding_and_halving_move_no_bit() -> None:
    plain = shortgpt.score(Playback(stream()), batches(LENGTHS, rows=1), spans=True)
    for rows in (2, 3, 6):
        assert shortgpt.score(Playback(stream()), batches(LENGTHS, rows=rows), spans=True).spans == plain.spans
    for fits in (1, 2, 4):
        assert shortgpt.score(Small(stream(), fits), batches(LENGTHS, rows=6), spans=True).spans == plain.spans


def test_whatever_the_padding_holds_is_not_looked_at() -> None:
    sequences = [{**b, "input_ids": b["input_ids"] + b["attention_mask"]} for b in batches([30, 12, 3], rows=3)]
    expected = shortgpt.score(Playback(stream()), sequences, spans=True)
    broken = stream()
    broken[:, 0] = math.nan  # token 0 is the padding here
    assert shortgpt.score(Playback(broken), sequences, spans=True).spans == expected.spans


def test_a_sequence_longer_than_a_chunk_is_summed_whole() -> None:
    ids = torch.arange(120_000) % 200
    spans = shortgpt.score(Playback(stream()), [{"input_ids": ids[None]}], spans=True).spans
    assert spans is not None
    (expected,) = by_hand(stream(), cosine, [200])
    assert spans.means == pytest.approx([sums / 200 for sums in expected], rel=1e-12)


def test_other_criteria_of_the_pass_and_the_scores_are_as_without_spans() -> None:
    both = ("relative-magnitude", "block-influence")
    plain, with_spans = (
        shortgpt.score(Playback(stream()), batches(LENGTHS, 3), criteria=both, spans=spans) for spans in (False, True)
    )
    assert with_spans.sums == plain.sums
    assert plain.spans is None
    assert with_spans.spans is not None
    assert with_spans.spans.criterion == "relative-magnitude"
    assert with_spans.of("block-influence").spans == with_spans.spans
    assert shortgpt.Scores.from_json(with_spans.to_json()) == with_spans


def test_a_criterion_of_the_last_token_has_spans_of_the_last_token(plug: Callable[[str, str], str]) -> None:
    plug(
        "last",
        f"""{HEAD}
class Last(Criterion):
    tokens = "last"
    def values(self, before, after):
        return (after - before).square().sum(-1)

@hookimpl
def shortgpt_criteria():
    return [Extension("last", __name__ + ":Last")]
""",
    )
    lengths = [40, 7, 25]
    spans = shortgpt.score(Playback(stream()), batches(lengths, rows=2), criteria=["last"], spans=True).spans
    assert spans is not None
    assert spans.counts == (1, 1, 1)
    ends = stream()[:, [39, 46, 71]].double()
    for row, vectors in zip(spans.sums, ends.unbind(1), strict=True):
        assert row == pytest.approx([(vectors[j] - vectors[i]).square().sum().item() for i, j in PAIRS], rel=1e-12)


def test_a_criterion_that_gives_nan_between_two_boundaries_only_is_told(plug: Callable[[str, str], str]) -> None:
    plug(
        "odd",
        f"""{HEAD}
class Odd(Criterion):
    def values(self, before, after):
        return (after - before)[:, 0] / (after - before)[:, 0]

@hookimpl
def shortgpt_criteria():
    return [Extension("odd", __name__ + ":Odd")]
""",
    )
    boundaries = stream()
    boundaries[4] = boundaries[1]
    with pytest.raises(HiddenStateError, match="gave NaN or infinity between two boundaries, batch 0"):
        shortgpt.score(Playback(boundaries), batches(LENGTHS, 6), criteria=["odd"], spans=True)


@pytest.mark.parametrize("kind", ["BatchCriterion", "OrderCriterion"])
def test_a_criterion_that_does_not_look_at_the_stream_has_no_spans(plug: Callable[[str, str], str], kind: str) -> None:
    plug(
        "other",
        f"""{HEAD}
class Other({kind}):
    def order(self, model, data, progress):
        return range(len(model))
    def measure(self, model, batch):
        raise AssertionError

@hookimpl
def shortgpt_criteria():
    return [Extension("other", __name__ + ":Other")]
""",
    )
    with pytest.raises(ShortGPTError, match=r"spans are measured between boundaries .* 'other' does not look"):
        shortgpt.score(Playback(stream()), batches(LENGTHS, 3), criteria=["other", "block-influence"], spans=True)


def test_a_boundary_that_is_written_into_later_is_refused() -> None:
    class Writing(Playback):
        def trace(self, batch: TokenBatch, tap: Tap) -> None:
            given = [vectors[batch["input_ids"]] for vectors in self.stream]
            for boundary, hidden in enumerate(given):
                tap(boundary, hidden)
                if boundary == 3:
                    given[1].mul_(2)

    assert (
        shortgpt.score(Writing(stream()), batches([40], 1)).sums
        == shortgpt.score(Playback(stream()), batches([40], 1)).sums
    )
    with pytest.raises(AdapterError, match="the stream at boundary 1 was written into"):
        shortgpt.score(Writing(stream()), batches([40], 1), spans=True)


def test_where_a_device_has_no_float64_spans_keep_their_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(angles_of, "precise", Tensor.float)
    boundaries = stream() + 100 * torch.randn(WIDTH, generator=torch.Generator().manual_seed(5))  # near one another
    spans = shortgpt.score(Playback(boundaries), batches(LENGTHS, rows=4), spans=True).spans
    assert spans is not None
    expected = [sum(column) / sum(LENGTHS) for column in zip(*by_hand(boundaries, cosine, LENGTHS), strict=True)]
    assert max(expected) < 0.02
    assert spans.means == pytest.approx(expected, rel=1e-5)


def test_spans_of_a_streamed_model_are_those_of_the_model_in_memory(llama_folder: Path) -> None:
    given = [{"input_ids": part} for part in ids_of(5, 24).split(2)]
    whole, streamed = (
        shortgpt.score(shortgpt.load(llama_folder, device="cpu", stream=stream), given, spans=True)
        for stream in (False, True)
    )
    assert streamed == whole
    assert streamed.spans is not None


def test_spans_take_no_second_pass() -> None:
    model = tiny("llama")
    calls: list[nn.Module] = []
    model.model.layers[0].register_forward_hook(lambda module, args, output: calls.append(module))
    shortgpt.score(shortgpt.wrap(model), [{"input_ids": ids_of(4, 24)}], spans=True)
    assert len(calls) == 1
