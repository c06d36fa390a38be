"""How results look in a terminal: rich tables that survive 80 columns, no colour, and a pipe.

A kind of result has a file of its own here; what their tables share is in `cells`.
"""

from __future__ import annotations

import io

from rich.console import Console


def as_text(result: object) -> str:
    """A result as plain text, 80 columns wide."""
    buffer = io.StringIO()
    Console(file=buffer, width=80, color_system=None, force_terminal=False, markup=False, emoji=False).print(result)
    return buffer.getvalue().rstrip("\n")
