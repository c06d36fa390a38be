"""`shortgpt prune`: from a model to a proven shorter checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shortgpt.cli import choosing, common
from shortgpt.errors import OutputError, SelectionError, VerificationError

if TYPE_CHECKING:
    from shortgpt.values.plan import Plan

CALIBRATION = ("calibration", "field", "sequences", "tokens", "seed", "batch_size", "tokenizer")
CHOOSING = ("criterion", "keep")
TOOLS = ("mergekit", "llama.cpp")
"""Those of `shortgpt.checkpoints.exports`."""


class _AsOption(click.Command):
    """Reads `--as-NAME` as `--as NAME`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        split = ((["--as", arg[5:]] if arg.startswith("--as-") else [arg]) for arg in args)
        return super().parse_args(ctx, [part for parts in split for part in parts])


@click.command(cls=_AsOption, epilog="Example:  shortgpt prune zoo:llama --output shorter --ratio 0.25")
@click.argument("model")
@click.option("--output", "-o", required=True, metavar="DIR", help="A folder that does not exist yet, or is empty.")
@click.option("--blocks", type=int, help="Remove the N blocks of least score.")
@click.option("--ratio", type=float, help="Remove this share of the blocks, by least score.")
@click.option("--contiguous", type=int, metavar="N", help="Remove the N neighbours that score least as one.")
@click.option(
    "--max-perplexity-ratio",
    type=float,
    metavar="R",
    help="Remove as many blocks, by least score, as keep held-out perplexity within R times the original's: of all "
    "numbers, the largest that does.",
)
@click.option("--remove", metavar="LIST", help="Remove these blocks, counted from 0, such as 21-29,31.")
@click.option("--plan", "plan_file", metavar="FILE", help="Remove what a shortgpt.json says.")
@click.option("--keep", metavar="LIST", help="Blocks that stay whatever they score, such as 0-2,31.")
@click.option("--criterion", help="The score to choose by. Default: block-influence.")
@click.option("--verify/--no-verify", default=True, help="Prove the result against the original. Default: yes.")
@click.option(
    "--effect/--no-effect",
    default=None,
    help="Measure perplexity, a continuation and speed before and after. Default: where blocks are chosen by score.",
)
@click.option(
    "--export",
    "exports",
    type=click.Choice(TOOLS),
    multiple=True,
    help="Write the same removal for this tool beside the result; may be repeated.",
)
@click.option("--as", "export_as", metavar="NAME", help="Write the result as this architecture; --as-NAME is the same.")
@click.option("--architecture", help="Take this adapter instead of looking for one.")
@common.merge_option
@common.stream_option
@common.calibration_options
@common.model_options
@common.output_options
def prune(
    model: str,
    output: str,
    blocks: int | None,
    ratio: float | None,
    contiguous: int | None,
    max_perplexity_ratio: float | None,
    remove: str | None,
    plan_file: str | None,
    keep: str | None,
    criterion: str | None,
    verify: bool,
    effect: bool | None,
    exports: tuple[str, ...],
    export_as: str | None,
    architecture: str | None,
    merge_adapter: bool,
    stream: bool,
    json_file: str | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Remove blocks from MODEL and write a checkpoint that its own library loads.

    Give one of --blocks, --ratio, --contiguous, --max-perplexity-ratio, --remove, --plan. The result is loaded again in
    a fresh process and compared with the original with these blocks skipped; where they differ, nothing is kept and the
    exit status is 1. With --stream, and where memory does not suffice, that too is done with the weights read block by
    block.

    Held-out text, on which the effect is measured, is what comes behind the --sequences that are scored.
    """
    from shortgpt.basics.block_lists import parse_blocks
    from shortgpt.checkpoints.exports import check_export
    from shortgpt.checkpoints.new_folder import check_output
    from shortgpt.models.devices import default_device, started
    from shortgpt.models.memory import release_memory
    from shortgpt.models.recognition import recognise
    from shortgpt.values.plan import Plan
    from shortgpt.verification.prune import check_plan, prune_checkpoint

    wanted = choosing.Wanted.checked(
        keep,
        blocks=blocks,
        ratio=ratio,
        contiguous=contiguous,
        max_perplexity_ratio=max_perplexity_ratio,
        remove=remove,
        plan=plan_file,
    )
    _refuse_idle(wanted, effect, verify)
    first = started()[0] == 0
    if not first and not wanted.scored:
        return  # nothing is scored, so there is nothing to share
    folder = check_output(output)
    common.check_file(json_file)
    if json_file not in (None, "-") and Path(json_file).expanduser().resolve() == folder:
        raise OutputError(f"--output and --json both go to {folder}; give one of them another place")
    plan: Plan | None = Plan.read(plan_file) if plan_file is not None else None
    opening = {name: options.pop(name) for name in ("device", "dtype", "trust_remote_code")}
    opening |= {"device": default_device(opening["device"]), "architecture": architecture}
    source = common.named(model, merge_adapter, architecture, opening["trust_remote_code"], quiet)
    for name in (*exports, *(plan.exports if plan is not None else ())):
        check_export(name, source)
    family = recognise(source, architecture)
    config = family.read_config(source, trust_remote_code=opening["trust_remote_code"])
    target = choosing.Target(source, family, config, opening, options.pop("tokenizer"))
    wanted.check(family.depth(config), family.pinned(config))
    if remove is not None:
        plan = Plan(source.name, family.architecture, family.depth(config), parse_blocks(remove))
    if plan is not None:
        check_plan(plan, source.name, family, config)
    with common.progress_bars(quiet) as progress:
        if plan is None:
            plan = choosing.scored(
                target,
                wanted,
                criterion=criterion,
                effect=effect is not False,
                stream=stream,
                calibration=options,
                progress=progress,
            )
        elif effect:
            plan = choosing.measured(target, plan, options, progress)
        if plan is None or not first:
            return
        release_memory()
        plan = replace(plan, exports=tuple(dict.fromkeys((*plan.exports, *exports))))
        try:
            done = prune_checkpoint(
                source, output, plan, verify=verify, export_as=export_as, stream=stream, progress=progress, **opening
            )
        except VerificationError as error:
            raise VerificationError(f"{error}; nothing was kept") from error
    if plan_file and plan.source_hashes not in ({}, done.source_hashes):
        common.note(f"note: {plan_file} was made from other weights than those of {model}", quiet)
    if json_file != "-":
        report(done, output, quiet)
    common.write_json(done, json_file)


def _refuse_idle(wanted: choosing.Wanted, effect: bool | None, verify: bool) -> None:
    """Raise a `SelectionError` for options that would do nothing."""
    context = click.get_current_context()

    def given(*names: str) -> str:
        told = (name for name in names if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE)
        return ", ".join(f"--{name.replace('_', '-')}" for name in told)

    if wanted.scored:
        if wanted.max_perplexity_ratio is not None and given("stream"):
            raise SelectionError(
                "--max-perplexity-ratio runs the whole model, and --stream leaves its weights in their files; take one"
            )
        return
    way = "--remove" if wanted.remove is not None else "--plan"
    if effect and given("stream"):
        raise SelectionError("--effect runs the whole model, and --stream leaves its weights in their files; take one")
    if idle := given(*CHOOSING, *([] if verify else ["stream"])):
        raise SelectionError(f"{idle}: nothing is scored with {way}; leave them out")
    if not effect and (idle := given(*CALIBRATION)):
        raise SelectionError(f"{idle}: nothing is scored with {way}; leave them out, or measure the --effect on it")


def report(plan: Plan, output: str | None, quiet: bool) -> None:
    """Print what was done to a model; `output` is None where it is not kept."""
    from shortgpt.basics.block_lists import format_blocks
    from shortgpt.checkpoints.exports import EXPORTS
    from shortgpt.reports.effect import choice_lines
    from shortgpt.reports.scores import scores_table

    screen = common.console()
    if plan.scores is not None and not quiet:
        screen.print(scores_table(plan.scores, plan.blocks))
    if plan.choice is not None and not quiet:
        screen.print(choice_lines(plan.choice))
    before, after = plan.parameters_before or 1, plan.parameters_after or 0
    screen.print(
        f"removed {format_blocks(plan.blocks)}: {plan.depth} → {plan.depth - len(plan.blocks)} blocks, "
        f"{before:,} → {after:,} parameters ({1 - after / before:.1%} fewer)",
        soft_wrap=True,
    )
    if plan.effect is not None and not quiet:
        screen.print(plan.effect)
    screen.print(str(plan.verification), soft_wrap=True)
    for note in plan.notes:
        screen.print(f"note: {note}", soft_wrap=True, markup=False, highlight=False)
    if output is not None:
        screen.print(f"written to {Path(output)}", soft_wrap=True)
        for name in plan.exports:
            screen.print(f"for {name}: {Path(output) / EXPORTS[name].file}", soft_wrap=True)
