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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shortgpt.basics.block_lists import block_numbers
from shortgpt.basics.inputs import Fold, OpenOptions
from shortgpt.basics.leftovers import no_room_for_temporary, temporary_folder
from shortgpt.checkpoints.weights import Weights
from shortgpt.models.family import Family
from shortgpt.models.probing.expected_logits import Expectation, expected_logits
from shortgpt.models.projections import Change
from shortgpt.models.recognition import recognise, resolve
from shortgpt.values.plan import Verification
from shortgpt.verification.checking import check, moved
from shortgpt.verification.judgement import needs_float32
from shortgpt.verification.original import Origin, expectation, in_float32_if, nearer, origin_of
from shortgpt.verification.unrounded import write_unrounded

if TYPE_CHECKING:
    from shortgpt.models.sequence import BlockSequence


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
    gone = block_numbers(blocks, len(original))
    origin = origin_of(original, trust_remote_code)
    result = _Result.of(Path(directory), family, origin, len(original), gone, changes, trust_remote_code)
    options = OpenOptions(device=str(original.device), dtype=dtype, trust_remote_code=trust_remote_code)
    options = in_float32_if(options, result.family, folded=result.folded)
    anew = partial(_expected_anew, origin, gone, changes)
    if original.bytes_per_number < 4 and options.dtype == "float32":
        expected = anew(options)
    else:
        expected = _expected(original, gone, changes, origin, options)
    return partial(_compared, result, expected, anew, options)


@dataclass(frozen=True)
class _Result:
    """A shorter model that was written, beside the checkpoint that it was made from.

    Attributes:
        origin: None where the original has no checkpoint.
        renamed: new tensor name → old one.
        folded: whether weights were changed.
        shifted: whether weights stand at other places of a cache line, see `moved`.
    """

    folder: Path
    family: Family
    weights: Weights
    origin: Origin | None
    renamed: Mapping[str, str]
    folds: Mapping[str, Fold]
    folded: bool
    shifted: bool

    @classmethod
    def of(
        cls,
        folder: Path,
        family: Family | None,
        origin: Origin | None,
        depth: int,
        gone: Sequence[int],
        changes: Sequence[Change],
        trust_remote_code: bool,
    ) -> _Result:
        source = resolve(folder)
        family = copy.copy(family) if family else recognise(source)  # what it learns of the shorter model stays here
        config = family.read_config(source, trust_remote_code=trust_remote_code)
        weights = Weights(source)
        keep = [block for block in range(depth) if block not in gone]
        if origin is None:
            folded = bool(changes) or bool(family.folds(config, keep, weights.names))
            return cls(folder, family, weights, None, {}, {}, folded, shifted=False)
        renamed, folds = origin.rewritten(keep, changes)
        shifted = moved(origin.weights, weights, renamed)
        return cls(folder, family, weights, origin, renamed, folds, bool(changes) or bool(folds), shifted)

    def compared(self, expected: Expectation, options: OpenOptions) -> Verification:
        """What is written beside what is expected; folded weights as they are before they are rounded."""
        with temporary_folder() as inner:
            unrounded = None
            if self.origin is not None:
                rounded_to = write_unrounded(self.weights, self.origin.weights, self.renamed, self.folds, inner)
                unrounded = None if rounded_to is None else (inner, rounded_to)
            return self.checked(expected, options, unrounded)

    def checked(
        self, expected: Expectation, options: OpenOptions, unrounded: tuple[Path, str] | None = None
    ) -> Verification:
        """See `check`."""
        told = {"folded": self.folded, "shifted": self.shifted}
        return check(self.folder, self.family, expected, options, unrounded=unrounded, **told)


def _expected(
    original: BlockSequence,
    gone: Sequence[int],
    changes: Sequence[Change],
    origin: Origin | None,
    options: OpenOptions,
) -> Expectation:
    """What is expected, of the original in memory."""
    with original.changing(changes):
        expected = expected_logits(original, gone)
    if origin is None:
        return expected
    return nearer(expected, origin.source, origin.family, origin.config, gone, options, changes)


def _expected_anew(
    origin: Origin | None, gone: Sequence[int], changes: Sequence[Change], options: OpenOptions
) -> Expectation | Verification:
    """What is expected, of the original opened anew."""
    if origin is None:
        reason = "in half precision rounding would hide what is wrong, and there is no checkpoint of the original"
        return Verification(verified=False, reason=f"{reason} to be opened in float32")
    return expectation(origin.source, origin.family, origin.config, gone, origin.weights, options, changes)


def _compared(
    result: _Result,
    expected: Expectation | Verification,
    anew: Callable[[OpenOptions], Expectation | Verification],
    options: OpenOptions,
) -> Verification:
    if isinstance(expected, Verification):
        return expected
    try:
        outcome = result.compared(expected, options)
    except Exception as error:
        if (full := no_room_for_temporary(error)) is None:
            raise
        return Verification(verified=False, reason=full)
    if needs_float32(outcome):
        options = replace(options, dtype="float32")
        expected = anew(options)
        return expected if isinstance(expected, Verification) else result.checked(expected, options)
    return outcome
