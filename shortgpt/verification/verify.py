"""Is the shorter model what skipping says it should be?

::

    original, these blocks skipped ──▶ logits on the probes ────┐
                                                                 ├─ equal?   ─▶ Verification
    what was written, opened in a fresh process ──▶ logits ─────┘
      by the family's own loader               └──▶ 8 greedy tokens, cached and uncached: the same?

Skipping and removal are independent code, so they check each other. The two models are held one after the other, never
together; and streamed, where they are larger than memory, neither is held: their weights are read block by block, those
of the original once, those of the result for the logits and again for every token. (With fewer passes the tokens would
not be what the library's own generation gives: some types keep their state in the blocks, and some take a longer text
for something else than a text that grew.)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shortgpt.basics.block_lists import block_numbers
from shortgpt.basics.inputs import Config, Fold, NearDistance, OpenOptions, Source
from shortgpt.basics.leftovers import no_room_for_temporary, temporary_folder
from shortgpt.checkpoints.weights import CACHE_LINE, Weights, file_hash
from shortgpt.errors import AdapterError, ModelError, StreamingError, VerificationError
from shortgpt.models.family import Family
from shortgpt.models.memory import is_lack_of_memory, lacking_memory, release_memory
from shortgpt.models.probing.expected_logits import Expectation as Expectation
from shortgpt.models.probing.expected_logits import expected_logits, with_near
from shortgpt.models.probing.logit_comparison import ELSEWHERE, EXACT, HALF_ELSEWHERE, ROUNDED, compare_logits, is_half
from shortgpt.models.probing.probes import Probe as Probe
from shortgpt.models.probing.probes import probe as probe
from shortgpt.models.projections import Change
from shortgpt.models.removal import starred
from shortgpt.values.plan import PLAN_FILE, Plan, Verification
from shortgpt.verification.fresh_process import Answer as Answer
from shortgpt.verification.fresh_process import Reloaded as Reloaded
from shortgpt.verification.fresh_process import ask as ask
from shortgpt.verification.judgement import compare_generation as compare_generation
from shortgpt.verification.judgement import fingerprint as fingerprint
from shortgpt.verification.judgement import fingerprinted, generated, generated_behind
from shortgpt.verification.judgement import judge as judge
from shortgpt.verification.judgement import needs_float32 as needs_float32
from shortgpt.verification.unrounded import write_unrounded

if TYPE_CHECKING:
    from shortgpt.models.sequence import BlockSequence


def expectation(
    source: Source,
    family: Family,
    config: Config,
    blocks: Sequence[int],
    weights: Weights,
    options: OpenOptions,
    changes: Sequence[Change] = (),
) -> Expectation | Verification:
    """Load the original, skip, and let it go again; or say why that cannot be.

    It is streamed where `options` ask for it, or where memory does not suffice for the whole.

    Args:
        changes: those that make up for the removal.
    """
    chosen = how_to_open(family, config, weights, options)
    if isinstance(chosen, str):
        return Verification(verified=False, reason=chosen)
    try:
        result = expected_logits(_opened(family, source, chosen, changes), blocks)
        release_memory()
        result = nearer(result, source, family, config, blocks, chosen, changes)
    except Exception as error:
        if is_lack_of_memory(error):
            return Verification(verified=False, reason=f"memory did not suffice for the original ({error})")
        if not (chosen.stream and isinstance(error, (StreamingError, AdapterError))):
            raise
        why = "" if options.stream else "memory does not suffice for the whole model, and "
        return Verification(verified=False, reason=f"{why}{error}")
    release_memory()
    return result


def nearer(
    expected: Expectation,
    source: Source,
    family: Family,
    config: Config,
    blocks: Iterable[int],
    options: OpenOptions,
    changes: Sequence[Change] = (),
) -> Expectation:
    """The same with the distances that no probe reaches set small, where the family can open a model so."""
    if not family.sets_near:
        return expected
    options = replace(options, stream=expected.streamed)
    return with_near(
        expected, config, blocks, lambda near: _opened(family, source, replace(options, near=near), changes)
    )


def _opened(family: Family, source: Source, options: OpenOptions, changes: Sequence[Change]) -> BlockSequence:
    """The original with the changes that make up for the removal."""
    if changes and options.stream:
        raise StreamingError(f"{source.name}: weights that are streamed cannot be changed as those of the result were")
    model = family.open(source, options)
    model.change(changes)
    return model


def how_to_open(family: Family, config: Config, weights: Weights, options: OpenOptions) -> OpenOptions | str:
    """`options`, with `stream` where memory does not suffice for the whole model; or why neither way can be gone."""
    lack = None if options.stream else lacking_memory(weights.bytes_in(options.dtype), options.device)
    if lack is None and not options.stream:
        return options
    if not family.streams:
        return lack or f"models of the adapter {family.architecture!r} cannot be streamed block by block"
    depth = family.depth(config)
    outside = weights.bytes_in(options.dtype, family.rename(weights.names, depth, ()).values())
    blocks = weights.bytes_in(options.dtype) - outside
    return lacking_memory(outside + 2 * blocks // depth, options.device) or replace(options, stream=True)


def verify(
    original: Any,
    directory: str | Path,
    blocks: Iterable[int],
    *,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    family: Family | None = None,
    changes: Sequence[Change] = (),
) -> Verification:
    """Check a saved shorter model against its original.

    Args:
        original: the model before the removal, by its name or path, or in memory. Where it is streamed, so is the saved
            one.
        directory: where the shorter one was saved.
        blocks: what was removed.
        dtype: what the saved one is opened in; "auto" is what it was saved in.
        family: the adapter's torch-free side; found from the folder where it is not given.
        changes: those that make up for the removal; the original is compared with the same ones.

    Raises:
        VerificationError: they differ, or what was saved cannot be loaded.
    """
    from shortgpt.models.loading import opened

    is_named = isinstance(original, (str, Path))
    whole = opened(original, {"dtype": dtype, "trust_remote_code": trust_remote_code} if is_named else {})
    opening: dict[str, Any] = {"dtype": dtype, "trust_remote_code": trust_remote_code, "family": family}
    return comparison(whole, directory, blocks, changes=changes, **opening)()


def comparison(
    original: BlockSequence,
    directory: str | Path,
    blocks: Iterable[int],
    *,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    family: Family | None = None,
    changes: Sequence[Change] = (),
) -> Callable[[], Verification]:
    """The second half of `verify`, which needs the original no longer: it may be let go before."""
    from shortgpt.models.recognition import recognise, resolve

    gone = block_numbers(blocks, len(original))
    source = resolve(Path(directory))
    chosen = copy.copy(family) if family else recognise(source)  # what it learns of the shorter model stays here
    keep = [block for block in range(len(original)) if block not in gone]
    config = chosen.read_config(source, trust_remote_code=trust_remote_code)
    saved = Weights(source)
    options = OpenOptions(device=str(original.device), dtype=dtype, trust_remote_code=trust_remote_code)
    origin = _origin_of(original, trust_remote_code)
    renamed, folds = ({}, {}) if origin is None else origin.rewritten(keep, changes)
    folded = bool(changes) or bool(folds if origin is not None else chosen.folds(config, keep, saved.names))
    shifted = origin is not None and moved(origin.weights, saved, renamed)
    options = in_float32_if(options, chosen, folded=folded)
    half = original.bytes_per_number < 4

    def again(options: OpenOptions) -> Expectation | Verification:
        """What is expected, of the original opened anew."""
        if origin is None:
            reason = "in half precision rounding would hide what is wrong, and there is no checkpoint of the original"
            return Verification(verified=False, reason=f"{reason} to be opened in float32")
        return expectation(origin.source, origin.family, origin.config, gone, origin.weights, options, changes)

    expected: Expectation | Verification
    if half and options.dtype == "float32":
        expected = again(options)
    else:
        with original.changing(changes):
            expected = expected_logits(original, gone)
        if origin is not None:
            expected = nearer(expected, origin.source, origin.family, origin.config, gone, options, changes)

    def compare() -> Verification:
        if isinstance(expected, Verification):
            return expected
        proven = partial(check, Path(directory), chosen, folded=folded, shifted=shifted)
        try:
            with temporary_folder() as inner:
                rounded_to = None
                if origin is not None:
                    rounded_to = write_unrounded(saved, origin.weights, renamed, folds, inner)
                outcome = proven(expected, options, unrounded=None if rounded_to is None else (inner, rounded_to))
        except Exception as error:
            if (full := no_room_for_temporary(error)) is None:
                raise
            return Verification(verified=False, reason=full)
        if needs_float32(outcome):
            wide = replace(options, dtype="float32")
            anew = again(wide)
            outcome = anew if isinstance(anew, Verification) else proven(anew, wide)
        return outcome

    return compare


@dataclass(frozen=True)
class _Origin:
    """The checkpoint of a model that is open."""

    source: Source
    family: Family
    config: Config
    weights: Weights

    def rewritten(self, keep: Sequence[int], changes: Sequence[Change]) -> tuple[dict[str, str], dict[str, Fold]]:
        """New tensor name → old one, and the folds, of the model that has the blocks `keep` only."""
        renamed = self.family.rename(self.weights.names, self.family.depth(self.config), keep)
        return renamed, self.family.all_folds(self.config, keep, renamed, changes, self.weights.shape)


def _origin_of(model: BlockSequence, trust_remote_code: bool) -> _Origin | None:
    """The checkpoint that a model was opened from; None where it has none, or was made shorter since."""
    from shortgpt.models.recognition import recognise

    source = model.source
    if source is None or not source.path.exists():
        return None
    family = recognise(source, model.architecture)
    config = family.read_config(source, trust_remote_code=trust_remote_code)
    return _Origin(source, family, config, Weights(source)) if family.depth(config) == len(model) else None


def moved(before: Weights, after: Weights, renamed: Mapping[str, str]) -> bool:
    """Whether a tensor stands at another place of a cache line than it did: files are mapped into memory, and some
    kernels (those for experts) sum in an order that depends on it.

    Args:
        renamed: new tensor name → old one; names that `after` does not have are passed over.
    """
    now = {name: entry.begin for table in after.tensors.values() for name, entry in table.items()}
    then = {name: entry.begin for table in before.tensors.values() for name, entry in table.items()}
    return any((now[new] - then[old]) % CACHE_LINE for new, old in renamed.items() if new in now)


def must_stream(name: str, options: OpenOptions) -> bool:
    """Whether a model is to be streamed to be verified: it was asked for, or memory does not suffice for the whole.

    Raises:
        VerificationError: neither way can be gone.
    """
    from shortgpt.models.recognition import recognise, resolve

    source = resolve(name)
    family = recognise(source)
    config = family.read_config(source, trust_remote_code=options.trust_remote_code)
    return _opening(family, config, Weights(source), options).stream


def _opening(family: Family, config: Config, weights: Weights, options: OpenOptions) -> OpenOptions:
    chosen = how_to_open(family, config, weights, options)
    if isinstance(chosen, str):
        raise VerificationError(f"it could not be opened to be verified: {chosen}")
    return chosen


def check(
    directory: Path,
    family: Family,
    expected: Expectation,
    options: OpenOptions,
    *,
    folded: bool = False,
    shifted: bool = False,
    rounding: float = 0.0,
    unrounded: tuple[Path, str] | None = None,
) -> Verification:
    """Open a checkpoint in a fresh process and compare it with what is expected of it.

    Args:
        unrounded: the same checkpoint with its folded weights as they are before they are rounded, which is compared
            in the place of this one; and the dtype that they are rounded to.
        folded: weights were changed to make up for a block's new place, which rounds them.
        shifted: weights stand at other places of a cache line, see `moved`.
        rounding: what else explains a difference, relative to the largest logit.

    Raises:
        VerificationError: it cannot be opened, or differs.
    """
    import torch

    options = replace(options, stream=expected.streamed)
    proven = directory if unrounded is None else unrounded[0]
    answer = ask(proven, family, expected.probe, options)
    if isinstance(answer, Verification):
        return answer
    _refuse_left_over(answer, family, expected.depth, expected.left_over)
    outcome = judge(answer, expected, family, options, folded=folded, shifted=shifted, rounding=rounding)
    if outcome.verified and expected.continued:
        outcome = _with_continued(outcome, answer, expected, family, options)
    outcome = replace(outcome, left_over=tuple(sorted(expected.left_over)))
    if unrounded is None or not outcome.verified:
        return outcome
    saved = ask(directory, family, expected.probe, options)
    if isinstance(saved, Verification):
        return saved
    _refuse_left_over(saved, family, expected.depth, expected.left_over)
    eps = max(torch.finfo(getattr(torch, dtype)).eps for dtype in unrounded[1].split(" and "))
    moved_by = compare_logits(saved.logits, expected.logits, ROUNDED * eps)
    if not moved_by.equal:
        raise VerificationError(f"rounded to {unrounded[1]}, the logits {moved_by.told('the unrounded ones')}")
    return replace(
        outcome,
        generated=generated(saved, options.device),
        fingerprint=fingerprint(saved.logits),
        long_fingerprint=() if saved.long_logits is None else fingerprint(saved.long_logits),
        near=fingerprinted(expected.near, saved.near_logits),
        rounded_to=unrounded[1],
        rounding=moved_by.difference,
    )


def _with_continued(
    outcome: Verification, answer: Answer, expected: Expectation, family: Family, options: OpenOptions
) -> Verification:
    """The same with what was generated behind the long probe, which is judged by the original's own cache.

    Some libraries' caches are wrong behind a window, or where RoPE switches: in the original as well. That is told.
    """
    behind = f"cached generation behind {0 if expected.long_ids is None else expected.long_ids.shape[1]} tokens"
    try:
        return replace(outcome, generated_behind=generated_behind(answer, options.device))
    except VerificationError as error:
        if expected.origin is None:
            raise
        original = ask(expected.origin, family, replace(expected.probe, near=()), options)
        if isinstance(original, Verification):
            return replace(outcome, beyond=(*outcome.beyond, f"{behind} ({error}; {original.reason})"))
        try:
            generated_behind(original, options.device)
        except VerificationError:
            told = f"{behind}, which fails in the original as well"
            return replace(outcome, beyond=(*outcome.beyond, told))
        raise error from None


def in_float32_if(options: OpenOptions, family: Family, *, folded: bool, exported: bool = False) -> OpenOptions:
    """How to open models to be compared: in float32 where a difference is allowed, for half precision would hide more.

    An accelerator is such a reason: two processes may be given kernels there whose sums round differently.
    """
    allowed = folded or exported or family.tolerance > EXACT or options.device != "cpu"
    return replace(options, dtype="float32") if allowed else options


def _refuse_left_over(answer: Answer, family: Family, depth: int, allowed: Collection[str]) -> None:
    """Raise a `VerificationError` for a tensor that the library passes over here and not in the original.

    Args:
        depth: the blocks that the checkpoint has.
        allowed: what it passes over of the original, see `BlockSequence.left_over`.
    """
    if answer.left_over is None:
        return
    left_over = starred(answer.left_over.split("\n"), family.block_lists[0], depth)
    if strange := sorted(left_over.difference(allowed)):
        raise VerificationError(
            f"the files hold {len(strange)} tensors ({strange[0]}, ...) that the library passes over, and that it does "
            "not pass over in the original"
        )


def verify_again(
    directory: str | Path, *, device: str = "cpu", trust_remote_code: bool = False
) -> tuple[Plan, Verification]:
    """Check a pruned checkpoint without its original, against the fingerprint in its `shortgpt.json`.

    It notices files that were damaged, lost or changed, a library that loads or computes them otherwise, and a cache
    that does not fit. Another machine sums in another order, so rounding is allowed here.

    Raises:
        ModelError: the folder holds no fingerprint: it was not made by shortgpt, or not verified then.
        SelectionError: its shortgpt.json cannot be read.
        VerificationError: it cannot be opened, or differs.
    """
    import torch

    from shortgpt.models.recognition import recognise, resolve

    source = resolve(directory)
    folder = source.path if source.path.is_dir() else source.path.parent
    if not (folder / PLAN_FILE).is_file():
        raise ModelError(
            f"{source.name}: it holds no shortgpt.json; `shortgpt verify` checks what `shortgpt prune` wrote"
        )
    plan = Plan.read(folder)
    made = plan.verification
    if made is None or not made.fingerprint:
        raise ModelError(
            f"{source.name}: it was not verified when it was made, so there is nothing to compare with; "
            "name the model that it was made from (--original)"
        )
    family = recognise(source, plan.export_as or plan.architecture)
    config = family.read_config(source, trust_remote_code=trust_remote_code)  # one clear message if it cannot be opened
    weights = Weights(source)
    gone = [name for name in made.files if not (folder / name).is_file()]
    if gone:
        raise VerificationError(f"{', '.join(gone)}: gone since it was made")
    hashed = weights.hashes()
    changed = [
        name for name, made_of in made.files.items() if (hashed.get(name) or file_hash(folder / name)) != made_of
    ]
    if changed:
        raise VerificationError(f"{', '.join(changed)}: not the bytes that were written when it was made")
    dtype = made.generation_dtype or made.dtype or "auto"
    options = OpenOptions(device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    options = _opening(family, config, weights, options)
    if len({len(row) for row in made.probe_ids}) != 1 or not made.probe_ids[0]:
        raise ModelError(f"{source.name}: its shortgpt.json is damaged: the rows of probe_ids are not alike in length")
    long_ids = torch.tensor([made.long_ids]) if made.long_ids else None
    chosen = Probe(torch.tensor(made.probe_ids), long_ids, made.side_inputs, made.near, made.generated_behind)
    answer = ask(folder, family, chosen, options)
    if isinstance(answer, Verification):
        raise VerificationError(f"it could not be opened to be verified: {answer.reason}")
    _refuse_left_over(answer, family, family.depth(config), made.left_over)
    half = is_half(answer.dtype)
    tolerance = max(made.tolerance or EXACT, HALF_ELSEWHERE if half else ELSEWHERE)
    difference = compare_logits(
        torch.tensor((*fingerprint(answer.logits), *_of_long(answer), *_of_near(made.near, answer))),
        torch.tensor((*made.fingerprint, *made.long_fingerprint, *(n for near in made.near for n in near.fingerprint))),
        tolerance,
        largest=made.max_logit,
    )
    if not difference.equal:
        raise VerificationError(f"its logits {difference.told('those that were expected when it was made')}")
    if half and difference.difference > 0:
        return plan, Verification(
            verified=False,
            reason=f"its record was taken in {answer.dtype}, in which rounding hides what is wrong: logits differ by "
            f"{difference.difference:.3g} (largest logit {difference.largest:.4g}); "
            "compare it with its original (--original)",
        )
    tokens, tokens_behind = generated(answer, options.device), generated_behind(answer, options.device)
    return plan, replace(
        made,
        max_difference=difference.difference,
        tolerance=tolerance,
        generated=tokens,
        generated_behind=tokens_behind,
        device=device,
        dtype=answer.dtype,
        generation_dtype=answer.generation_dtype,
        streamed=options.stream,
    )


def _of_long(answer: Answer) -> tuple[float, ...]:
    return () if answer.long_logits is None else fingerprint(answer.long_logits)


def _of_near(near: Sequence[NearDistance], answer: Answer) -> tuple[float, ...]:
    return tuple(number for one in fingerprinted(near, answer.near_logits) for number in one.fingerprint)
