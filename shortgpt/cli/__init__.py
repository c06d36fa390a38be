"""The command line: `shortgpt score | prune | verify | compare | curve | evaluate | ablate | heal | inspect | ...`.

Exit status: 0 done, 1 a verification or a requirement that failed, 2 a mistake of the user's or of the input, 3 a
requirement that is not settled, 70 an error of ours, 130 interrupted. A mistake is told in one message on the standard
error, without a traceback; that of an error of ours is in a file. Nothing here imports torch before a command runs.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from pathlib import Path
from typing import NoReturn, TextIO

import click
from click.shell_completion import shell_complete

from shortgpt._version import __version__
from shortgpt.basics.kept import noting
from shortgpt.basics.kept import told as stays
from shortgpt.cli import common
from shortgpt.cli.ablate import ablate
from shortgpt.cli.compare import compare
from shortgpt.cli.cost import cost
from shortgpt.cli.curve import curve
from shortgpt.cli.demo import demo
from shortgpt.cli.evaluate import evaluate
from shortgpt.cli.heal import heal
from shortgpt.cli.inspect import inspect
from shortgpt.cli.options.completion import VARIABLE, completion
from shortgpt.cli.options.defaults import Defaults
from shortgpt.cli.plugins import plugins
from shortgpt.cli.process import display, own_errors, signals
from shortgpt.cli.prune import prune
from shortgpt.cli.score import score
from shortgpt.cli.show import show
from shortgpt.cli.verify import verify
from shortgpt.errors import GateError, ShortGPTError, VerificationError, is_panic, printable, reason_of
from shortgpt.models.devices import started
from shortgpt.models.peers import is_shared, shared

SHARED = ("score", "prune")
"""The commands whose scoring is shared by the processes that `torchrun` starts. Only the first one speaks."""


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example:  shortgpt compare zoo:llama zoo:mamba zoo:gpt2-postnorm",
)
@click.version_option(__version__, prog_name="shortgpt")
@common.verbose_option
def cli() -> None:
    """Measure how redundant the blocks of a language model are, and remove them, proven.

    MODEL is a model folder, a checkpoint file, a hub id, or a small model that ships with shortgpt, such as zoo:llama.
    """
    command = click.get_current_context().invoked_subcommand
    if started()[1] > 1 and command not in SHARED:
        refused = ShortGPTError(
            f"{command} runs in one process, found torchrun with {started()[1]}; run it without torchrun "
            f"(with it: {', '.join(SHARED)}; compare takes the files that score --json wrote)"
        )
        raise shared(refused)


for command in (
    score,
    prune,
    verify,
    compare,
    curve,
    evaluate,
    ablate,
    heal,
    cost,
    inspect,
    show,
    plugins,
    demo,
    completion,
):
    cli.add_command(command)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    with open(os.devnull, "w") as nowhere:
        # A stream that the shell closed (>&-) is None.
        streams = (sys.stdout or nowhere, sys.stderr or nowhere)
        log, handler = logging.getLogger("shortgpt"), _Handler()
        level = log.level
        # Else it has the level of the root logger, which other packages set as they are imported.
        log.setLevel(level or logging.WARNING)
        log.addHandler(handler)
        own = streams if started()[0] == 0 else (nowhere, nowhere)
        try:
            with contextlib.redirect_stdout(own[0]), contextlib.redirect_stderr(own[1]):
                status = _run(arguments, streams[1])
        finally:
            log.removeHandler(handler)
            log.setLevel(level)
    sys.exit(status)


def _run(arguments: list[str] | None, errors: TextIO) -> int:
    """The exit status.

    Args:
        errors: takes what this process alone has to say.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a sign shows "?" for it
    with noting() as kept:
        try:
            _invoke(arguments)
        except click.exceptions.Exit as stop:
            return stop.exit_code
        except click.ClickException as error:
            error.show()
            return 2
        except BrokenPipeError:  # the reader of our output has gone, `shortgpt ... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except BaseException as error:
            status, message = _told(error, kept)
            rank = started()[0]
            if rank > 0 and isinstance(error, Exception) and not is_shared(error):
                click.echo(printable(f"shortgpt: process {rank}: {message}"), file=errors)
            else:
                click.echo(printable(f"shortgpt: {message}"), err=True)
            return status
    return 0


def _invoke(arguments: list[str] | None) -> None:
    if VARIABLE in os.environ:  # a shell asks what may come next
        raise click.exceptions.Exit(shell_complete(cli, {}, "shortgpt", VARIABLE, os.environ[VARIABLE]))
    # Not cli.main(), which has ways of its own with a closed pipe, an interrupt and an exit status.
    given = list(sys.argv[1:] if arguments is None else arguments)
    found = None if {"-h", "--help", "--version"} & set(given) else Defaults.nearest()
    defaults = None if found is None else found.of(cli)
    with signals.unwinding(), cli.make_context("shortgpt", given, default_map=defaults) as context:
        cli.invoke(context)
    sys.stdout.flush()


def _told(error: BaseException, kept: dict[Path, str]) -> tuple[int, str]:
    """The exit status for what ended a command, and what is said of it; what is neither an error nor ours is raised."""
    match error:
        case signals.Ended():
            return int(str(error.code)), f"ended by a signal; {stays(kept)}"
        case signals.CutShort():
            return 2, f"error: {error}"
        case SystemExit():  # of code that came with a model
            return 2, f"error: code that came with a model or a plugin ended the program (status {error.code})"
        case click.Abort() | KeyboardInterrupt():
            return 130, f"interrupted; {stays(kept)}"
        case GateError():
            return 1 if error.failed else 3, f"required: {error}"
        case VerificationError():
            return 1, f"verification failed: {error}"
        case ShortGPTError() | OSError():
            return 2, f"error: {error}"
    if is_panic(error):
        return 2, f"error: a library gave up: {reason_of(error)}"
    if not isinstance(error, Exception):
        raise error
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return 2, "error: out of memory; take a smaller --batch-size or --dtype, or another --device"
    return own_errors.STATUS, own_errors.told(error)


class _Handler(logging.Handler):
    """What the library logs, as a line on the standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        display.hide()
        click.echo(printable(f"shortgpt: {record.getMessage()}"), err=True)
