"""What moves on the terminal while a command runs: the names of what goes on, and bars of what is counted.

It stands on the standard error, and only where that is a terminal and the command is not to be quiet. Whatever is
printed hides it first; it comes back with the next thing that begins.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from shortgpt.basics.stages import watched
from shortgpt.errors import printable

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import Task

STARTING = "starting"
NAME, BAR = 30, 16  # columns


class Display:
    """Bars, while they are shown. It watches stages (`shortgpt.basics.stages`) and counts (`Progress`)."""

    def __init__(self) -> None:
        self.bars = _bars()
        self.counted: dict[str, Any] = {}
        self.stages: dict[object, Any] = {}
        self.others = 0  # stages that draw their own bars
        self.begin(STARTING, STARTING, False)

    def begin(self, key: object, name: str, shows_itself: bool) -> None:
        if key is not STARTING:
            self.end(STARTING)
        if shows_itself:
            self.others += 1
            self.hide()
        else:
            self.forget_counts(done=True)
            self.stages[key] = self.bars.add_task(printable(name), total=None)
            self.show()

    def end(self, key: object) -> None:
        if key in self.stages:
            self.bars.remove_task(self.stages.pop(key))
        elif key is not STARTING:
            self.others -= 1

    def advance(self, what: str, done: int, total: int) -> None:
        """Called as a `Progress`."""
        self.end(STARTING)
        task = self.counted.get(what)
        if task is None:
            task = self.counted[what] = self.bars.add_task(printable(what), total=total)
        elif done < self.bars.tasks[self.bars.task_ids.index(task)].completed:
            self.bars.reset(task, total=total)
        self.show()
        self.bars.update(task, completed=done, total=total, refresh=done >= total)

    def forget_counts(self, *, done: bool = False) -> None:
        """Take the bars of what was counted away; or only those that are done."""
        full = {task.id for task in self.bars.tasks if task.finished}
        for what, task in tuple(self.counted.items()):
            if not done or task in full:
                self.bars.remove_task(self.counted.pop(what))

    def show(self) -> None:
        if not self.others and not self.bars.live.is_started:
            self.bars.start()

    def hide(self) -> None:
        self.bars.stop()


def _bars() -> Bars:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.table import Column

    class Count(TextColumn):
        def __init__(self) -> None:
            super().__init__("")

        def render(self, task: Task) -> Any:
            self.text_format = "" if task.total is None else f"{int(task.completed)}/{int(task.total)}"
            return super().render(task)

    class Times(TextColumn):
        """How long it has taken, and how long the rest will."""

        def __init__(self) -> None:
            super().__init__("")

        def render(self, task: Task) -> Any:
            self.text_format = _clock(task.finished_time if task.finished else task.elapsed)
            if task.time_remaining:
                self.text_format += f", {_clock(task.time_remaining)} left"
            return super().render(task)

    name = TextColumn(
        "{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", max_width=NAME)
    )
    return Progress(
        name,
        BarColumn(bar_width=BAR),
        Count(),
        Times(),
        console=Console(stderr=True, markup=False, emoji=False),
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
    )


def _clock(seconds: float | None) -> str:
    minutes, rest = divmod(int(seconds or 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


_current: list[Display] = []


@contextmanager
def shown(quiet: bool) -> Iterator[None]:
    """Inside it there is a display, where there is anybody to look at it."""
    from rich.console import Console

    if quiet or _current or not Console(stderr=True).is_terminal:
        yield
        return
    display = Display()
    _current.append(display)
    try:
        with watched(display):
            yield
    finally:
        _current.remove(display)
        display.hide()


def current() -> Display | None:
    return _current[-1] if _current else None


def hide() -> None:
    """Take it from the terminal, for something is to be printed."""
    if display := current():
        display.hide()
