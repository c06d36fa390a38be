"""`shortgpt prune`: from a model to a proven shorter checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shortgpt.cli import common
from shortgpt.errors import SelectionError, VerificationError

if TYPE_CHECKING:
    from shortgpt.plan import Plan


CHOOSING = ("calibration", "field", "sequences", "tokens", "seed", "batch_size", "tokenizer")


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
@click.option("--remove", metavar="LIST", help="Remove these blocks, counted from 0, such as 21-29,31.")
@click.option("--plan", "plan_file", metavar="FILE", help="Remove what a shortgpt.json says.")
@click.option("--criterion", help="The score to choose by. Default: block-influence.")
@click.option("--verify/--no-verify", default=True, help="Prove the result against the original. Default: yes.")
@click.option("--as", "export_as", metavar="NAME", help="Write the result as this architecture; --as-NAME is the same.")
@click.option("--architecture", help="Take this adapter instead of looking for one.")
@common.stream_option
@common.calibration_options
@common.model_options
@common.output_options
def prune(
    model: str,
    output: str,
    blocks: int | None,
    ratio: float | None,
    remove: str | None,
    plan_file: str | None,
    criterion: str | None,
    verify: bool,
    export_as: str | None,
    architecture: str | None,
    stream: bool,
    json_file: str | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Remove blocks from MODEL and write a checkpoint that its own library loads.

    Give one of --blocks, --ratio, --remove, --plan. The result is loaded again in a fresh process and compared with the
    original with these blocks skipped; where they differ, nothing is kept and the exit status is 1. With --stream, and
    where memory does not suffice, that too is done with the weights read block by block.
    """
    from shortgpt import processes
    from shortgpt.blocks import parse_blocks
    from shortgpt.checkpoint import check_output, prune_checkpoint
    from shortgpt.families import resolve
    from shortgpt.loading import default_device
    from shortgpt.plan import Plan

    given = {"--blocks": blocks, "--ratio": ratio, "--remove": remove, "--plan": plan_file}
    chosen = [name for name, value in given.items() if value is not None]
    idle = [
        f"--{name.replace('_', '-')}"
        for name in (*CHOOSING, "criterion", *([] if verify else ["stream"]))
        if (remove is not None or plan_file is not None)
        and click.get_current_context().get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    ]
    if len(chosen) == 1 and idle:
        raise SelectionError(f"{', '.join(idle)}: nothing is scored with {chosen[0]}; leave them out")
    if len(chosen) != 1:
        found = "two choices at once" if chosen else "nothing was chosen"
        raise SelectionError(f"{found} ({', '.join(chosen) or 'no blocks'}); give one of {', '.join(given)}")
    first = processes.started()[0] == 0
    if not first and (remove is not None or plan_file is not None):
        return  # nothing is scored, so there is nothing to share
    check_output(output)
    common.check_file(json_file)
    opening = {name: options.pop(name) for name in ("device", "dtype", "trust_remote_code")}
    opening |= {"device": default_device(opening["device"]), "architecture": architecture}
    with common.progress_bars(quiet) as progress:
        if remove is not None:
            plan: Plan | tuple[int, ...] = parse_blocks(remove)
        elif plan_file is not None:
            plan = Plan.read(plan_file)
        else:
            plan = _scored(model, blocks, ratio, criterion, opening | {"stream": stream}, progress, options)
        if not first:
            return
        source = resolve(model, architecture)
        try:
            done = prune_checkpoint(
                source, output, plan, verify=verify, export_as=export_as, stream=stream, progress=progress, **opening
            )
        except VerificationError as error:
            raise VerificationError(f"{error}; nothing was kept") from error
    if isinstance(plan, Plan) and plan_file and plan.source_hashes not in ({}, done.source_hashes):
        common.note(f"note: {plan_file} was made from other weights than those of {model}", quiet)
    if json_file != "-":
        report(done, output, quiet)
    common.write_json(done, json_file)


def _scored(
    model: str,
    blocks: int | None,
    ratio: float | None,
    criterion: str | None,
    opening: dict[str, Any],
    progress: Any,
    calibration: dict[str, Any],
) -> Plan:
    from shortgpt import processes
    from shortgpt.loading import load
    from shortgpt.scores import DEFAULT_CRITERION, check_number
    from shortgpt.scoring import score
    from shortgpt.verification import release_memory

    common.number_of_blocks(blocks, ratio, 100, 0.25)  # a mistake here is told before the model is loaded
    source, tokenizer = calibration.pop("calibration"), calibration.pop("tokenizer")
    with processes.group(opening["device"]):
        opened = processes.agreed(lambda: load(model, tokenizer=tokenizer, **opening))
        count = common.number_of_blocks(blocks, ratio, len(opened), 0.25)
        check_number(count, len(opened), opened.pinned)
        scores = score(opened, source, criteria=(criterion or DEFAULT_CRITERION,), progress=progress, **calibration)
    del opened
    release_memory()
    return scores.plan(count)


def report(plan: Plan, output: str | None, quiet: bool) -> None:
    """Print what was done to a model; `output` is None where it is not kept."""
    from shortgpt.blocks import format_blocks
    from shortgpt.reports.scores import scores_table

    screen = common.console()
    if plan.scores is not None and not quiet:
        screen.print(scores_table(plan.scores, plan.blocks))
    before, after = plan.parameters_before or 1, plan.parameters_after or 0
    screen.print(
        f"removed {format_blocks(plan.blocks)}: {plan.depth} → {plan.depth - len(plan.blocks)} blocks, "
        f"{before:,} → {after:,} parameters ({1 - after / before:.1%} fewer)",
        soft_wrap=True,
    )
    screen.print(str(plan.verification), soft_wrap=True)
    if output is not None:
        screen.print(f"written to {Path(output)}", soft_wrap=True)
