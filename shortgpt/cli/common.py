"""What the commands share: options, progress bars, and where results go."""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from shortgpt.basics.untrusted import local_path
from shortgpt.cli.options import types
from shortgpt.cli.process import display
from shortgpt.errors import OutputError, SelectionError, printable
from shortgpt.reports.files import check_target, write

if TYPE_CHECKING:
    from rich.console import Console

    from shortgpt.basics.inputs import LoadOptions, Progress, Source
    from shortgpt.basics.value import Value

Command = Callable[..., Any]


ONE_CHOICE = ("blocks", "ratio", "contiguous", "max_perplexity_ratio", "remove", "plan")
"""Options that say how many blocks go, or which: one on the command line leaves no room for another in a file of
defaults."""


class ShownCommand(click.Command):
    """A command that shows what it does while it runs; see `process.display`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        left = super().parse_args(ctx, args)
        sources = {name: ctx.get_parameter_source(name) for name in ONE_CHOICE if name in ctx.params}
        if ParameterSource.COMMANDLINE in sources.values():
            for name, source in sources.items():
                if source is ParameterSource.DEFAULT_MAP:
                    ctx.params[name] = None
                    ctx.set_parameter_source(name, ParameterSource.DEFAULT)
        return left

    def invoke(self, ctx: click.Context) -> Any:
        with display.shown(quiet=bool(ctx.params.get("quiet"))):
            return super().invoke(ctx)


command = functools.partial(click.command, cls=ShownCommand)


def model_options(command: Command) -> Command:
    """How models are opened."""
    options = (
        click.option(
            "--device",
            type=types.DEVICE,
            help="Such as cpu, cuda or cuda:1; auto: spread over all. Default: the accelerator.",
        ),
        click.option(
            "--dtype",
            type=click.Choice(("auto", "float32", "bfloat16", "float16")),
            default="auto",
            help="What the model computes in. Default: what it was saved in.",
        ),
        click.option("--trust-remote-code", is_flag=True, help="Run the code that a model's folder brings along."),
        click.option("--revision", help="The branch, tag or commit of a model of the hub. Default: main."),
    )
    return _with(options, command)


def calibration_options(command: Command) -> Command:
    """What models are scored on."""
    options = (
        click.option(
            "--calibration",
            type=types.TEXT,
            default="stdlib",
            show_default=True,
            help="stdlib, pg19, wikitext2, c4, hub:NAME, a text file, a folder of them, or JSON Lines.",
        ),
        click.option(
            "--field",
            help="The field of JSON Lines, or the column of a data set (hub:NAME), that holds the text. Default: "
            "text, or the only one that holds strings.",
        ),
        click.option("--sequences", type=int, help="How many windows of text. Default: 32."),
        click.option("--tokens", type=int, help="Tokens in a window. Default: 512, or the model's own window."),
        click.option("--seed", type=int, default=0, show_default=True, help="Which windows are taken."),
        click.option("--batch-size", type=int, help="Sequences in a batch. Moves no result."),
        click.option(
            "--tokenizer",
            type=types.MODEL,
            metavar="NAME",
            help="A folder or hub id, for a model that brings no tokenizer.",
        ),
    )
    return _with(options, command)


def output_options(command: Command) -> Command:
    """Where results go."""
    options = (
        click.option(
            "--html",
            type=types.WRITTEN_FILE,
            metavar="FILE",
            help="Write the result as a page that needs nothing beside it.",
        ),
        click.option(
            "--json",
            "json_file",
            type=types.WRITTEN_FILE,
            metavar="FILE",
            help="Write the result as JSON; - is the standard output.",
        ),
        click.option("--quiet", "-q", is_flag=True, help="No progress and no notes."),
        verbose_option,
    )
    return _with(options, command)


def _be_verbose(context: click.Context, option: click.Parameter, given: bool) -> None:
    if given and not context.resilient_parsing:
        log = logging.getLogger("shortgpt")
        context.call_on_close(partial(log.setLevel, log.level))
        log.setLevel(logging.INFO)


verbose_option = click.option(
    "--verbose",
    "-v",
    is_flag=True,
    expose_value=False,
    callback=_be_verbose,
    help="Say what is done and how long it takes, on the standard error.",
)


stream_option = click.option(
    "--stream",
    is_flag=True,
    help="Read the weights block by block, for a model larger than memory. Moves no result.",
)


merge_option = click.option(
    "--merge-adapter", is_flag=True, help="MODEL is a LoRA folder of peft: take it merged into its base model."
)


def named(model: str, merge_adapter: bool, opening: LoadOptions, quiet: bool = False) -> Source:
    """The model that a command was given; an adapter that is merged lies in a folder that is gone with the command."""
    from shortgpt.checkpoints.merging import merged
    from shortgpt.models.recognition import resolve

    if merge_adapter:
        trusted = opening.get("trust_remote_code", False)
        return click.get_current_context().with_resource(merged(model, trust_remote_code=trusted))
    source = resolve(model, opening.get("architecture"), opening.get("revision"))
    tell_unread_plan(source, quiet)
    return source


def tell_unread_plan(source: Source, quiet: bool) -> None:
    """A note where the record of how a model was made cannot be read."""
    from shortgpt.values.plan import Plan

    if unread := Plan.unread_beside(source.path):
        note(f"note: {unread}", quiet)


def is_given(context: click.Context, name: str) -> bool:
    """Whether an option stands on the command line, or in a file of defaults."""
    return context.get_parameter_source(name) in (ParameterSource.COMMANDLINE, ParameterSource.DEFAULT_MAP)


@dataclass(frozen=True)
class Outputs:
    """What the user wants of a result.

    Attributes:
        form: the format to print in; None for a table.
        output: the file to print to; None for the standard output.
        plot: the file for a picture.
        json_file: the file for JSON.
        html: the file for a page of HTML.
        quiet: no progress and no notes.
    """

    form: str | None = None
    output: str | None = None
    plot: str | None = None
    json_file: str | None = None
    html: str | None = None
    quiet: bool = False


def report_options(command: Command) -> Command:
    """How a result is told: the command is called with `outputs`, which `check` checks before anything takes time."""
    options = (
        click.option(
            "--format",
            "form",
            type=types.FORMAT,
            metavar="NAME",
            help="Print as json, csv, markdown, ... Default: a table.",
        ),
        click.option("--output", "-o", type=types.WRITTEN_FILE, metavar="FILE", help="Print into this file."),
    )

    @functools.wraps(command)
    def called(**given: Any) -> Any:
        names = ("form", "output", "plot", "json_file", "html", "quiet")
        return command(outputs=Outputs(**{name: given.pop(name) for name in names if name in given}), **given)

    return output_options(_with(options, called))


def result_options(command: Command) -> Command:
    """As `report_options`, for a result of which there is a picture."""
    text = "Draw a picture: .png, .svg or .pdf (needs the extra plot)."
    return click.option("--plot", type=types.WRITTEN_FILE, metavar="FILE", help=text)(report_options(command))


def resume_option(command: Command) -> Command:
    """The folder of a long run."""
    text = "Keep what is measured in this folder, and go on from what it holds."
    return click.option("--resume", type=types.WRITTEN_FOLDER, metavar="FOLDER", help=text)(command)


def _with(options: tuple[Callable[[Command], Command], ...], command: Command) -> Command:
    return functools.reduce(lambda inner, option: option(inner), reversed(options), command)


def number_of_blocks(blocks: int | None, ratio: float | None, depth: int, default: float) -> int:
    """How many blocks `--blocks N` or `--ratio R` ask for.

    Raises:
        SelectionError: both were given, or one makes no sense.
    """
    from shortgpt.values.scores import blocks_for_ratio

    if blocks is not None and ratio is not None:
        raise SelectionError("two choices at once (--blocks and --ratio); give one")
    if blocks is None:
        return blocks_for_ratio(default if ratio is None else ratio, depth)
    return blocks


def console() -> Console:
    """The standard output."""
    from rich.console import Console

    from shortgpt.reports.grid import shown

    class Screen(Console):
        def print(self, *results: Any, **options: Any) -> None:
            display.hide()
            super().print(*map(shown, results), **options)

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # `main` ends quietly; rich would exit with status 1

        def render(self, renderable: Any, options: Any = None) -> Iterator[Any]:
            # What a model's folder names its parts, or what a model says, is no command to the terminal.
            # Before lines are broken, since what is shown in its place is longer.
            for piece in super().render(shown(renderable), options):
                yield piece if piece.control else piece._replace(text=printable(piece.text))

    return Screen(soft_wrap=False, highlight=False, markup=False, emoji=False)


def note(text: str, quiet: bool) -> None:
    """A remark beside the result."""
    if not quiet:
        display.hide()
        click.echo(printable(text), err=True)


@contextmanager
def progress_bars(quiet: bool) -> Iterator[Progress | None]:
    """Bars for what is counted inside, where the command shows what it does."""
    shown = display.current()
    if quiet or shown is None:
        yield None
        return
    try:
        yield shown.advance
    finally:
        shown.forget_counts()


def emit(result: Value, rendered: Any, outputs: Outputs, **shown: Any) -> None:
    """Write a result as JSON, draw it, and print it, as a table or by a reporter, where asked.

    JSON comes first: what took long to measure is safe before somebody's reporter sees it.

    Args:
        rendered: the table.
        shown: what the picture shows besides the result, such as `marked` blocks.
    """
    from shortgpt import plugins
    from shortgpt.basics.targets import load_target

    if outputs.json_file != "-":
        write_json(result, outputs.json_file)
    text = None
    if outputs.form is not None:
        entry = plugins.lookup("format", plugins.registry().reporters, outputs.form)
        reporter = load_target(entry.target)
        with plugins.running(f"{type(result).__name__} in format", entry):
            text = str(reporter(result)).rstrip("\n")
    if outputs.plot is not None:
        from shortgpt.reports.plots import draw

        draw(result, outputs.plot, **shown)
    write_html(result, outputs.html, **shown)
    if outputs.output is not None:
        from shortgpt.reports import as_text

        write_text((as_text(rendered) if text is None else text) + "\n", outputs.output)
    elif text is not None:
        display.hide()
        click.echo(printable(text))
    elif outputs.json_file != "-":
        console().print(rendered)
    if outputs.json_file == "-":
        write_json(result, outputs.json_file)


def check(outputs: Outputs, kind: str | None = None) -> None:
    """Raise for what cannot be: a file that cannot be written, a format that is not installed, two results in one
    place, a picture without matplotlib, or of a kind of result (the name of its class) of which there is none."""
    from shortgpt import plugins

    if outputs.form is not None:
        plugins.lookup("format", plugins.registry().reporters, outputs.form)
    if outputs.plot is not None:
        from shortgpt.reports.plots import check_plot

        check_plot(outputs.plot, kind)
    printed = {"--format": "-"} if outputs.form is not None and outputs.output is None else {"--output": outputs.output}
    taken: dict[str, str] = {}
    for option, file in (
        printed | {"--plot": outputs.plot, "--json": outputs.json_file, "--html": outputs.html}
    ).items():
        if file is None:
            continue
        place = "the standard output" if file == "-" else os.path.realpath(local_path(file, OutputError))
        if place in taken:
            raise OutputError(f"{taken[place]} and {option} both go to {place}; give one of them another file")
        taken[place] = option
        check_file(file)


def check_file(file: str | None) -> None:
    """Raise an `OutputError` for a file that cannot be written, before anything takes time."""
    if file not in (None, "-"):
        check_target(file)


def write_json(result: Value, json_file: str | None) -> None:
    """Write a result as JSON where asked."""
    if json_file is not None:
        write_text(result.to_json() + "\n", json_file)


def write_html(result: Value, html: str | None, **shown: Any) -> None:
    """Write a result as a page where asked, with the command that made it."""
    if html is not None:
        import shlex

        from shortgpt.cli.options.defaults import spelled
        from shortgpt.reports.html.page import as_page

        command = shlex.join(["shortgpt", *sys.argv[1:], *spelled(click.get_current_context())])
        write_text(as_page(result, command, **shown), html)


def write_text(text: str, file: str) -> None:
    """Write a file, all of it or nothing; - is the standard output.

    Raises:
        OutputError: it cannot be written.
    """
    if file == "-":
        display.hide()
        sys.stdout.write(text)
    else:
        write(text, file)
