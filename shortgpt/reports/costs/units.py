"""Sizes and times as people read them."""

from __future__ import annotations

SIZES = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB"))
COUNTS = ((10**15, "P"), (10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k"))
TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


def size(number: int) -> str:
    """Bytes: `1.43 MB`, in powers of 1000."""
    return _in(float(number), SIZES) or f"{number} B"


def operations(number: int) -> str:
    """`26.7M`."""
    return (_in(float(number), COUNTS) or str(number)).replace(" ", "")


def duration(seconds: float) -> str:
    """`1.98 ms`."""
    return _in(seconds, TIMES) or f"{seconds * 1e6:.3g} µs"


def _in(number: float, units: tuple[tuple[float, str], ...]) -> str | None:
    """In the largest unit of which there is one, three digits; None where there is not even one of the smallest."""
    for amount, unit in units:
        if number >= 0.9995 * amount:
            scaled = number / amount
            return f"{scaled:.{0 if scaled >= 99.95 else 1 if scaled >= 9.995 else 2}f} {unit}"
    return None
