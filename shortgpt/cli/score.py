"""`shortgpt score`: a row a block."""

from __future__ import annotations

from typing import Any

import click

from shortgpt.cli import common

DEFAULT_RATIO = 0.25


@click.command(epilog="Example:  shortgpt score zoo:llama --sequences 8 --ratio 0.25")
@click.argument("model")
@click.option(
    "--criterion", "criteria", multiple=True, help="What to measure; may be repeated. Default: block-influence."
)
@click.option("--blocks", type=int, help="Mark the N blocks that would be removed.")
@click.option("--ratio", type=float, help=f"Mark this share of the blocks. Default: {DEFAULT_RATIO}.")
@click.option("--keep", metavar="LIST", help="Blocks that are not marked whatever they score, such as 0-2,31.")
@click.option("--architecture", help="Take this adapter instead of looking for one.")
@click.option("--spans", is_flag=True, help="Measure every run of blocks too: a map by first block and length.")
@common.merge_option
@common.stream_option
@common.calibration_options
@common.model_options
@common.result_options
def score(
    model: str,
    criteria: tuple[str, ...],
    blocks: int | None,
    ratio: float | None,
    keep: str | None,
    architecture: str | None,
    merge_adapter: bool,
    stream: bool,
    spans: bool,
    device: str | None,
    dtype: str,
    trust_remote_code: bool,
    wishes: common.Wishes,
    **calibration: Any,
) -> None:
    """Score every block of MODEL.

    For each block: Block Influence ± standard error (the lower, the more redundant), parameters, and rank. Marked is
    what `shortgpt prune` would remove. Under `torchrun --no-python shortgpt score ...` each process takes a share of
    the calibration, on a GPU of its own where there are some.
    """
    from rich.console import Group

    from shortgpt.basics.block_lists import parse_blocks
    from shortgpt.measuring.scoring.score import score as run
    from shortgpt.models import processes
    from shortgpt.models.devices import started
    from shortgpt.models.loading import load
    from shortgpt.reports.effect import choice_lines
    from shortgpt.reports.scores import scores_table
    from shortgpt.values import choice
    from shortgpt.values.scores import DEFAULT_CRITERION, KEPT, check_kept, check_number

    common.check(wishes)
    common.number_of_blocks(blocks, ratio, 100, DEFAULT_RATIO)  # a mistake here is told before the model is loaded
    kept = parse_blocks(keep) if keep is not None else ()
    tokenizer = calibration.pop("tokenizer")
    with processes.group(device) as place:
        opened = processes.agreed(
            lambda: load(
                common.named(model, merge_adapter, architecture, trust_remote_code, wishes.quiet),
                device=place,
                dtype=dtype,
                tokenizer=tokenizer,
                trust_remote_code=trust_remote_code,
                architecture=architecture,
                stream=stream,
            )
        )
        count = common.number_of_blocks(blocks, ratio, len(opened), DEFAULT_RATIO)
        check_kept(kept, len(opened), opened.pinned)
        stay = dict.fromkeys(kept, KEPT) | dict(opened.pinned)
        if blocks is not None or ratio is not None:
            check_number(count, len(opened), stay)
        count = min(count, len(opened) - max(1, len(stay)))  # a model of one block is scored, and nothing is marked
        source = calibration.pop("calibration")
        with common.progress_bars(wishes.quiet) as progress:
            scores = run(
                opened,
                source,
                criteria=criteria or (DEFAULT_CRITERION,),
                spans=spans,
                progress=progress,
                **calibration,
            )
    if started()[0] > 0:
        return  # the first process reports
    scores = scores.keeping(kept)
    if not count:
        common.emit(scores, scores_table(scores), wishes)
        return
    marked, chosen = choice.least(scores, count)
    common.emit(scores, Group(scores_table(scores, marked), choice_lines(chosen)), wishes, marked=marked)
