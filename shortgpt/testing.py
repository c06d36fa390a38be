"""The contract that every adapter keeps, for adapter authors to run against their own with one call:

    def test_contract(tmp_path):
        shortgpt.testing.check_adapter(lambda: shortgpt.wrap(tiny_model()), tmp_path)

Each check is a statement about `BlockSequence`; the first that does not hold is an `AdapterError` that names it, and
says where. The adapter must be installed, since saved models are opened again by name. Use a small model with random
weights in float32, of four blocks or more, whose blocks visibly change the stream.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from shortgpt.basics.targets import load_target
from shortgpt.errors import AdapterError, CalibrationError, SelectionError, ShortGPTError
from shortgpt.measuring.scoring.score import score
from shortgpt.models.loading import load
from shortgpt.models.probing.logit_comparison import CACHED, compare_logits, proves_nothing
from shortgpt.models.recognition import recognise, resolve
from shortgpt.models.sequence import BlockSequence, TokenBatch
from shortgpt.values.scores import Scores
from shortgpt.verification.judgement import compare_generation
from shortgpt.verification.removal_on_disk import prune_checkpoint

if TYPE_CHECKING:
    from shortgpt.models.family import Family

SCORE_TOLERANCE = 1e-4
"""Relative: kernels round differently for batches of different shape; a counted pad token moves a score far more."""


class _NotApplicable(Exception):
    """The adapter says that there is nothing to check."""


@dataclass(frozen=True)
class Subject:
    """What the checks look at."""

    make: Callable[[], BlockSequence]
    folder: Path
    reference: Callable[[BlockSequence, TokenBatch], Sequence[Tensor]] | None
    tolerance: float
    removals: tuple[tuple[int, ...], ...]
    vocabulary: int

    def batch(self, rows: int = 2, tokens: int = 24, seed: int = 0) -> TokenBatch:
        ids = torch.randint(0, self.vocabulary, (rows, tokens), generator=torch.Generator().manual_seed(seed))
        return {"input_ids": ids}


def check_adapter(
    make: Callable[[], BlockSequence],
    folder: Path,
    *,
    reference: Callable[[BlockSequence, TokenBatch], Sequence[Tensor]] | None = None,
    tolerance: float = 0.0,
) -> tuple[str, ...]:
    """Run the contract.

    Args:
        make: gives a fresh block sequence of the same weights at every call.
        folder: an empty folder for checkpoints.
        reference: an independent tap: the L + 1 boundaries, [batch, tokens, width], for a sequence and a batch. The
            adapter's must equal them to 1e-5 of their largest value. Write it without the adapter.
        tolerance: by how much removal may differ from skipping, relative to the largest logit: 0.0, not a bit, unless
            the family's own arithmetic depends on a block's place.

    Returns:
        The names of the checks that held. Cached generation is not among them where the loader says that there is none
        (`cannot_generate`).

    Raises:
        AdapterError: the first check that did not hold, by name.
    """
    model = make()
    removals = tuple(_removals(model))
    subject = Subject(make, Path(folder), reference, tolerance, removals, model.vocab_size)
    held = []
    for check in CHECKS:
        name = check.__name__.removeprefix("_").replace("_", " ")
        try:
            check(subject)
        except _NotApplicable:
            continue
        except AssertionError as error:
            raise AdapterError(f"{model.architecture}: the contract is broken: {name}: {error}") from None
        except Exception as error:  # an adapter's code can raise anything
            what = str(error) if isinstance(error, ShortGPTError) else f"{type(error).__name__}: {error}"
            raise AdapterError(f"{model.architecture}: the contract is broken: {name}: {what}") from error
        held.append(name)
    return tuple(held)


def boundaries(model: BlockSequence, batch: TokenBatch) -> list[Tensor]:
    """Copies of what the tap sees, in order."""
    seen: list[Tensor] = []

    def tap(boundary: int, hidden: Tensor) -> None:
        seen.append(hidden.detach().clone())

    model.trace(batch, tap)
    return seen


# -- the contract ---------------------------------------------------------------------------------------------


def _every_boundary_is_seen_once_and_in_order(subject: Subject) -> None:
    model, batch = subject.make(), subject.batch()
    order: list[int] = []
    shapes: set[tuple[int, ...]] = set()

    def tap(boundary: int, hidden: Tensor) -> None:
        order.append(boundary)
        shapes.add(tuple(hidden.shape))
        assert torch.isfinite(hidden).all(), f"boundary {boundary} holds NaN or infinity"

    model.trace(batch, tap)
    expected = list(range(len(model) + 1))
    assert order == expected, f"a model of {len(model)} blocks has the boundaries {expected}, the tap saw {order}"
    rows, tokens = batch["input_ids"].shape
    assert len(shapes) == 1, f"the boundaries have different shapes: {sorted(shapes)}"
    shape = shapes.pop()
    assert len(shape) == 3 and shape[:2] == (rows, tokens), f"a boundary is [batch, tokens, width], found {shape}"  # noqa: PT018
    assert len(model.parameter_counts()) == len(model), "parameter_counts() must have an entry a block"


def _the_boundaries_are_those_of_an_independent_tap(subject: Subject) -> None:
    if subject.reference is None:
        return
    model, batch = subject.make(), subject.batch()
    expected = subject.reference(subject.make(), batch)
    assert len(expected) == len(model) + 1, f"the reference gives {len(expected)} boundaries, not {len(model) + 1}"
    for i, (mine, theirs) in enumerate(zip(boundaries(model, batch), expected, strict=True)):
        difference = (mine.double() - theirs.double()).abs().max().item()
        largest = theirs.double().abs().max().item()
        assert difference <= 1e-5 * largest, (
            f"boundary {i} differs from the reference by {difference:.3g} (largest value {largest:.3g}); "
            "is the residual in it exactly once, and no final norm?"
        )


def _a_skipped_block_hands_the_stream_on_unchanged(subject: Subject) -> None:
    model, batch = subject.make(), subject.batch()
    plain = boundaries(model, batch)
    for first in range(len(model)):
        with model.skipping(range(first, len(model))):
            skipped = boundaries(model, batch)
        for i, hidden in enumerate(skipped):
            expected = plain[min(i, first)]
            difference = (hidden - expected).abs().max().item()
            assert difference <= subject.tolerance * expected.abs().max().item(), (
                f"with the blocks {first} to {len(model) - 1} skipped, boundary {i} differs from boundary "
                f"{min(i, first)} of a plain pass by {difference:.3g}: what a block reads is not what the tap sees"
            )


def _skipping_nothing_changes_no_bit(subject: Subject) -> None:
    model, batch = subject.make(), subject.batch()
    plain = model.logits(batch)
    with model.skipping(()):
        _assert_equal(model.logits(batch), plain, "logits while nothing is skipped")


def _removing_nothing_changes_no_bit(subject: Subject) -> None:
    model, batch = subject.make(), subject.batch()
    plain = model.logits(batch)
    _assert_equal(model.without(()).logits(batch), plain, "logits after a removal of no block")


def _removal_equals_skipping(subject: Subject) -> None:
    for blocks in subject.removals:
        model, batch = subject.make(), subject.batch()
        shorter = model.without(blocks)
        assert len(shorter) == len(model) - len(blocks), f"without {blocks}: {len(shorter)} blocks are left"
        with model.skipping(blocks):
            expected = model.logits(batch)
        nothing = proves_nothing(expected)
        assert nothing is None, f"the logits with the blocks {blocks} skipped {nothing}; use other weights"
        _assert_equal(shorter.logits(batch), expected, f"logits without the blocks {blocks}", subject.tolerance)
        plain = model.logits(batch)
        assert not torch.equal(plain, expected), f"skipping the blocks {blocks} changes nothing; use other weights"


def _a_shorter_model_shares_its_tensors(subject: Subject) -> None:
    model = subject.make()
    own = {parameter.untyped_storage().data_ptr() for parameter in _parameters(model).values()}
    shorter = _parameters(model.without(()))
    copied = [name for name, tensor in shorter.items() if tensor.untyped_storage().data_ptr() not in own]
    assert not copied, f"{len(copied)} tensors of the shorter model are copies ({copied[0]}, ...)"


def _the_original_is_untouched(subject: Subject) -> None:
    model, batch = subject.make(), subject.batch()
    plain = model.logits(batch)
    shorter = model.without(subject.removals[0])
    shorter.logits(batch)
    _assert_equal(model.logits(batch), plain, "the original's logits after a removal")


def _reload_equals_memory(subject: Subject) -> None:
    batch = subject.batch()
    for blocks, folder in _saved(subject):
        model = subject.make().without(blocks)
        expected = model.logits(batch)
        model.save(folder)
        _assert_equal(model.logits(batch), expected, f"logits without {blocks} after it was saved")
        reloaded = load(folder, device="cpu")
        assert reloaded.architecture == model.architecture, f"it is opened as {reloaded.architecture}"
        _assert_equal(
            reloaded.logits(batch), expected, f"logits saved and reloaded without {blocks}", subject.tolerance
        )


def _the_disk_road_equals_memory(subject: Subject) -> None:
    batch, original = subject.batch(), subject.folder / "original"
    subject.make().save(original)
    for number, blocks in enumerate(subject.removals):
        folder = subject.folder / f"disk-{number}"
        prune_checkpoint(original, folder, blocks, verify=False)
        expected = subject.make().without(blocks).logits(batch)
        loaded = load(folder, device="cpu").logits(batch)
        _assert_equal(loaded, expected, f"logits pruned on disk without {blocks}", subject.tolerance)


def _cached_generation_equals_uncached(subject: Subject) -> None:
    for blocks, folder in _saved(subject):
        family: Family = recognise(resolve(folder))
        reloaded = load_target(family.loader)(folder, device="cpu", dtype="float32")
        if getattr(reloaded, "cannot_generate", None) is not None:
            raise _NotApplicable
        ids = subject.batch(rows=1)["input_ids"]
        with torch.no_grad():
            cached, uncached = (reloaded.generate(ids, 8, cached=cached) for cached in (True, False))
        assert len(cached) == len(uncached) == 8, f"without {blocks}: 8 tokens were asked for, {len(cached)} came"
        compare_generation(cached, uncached, torch.finfo(torch.float32).eps)


def _generated_tokens_are_the_likeliest_of_the_whole_text(subject: Subject) -> None:
    ids = subject.batch()["input_ids"]
    prompts = [ids[0, :9].tolist(), ids[1, :5].tolist(), ids[0, :1].tolist()]
    model = subject.make()
    for blocks in ((), subject.removals[0]):
        ended: list[tuple[int, ...]] = []

        def stop(row: int, made: Sequence[int]) -> bool:
            ended.append((row, *made))  # noqa: B023
            return row == 1 and len(made) == 2

        with model.skipping(blocks):
            made = model.greedy(prompts, 6, stop)
            assert [len(tokens) for tokens in made] == [6, 2, 6], f"6, 2 and 6 tokens were due, {made} came"
            for row, (prompt, tokens) in enumerate(zip(prompts, made, strict=True)):
                whole = model.logits({"input_ids": torch.tensor([[*prompt, *tokens]])})[0, len(prompt) - 1 : -1].float()
                chosen = whole.gather(-1, torch.tensor(tokens, device=whole.device)[:, None])[:, 0]
                short = (whole.amax(-1) - chosen).max().item()
                where = f"prompt {row}, without {blocks}"
                assert short <= CACHED * whole.abs().max().item(), f"{where}: a token's logit is {short:.3g} too small"
                asked = {(row, *tokens[: count + 1]) for count in range(len(tokens))}
                assert asked - {(row, *tokens)} <= set(ended), f"{where}: it was not asked whether the text has ended"


def _padding_moves_no_score(subject: Subject) -> None:
    ids = subject.batch(rows=3, tokens=20)["input_ids"]
    lengths = (20, 13, 7)
    plain = score(subject.make(), [{"input_ids": row[None, :n]} for row, n in zip(ids, lengths, strict=True)])
    mask = torch.zeros_like(ids)
    for row, n in enumerate(lengths):
        mask[row, :n] = 1
    _assert_scores(score(subject.make(), [{"input_ids": ids, "attention_mask": mask}]), plain, "padding on the right")
    left = torch.stack([row.roll(20 - n) for row, n in zip(ids, lengths, strict=True)])
    try:
        scores = score(subject.make(), [{"input_ids": left, "attention_mask": mask.flip(1)}])
    except CalibrationError:
        return
    _assert_scores(scores, plain, "padding on the left")


def _batch_size_and_order_move_no_score(subject: Subject) -> None:
    ids = subject.batch(rows=6)["input_ids"]
    plain = score(subject.make(), [{"input_ids": ids}])
    single = score(subject.make(), [{"input_ids": row[None]} for row in ids.flip(0)])
    _assert_scores(single, plain, "one row a batch, in reverse order")


def _nothing_is_left_behind(subject: Subject) -> None:
    model, batch = subject.make(), subject.batch()
    before = _hooks(model)
    plain = boundaries(model, batch)
    logits = model.logits(batch)

    class Stop(Exception):
        pass

    def failing(boundary: int, hidden: Tensor) -> None:
        if boundary == 1:
            raise Stop

    try:
        model.trace(batch, failing)
    except Stop:
        pass
    else:
        raise AssertionError("an exception of the tap is swallowed by trace()")
    try:
        with model.skipping(range(len(model))):
            raise Stop
    except Stop:
        pass
    left = sorted(set(_hooks(model) - before))
    assert not left, f"hooks are left on {left}"
    _assert_equal(model.logits(batch), logits, "logits after a pass that failed")
    for i, (now, then) in enumerate(zip(boundaries(model, batch), plain, strict=True)):
        _assert_equal(now, then, f"boundary {i} after a pass that failed")


CHECKS: tuple[Callable[[Subject], None], ...] = (
    _every_boundary_is_seen_once_and_in_order,
    _skipping_nothing_changes_no_bit,
    _nothing_is_left_behind,
    _the_boundaries_are_those_of_an_independent_tap,
    _a_skipped_block_hands_the_stream_on_unchanged,
    _removing_nothing_changes_no_bit,
    _removal_equals_skipping,
    _a_shorter_model_shares_its_tensors,
    _the_original_is_untouched,
    _reload_equals_memory,
    _the_disk_road_equals_memory,
    _cached_generation_equals_uncached,
    _generated_tokens_are_the_likeliest_of_the_whole_text,
    _padding_moves_no_score,
    _batch_size_and_order_move_no_score,
)


# -- helpers --------------------------------------------------------------------------------------------------


def _removals(model: BlockSequence) -> Iterator[tuple[int, ...]]:
    """Sets worth trying: the first block, the last, two in the middle; those left out that the adapter refuses."""
    free = [i for i in range(len(model)) if i not in model.pinned]
    if len(free) < 3:
        raise AdapterError(f"{model.architecture}: the contract needs a model with 3 removable blocks or more")
    middle = len(free) // 2
    sets = ((free[0],), (free[-1],), tuple(free[middle - 1 : middle + 1]))
    allowed = [blocks for blocks in sets if not _refused(model, blocks)]
    if not allowed:
        raise AdapterError(f"{model.architecture}: every removal is refused; the contract needs one that is not")
    yield from allowed


def _saved(subject: Subject) -> Iterator[tuple[tuple[int, ...], Path]]:
    """What is removed, nothing first, and where `_reload_equals_memory` saves the rest."""
    for number, blocks in enumerate(((), *subject.removals)):
        yield blocks, subject.folder / f"memory-{number}"


def _refused(model: BlockSequence, blocks: tuple[int, ...]) -> bool:
    try:
        model.without(blocks)
    except SelectionError:
        return True
    except Exception:  # a check tells it, by its own name
        return False
    return False


def _assert_equal(found: Tensor, expected: Tensor, what: str, tolerance: float = 0.0) -> None:
    difference = compare_logits(found, expected, tolerance)
    assert difference.equal, f"{what}: {difference.told('what is expected')}"


def _assert_scores(found: Scores, expected: Scores, what: str) -> None:
    assert sum(found.tokens) == sum(expected.tokens), (
        f"{what}: {sum(found.tokens)} tokens were counted, {sum(expected.tokens)} are real"
    )
    for i, (a, b) in enumerate(zip(found.values, expected.values, strict=True)):
        assert abs(a - b) <= SCORE_TOLERANCE * abs(b) + 1e-9, f"{what}: block {i} scores {a:.8f} instead of {b:.8f}"


def _parameters(model: BlockSequence) -> dict[str, Tensor]:
    """The parameters of a torch model; none for other models."""
    module: Any = getattr(model, "model", None)
    return dict(module.named_parameters()) if isinstance(module, torch.nn.Module) else {}


def _hooks(model: BlockSequence) -> Counter[str]:
    """How many hooks are on each module of a torch model, and whether its forward was replaced; nothing for others."""
    module: Any = getattr(model, "model", None)
    if not isinstance(module, torch.nn.Module):
        return Counter()
    return Counter(
        f"{name}.{kind}"
        for name, child in module.named_modules()
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "forward")
        for _ in (range(kind in vars(child)) if kind == "forward" else getattr(child, kind))
    )
