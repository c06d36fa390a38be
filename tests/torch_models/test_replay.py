"""What comes before a block that is left out is computed once, where that is right; and nowhere else."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import shortgpt
from shortgpt.errors import ModelError
from shortgpt.measuring.evaluation import evaluate, evaluate_cuts, open_evaluator
from shortgpt.models.sequence import Cut
from shortgpt.torch_models.replay import Replay
from tests.support import ids_of, tiny

IDS = ids_of(rows=2, tokens=16)
DEPTH = 6
CUTS = [Cut(block) for block in range(DEPTH)]


@pytest.fixture
def model() -> Any:
    wrapped: Any = shortgpt.wrap(tiny("llama", blocks=DEPTH))
    assert wrapped._replays  # both are tried once for a model, on a few tokens
    assert wrapped.parts
    return wrapped


@pytest.fixture
def computed(model: Any) -> Iterator[Counter[int]]:
    """How often each block was computed."""
    counts: Counter[int] = Counter()
    hooks = [
        block.mlp.register_forward_hook(lambda *_, index=index: counts.update([index]))
        for index, block in enumerate(model.blocks)
    ]
    yield counts
    for hook in hooks:
        hook.remove()


# -- what is computed -----------------------------------------------------------------------------------------


def test_all_ablations_compute_each_block_once_and_once_for_each_cut_before_it(
    model: Any, computed: Counter[int]
) -> None:
    assert len(list(model.ablated({"input_ids": IDS}, CUTS))) == DEPTH
    assert computed == {block: 1 + block for block in range(DEPTH)}


def test_blocks_that_are_gone_are_computed_once(model: Any, computed: Counter[int]) -> None:
    list(model.ablated({"input_ids": IDS}, [Cut(1), Cut(3)], removed=(2, 4)))
    assert computed == {0: 1, 1: 1, 2: 1, 3: 2, 4: 1, 5: 3}


def test_a_block_of_which_a_part_is_cut_is_computed(model: Any, computed: Counter[int]) -> None:
    list(model.ablated({"input_ids": IDS}, [Cut(3, "mixer")]))
    assert computed == {0: 1, 1: 1, 2: 1, 3: 2, 4: 2, 5: 2}


def test_reading_out_computes_each_block_once(model: Any, computed: Counter[int]) -> None:
    assert model.refuse_readouts() is None
    computed.clear()
    assert len(list(model.readouts({"input_ids": IDS}))) == DEPTH + 1
    assert computed == dict.fromkeys(range(DEPTH), 1)


def test_sets_share_what_they_begin_with_and_are_what_skipping_gives(model: Any, computed: Counter[int]) -> None:
    sets = [(), (4,), (2,), (2, 5), (2, 4, 5), (0, 2), (2, 4, 5), (2, 4, 5), (2,)]
    expected = []
    for blocks in sets:
        with model.skipping(blocks):
            expected.append(model.logits({"input_ids": IDS}))
    computed.clear()
    found = list(model.logits_without({"input_ids": IDS}, sets))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    # Recorded: all. Then 5; 3, 4, 5; none; none; 1, 3, 4, 5; 3; none; 4, 5.
    assert computed == {0: 1, 1: 2, 2: 1, 3: 4, 4: 4, 5: 5}
    assert model.blocks_run(sets) == sum(computed.values())


def test_after_a_set_that_fails_nothing_of_it_is_shared(model: Any) -> None:
    replay = Replay(model, {"input_ids": IDS})
    broken = model.blocks[4].mlp.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        replay.without_blocks([1])
    broken.remove()
    with model.skipping([1, 5]):
        expected = model.logits({"input_ids": IDS})
    assert torch.equal(replay.without_blocks([1, 5]), expected)


def test_nothing_is_left_on_the_model(model: Any) -> None:
    def state() -> list[Any]:
        return [
            (set(vars(block)), list(block._forward_hooks), list(block._forward_pre_hooks)) for block in model.blocks
        ]

    before, logits = state(), model.logits({"input_ids": IDS})
    for _ in zip(model.ablated({"input_ids": IDS}, CUTS, (2,)), range(3), strict=False):
        assert state() == before  # between two cuts as well
        assert torch.equal(model.logits({"input_ids": IDS}), logits)
    list(model.readouts({"input_ids": IDS}))
    assert state() == before


def test_after_a_cut_that_fails_nothing_is_left_either(model: Any) -> None:
    replay = Replay(model, {"input_ids": IDS})
    broken = model.blocks[4].mlp.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        replay.without(Cut(2))
    broken.remove()
    assert not any("forward" in vars(block) for block in model.blocks)
    with model.skipping([2]):
        expected = model.logits({"input_ids": IDS})
    assert torch.equal(replay.without(Cut(2)), expected)


def test_a_forward_that_was_set_on_a_block_is_set_again(model: Any) -> None:
    block = model.blocks[1]
    own, calls = block.forward, []
    block.forward = lambda *args, **kwargs: calls.append(1) or own(*args, **kwargs)
    mine = block.forward
    list(model.ablated({"input_ids": IDS}, CUTS))
    assert block.forward is mine
    assert len(calls) == 2  # the recorded pass, and without block 0


def test_the_last_boundary_reads_as_the_model_and_one_before_it_as_the_model_without_what_follows(model: Any) -> None:
    *inner, last = model.readouts({"input_ids": IDS})
    assert torch.equal(last, model.logits({"input_ids": IDS}))
    for boundary, found in enumerate(inner):
        with model.skipping(range(boundary, DEPTH)):
            assert torch.equal(found, model.logits({"input_ids": IDS}))


# -- models for which it is not right -------------------------------------------------------------------------

WIDTH, VOCABULARY = 16, 257


class Block(nn.Module):
    """Adds to the stream, and to what its model's blocks hand on beside it."""

    def __init__(self, index: int, memory: dict[str, Tensor], kind: str) -> None:
        super().__init__()
        self.inner, self.index, self.memory, self.kind = nn.Linear(WIDTH, WIDTH), index, memory, kind

    def forward(self, x: Tensor) -> Tensor:
        change = torch.tanh(self.inner(x)).cumsum(1)
        if self.kind == "adds up" or self.index == self.kind:
            self.memory["sum"] = change if self.index in (0, self.kind) else self.memory["sum"] + change
        if self.kind == "writes over its input":
            return x.add_(change)
        reads = self.kind == "adds up" or (isinstance(self.kind, int) and self.index > self.kind)
        return x + change + 0.1 * self.memory["sum"] if reads else x + change


