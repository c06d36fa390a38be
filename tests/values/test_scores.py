"""`score` and `Scores`: what a token, a sequence and a batch add to a score, its uncertainty, and the choice."""

import itertools
import math
import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import shortgpt
from shortgpt.errors import AdapterError, HiddenStateError, SelectionError, ShortGPTError
from shortgpt.models.sequence import Tap, TokenBatch
from shortgpt.values.scores import Scores, blocks_for_ratio
from tests.support import Playback, ids_of, tiny

BLOCKS, TOKENS, WIDTH = 5, 200, 16


def stream(seed: int = 0) -> Tensor:
    """[boundaries, tokens, width]"""
    noise = torch.randn(BLOCKS + 1, TOKENS, WIDTH, generator=torch.Generator().manual_seed(seed))
    return noise.cumsum(0)


def batches(lengths: list[int], rows: int, *, left: bool = False) -> list[TokenBatch]:
    """Sequences of these lengths over successive tokens, `rows` to a batch, padded with token 0."""
    ends = list(itertools.accumulate(lengths))
    sequences = [list(range(end - length, end)) for end, length in zip(ends, lengths, strict=True)]
    made = []
    for at in range(0, len(sequences), rows):
        part = sequences[at : at + rows]
        width = max(map(len, part))
        pad = [[0] * (width - len(s)) for s in part]
        joined = [p + s if left else s + p for s, p in zip(part, pad, strict=True)]
        ones = [[1] * len(s) for s in part]
        mask = [p + o if left else o + p for o, p in zip(ones, pad, strict=True)]
        made.append({"input_ids": torch.tensor(joined), "attention_mask": torch.tensor(mask)})
    return made


def distances(boundaries: Tensor) -> Tensor:
    """1 − cos for each block and token, in float64: [blocks, tokens]."""
    x, y = boundaries[:-1].double(), boundaries[1:].double()
    return 1 - (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))


def made(sums: list[list[float]], tokens: list[int], pinned: dict[int, str] | None = None) -> Scores:
    """Scores with the given sums, [sequences][blocks]."""
    example = shortgpt.score(Playback(torch.randn(len(sums[0]) + 1, 3, 4)), [{"input_ids": torch.tensor([[0, 1]])}])
    return replace(
        example, sums=(tuple(map(tuple, sums)),), counts=(tuple(tokens),), tokens=tuple(tokens), pinned=pinned or {}
    )


LENGTHS = [40, 7, 25, 1, 60, 33]


# -- the sums -------------------------------------------------------------------------------------------------


def test_a_score_is_the_mean_over_all_real_tokens_not_over_sequences() -> None:
    boundaries = stream()
    scores = shortgpt.score(Playback(boundaries), batches(LENGTHS, rows=4))
    expected = distances(boundaries)[:, : sum(LENGTHS)].mean(1)
    assert scores.values == pytest.approx(expected.tolist(), rel=1e-12)
    assert scores.tokens == tuple(LENGTHS)


def test_the_sums_are_kept_by_sequence_and_block() -> None:
    boundaries = stream()
    scores = shortgpt.score(Playback(boundaries), batches(LENGTHS, rows=4))
    for sums, part in zip(scores.sums[0], distances(boundaries)[:, : sum(LENGTHS)].split(LENGTHS, 1), strict=True):
        assert sums == pytest.approx(part.sum(1).tolist(), rel=1e-12)


def test_batch_size_and_padding_move_no_bit() -> None:
    plain = shortgpt.score(Playback(stream()), batches(LENGTHS, rows=1))
    for rows in (2, 3, 6):
        padded = shortgpt.score(Playback(stream()), batches(LENGTHS, rows=rows))
        assert padded.sums == plain.sums
        assert padded.values == plain.values


def test_the_order_of_sequences_moves_no_sum() -> None:
    forwards = batches(LENGTHS, rows=1)
    plain, turned = (shortgpt.score(Playback(stream()), b) for b in (forwards, forwards[::-1]))
    assert turned.sums[0] == plain.sums[0][::-1]
    assert turned.values == pytest.approx(plain.values, rel=1e-14)
    assert turned.stderr == pytest.approx(plain.stderr, rel=1e-12)


def test_a_left_padded_batch_is_repacked_to_the_right_and_scores_the_same() -> None:
    plain = shortgpt.score(Playback(stream()), batches(LENGTHS, rows=3))
    left = shortgpt.score(Playback(stream()), batches(LENGTHS, rows=3, left=True))
    assert left.sums == plain.sums
    assert left.calibration == plain.calibration


