"""What a pass asks of the model and of its criteria: one forward up to the last block, each boundary looked at once."""

import sys
import weakref
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import shortgpt
from shortgpt.errors import AdapterError, HiddenStateError
from shortgpt.measuring import angles as angles_of
from shortgpt.measuring.scoring import boundary_sums as batch_tap
from tests.support import Playback, ids_of, tiny
from tests.values.test_scores import BLOCKS, LENGTHS, batches, stream

HEAD = "from shortgpt import Criterion, StepCriterion, hookimpl\nfrom shortgpt.plugins import Extension\n"


@pytest.fixture
def criteria(plug: Callable[[str, str], str]) -> list[str]:
    """Criteria of steps, each with its twin of vectors, over all tokens and at the last one."""
    names = ("before", "after", "update", "distance")
    source = f"""{HEAD}
class OfVectors(Criterion):
    def values(self, before, after):
        cosine = (before * after).sum(-1) / before.norm(dim=-1) / after.norm(dim=-1)
        return {{"before": before.norm(dim=-1), "after": after.norm(dim=-1), "update": (after - before).norm(dim=-1),
                "distance": 1 - cosine}}[self.name]

class OfSteps(StepCriterion):
    def of_step(self, step):
        assert all(part.dim() == 1 for part in step)
        return getattr(step, self.name)

made = {{}}
for name in {names}:
    for kind in (OfVectors, OfSteps):
        for tokens in ("all", "last"):
            key = f"{{name}}_{{kind.__name__}}_{{tokens}}"
            globals()[key] = made[key] = type(key, (kind,), {{"name": name, "tokens": tokens}})

@hookimpl
def shortgpt_criteria():
    return [Extension(key, __name__ + ":" + key) for key in made]
"""
    plug("kinds", source)
    kinds = ("OfVectors_all", "OfVectors_last", "OfSteps_all", "OfSteps_last")
    return [f"{name}_{kind}" for name in names for kind in kinds]


def test_criteria_of_steps_are_those_of_the_vectors_themselves(criteria: list[str]) -> None:
    scores = shortgpt.score(Playback(stream()), batches(LENGTHS, rows=4), criteria=criteria)
    wide = stream()[:, : sum(LENGTHS)].double()
    x, y = wide[:-1], wide[1:]
    cosines = (x * y).sum(-1) / x.norm(dim=-1) / y.norm(dim=-1)
    truth = {
        "before": x.norm(dim=-1),
        "after": y.norm(dim=-1),
        "update": (y - x).norm(dim=-1),
        "distance": 1 - cosines,
    }
    ends = torch.tensor(LENGTHS).cumsum(0) - 1
    for criterion in criteria:
        name, _, tokens = criterion.split("_")
        parts = [part.sum(1) for part in truth[name].split(LENGTHS, 1)] if tokens == "all" else truth[name][:, ends].T
        found = scores.of(criterion)
        assert found.counts[0] == (tuple(LENGTHS) if tokens == "all" else (1,) * len(LENGTHS))
        for row, expected in zip(found.sums[0], parts, strict=True):
            assert row == pytest.approx(expected.tolist(), rel=1e-12)


def test_more_blocks_than_are_summed_at_a_time_are_each_in_their_place() -> None:
    boundaries = torch.randn(12, 50, 8, generator=torch.Generator().manual_seed(0)).cumsum(0)
    for depth in (1, 3, 4, 5, 8, 11):
        part = boundaries[: depth + 1].double()
        cosines = torch.cosine_similarity(part[:-1], part[1:], dim=-1)
        scores = shortgpt.score(Playback(boundaries[: depth + 1]), [{"input_ids": torch.arange(50).view(2, 25)}])
        assert scores.values == pytest.approx((1 - cosines).mean(1).tolist(), rel=1e-10)
        assert scores.stream_norm == pytest.approx(part[:-1].norm(dim=-1).mean(1).tolist(), rel=1e-12)


HALF_DIGITS = 2e-7  # of a stream in half precision the norms are float32's