class Model(nn.Module):
    """`kind`: "nothing", "adds up", "writes over its input", or the block that writes what all later ones read."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.memory: dict[str, Tensor] = {}
        self.embed, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY)
        self.blocks = nn.ModuleList(Block(index, self.memory, kind) for index in range(DEPTH))

    def forward(self, input_ids: Tensor) -> Tensor:
        self.memory.clear()
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x)
        return logits


@pytest.mark.parametrize("kind", ["nothing", "adds up", "writes over its input", 0, 2])
def test_a_block_that_hands_something_on_beside_its_output_is_found_out_and_skipped_plainly(kind: Any) -> None:
    wrapped: Any = shortgpt.wrap(Model(kind))
    assert wrapped._replays is (kind == "nothing")
    data = shortgpt.calibrate([{"input_ids": IDS}, {"input_ids": ids_of(1, 9, seed=5)}], wrapped)
    evaluator = open_evaluator("perplexity")
    for removed in ((), (1,), (4, 0)):
        plain = [evaluate(wrapped, data, evaluator, (*removed, cut.block)) for cut in CUTS]
        assert evaluate_cuts(wrapped, data, evaluator, CUTS, removed) == plain


class Keeping(Model):
    """What a block wrote stays after the pass."""

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x)
        return logits


@pytest.mark.parametrize("kind", ["adds up", 2])
def test_what_another_pass_left_lying_is_not_taken_for_a_blocks_own(kind: Any) -> None:
    wrapped: Any = shortgpt.wrap(Keeping(kind))
    assert not wrapped._replays
    data = shortgpt.calibrate([{"input_ids": IDS}], wrapped)
    plain = [evaluate(wrapped, data, open_evaluator("perplexity"), (cut.block,)) for cut in CUTS]
    assert evaluate_cuts(wrapped, data, open_evaluator("perplexity"), CUTS) == plain


class Needing(Model):
    """What it does behind its blocks needs what they left beside the stream."""

    def forward(self, input_ids: Tensor) -> Tensor:
        return super().forward(input_ids) + self.memory["sum"].sum()


def test_a_model_whose_head_cannot_be_had_without_its_blocks_says_so() -> None:
    wrapped: Any = shortgpt.wrap(Needing("adds up"))
    reason = "what a Needing does behind its blocks needs all of them"
    assert wrapped.refuse_readouts() == reason
    with pytest.raises(ModelError, match=reason):
        list(wrapped.readouts({"input_ids": IDS}))
    scores = shortgpt.score(wrapped, [{"input_ids": IDS}], criteria=["kl-divergence", "block-influence"])
    assert scores.refused == {"kl-divergence": reason}
