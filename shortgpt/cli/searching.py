"""The options of a search, which `score`, `prune` and `curve` share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from shortgpt.cli.options import types

Command = Callable[..., Any]


def search_options(command: Command) -> Command:
    """Whether the best set of blocks is searched for, and how; what is not given is None."""
    options = (
        click.option(
            "--search",
            type=click.Choice(("exact", "pairs", "beam")),
            help="Choose by what the model does without sets of blocks: every set; sets that all pairs say are good; "
            "or the best sets of one block more, step by step.",
        ),
        click.option(
            "--objective",
            type=click.Choice(("perplexity", "kl")),
            help="What a search makes least: perplexity, or the divergence from the whole model's next-token "
            "distributions, which takes less text. Default: perplexity.",
        ),
        click.option("--evaluations", type=int, metavar="N", help="A search measures no more sets. Default: 2000."),
        click.option(
            "--width", type=int, metavar="W", help="The sets that --search beam keeps at each step. Default: 4."
        ),
        click.option(
            "--resume",
            type=types.WRITTEN_FOLDER,
            metavar="FOLDER",
            help="Keep what is measured in this folder, and go on from what it holds; a .jsonl file holds that of a "
            "search alone.",
        ),
    )
    return functools.reduce(lambda inner, option: option(inner), reversed(options), command)