def test_whatever_the_padding_holds_is_not_looked_at() -> None:
    # Token 0 is the padding here and nothing else.
    lengths, plain = [30, 12, 3], stream()
    sequences = [{**b, "input_ids": b["input_ids"] + b["attention_mask"]} for b in batches(lengths, rows=3)]
    expected = shortgpt.score(Playback(plain), sequences)
    for rubbish in (math.nan, math.inf, 0.0):
        broken = plain.clone()
        broken[:, 0] = rubbish
        assert shortgpt.score(Playback(broken), sequences).sums == expected.sums


def test_a_sequence_longer_than_a_chunk_is_summed_whole() -> None:
    boundaries = stream()
    ids = torch.arange(5000) % TOKENS  # the sums are taken 1,024 tokens at a time
    scores = shortgpt.score(Playback(boundaries), [{"input_ids": ids[None]}])
    assert scores.values == pytest.approx(distances(boundaries).mean(1).tolist(), rel=1e-12)


def test_the_norms_of_the_stream_and_of_the_updates_are_means_over_tokens() -> None:
    boundaries = stream()
    scores = shortgpt.score(Playback(boundaries), batches(LENGTHS, rows=4))
    real = boundaries[:, : sum(LENGTHS)].double()
    assert scores.stream_norm == pytest.approx(real[:-1].norm(dim=-1).mean(1).tolist(), rel=1e-12)
    assert scores.update_norm == pytest.approx((real[1:] - real[:-1]).norm(dim=-1).mean(1).tolist(), rel=1e-12)


def test_the_dtype_told_is_that_of_the_stream_behind_the_blocks() -> None:
    first, *others = stream().bfloat16()
    model = Playback([first, *(boundary.float() for boundary in others)])  # as Mamba with residual_in_fp32
    assert shortgpt.score(model, batches(LENGTHS, rows=4)).dtype == "float32"


def test_scores_say_what_was_measured() -> None:
    model = Playback(stream().bfloat16(), name="mine", pinned={2: "it holds the values of all others"})
    scores = shortgpt.score(model, batches(LENGTHS, rows=4))
    assert (scores.model, scores.architecture, scores.norm_placement) == ("mine", "playback", "unknown")
    assert scores.dtype == "bfloat16"
    assert scores.block_names == ("blocks.0", "blocks.1", "blocks.2", "blocks.3", "blocks.4")
    assert scores.parameters == (100, 101, 102, 103, 104)
    assert scores.total_parameters == 1510
    assert scores.pinned == {2: "it holds the values of all others"}
    assert len(scores) == BLOCKS


def test_scores_survive_json_bit_for_bit() -> None:
    scores = shortgpt.score(Playback(stream(), pinned={1: "why"}), batches(LENGTHS, rows=4))
    assert Scores.from_json(scores.to_json()) == scores


def test_several_criteria_are_measured_in_one_pass() -> None:
    class Counting(Playback):
        passes = 0

        def trace(self, batch: TokenBatch, tap: Tap) -> None:
            self.passes += 1
            super().trace(batch, tap)

    model = Counting(stream())
    both = shortgpt.score(model, batches(LENGTHS, rows=3), criteria=("relative-magnitude", "block-influence"))
    assert model.passes == 2  # the batches
    alone = shortgpt.score(Playback(stream()), batches(LENGTHS, rows=3))
    assert both.of("block-influence").values == alone.values
    assert both.of("block-influence").criteria == ("block-influence", "relative-magnitude")
    assert both.values != alone.values
    with pytest.raises(ShortGPTError, match="'angular-distance' was not measured here"):
        both.of("angular-distance")


def test_progress_counts_blocks_and_batches() -> None:
    seen: list[tuple[str, int, int]] = []
    shortgpt.score(Playback(stream()), batches(LENGTHS, rows=3), progress=lambda *now: seen.append(now))
    blocks = [("blocks", i, BLOCKS) for i in range(1, BLOCKS + 1)]
    assert seen == [*blocks, ("batches", 1, 2), *blocks, ("batches", 2, 2)]


def test_a_real_model_is_scored_alike_in_batches_of_any_size() -> None:
    model, ids = shortgpt.wrap(tiny("llama")), ids_of(6, 40)
    one, all_ = (shortgpt.score(model, [{"input_ids": part} for part in ids.split(rows)]) for rows in (1, 6))
    assert all_.values == pytest.approx(one.values, rel=1e-5)


