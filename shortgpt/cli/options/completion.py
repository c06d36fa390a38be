"""`shortgpt completion`: the lines that make a shell complete our commands, options, names and files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    add_completion_class,
    get_completion_class,
    split_arg_string,
)

VARIABLE = "_SHORTGPT_COMPLETE"
SHELLS = ("bash", "zsh", "fish")


class Bash(BashComplete):
    """bash ends words at colons, and names such as `zoo:llama` have some."""

    begun = ""

    def get_completion_args(self) -> tuple[list[str], str]:
        place = int(os.environ["COMP_CWORD"])
        words = split_arg_string(os.environ["COMP_WORDS"])
        args, incomplete = _joined([*words[1 : place + 1], *([""] if place >= len(words) else [])])
        self.begun = incomplete[: incomplete.rfind(":") + 1]
        return args, incomplete

    def format_completion(self, item: CompletionItem[Any]) -> str:
        return f"{item.type},{item.value.removeprefix(self.begun)}"


def _joined(words: list[str]) -> tuple[list[str], str]:
    """What is before the last word, and the last word. Parts around colons are one word again, and the = of
    `--option=value` is none, as bash has it."""
    joined = [""]
    for number, word in enumerate(words):
        if number and (word == ":" or words[number - 1] == ":"):
            joined[-1] += word
        else:
            joined.append(word)
    return [word for word in joined[1:-1] if word != "="], joined[-1]


add_completion_class(Bash)


@click.command(epilog="Example:  shortgpt completion bash")
@click.argument("shell", type=click.Choice(SHELLS), required=False)
@click.pass_context
def completion(context: click.Context, shell: str | None) -> None:
    """Print what makes SHELL (default: $SHELL) complete commands, options, names and files.

    \b
    Switch it on by this line, in ~/.bashrc, ~/.zshrc (behind compinit) or config.fish:
        eval "$(shortgpt completion bash)"
        eval "$(shortgpt completion zsh)"
        shortgpt completion fish | source
    """
    shell = shell or Path(os.environ.get("SHELL", "")).name
    maker = get_completion_class(shell) if shell in SHELLS else None
    if maker is None:
        raise click.UsageError(f"the shell is not known ({shell or 'no $SHELL'}); name one of {', '.join(SHELLS)}")
    click.echo(maker(context.find_root().command, {}, "shortgpt", VARIABLE).source())
