"""`shortgpt prune`: from a model to a proven shorter checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shortgpt.cli import common
from shortgpt.cli.options import types
from shortgpt.cli.searching import search_options
from shortgpt.errors import OutputError

if TYPE_CHECKING:
    from shortgpt.values.plan import Plan

TOOLS = ("mergekit", "llama.cpp")
"""Those of `shortgpt.checkpoints.exports`."""


class _AsOption(common.ShownCommand):
    """Reads `--as-NAME` as `--as NAME`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        split = ((["--as", arg[5:]] if arg.startswith("--as-") else [arg]) for arg in args)
        return super().parse_args(ctx, [part for parts in split for part in parts])


@common.command(cls=_AsOption, epilog="Example:  shortgpt prune zoo:llama --output shorter --ratio 0.25")
@click.argument("model", type=types.MODEL)
@click.option(
    "--output", "-o", type=types.WRITTEN_FOLDER, metavar="DIR", help="A folder that does not exist yet, or is empty."
)
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
@click.option(
    "--target",
    metavar="BUDGET",
    multiple=True,
    help="Remove the blocks that are missed least, of all that are enough: parameters<=110M, bytes<=200MB, "
    "memory<=1.5GB@4096x8, kv<=1GB@32768x1, tokens/s>=1.3x@1x512; may be repeated. See docs/cost.md.",
)
@click.option("--remove", metavar="LIST", help="Remove these blocks, counted from 0, such as 21-29,31.")
@click.option("--plan", type=types.FILE, metavar="FILE", help="Remove what a shortgpt.json says.")
@click.option("--keep", metavar="LIST", help="Blocks that stay whatever they score, such as 0-2,31.")
@click.option(
    "--criterion",
    type=types.CRITERION,
    help="The score to choose by, or to show beside a --search. Default: block-influence.",
)
@click.option(
    "--scores", type=types.FILE, metavar="FILE", help="Choose by the scores in this file, which `score --json` wrote."
)
@search_options
@click.option(
    "--require",
    metavar="REQUIREMENT",
    multiple=True,
    help="Keep the result only where it is such: cloze>=0.95x, perplexity-ratio<=1.3; may be repeated. See evaluate.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be done, and write nothing.")
@click.option("--verify/--no-verify", default=True, help="Prove the result against the original. Default: yes.")
@click.option(
    "--rehash",
    is_flag=True,
    help="Read the source's files for the SHA-256 that is recorded, even where the hub's cache names them by it.",
)
@click.option(
    "--effect/--no-effect",
    default=None,
    help="Measure perplexity, a continuation and speed before and after. Default: where blocks are scored.",
)
@click.option(
    "--compensate/--no-compensate",
    default=None,
    help="Make up for each removed run by a linear map, fitted on the calibration's text and multiplied into the block "
    "in front of it. Default: where a --plan says so.",
)
@click.option(
    "--export",
    "exports",
    type=click.Choice(TOOLS),
    multiple=True,
    help="Write the same removal for this tool beside the result; may be repeated.",
)
@click.option(
    "--as",
    "export_as",
    type=types.ARCHITECTURE,
    metavar="NAME",
    help="Write the result as this architecture; --as-NAME is the same.",
)
@click.option("--architecture", type=types.ARCHITECTURE, help="Take this adapter instead of looking for one.")
@common.merge_option
@common.stream_option
@common.calibration_options
@common.model_options
@common.output_options
@click.pass_context
def prune(
    context: click.Context,
    model: str,
    output: str | None,
    json_file: str | None,
    html: str | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Remove blocks from MODEL and write a checkpoint that its own library loads.

    Give one of --blocks, --ratio, --contiguous, --max-perplexity-ratio, --target, --remove, --plan. The result is
    loaded again in a fresh process and compared with the original with these blocks skipped; where they differ, nothing
    is kept and the exit status is 1. With --stream, and where memory does not suffice, that too is done with the
    weights read block by block.

    With --search the sets of --blocks, --ratio, --contiguous or --target are chosen by what the model does without
    them, on the text that is scored.

    Held-out text, on which the effect is measured, is what comes behind the --sequences that are scored.
    """
    from shortgpt.models.recognition import resolve
    from shortgpt.values.plan import Plan
    from shortgpt.verification.prune import prune as run

    _check_places(output, json_file)
    common.check_file(html)
    given = {name: value for name, value in options.items() if common.is_given(context, name)}
    if not given.get("merge_adapter"):
        common.tell_unread_plan(resolve(model, given.get("architecture"), given.get("revision")), quiet)
    with common.progress_bars(quiet) as progress:
        done = run(model, output, progress=progress, **given)
    if done is None:
        return  # the first process reports
    if options["plan"] is not None and Plan.read(options["plan"]).source_hashes not in ({}, done.source_hashes):
        common.note(f"note: {options['plan']} was made from other weights than those of {model}", quiet)
    if json_file != "-":
        report(done, output, quiet, dry=options["dry_run"])
    common.write_json(done, json_file)
    common.write_html(done, html)


def _check_places(output: str | None, json_file: str | None) -> None:
    """Raise an `OutputError` where the folder or the file cannot be written, or both are one."""
    from shortgpt.checkpoints.new_folder import check_output

    folder = None if output is None else check_output(output)
    common.check_file(json_file)
    if folder is not None and json_file not in (None, "-") and Path(json_file).expanduser().resolve() == folder:
        raise OutputError(f"--output and --json both go to {folder}; give one of them another place")


def report(plan: Plan, output: str | None, quiet: bool, *, dry: bool = False) -> None:
    """Print what was done to a model, or of a dry run what would be; `output` is None where it is not kept."""
    from shortgpt.basics.block_lists import format_blocks
    from shortgpt.checkpoints.exports import EXPORTS
    from shortgpt.reports.effect import choice_lines
    from shortgpt.reports.scores import scores_table

    screen = common.console()
    if plan.scores is not None and not quiet:
        screen.print(scores_table(plan.scores, plan.blocks))
    search = plan.scores.search if plan.scores is not None else None
    if plan.choice is not None and not quiet:
        screen.print(choice_lines(plan.choice) if search is None else search)
    before, after = plan.parameters_before or 1, plan.parameters_after or 0
    if plan.compensation is not None:
        screen.print(str(plan.compensation), soft_wrap=True)
    screen.print(
        f"{'to remove: ' if dry else 'removed '}{format_blocks(plan.blocks)}: "
        f"{plan.depth} → {plan.depth - len(plan.blocks)} blocks, "
        f"{before:,} → {after:,} parameters ({1 - after / before:.1%} fewer)",
        soft_wrap=True,
    )
    if plan.effect is not None and not quiet:
        screen.print(plan.effect)
    if not dry:
        screen.print(str(plan.verification), soft_wrap=True)
    for note in plan.notes:
        screen.print(f"note: {note}", soft_wrap=True, markup=False, highlight=False)
    if dry:
        screen.print("nothing was written (--dry-run)")
    elif output is not None:
        screen.print(f"written to {Path(output)}", soft_wrap=True)
        for name in plan.exports:
            screen.print(f"for {name}: {Path(output) / EXPORTS[name].file}", soft_wrap=True)
