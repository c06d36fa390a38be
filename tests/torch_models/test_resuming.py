"""Passes that go on where others were held are whole passes, and compute no more than is left."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

import shortgpt
from tests.support import ids_of, skipped_by_hand, tiny

BATCH = {"input_ids": ids_of(rows=3, tokens=16, seed=7)}


def resumed(model: Any, boundary: int, gone: tuple[int, ...] = ()) -> tuple[Tensor, Counter[int]]:
    """The logits of a pass that goes on at a boundary, and how often it computed each block."""
    counts: Counter[int] = Counter()
    with model.skipping(gone):
        with model.resuming(boundary, None), model.holding((boundary,)) as held:
            model.logits(BATCH)
        with model.resuming(boundary, held.get(boundary)):
            for index, block in enumerate(model.blocks):
                forward = block.forward
                if "forward" not in vars(block):
                    block.forward = lambda *args, i=index, f=forward, **kw: (counts.update([i]), f(*args, **kw))[1]
            logits = model.logits(BATCH)
    for index in counts:
        del model.blocks[index].forward
    return logits, counts


@pytest.mark.parametrize("name", ["llama", "gpt2", "mamba", "rwkv", "openai-gpt"])
@pytest.mark.parametrize(("boundary", "gone"), [(3, ()), (2, (3, 4)), (3, (1, 2)), (1, (0, 5))])
def test_what_is_left_alone_is_computed_and_gives_the_same(name: str, boundary: int, gone: tuple[int, ...]) -> None:
    wrapped: Any = shortgpt.wrap(tiny(name))
    with wrapped.skipping(gone):
        expected = wrapped.logits(BATCH)
    found, computed = resumed(wrapped, boundary, gone)
    assert torch.equal(found, expected)
    assert computed == dict.fromkeys((block for block in range(boundary, 6) if block not in gone), 1)
    assert not any("forward" in vars(block) for block in wrapped.blocks)


def test_it_is_what_a_hook_written_here_gives() -> None:
    model = tiny("llama")
    expected = skipped_by_hand(model, "model.layers", (3,), BATCH["input_ids"])
    assert torch.equal(resumed(shortgpt.wrap(model), 2, (3,))[0], expected)


@pytest.mark.parametrize("boundary", [1, 4])
def test_blocks_that_hand_on_more_than_the_stream_are_computed_again(boundary: int) -> None:
    """Block 4 adds what block 2 left lying of the same pass: at 4 nothing can be resumed, at 1 all can."""
    model = tiny("llama")
    left: list[Tensor] = []
    inner = model.model.layers[2].mlp
    inner.register_forward_hook(lambda module, args, output: left.__setitem__(slice(None), [output]))
    model.model.layers[4].register_forward_hook(lambda module, args, output: output + left[0])
    wrapped: Any = shortgpt.wrap(model)
    expected = wrapped.logits(BATCH)
    found, computed = resumed(wrapped, boundary)
    assert torch.equal(found, expected)
    assert sorted(computed) == list(range(0 if boundary == 4 else boundary, 6))


def test_a_family_without_a_way_to_go_on_makes_whole_passes() -> None:
    from tests.support import Playback

    model = Playback(torch.randn(4, 5, 8))
    with model.holding((2,)) as held:
        pass
    assert dict(held) == {}
    with model.resuming(2, None):
        pass
