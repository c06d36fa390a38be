"""The original that a shorter model is compared with: its checkpoint, how it is opened, and what is expected of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from shortgpt.basics.inputs import Config, Fold, OpenOptions, Source
from shortgpt.basics.stages import stage
from shortgpt.checkpoints.weights import Weights
from shortgpt.errors import AdapterError, StreamingError, VerificationError
from shortgpt.models.family import Family
from shortgpt.models.memory import is_lack_of_memory, lacking_memory, release_memory
from shortgpt.models.probing.expected_logits import Expectation, expected_logits, with_near
from shortgpt.models.probing.logit_comparison import EXACT
from shortgpt.models.projections import Change
from shortgpt.models.recognition import recognise, resolve
from shortgpt.values.plan import Verification

if TYPE_CHECKING:
    from shortgpt.models.sequence import BlockSequence


@dataclass(frozen=True)
class Origin:
    """The checkpoint of a model that is open."""

    source: Source
    family: Family
    config: Config
    weights: Weights

    def rewritten(self, keep: Sequence[int], changes: Sequence[Change]) -> tuple[dict[str, str], dict[str, Fold]]:
        """New tensor name → old one, and the folds, of the model that has the blocks `keep` only."""
        renamed = self.family.rename(self.weights.names, self.family.depth(self.config), keep)
        return renamed, self.family.all_folds(self.config, keep, renamed, changes, self.weights.shape)


def origin_of(model: BlockSequence, trust_remote_code: bool) -> Origin | None:
    """The checkpoint that a model was opened from; None where it has none, or was made shorter since."""
    source = model.source
    if source is None or not source.path.exists():
        return None
    family = recognise(source, model.architecture)
    config = family.read_config(source, trust_remote_code=trust_remote_code)
    return Origin(source, family, config, Weights(source)) if family.depth(config) == len(model) else None


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
    with stage(f"loading {source.name}"):
        model = family.open(source, options)
    model.change(changes)
    return model


def how_to_open(family: Family, config: Config, weights: Weights, options: OpenOptions) -> OpenOptions | str:
    """`options`, with `stream` where memory does not suffice for the whole model; or why neither way can be gone."""
    if reason := family.refuse_running(config, weights.names, options.device):
        return reason
    lack = None if options.stream else lacking_memory(weights.bytes_in(options.dtype), options.device)
    if lack is None and not options.stream:
        return options
    if not family.streams:
        return lack or f"models of the adapter {family.architecture!r} cannot be streamed block by block"
    depth = family.depth(config)
    outside = weights.bytes_in(options.dtype, family.rename(weights.names, depth, ()).values())
    blocks = weights.bytes_in(options.dtype) - outside
    return lacking_memory(outside + 2 * blocks // depth, options.device) or replace(options, stream=True)


def must_stream(name: str, options: OpenOptions) -> bool:
    """Whether a model is to be streamed to be verified: it was asked for, or memory does not suffice for the whole.

    Raises:
        VerificationError: neither way can be gone.
    """
    source = resolve(name)
    family = recognise(source)
    config = family.read_config(source, trust_remote_code=options.trust_remote_code)
    return opening(family, config, Weights(source), options).stream


def opening(family: Family, config: Config, weights: Weights, options: OpenOptions) -> OpenOptions:
    chosen = how_to_open(family, config, weights, options)
    if isinstance(chosen, str):
        raise VerificationError(f"it could not be opened to be verified: {chosen}")
    return chosen


def in_float32_if(options: OpenOptions, family: Family, *, folded: bool, exported: bool = False) -> OpenOptions:
    """How to open models to be compared: in float32 where a difference is allowed, for half precision would hide more.

    An accelerator is such a reason: two processes may be given kernels there whose sums round differently.
    """
    allowed = folded or exported or family.tolerance > EXACT or options.device != "cpu"
    return replace(options, dtype="float32") if allowed else options