# -- what is taken at a time ----------------------------------------------------------------------------------


class Sized(Playback):
    """Notes the batches that it is run on: sequences, and tokens of the longest."""

    def __init__(self, stream: Tensor, device: str) -> None:
        super().__init__(stream)
        self.named = torch.device(device)
        self.sizes: list[tuple[int, ...]] = []

    @property
    def device(self) -> torch.device:
        return self.named

    def trace(self, batch: TokenBatch, tap: Tap) -> None:
        self.sizes = [*self.sizes, tuple(batch["input_ids"].shape)]
        super().trace(batch, tap)


@pytest.mark.parametrize(
    ("shape", "parts"),
    [
        ((8, 512), [(4, 512), (4, 512)]),
        ((7, 700), [(2, 700), (2, 700), (2, 700), (1, 700)]),
        ((2, 3000), [(1, 3000), (1, 3000)]),  # a sequence is never cut
        ((4, 512), [(4, 512)]),
    ],
)
def test_a_processor_takes_some_2048_tokens_at_a_time_and_an_accelerator_all(
    shape: tuple[int, int], parts: list[tuple[int, int]]
) -> None:
    ids = torch.randint(0, TOKENS, shape, generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    batch["attention_mask"][0, 100:] = 0
    there, here = Sized(stream(), "cuda"), Sized(stream(), "cpu")
    scores = shortgpt.score(here, [batch])
    assert scores == shortgpt.score(there, [batch])
    assert (here.sizes, there.sizes) == (parts, [shape])
    truth = distances(stream())[:, ids[batch["attention_mask"].bool()]].mean(-1)
    assert scores.values == pytest.approx(truth.tolist(), rel=1e-9)


# -- lack of memory -------------------------------------------------------------------------------------------


class Small(Playback):
    """Has memory for so many sequences at a time; of larger batches it has seen two boundaries when that ends."""

    def __init__(self, stream: Tensor, fits: int, error: RuntimeError | None = None) -> None:
        super().__init__(stream)
        self.fits, self.error, self.sizes = fits, error or torch.OutOfMemoryError("CUDA out of memory"), []

    def trace(self, batch: TokenBatch, tap: Tap) -> None:
        self.sizes: list[int] = [*self.sizes, len(batch["input_ids"])]
        if len(batch["input_ids"]) <= self.fits:
            return super().trace(batch, tap)
        for boundary in range(2):
            tap(boundary, self.stream[boundary][batch["input_ids"]])
        raise self.error


@pytest.mark.parametrize("fits", [1, 2, 3, 4, 5])
def test_a_batch_that_does_not_fit_is_halved_and_no_sum_is_lost_or_counted_twice(fits: int) -> None:
    whole = batches(LENGTHS, rows=6)
    assert shortgpt.score(Small(stream(), fits), whole) == shortgpt.score(Playback(stream()), whole)


def test_the_size_that_fits_is_kept_for_the_batches_after_it() -> None:
    model = Small(stream(), fits=2)
    shortgpt.score(model, batches([*LENGTHS, 9, 9], rows=4))
    assert model.sizes == [4, 2, 2, 2, 2]


def test_where_not_even_one_sequence_fits_the_device_says_so() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        shortgpt.score(Small(stream(), fits=0), batches(LENGTHS, rows=4))


def test_the_processor_that_lacks_memory_says_so_in_words_only() -> None:
    lacking = RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: 12 bytes")
    whole = batches(LENGTHS, rows=6)
    assert shortgpt.score(Small(stream(), 2, lacking), whole) == shortgpt.score(Playback(stream()), whole)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        shortgpt.score(Small(stream(), 2, RuntimeError("shapes cannot be multiplied")), whole)


# -- broken streams -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_stream_that_is_not_finite_is_an_error_that_names_block_and_batch(broken: float) -> None:
    boundaries = stream()
    boundaries[3, 70, 5] = broken  # sequence 2, in the second batch of two rows; boundary 3 ends block 2
    with pytest.raises(HiddenStateError, match=r"NaN or infinity .* 1 tokens around block 2 \(blocks\.2\), batch 1"):
        shortgpt.score(Playback(boundaries), batches(LENGTHS, rows=2))


def test_a_zero_vector_is_an_error_that_names_block_and_batch() -> None:
    boundaries = stream()
    boundaries[4, 0] = 0
    with pytest.raises(HiddenStateError, match=r"zero vectors .* 1 tokens around block 3 \(blocks\.3\), batch 0"):
        shortgpt.score(Playback(boundaries), batches(LENGTHS, rows=2))


def test_a_broken_embedding_is_named_as_the_stream_around_block_0() -> None:
    boundaries = stream()
    boundaries[0, 3] = math.nan
    with pytest.raises(HiddenStateError, match=r"around block 0 \(blocks\.0\), batch 0"):
        shortgpt.score(Playback(boundaries), batches(LENGTHS, rows=2))


def test_an_overflow_in_fp16_is_told_with_the_way_out() -> None:
    boundaries = stream() * 1e4
    with pytest.raises(HiddenStateError, match="--dtype bfloat16 or float32"):
        shortgpt.score(Playback(boundaries.half()), batches(LENGTHS, rows=2))


def test_an_adapter_whose_boundary_has_other_tokens_is_refused() -> None:
    class Flat(Playback):
        def trace(self, batch: TokenBatch, tap: Tap) -> None:
            super().trace(batch, lambda boundary, hidden: tap(boundary, hidden.flatten(0, 1)))

    with pytest.raises(AdapterError, match=r"boundary 0 has the shape \(80, 16\).*\[batch, tokens, width\]"):
        shortgpt.score(Flat(stream()), batches([40, 40], rows=2))


def test_an_adapter_that_writes_into_the_stream_it_gave_is_refused() -> None:
    class Writing(Playback):
        def trace(self, batch: TokenBatch, tap: Tap) -> None:
            hidden = self.stream[0][batch["input_ids"]]
            for boundary in range(len(self.stream)):
                tap(boundary, hidden)
                hidden += self.stream[boundary][batch["input_ids"]]

    with pytest.raises(AdapterError, match=r"blocks\.0 wrote into the stream"):
        shortgpt.score(Writing(stream()), batches([40], rows=1))


def test_a_stream_made_in_inference_mode_is_scored_too() -> None:
    class Inferring(Playback):
        @torch.inference_mode()
        def trace(self, batch: TokenBatch, tap: Tap) -> None:
            super().trace(batch, tap)

    plain, inferred = (shortgpt.score(kind(stream()), batches([40], rows=1)) for kind in (Playback, Inferring))
    assert inferred.sums == plain.sums


# -- the uncertainty ------------------------------------------------------------------------------------------


def test_the_standard_error_is_that_of_a_ratio_of_sums_over_sequences() -> None:
    sums, tokens = [[4.0], [9.0], [2.5]], [10, 20, 5]
    mean = 15.5 / 35
    squares = (4 - 10 * mean) ** 2 + (9 - 20 * mean) ** 2 + (2.5 - 5 * mean) ** 2
    (error,) = made(sums, tokens).stderr
    assert error == pytest.approx(math.sqrt(3 / 2 * squares) / 35, rel=1e-12)


def test_for_sequences_of_one_length_it_is_the_textbook_standard_error_of_the_mean() -> None:
    means = [0.21, 0.35, 0.18, 0.29, 0.3]
    average = sum(means) / 5
    expected = math.sqrt(sum((m - average) ** 2 for m in means) / 4) / math.sqrt(5)
    (error,) = made([[m * 64] for m in means], [64] * 5).stderr
    assert error == pytest.approx(expected, rel=1e-12)


def sample(sequences: int = 40) -> tuple[list[list[float]], list[int]]:
    """Sums of 4 blocks: sequences of unequal length, each with a level of its own."""
    generator = random.Random(3)
    tokens = [generator.randint(100, 300) for _ in range(sequences)]
    levels = [0.20, 0.21, 0.30, 0.31]
    return [[t * (level + generator.gauss(0, 0.05)) for level in levels] for t in tokens], tokens


def test_it_agrees_with_the_jackknife_over_sequences() -> None:
    sums, tokens = sample()
    n = len(tokens)
    for block, error in enumerate(made(sums, tokens).stderr):
        left_out = [(sum(row[block] for row in sums) - sums[i][block]) / (sum(tokens) - tokens[i]) for i in range(n)]
        average = sum(left_out) / n
        jackknife = math.sqrt((n - 1) / n * sum((value - average) ** 2 for value in left_out))
        assert error == pytest.approx(jackknife, rel=0.03)


def test_it_agrees_with_the_bootstrap_over_sequences() -> None:
    sums, tokens = sample()
    generator = random.Random(0)
    draws = [generator.choices(range(len(tokens)), k=len(tokens)) for _ in range(2000)]
    for block, error in enumerate(made(sums, tokens).stderr):
        means = [sum(sums[i][block] for i in draw) / sum(tokens[i] for i in draw) for draw in draws]
        average = sum(means) / len(means)
        assert error == pytest.approx(math.sqrt(sum((m - average) ** 2 for m in means) / len(means)), rel=0.06)


def test_one_sequence_has_no_standard_error() -> None:
    scores = made([[1.0, 2.0]], [10])
    assert all(math.isnan(error) for error in scores.stderr)
    assert math.isnan(scores.stability(1))


def test_sequences_without_a_token_tell_nothing_of_the_uncertainty() -> None:
    sums, tokens = sample()
    without, empty = made(sums, tokens), made([*sums, *[[0.0] * 4] * 3], [*tokens, 0, 0, 0])
    assert empty.stderr == without.stderr
    assert empty.stability(1) == without.stability(1)
    alone = made([[1.0, 2.0], [0.0, 0.0]], [10, 0])
    assert all(math.isnan(error) for error in (*alone.stderr, alone.stability(1)))
    assert alone.toss_ups(1) == ()


def test_of_equal_means_the_deeper_go_in_every_resample() -> None:
    scores = made([[0.5, 0.1, 0.1, 0.1], [0.9, 0.2, 0.2, 0.2]], [10, 20])
    assert scores.least_influential(2) == (2, 3)
    assert scores.stability(2) == 1.0


def test_stability_is_the_share_of_resamples_with_the_same_set() -> None:
    sums, tokens = sample()
    scores = made(sums, tokens)
    generator = random.Random(0)
    same = 0
    for _ in range(2000):
        draw = generator.choices(range(len(tokens)), k=len(tokens))
        means = [sum(sums[i][block] for i in draw) for block in range(4)]
        same += {means.index(min(means))} == set(scores.least_influential(1))
    assert scores.stability(1, resamples=2000) == pytest.approx(same / 2000, abs=0.04)
    assert 0.5 < scores.stability(1) < 0.999
    assert scores.stability(2) == 1.0  # the first two are far from the others
    assert scores.stability(1, seed=5) == scores.stability(1, seed=5)


# -- the choice -----------------------------------------------------------------------------------------------


def test_the_ranking_goes_from_the_least_influential_and_of_equals_the_deeper_goes_first() -> None:
    scores = made([[5.0, 2.0, 2.0, 7.0, 2.0, 1.0]], [10])
    assert scores.ranking() == (5, 4, 2, 1, 0, 3)
    assert scores.least_influential(3) == (2, 4, 5)


def test_pinned_blocks_are_never_chosen() -> None:
    scores = made([[5.0, 2.0, 3.0, 1.0]], [10], pinned={1: "why", 3: "why"})
    assert scores.least_influential(2) == (0, 2)
    with pytest.raises(SelectionError, match="from 1 to 2 of the 4 blocks"):
        scores.least_influential(3)


@pytest.mark.parametrize("count", [0, -1, 4, 99])
def test_neither_none_nor_all_blocks_can_be_chosen(count: int) -> None:
    with pytest.raises(SelectionError, match="from 1 to 3 of the 4 blocks"):
        made([[5.0, 2.0, 3.0, 1.0]], [10]).least_influential(count)


def test_a_plan_holds_the_choice_and_its_scores() -> None:
    scores = made([[5.0, 2.0, 3.0, 1.0]], [10])
    plan = scores.plan(2)
    assert (plan.blocks, plan.depth, plan.model, plan.scores) == ((1, 3), 4, "playback", scores)


@pytest.mark.parametrize(
    ("ratio", "depth", "blocks"), [(0.25, 32, 8), (0.25, 12, 3), (0.01, 12, 1), (0.3, 12, 4), (0.99, 4, 4)]
)
def test_a_ratio_is_a_share_of_the_blocks_and_at_least_one(ratio: float, depth: int, blocks: int) -> None:
    assert blocks_for_ratio(ratio, depth) == blocks


@pytest.mark.parametrize("ratio", [0, 1, -0.1, 1.5, math.nan, math.inf])
def test_a_ratio_outside_0_to_1_is_refused(ratio: float) -> None:
    with pytest.raises(SelectionError, match="between 0 and 1"):
        blocks_for_ratio(ratio, 12)
