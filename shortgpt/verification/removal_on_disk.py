"""The rewrite on disk: kept tensors move from file to file as bytes, without a model being loaded.

::

    model-00001-of-3.safetensors ─┐   rename, drop    ┌─ model-00001-of-2.safetensors
    model-00002-of-3.safetensors ─┼──────────────────▶┼─ model-00002-of-2.safetensors      .out.partial-x/ ─▶ out/
    model-00003-of-3.safetensors ─┘                   └─ index, tokenizer ..., config.json last

Everything is written into a folder beside the target and renamed into place at the end: a run that dies leaves nothing
that carries the target's name.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from shortgpt.basics import file_changes
from shortgpt.basics.inputs import Config, Fold, OpenOptions, Progress, Source
from shortgpt.basics.progress import shown
from shortgpt.checkpoints import companions, writing
from shortgpt.checkpoints.companions import copy_companions as copy_companions
from shortgpt.checkpoints.hashing import file_hash
from shortgpt.checkpoints.new_folder import new_folder
from shortgpt.checkpoints.records import unread_note, write_records
from shortgpt.checkpoints.weights import Weights
from shortgpt.errors import ModelError, SelectionError
from shortgpt.measuring.compensation.fitted import Fitted
from shortgpt.models.family import Family, at_work
from shortgpt.models.probing.logit_comparison import EXPORTED, EXPORTED_HALF
from shortgpt.models.projections import Change
from shortgpt.models.recognition import recognise, resolve
from shortgpt.values.plan import Plan, Verification
from shortgpt.verification.checking import check, moved
from shortgpt.verification.judgement import needs_float32
from shortgpt.verification.original import expectation, in_float32_if
from shortgpt.verification.unrounded import write_unrounded

if TYPE_CHECKING:
    from shortgpt.models.probing.expected_logits import Expectation

Background = Callable[[Callable[[threading.Event], dict[str, str]]], "Future[dict[str, str]]"]
"""Begins a work that ends early when what it is called with is set."""


def prune_checkpoint(
    source: str | Path | Source,
    output: str | Path,
    blocks: Plan | Iterable[int],
    *,
    verify: bool = True,
    device: str | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    architecture: str | None = None,
    export_as: str | None = None,
    stream: bool = False,
    fitted: Fitted | None = None,
    rehash: bool = False,
    progress: Progress | bool | None = None,
) -> Plan:
    """Remove blocks from a checkpoint on disk, without loading the model, and prove the result.

    Args:
        source: a model folder or file, a hub id, or a shipped name.
        output: a folder that does not exist, or is empty.
        blocks: what goes: block numbers, or a `Plan`.
        verify: open both models, one after the other, and compare; see `shortgpt.verification.verify`.
        device, dtype: of the verification, as `shortgpt.load` takes them.
        export_as: write the result as another architecture that the family can be written as, exactly.
        stream: verify with the weights read block by block, so that neither model is ever in memory. So it is done
            anyway where memory does not suffice.
        fitted: what makes up for the removal (`shortgpt.measuring.compensation`), folded into what is written.
        rehash: read the source's files for their hashes even where the hub's cache names them by these.
        progress: True for bars; or it is called after every tensor written.

    Returns:
        The plan, with its verification and the source's hashes, as it stands in the output's `shortgpt.json`.

    Raises:
        ModelError: the source cannot be read, or was changed meanwhile. SelectionError: the blocks may not go.
            OutputError: the output cannot be written. VerificationError: the result is not what skipping says it should
            be. In every case nothing is left at `output`.
    """
    progress = shown(progress)
    origin = source if isinstance(source, Source) else resolve(source, architecture)
    companions.check(origin)
    family = recognise(origin, architecture)
    with at_work(family, origin.name):
        removal = _planned(origin, family, blocks, export_as, trust_remote_code, fitted)
    options = _opening(removal, device, dtype, trust_remote_code, stream)
    with new_folder(output) as folder, file_changes.during(origin.name, origin.stamps), _background() as background:
        unasked = Verification(verified=False, reason="it was not asked for")
        expected = _expected(removal, options) if verify else unasked
        known = {} if rehash else removal.weights.cached_hashes()
        written, hashes = _write(removal, folder, known, progress, trust_remote_code)
        notes = (*_of_source(origin), *unread_note(known), *companions.settle(origin, folder, removal.kept))
        if isinstance(expected, Verification):
            outcome = expected
        else:
            outcome = _verify(removal, written, folder, expected, options, background)
            notes += _left_over(expected.left_over, removal.plan.export_as)
        plan = _record(removal, written, hashes, outcome, notes)
        plan = write_records(folder, plan, origin.path)
    return plan


def foreseen(
    origin: Source,
    family: Family,
    plan: Plan,
    fitted: Fitted | None,
    export_as: str | None,
    trust_remote_code: bool,
) -> Plan:
    """The plan as `prune_checkpoint` would record it, after every check that it makes before it writes.

    Raises as it does.
    """
    companions.check(origin)
    removal = _planned(origin, family, plan, export_as, trust_remote_code, fitted)
    unwritten = Verification(verified=False, reason="nothing was written")
    return _record(removal, family, {}, unwritten, _of_source(origin))


@dataclass(frozen=True)
class _Removal:
    """What is removed from what: a checkpoint, its family and config, the plan, and the tensors that stay.

    Attributes:
        keep: the blocks that stay.
        renamed: new tensor name → old one.
        folds: new tensor name → the change of that tensor.
        base: how the source itself had been made shorter; None for an original.
        changes: those that make up for the removal; they are among the folds.
    """

    origin: Source
    family: Family
    config: Config
    plan: Plan
    keep: tuple[int, ...]
    weights: Weights
    renamed: Mapping[str, str]
    folds: Mapping[str, Fold]
    base: Plan | None
    changes: tuple[Change, ...] = ()

    @property
    def kept(self) -> companions.Kept:
        """What a companion may name."""
        return companions.Kept(self.keep, self.plan.depth, self.family.block_lists)


def _of_source(origin: Source) -> tuple[str, ...]:
    """Notes on where the source came from."""
    notes = []
    if origin.adapter_base is not None:
        notes.append(f"`{origin.name}` is an adapter; it was merged into `{origin.adapter_base}` before the removal.")
    if unread := Plan.unread_beside(origin.path):
        notes.append(f"{unread[0].upper()}{unread[1:]}.")
    return tuple(notes)


def _left_over(names: Iterable[str], export_as: str | None) -> tuple[str, ...]:
    """The note on tensors that the library passes over; see `BlockSequence.left_over`."""
    ordered = sorted(names)
    if not ordered or export_as is not None:
        return ()
    told = ", ".join(ordered[:5]) + (", ..." if len(ordered) > 5 else "")
    return (f"Tensors that the library passes over were copied as they are (`*` is a block's number): {told}.",)


def _planned(
    origin: Source,
    family: Family,
    blocks: Plan | Iterable[int],
    export_as: str | None,
    trust_remote_code: bool,
    fitted: Fitted | None,
) -> _Removal:
    """Everything that is known before anything is written, after every check."""
    if export_as is None and isinstance(blocks, Plan):
        export_as = blocks.export_as
    if export_as is not None and export_as not in family.exports:
        can = ", ".join(family.exports) or "none"
        raise ModelError(f"{origin.name}: {family.architecture} cannot be written as {export_as!r} (supported: {can})")
    config = family.read_config(origin, trust_remote_code=trust_remote_code)
    reason = export_as and family.refuse_export(config, export_as)
    if reason:
        raise ModelError(f"{origin.name}: {reason}")
    keep = family.keep(config, blocks.blocks if isinstance(blocks, Plan) else blocks)
    depth = family.depth(config)
    if len(keep) == depth:
        raise SelectionError("no blocks were asked for, so there is nothing to remove; name at least one")
    if isinstance(blocks, Plan):
        plan = blocks
        check_plan(plan, origin.name, family, config)
    else:
        gone = tuple(i for i in range(depth) if i not in set(keep))
        plan = Plan(model=origin.name, architecture=family.architecture, depth=depth, blocks=gone)
    weights = Weights(origin)
    family.check_tensors(config, weights.names)
    renamed = family.rename(weights.names, depth, keep)
    changes = () if fitted is None else fitted.changes
    folds = family.all_folds(config, keep, renamed, changes, weights.shape)
    plan = replace(plan, export_as=export_as, compensation=None if fitted is None else fitted.record)
    return _Removal(origin, family, config, plan, keep, weights, renamed, folds, Plan.beside(origin.path), changes)


def _opening(removal: _Removal, device: str | None, dtype: str, trust_remote_code: bool, stream: bool) -> OpenOptions:
    """How both models are opened to be compared."""
    from shortgpt.models.loading import open_options

    family = removal.family
    options = open_options(removal.origin, family, device, dtype, trust_remote_code, stream and family.streams)
    options = replace(options, stream=stream)  # verification says what cannot be streamed; the removal is done
    exported = removal.plan.export_as is not None
    return in_float32_if(options, family, folded=bool(removal.folds), exported=exported)


def _expected(removal: _Removal, options: OpenOptions) -> Expectation | Verification:
    return expectation(
        removal.origin,
        removal.family,
        removal.config,
        removal.plan.blocks,
        removal.weights,
        options,
        removal.changes,
    )


def _write(
    removal: _Removal, folder: Path, known: Mapping[Path, str], progress: Progress | None, trust_remote_code: bool
) -> tuple[Family, dict[str, str]]:
    """Write weights, config and what lies beside them; `known` are hashes of files that are not read for them.

    Returns:
        The family of what was written, and the hashes of the source.
    """
    origin, family, export_as = removal.origin, removal.family, removal.plan.export_as
    with tempfile.TemporaryDirectory(dir=folder) as inner:
        stage = folder if export_as is None else Path(inner)
        hashes = writing.write(removal.weights, stage, removal.renamed, removal.folds, progress, known)
        family.write_shorter(removal.config, removal.keep, origin, stage)
        if export_as is None:
            return family, hashes
        family.export(Source(origin.name, stage), export_as, folder)
    exported = Source(str(folder), folder)
    written = recognise(exported)
    written.read_config(exported, trust_remote_code=trust_remote_code)
    return written, hashes


def _verify(
    removal: _Removal,
    written: Family,
    folder: Path,
    expected: Expectation,
    options: OpenOptions,
    background: Background,
) -> Verification:
    """Compare what was written with what is expected of it, and take its hashes meanwhile."""
    made = Weights(resolve(folder))
    exported = removal.plan.export_as is not None
    hashes = background(made.hashes)  # while the other process is at work
    rounding = 0.0
    if exported:
        rounding = EXPORTED_HALF if removal.weights.is_half else EXPORTED
    compared = partial(
        check,
        folder,
        written,
        folded=bool(removal.folds),
        shifted=not exported and moved(removal.weights, made, removal.renamed),
        rounding=rounding,
    )
    with tempfile.TemporaryDirectory(dir=folder) as inner:
        rounded_to = None
        if removal.folds and not exported:
            rounded_to = write_unrounded(made, removal.weights, removal.renamed, removal.folds, Path(inner))
        outcome = compared(expected, options, unrounded=None if rounded_to is None else (Path(inner), rounded_to))
    if needs_float32(outcome):
        options = replace(options, dtype="float32")
        again = _expected(removal, options)
        outcome = again if isinstance(again, Verification) else compared(again, options)
    hashed = hashes.result()
    others = {
        file.name: file_hash(file) for file in sorted(folder.iterdir()) if file.is_file() and file.name not in hashed
    }
    # The config is judged by what the model computes: some of its fields may change.
    return replace(outcome, files={n: h for n, h in (hashed | others).items() if n != "config.json"})


def _record(
    removal: _Removal, written: Family, hashes: dict[str, str], outcome: Verification, notes: tuple[str, ...]
) -> Plan:
    """The plan as it stands beside the result."""
    family, config, plan, weights = removal.family, removal.config, removal.plan, removal.weights
    same = plan.source_hashes in ({}, hashes)  # what else the plan tells was measured on those weights
    return replace(
        plan,
        model=removal.origin.name,
        adapter_base=removal.origin.adapter_base,
        verification=outcome,
        parameters_before=family.parameters(config) or weights.parameters(weights.names),
        parameters_after=family.parameters(family.rewrite_config(config, removal.keep))
        or weights.parameters(removal.renamed.values()),
        source_hashes=hashes,
        effect=plan.effect if same else None,
        load=written.load_example,
        notes=(*family.notes_of_removal(config, removal.keep), *notes),
        base=removal.base or (plan.base if same else None),
    )


@contextmanager
def _background() -> Iterator[Background]:
    """Runs one thing beside what is done here. An interruption does not wait for it: it is told to stop."""
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        try:
            yield lambda work: pool.submit(work, stop)
        finally:
            stop.set()


def bytes_by_block(weights: Weights, family: Family, depth: int) -> tuple[int, ...]:
    """How many bytes of tensors the files hold less without each block, and last what is in no block."""
    whole = weights.bytes_in("auto")
    kept = (family.rename(weights.names, depth, [i for i in range(depth) if i != block]) for block in range(depth))
    blocks = [whole - weights.bytes_in("auto", names.values()) for names in kept]
    return (*blocks, whole - sum(blocks))


def check_plan(plan: Plan, name: str, family: Family, config: Config) -> None:
    """Raise where a plan is not for the model `name`.

    Raises:
        ModelError: it is for another architecture or depth. SelectionError: its blocks may not go.
    """
    depth = family.depth(config)
    if plan.architecture != family.architecture:
        raise ModelError(f"the plan is for the architecture {plan.architecture}, {name} is {family.architecture}")
    if plan.depth != depth:
        raise ModelError(f"the plan is for a model of {plan.depth} blocks, {name} has {depth}")
    family.keep(config, plan.blocks)