def all_of(boundaries: list[Tensor]) -> tuple[list[float], list[float], list[float]]:
    """Block Influence, ‖x‖ and ‖y − x‖ of each block in float64, by the form in which no digits cancel."""
    wide = [boundary.double() for boundary in boundaries]
    found: list[list[float]] = []
    for x, y in pairwise(wide):
        a, b = x.norm(dim=-1), y.norm(dim=-1)
        distance = 0.5 * (x / a[:, None] - y / b[:, None]).square().sum(-1)
        found.append([values.mean().item() for values in (distance, a, (y - x).norm(dim=-1))])
    influence, stream_norm, update_norm = map(list, zip(*found, strict=True))
    return influence, stream_norm, update_norm


@pytest.mark.sampled("False-dtype0", "True-dtype1")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("masked", [False, True])
def test_norms_and_updates_of_a_half_precision_are_right_whatever_a_block_does(
    dtype: torch.dtype, masked: bool
) -> None:
    # 12 blocks, more than are summed at a time, and more tokens than are looked at at a time: additions of all sizes,
    # blocks that rescale and hardly turn, one that does nothing; one element far above the others, as in real models.
    tokens, width = 3000, 512
    generator = torch.Generator().manual_seed(5)
    boundaries = [torch.randn(tokens, width, generator=generator, dtype=torch.float64)]
    boundaries[0][:, 7] *= 300
    for block in range(12):
        noise = torch.randn(tokens, width, generator=generator, dtype=torch.float64)
        boundaries.append((1, 1.3, 0.5)[block % 3] * boundaries[-1] + 10.0 ** -(block % 4) * noise)
    boundaries = [boundary.to(dtype) for boundary in boundaries]
    boundaries[5] = boundaries[4]
    batch = {"input_ids": torch.arange(tokens).view(2, -1)}
    if masked:
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        batch["attention_mask"][0, 1000:] = 0
        chosen = batch["attention_mask"].flatten().bool()
    scores = shortgpt.score(Playback(boundaries), [batch])
    influence, stream_norm, update_norm = all_of([part[chosen] if masked else part for part in boundaries])
    assert scores.values == pytest.approx(influence, rel=HALF_DIGITS)
    assert scores.stream_norm == pytest.approx(stream_norm, rel=HALF_DIGITS)
    assert scores.update_norm == pytest.approx(update_norm, rel=2e-6)
    assert (scores.values[4], scores.update_norm[4]) == (0, 0)


def test_a_stream_that_grows_beyond_float32_or_becomes_wider_on_its_way_is_right_behind_and_before() -> None:
    wide = stream()[:5].double()
    grown = [(part * 2.0**power).bfloat16() for part, power in zip(wide, (52, 52, 62, 62, 52), strict=True)]
    widened = [wide[0].bfloat16(), wide[1].bfloat16(), wide[2].float(), wide[3], wide[4]]
    for boundaries in (grown, widened):
        tokens = len(boundaries[0])
        scores = shortgpt.score(Playback(boundaries), [{"input_ids": torch.arange(tokens)[None]}])
        for found, expected in zip(
            (scores.values, scores.stream_norm, scores.update_norm), all_of(boundaries), strict=True
        ):
            assert found == pytest.approx(expected, rel=1e-6)
            assert found[2:] == pytest.approx(expected[2:], rel=1e-10)


