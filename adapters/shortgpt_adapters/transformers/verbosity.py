"""How much transformers says."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from transformers.utils import logging


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no advice from transformers; its errors still come."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    # Setting a level empties the caches of every logger, which takes longer than a small model's block.
    if is_loud := level != logging.ERROR:
        logging.set_verbosity_error()
    if bars:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if is_loud:
            logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
