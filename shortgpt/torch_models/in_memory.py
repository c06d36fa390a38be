"""Is a model that was made shorter in memory what skipping says it should be?

::

    model, these blocks skipped ──▶ logits ─┐
    shorter model ────────────────▶ logits ─┴─ equal?     in float32; where nothing is folded, to the bit in any dtype

Where a model in half precision had weights folded, or sums that come in another order, its rounding would hide what is
wrong. Then a copy in float32 is made shorter and compared, and the shorter model must be that copy, rounded once.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from shortgpt.basics.block_lists import format_blocks
from shortgpt.errors import VerificationError
from shortgpt.models.folding import same_bits
from shortgpt.models.memory import is_lack_of_memory, lacking_memory
from shortgpt.models.precision import unrounded_products
from shortgpt.models.probing.logit_comparison import EXACT, IN_MEMORY, compare_logits, proves_nothing

if TYPE_CHECKING:
    from shortgpt.models.sequence import BlockSequence
    from shortgpt.torch_models.interface import TorchModel


def prove(model: TorchModel, shorter: Any, blocks: Collection[int], *, folded: bool) -> None:
    """Compare a shorter model with the one it was made from.

    What cannot be proven, for lack of memory or because the model's logits say nothing, is noted on the shorter one.

    Args:
        blocks: what was removed.
        folded: weights were changed to make up for a block's new place.

    Raises:
        VerificationError: they differ, or the shorter one does not run.
    """
    with unrounded_products():
        if model.bytes_per_number >= 4:
            _compare(model, shorter, blocks, max(IN_MEMORY, model.family.tolerance))
            return
        plain = not folded and model.family.tolerance == EXACT
        if plain and _compare(model, shorter, blocks, EXACT, only_look=True):
            return
        lack = lacking_memory(4 * model.total_parameters(), str(model.device))
        if lack is None:
            try:
                _compare_in_float32(model, shorter, blocks)
            except Exception as error:
                if not is_lack_of_memory(error):
                    raise
                lack = str(error)
        if lack is not None:
            _note(shorter, f"its proof needs a copy in float32, and memory does not suffice ({lack})")


def _compare_in_float32(model: TorchModel, shorter: Any, blocks: Collection[int]) -> None:
    wide: Any = model.family.wrap(copy.deepcopy(model.model).float(), name=model.name, tokenizer=model.tokenizer)
    wide_shorter: Any = wide.shorter(tuple(blocks))
    exact = wide_shorter.tensors()
    for name, tensor in shorter.tensors().items():
        if not same_bits(exact[name].to(tensor.dtype), tensor):
            raise VerificationError(f"{model.name}: {name} of the shorter model is not what it is in float32, rounded")
    _compare(wide, wide_shorter, blocks, max(IN_MEMORY, model.family.tolerance))
    shorter.notes = (*shorter.notes, *(note for note in wide_shorter.notes if note not in shorter.notes))


def _compare(
    model: TorchModel,
    shorter: BlockSequence,
    blocks: Collection[int],
    tolerance: float,
    *,
    only_look: bool = False,
) -> bool:
    """Whether they are equal enough; with `only_look`, without raising where they are not."""
    from shortgpt.models.probing.expected_logits import expected_logits, logits_on, long_logits_on

    expected = expected_logits(model, blocks)
    if nothing := proves_nothing(expected.logits):
        _note(shorter, f"the original's logits with these blocks skipped {nothing}, which proves nothing")
        return True
    try:
        pairs = [(logits_on(shorter, expected.probe), expected.logits)]
        if expected.long_logits is not None and (long := long_logits_on(shorter, expected.probe)) is not None:
            pairs.append((long, expected.long_logits))
    except Exception as error:  # code of any kind runs here
        reason = f"{type(error).__name__}: {error}"
        raise VerificationError(
            f"{model.name}: it does not run without the blocks {format_blocks(blocks)} ({reason})"
        ) from error
    differences = (compare_logits(found, wanted, tolerance) for found, wanted in pairs)
    difference = next((difference for difference in differences if not difference.equal), None)
    if difference is not None and not only_look:
        raise VerificationError(
            f"{model.name}: without the blocks {format_blocks(blocks)} the logits "
            f"{difference.told('those with these blocks skipped')}: something depends on a block's place, and only "
            "an adapter of its own can make up for it (see docs/writing-an-adapter.md)"
        )
    return difference is None


def _note(shorter: BlockSequence, reason: str) -> None:
    shorter.notes = (*shorter.notes, f"The removal was not verified: {reason}.")
