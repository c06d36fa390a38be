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
from typing import NoReturn

import click

from shortgpt._version import __version__
from shortgpt.cli import common
from shortgpt.cli.ablate import ablate
from shortgpt.cli.compare import compare
from shortgpt.cli.cost import cost
from shortgpt.cli.curve import curve
from shortgpt.cli.demo import demo
from shortgpt.cli.evaluate import evaluate
from shortgpt.cli.heal import heal
from shortgpt.cli.inspect import inspect
from shortgpt.cli.plugins import plugins
from shortgpt.cli.process import display, own_errors, signals
from shortgpt.cli.prune import prune
from shortgpt.cli.score import score
from shortgpt.cli.show import show
from shortgpt.cli.verify import verify
from shortgpt.errors import GateError, ShortGPTError, VerificationError, is_panic, printable, reason_of
from shortgpt.models.devices import started

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
        raise ShortGPTError(
            f"{command} runs in one process, found torchrun with {started()[1]}; run it without torchrun "
            f"(with it: {', '.join(SHARED)}; compare takes the files that score --json wrote)"
        )


for command in (score, prune, verify, compare, curve, evaluate, ablate, heal, cost, inspect, show, plugins, demo):
    cli.add_command(command)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    with open(os.devnull, "w") as nowhere:
        # A stream that the shell closed (>&-) is None.
        streams = (sys.stdout or nowhere, sys.stderr or nowhere) if started()[0] == 0 else (nowhere, nowhere)
        log, told = logging.getLogger("shortgpt"), _Told()
        level = log.level
        log.addHandler(told)
        try:
            with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
                status = _run(arguments)
        finally:
            log.removeHandler(told)
            log.setLevel(level)
    sys.exit(status)


def _run(arguments: list[str] | None) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a sign shows "?" for it
    try:
        if "_SHORTGPT_COMPLETE" in os.environ:  # a shell asks what may come next
            cli.main(prog_name="shortgpt")
        # Not cli.main(), which has ways of its own with a closed pipe, an interrupt and an exit status.
        given = list(sys.argv[1:] if arguments is None else arguments)
        with signals.unwinding(), cli.make_context("shortgpt", given) as context:
            cli.invoke(context)
        sys.stdout.flush()
        status = 0
    except click.exceptions.Exit as stop:
        status = stop.exit_code
    except click.ClickException as error:
        error.show()
        status = 2
    except signals.Ended:
        raise
    except SystemExit as stop:  # of code that came with a model
        status = _say(f"error: code that came with a model or a plugin ended the program (status {stop.code})", 2)
    except (click.Abort, KeyboardInterrupt):
        status = _say("interrupted; nothing was left behind", 130)
    except GateError as error:
        status = _say(f"required: {error}", 1 if error.failed else 3)
    except VerificationError as error:
        status = _say(f"verification failed: {error}", 1)
    except ShortGPTError as error:
        status = _say(f"error: {error}", 2)
    except BrokenPipeError:  # the reader of our output has gone, `shortgpt ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except OSError as error:
        status = _say(f"error: {error}", 2)
    except BaseException as error:
        if is_panic(error):
            status = _say(f"error: a library gave up: {reason_of(error)}", 2)
        elif not isinstance(error, Exception):
            raise
        elif isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            status = _say("error: out of memory; take a smaller --batch-size or --dtype, or another --device", 2)
        else:
            status = _say(own_errors.told(error), own_errors.STATUS)
    return status


class _Told(logging.Handler):
    """What the library logs, as a line on the standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        display.hide()
        click.echo(printable(f"shortgpt: {record.getMessage()}"), err=True)


def _say(message: str, status: int) -> int:
    click.echo(printable(f"shortgpt: {message}"), err=True)
    return status
