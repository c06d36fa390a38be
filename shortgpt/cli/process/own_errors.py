"""An error that nobody foresaw: one line, and a file with all that is needed to find it."""

from __future__ import annotations

import platform
import sys
import tempfile
import traceback

from shortgpt._version import __version__
from shortgpt.errors import printable, reason_of

STATUS = 70  # EX_SOFTWARE of sysexits.h
REPORT = "please report this, with the file"


def told(error: BaseException) -> str:
    """The line for it; the traceback is in the file that it names."""
    short = f"{type(error).__name__}: {reason_of(error)}"
    lines = [
        f"shortgpt {__version__}, Python {platform.python_version()}, {platform.platform()}",
        printable(" ".join(map(repr, sys.argv))),
        "",
        *traceback.format_exception(error),
    ]
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="shortgpt-error-", suffix=".txt", delete=False, encoding="utf-8", errors="replace"
        ) as file:
            file.write("\n".join(lines))
    except OSError as unwritten:
        print(printable("\n".join(lines)), file=sys.stderr)
        return f"an error of shortgpt's own ({short}); {REPORT} above ({unwritten.strerror})"
    return f"an error of shortgpt's own ({short}); {REPORT} {file.name}"
