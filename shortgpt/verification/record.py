"""Is a pruned checkpoint still what its record says? Its original is not needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from shortgpt.basics.inputs import NearDistance, OpenOptions, Source
from shortgpt.checkpoints.hashing import file_hash
from shortgpt.checkpoints.weights import Weights
from shortgpt.errors import ModelError, VerificationError
from shortgpt.models.probing.logit_comparison import (
    ELSEWHERE,
    EXACT,
    HALF_ELSEWHERE,
    LogitDifference,
    compare_logits,
    is_half,
)
from shortgpt.models.probing.probes import Probe
from shortgpt.models.recognition import recognise, resolve
from shortgpt.values.plan import PLAN_FILE, Plan, Verification
from shortgpt.verification.checking import refuse_left_over
from shortgpt.verification.fresh_process import Answer, ask
from shortgpt.verification.judgement import fingerprint, fingerprinted, generated, generated_behind
from shortgpt.verification.original import opening


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
    source = resolve(directory)
    folder = source.path if source.path.is_dir() else source.path.parent
    plan, record = _recorded(source, folder)
    family = recognise(source, plan.export_as or plan.architecture)
    config = family.read_config(source, trust_remote_code=trust_remote_code)  # one clear message if it cannot be opened
    weights = Weights(source)
    _check_files(folder, weights, record)
    dtype = record.generation_dtype or record.dtype or "auto"
    options = OpenOptions(device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    options = opening(family, config, weights, options)
    answer = ask(folder, family, _probe_of(source, record), options)
    if isinstance(answer, Verification):
        raise VerificationError(f"it could not be opened to be verified: {answer.reason}")
    refuse_left_over(answer, family, family.depth(config), record.left_over)
    half = is_half(answer.dtype)
    tolerance = max(record.tolerance or EXACT, HALF_ELSEWHERE if half else ELSEWHERE)
    difference = _difference(answer, record, tolerance)
    if not difference.equal:
        raise VerificationError(f"its logits {difference.told('those that were expected when it was made')}")
    if half and difference.difference > 0:
        return plan, Verification(
            verified=False,
            reason=f"its record was taken in {answer.dtype}, in which rounding hides what is wrong: logits differ by "
            f"{difference.difference:.3g} (largest logit {difference.largest:.4g}); "
            "compare it with its original (--original)",
        )
    return plan, replace(
        record,
        max_difference=difference.difference,
        tolerance=tolerance,
        generated=generated(answer, options.device),
        generated_behind=generated_behind(answer, options.device),
        device=device,
        dtype=answer.dtype,
        generation_dtype=answer.generation_dtype,
        streamed=options.stream,
    )


def _recorded(source: Source, folder: Path) -> tuple[Plan, Verification]:
    """What a folder's record says of how it was made, and of how it was verified then.

    Raises:
        ModelError: there is no record, or it was not verified.
    """
    if not (folder / PLAN_FILE).is_file():
        raise ModelError(
            f"{source.name}: it holds no shortgpt.json; `shortgpt verify` checks what `shortgpt prune` wrote"
        )
    plan = Plan.read(folder)
    if plan.verification is None or not plan.verification.fingerprint:
        raise ModelError(
            f"{source.name}: it was not verified when it was made, so there is nothing to compare with; "
            "name the model that it was made from (--original)"
        )
    return plan, plan.verification


def _check_files(folder: Path, weights: Weights, record: Verification) -> None:
    """Raise a `VerificationError` where a file is gone, or holds other bytes than those that were written."""
    if gone := [name for name in record.files if not (folder / name).is_file()]:
        raise VerificationError(f"{', '.join(gone)}: gone since it was made")
    hashes = weights.hashes()
    changed = [
        name for name, recorded in record.files.items() if (hashes.get(name) or file_hash(folder / name)) != recorded
    ]
    if changed:
        raise VerificationError(f"{', '.join(changed)}: not the bytes that were written when it was made")


def _probe_of(source: Source, record: Verification) -> Probe:
    """The texts that the record was taken on."""
    if len({len(row) for row in record.probe_ids}) != 1 or not record.probe_ids[0]:
        raise ModelError(f"{source.name}: its shortgpt.json is damaged: the rows of probe_ids are not alike in length")
    long_ids = torch.tensor([record.long_ids]) if record.long_ids else None
    return Probe(torch.tensor(record.probe_ids), long_ids, record.side_inputs, record.near, record.generated_behind)


def _difference(answer: Answer, record: Verification, tolerance: float) -> LogitDifference:
    """Every fingerprint of the logits beside the recorded ones."""
    now = (*fingerprint(answer.logits), *_of_long(answer), *_of_near(record.near, answer))
    near = (number for one in record.near for number in one.fingerprint)
    recorded = (*record.fingerprint, *record.long_fingerprint, *near)
    return compare_logits(torch.tensor(now), torch.tensor(recorded), tolerance, largest=record.max_logit)


def _of_long(answer: Answer) -> tuple[float, ...]:
    return () if answer.long_logits is None else fingerprint(answer.long_logits)


def _of_near(near: Sequence[NearDistance], answer: Answer) -> tuple[float, ...]:
    return tuple(number for one in fingerprinted(near, answer.near_logits) for number in one.fingerprint)