def test_where_a_device_has_no_float64_steps_are_measured_in_float32_and_summed_in_float64(
    criteria: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = shortgpt.score(Playback(stream()), batches(LENGTHS, rows=4), criteria=criteria)
    monkeypatch.setattr(angles_of, "precise", Tensor.float)
    scores = shortgpt.score(Playback(stream()), batches(LENGTHS, rows=4), criteria=criteria)
    for name in criteria:
        assert scores.of(name).values == pytest.approx(exact.of(name).values, rel=1e-6), name
    assert scores.update_norm == pytest.approx(exact.update_norm, rel=1e-6)


def test_a_block_that_does_nothing_scores_exactly_zero() -> None:
    boundaries = stream()
    boundaries[3] = boundaries[2]
    scores = shortgpt.score(Playback(boundaries), batches(LENGTHS, rows=4))
    assert (scores.values[2], scores.update_norm[2]) == (0.0, 0.0)


def test_the_first_batch_that_is_broken_is_named_wherever_it_comes() -> None:
    boundaries = stream()
    boundaries[2, 150] = 0  # in the last sequence
    for rows, batch in ((1, 5), (2, 2), (6, 0)):
        with pytest.raises(HiddenStateError, match=rf"around block 1 \(blocks\.1\), batch {batch}"):
            shortgpt.score(Playback(boundaries), batches(LENGTHS, rows=rows))


@pytest.mark.parametrize(
    ("order", "found"),
    [
        ([0, 2, 3, 4, 5], "boundary 2 came where 1 was due"),
        ([1, 2, 3, 4, 5], "boundary 1 came where 0 was due"),
        ([0, 1, 1, 2, 3, 4, 5], "boundary 1 came where 2 was due"),
        ([0, 1, 2, 3], "it ended before boundary 4"),
    ],
)
def test_an_adapter_that_leaves_out_a_boundary_or_gives_one_twice_is_refused(order: list[int], found: str) -> None:
    class Odd(Playback):
        def trace(self, batch: Any, tap: Any) -> None:
            for boundary in order:
                tap(boundary, self.stream[boundary][batch["input_ids"]])

    with pytest.raises(AdapterError, match=f"must cross the boundaries 0 to 5 once each and in order, but {found}"):
        shortgpt.score(Odd(stream()), batches([40], rows=1))


def test_a_pass_keeps_no_gradients_and_no_cache_and_ends_behind_the_last_block() -> None:
    model = tiny("llama")
    seen: list[tuple[bool, Any]] = []
    ran: list[str] = []

    def at_block(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append((torch.is_grad_enabled(), kwargs.get("past_key_values")))

    for layer in model.model.layers:
        layer.register_forward_pre_hook(at_block, with_kwargs=True)
    for name, module in (("norm", model.model.norm), ("head", model.lm_head)):
        module.register_forward_pre_hook(lambda module, args, name=name: ran.append(name))
    shortgpt.score(shortgpt.wrap(model), [{"input_ids": ids_of(2, 24)}])
    assert seen == [(False, None)] * 6
    assert ran == []


def test_one_boundary_of_a_batch_is_held_at_a_time() -> None:
    alive: list[int] = []

    class Counting(Playback):
        def trace(self, batch: Any, tap: Any) -> None:
            made: list[weakref.ref[Tensor]] = []
            for boundary, vectors in enumerate(self.stream):
                hidden = vectors[batch["input_ids"]]
                made.append(weakref.ref(hidden))
                tap(boundary, hidden)
                del hidden
                alive.append(sum(one() is not None for one in made))

    shortgpt.score(Counting(stream()), batches([40, 40], rows=2))
    assert alive == [1] * (BLOCKS + 1)


# -- the kernel of CUDA, where there is none --------------------------------------------------------------------------


def broken_kernel(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def norms_of(*arguments: Any) -> None:
        raise error

    monkeypatch.setitem(sys.modules, "shortgpt.measuring.scoring.kernel", SimpleNamespace(norms_of=norms_of))
    batch_tap._working_kernel.cache_clear()


def test_a_kernel_that_cannot_run_is_done_without_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    broken_kernel(RuntimeError("Failed to find C compiler"), monkeypatch)
    with pytest.warns(UserWarning, match=r"without it, slower \(RuntimeError: Failed to find C compiler\)"):
        assert batch_tap._working_kernel(torch.device("cpu")) is None
    batch_tap._working_kernel.cache_clear()


def test_a_full_device_is_no_broken_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    broken_kernel(torch.OutOfMemoryError("CUDA out of memory"), monkeypatch)
    with pytest.raises(torch.OutOfMemoryError):
        batch_tap._working_kernel(torch.device("cpu"))
