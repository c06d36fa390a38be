"""`shortgpt verify`: is a pruned checkpoint still what it should be?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from shortgpt.cli import common
from shortgpt.cli.options import types
from shortgpt.errors import ModelError, SelectionError

if TYPE_CHECKING:
    from shortgpt.values.plan import Plan, Verification


@common.command(epilog="Example:  shortgpt verify shorter")
@click.argument("model", type=types.MODEL)
@click.option(
    "--original",
    type=types.MODEL,
    metavar="MODEL",
    help="Compare with this model, its blocks skipped, not with the record.",
)
@common.model_options
@common.output_options
def verify(
    model: str,
    original: str | None,
    device: str | None,
    dtype: str,
    trust_remote_code: bool,
    revision: str | None,
    json_file: str | None,
    html: str | None,
    quiet: bool,
) -> None:
    """Check MODEL, which `shortgpt prune` wrote: open it in a fresh process, compare logits and cached generation.

    Without --original they are compared with what its shortgpt.json recorded when it was made. Where they differ the
    exit status is 1. A model that does not fit into memory is read block by block.
    """
    from shortgpt.models.devices import default_device

    common.check_file(json_file)
    common.check_file(html)
    device = default_device(device)
    if original is None:
        from shortgpt.verification.record import verify_again

        if dtype != "auto":
            raise SelectionError(
                "--dtype goes with --original; the record is compared in the dtype in which it was made"
            )
        plan, outcome = verify_again(model, device=device, trust_remote_code=trust_remote_code)
    else:
        plan, outcome = _beside(original, model, device, dtype, trust_remote_code, revision)
    if json_file != "-":
        screen = common.console()
        if not quiet:
            screen.print(
                f"{model}: made from {plan.model}, {len(plan.blocks)} of {plan.depth} blocks removed", soft_wrap=True
            )
        screen.print(str(outcome), soft_wrap=True)
    common.write_json(outcome, json_file)
    common.write_html(outcome, html)


def _beside(
    original: str, shorter: str, device: str, dtype: str, trust_remote_code: bool, revision: str | None
) -> tuple[Plan, Verification]:
    """What a shorter model was made by, and what comes of the comparison with its original."""
    from shortgpt.basics.inputs import OpenOptions
    from shortgpt.models.devices import checked_dtype
    from shortgpt.models.loading import load
    from shortgpt.models.memory import release_memory
    from shortgpt.models.recognition import resolve
    from shortgpt.values.plan import Plan
    from shortgpt.verification.original import must_stream
    from shortgpt.verification.verify import comparison

    source = resolve(shorter)
    plan = Plan.read(source.path if source.path.is_dir() else source.path.parent)
    _refuse_incomparable(shorter, plan)
    options = OpenOptions(device=device, dtype=checked_dtype(dtype), trust_remote_code=trust_remote_code)
    stream = must_stream(original, options)
    trusted = trust_remote_code
    whole = load(original, device=device, dtype=dtype, trust_remote_code=trusted, stream=stream, revision=revision)
    if (whole.architecture, len(whole)) != (plan.architecture, plan.depth):
        raise ModelError(
            f"{shorter}: it was made from a {plan.architecture} of {plan.depth} blocks, {original} is a "
            f"{whole.architecture} of {len(whole)}"
        )
    compare = comparison(whole, source.path, plan.blocks, dtype=dtype, trust_remote_code=trust_remote_code)
    del whole  # the two are never held together
    release_memory()
    return plan, compare()


def _refuse_incomparable(shorter: str, plan: Plan) -> None:
    """Raise a `ModelError` for what computes something else than its original with blocks skipped, on purpose."""
    if plan.export_as is not None:
        raise ModelError(f"{shorter}: it was written as {plan.export_as}; verify it by its record, without --original")
    if plan.healing is not None:
        raise ModelError(f"{shorter}: it was trained after the removal, so it computes something else on purpose")
    if plan.compensation is not None and plan.compensation.kept:
        raise ModelError(
            f"{shorter}: its removal was made up for by maps of which its record holds the hashes alone, so skipping "
            "the original's blocks gives something else; verify it by its record, without --original"
        )
