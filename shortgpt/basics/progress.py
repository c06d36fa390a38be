"""Progress, as functions take it: a callback, or `True` for bars."""

from __future__ import annotations

from typing import Any

from shortgpt.basics.inputs import Progress


def shown(progress: Progress | bool | None) -> Progress | None:
    """The callback: of `True` one that draws bars by `tqdm.auto`, which fit a notebook as well as a terminal."""
    if isinstance(progress, bool):
        return _Bars() if progress else None
    return progress


class _Bars:
    """A bar for each thing that is counted; one that is full is closed, and a new count begins a new one."""

    def __init__(self) -> None:
        self.open: dict[str, Any] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        from tqdm.auto import tqdm

        bar = self.open.get(what)
        if bar is None or bar.total != total or done < bar.n:
            if bar is not None:
                bar.close()
            bar = self.open[what] = tqdm(total=total, desc=what)
        bar.update(done - bar.n)
        if done >= total:
            self.open.pop(what).close()
