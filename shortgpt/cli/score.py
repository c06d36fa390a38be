"""`shortgpt score`: a row a block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from shortgpt.cli import common
from shortgpt.cli.options import types
from shortgpt.cli.searching import search_options
from shortgpt.errors import SelectionError

if TYPE_CHECKING:
    from shortgpt.models.sequence import BlockSequence
    from shortgpt.values.scores import Scores

DEFAULT_RATIO = 0.25


@common.command(epilog="Example:  shortgpt score zoo:llama --sequences 8 --ratio 0.25")
@click.argument("model", type=types.MODEL)
@click.option(
    "--criterion",
    "criteria",
    type=types.CRITERION,
    multiple=True,
    help="What to measure; may be repeated. Default: block-influence.",
)
@click.option("--blocks", type=int, help="Mark the N blocks that would be removed.")
@click.option("--ratio", type=float, help=f"Mark this share of the blocks. Default: {DEFAULT_RATIO}.")
@click.option("--keep", metavar="LIST", help="Blocks that are not marked whatever they score, such as 0-2,31.")
@click.option("--architecture", type=types.ARCHITECTURE, help="Take this adapter instead of looking for one.")
@click.option("--spans", is_flag=True, help="Measure every run of blocks too: a map by first block and length.")
@search_options
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
    merge_adapter: bool,
    spans: bool,
    search: str | None,
    objective: str | None,
    evaluations: int | None,
    width: int | None,
    resume: str | None,
    outputs: common.Outputs,
    **options: Any,
) -> None:
    """Score every block of MODEL.

    For each block: Block Influence ± standard error (the lower, the more redundant), parameters, and rank. Marked is
    what `shortgpt prune` would remove, by the first score or by a --search. Under `torchrun --no-python shortgpt score
    ...` each process takes a share of the calibration, on a GPU of its own where there are some.
    """
    from shortgpt.basics.block_lists import parse_blocks
    from shortgpt.basics.inputs import apart
    from shortgpt.measuring.scoring.resuming import folder_for
    from shortgpt.measuring.scoring.score import score as run
    from shortgpt.models import processes
    from shortgpt.models.devices import started
    from shortgpt.models.loading import load
    from shortgpt.values.choosing.search import SearchOptions
    from shortgpt.values.scores import DEFAULT_CRITERION
    from shortgpt.values.selection import Selection

    common.check(outputs)
    wanted = SearchOptions.of(
        search, objective=objective, evaluations=evaluations, width=width, resume=resume if search else None
    )
    if wanted is not None and options["stream"]:
        raise SelectionError("--search runs the whole model, and --stream leaves its weights in their files; take one")
    common.number_of_blocks(blocks, ratio, 100, DEFAULT_RATIO)  # a mistake here is told before the model is loaded
    kept = parse_blocks(keep) if keep is not None else ()
    source = options.pop("calibration")
    texts, opening = apart(options)  # type: ignore[arg-type]
    with processes.group(opening["device"]) as device:
        opening["device"] = device

        def opened() -> BlockSequence:
            return load(common.named(model, merge_adapter, opening, outputs.quiet), **opening)

        sequence = processes.agreed(opened)
        count = _marked(sequence, blocks, ratio, kept)
        with common.progress_bars(outputs.quiet) as progress:
            names = criteria or (DEFAULT_CRITERION,)
            folder = folder_for(resume, 0, 1)
            scores = run(sequence, source, criteria=names, spans=spans, resume=folder, progress=progress, **texts)
    if started()[0] > 0:
        return  # the first process reports
    scores = scores.keeping(kept)
    if wanted is not None and count:
        from shortgpt.measuring.search.search import searched

        selection = Selection(blocks=count, keep=kept)
        with common.progress_bars(outputs.quiet) as progress:
            scores = scores.with_search(searched(selection, sequence, source, wanted, progress=progress, **texts))
    elif count:
        scores = scores.choosing(scores.least_influential(count))
    _report(scores, outputs)


def _marked(model: BlockSequence, blocks: int | None, ratio: float | None, kept: tuple[int, ...]) -> int:
    """How many blocks are marked as those that would go; none of a model of one block.

    Raises:
        SelectionError: so many cannot go, or a block that is to be kept is not there.
    """
    from shortgpt.values.scores import KEPT, check_kept, check_number

    count = common.number_of_blocks(blocks, ratio, len(model), DEFAULT_RATIO)
    check_kept(kept, len(model), model.pinned)
    stay = dict.fromkeys(kept, KEPT) | dict(model.pinned)
    if blocks is not None or ratio is not None:
        check_number(count, len(model), stay)
    return min(count, len(model) - max(1, len(stay)))


def _report(scores: Scores, outputs: common.Outputs) -> None:
    from shortgpt.reports.scores import chosen_table, scores_table

    if not scores.chosen:
        common.emit(scores, scores_table(scores), outputs)
        return
    common.emit(scores, chosen_table(scores), outputs, marked=scores.chosen)
