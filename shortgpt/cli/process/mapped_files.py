"""A file that is cut short while it is mapped: told, where Linux ends the process by SIGBUS.

Reading behind the new end of a mapped file has no answer. Here a page of zeros is put there, so that the instruction
that was reading ends, and whoever watches is called, to end the work before anything is made of those zeros.
"""

from __future__ import annotations

import ctypes
import mmap
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

SA_SIGINFO, SA_NODEFER = 4, 0x40000000
BUS_ADRERR = 2  # there is nothing behind that address: no error of alignment or of the hardware
PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS = 1, 2, 2, 0x10, 0x20
SET_SIZE = 128  # bytes of a sigset_t


class _Fault(ctypes.Structure):
    """The begin of a siginfo_t."""

    _fields_ = [
        ("number", ctypes.c_int),
        ("error", ctypes.c_int),
        ("code", ctypes.c_int),
        ("address", ctypes.c_void_p),
    ]


class _Action(ctypes.Structure):
    """A struct sigaction, as glibc and musl have it."""

    _fields_ = [
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ubyte * SET_SIZE),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    ]


_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.POINTER(_Fault), ctypes.c_void_p)


@contextmanager
def watched(cut_short: Callable[[str], None]) -> Iterator[None]:
    """Inside it, on Linux, `cut_short` is called with the name of a mapped file that ended before what was read of it.

    It is called once, in the thread that was reading, in the middle of an instruction: what is raised there is lost.
    """
    if sys.platform != "linux":
        yield
        return
    libc: Any = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    before, told = _Action(), False

    def zeros(number: int, fault: Any, context: Any) -> None:
        nonlocal told
        address = fault.contents.address or 0
        if not told:
            told = True
            cut_short(_mapped_at(address))
        page = address - address % mmap.PAGESIZE
        flags = MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS
        is_cut = fault.contents.code == BUS_ADRERR
        if not is_cut or libc.mmap(page, mmap.PAGESIZE, PROT_READ | PROT_WRITE, flags, -1, 0) != page:
            # The same instruction is run again, and ends the process.
            libc.sigaction(signal.SIGBUS, ctypes.byref(before), None)

    handler = _Handler(zeros)
    action = _Action(handler=ctypes.cast(handler, ctypes.c_void_p), flags=SA_SIGINFO | SA_NODEFER)
    libc.sigaction(signal.SIGBUS, ctypes.byref(action), ctypes.byref(before))
    try:
        yield
    finally:
        libc.sigaction(signal.SIGBUS, ctypes.byref(before), None)


def is_inside(frame: FrameType | None) -> bool:
    """Whether a frame is one in which what is raised is lost."""
    while frame is not None:
        if frame.f_code.co_name == "zeros" and frame.f_code.co_filename == __file__:
            return True
        frame = frame.f_back
    return False


def _mapped_at(address: int) -> str:
    """The file that is mapped at an address."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        places, *_, name = line.split(maxsplit=5)
        begin, end = (int(place, 16) for place in places.split("-"))
        if begin <= address < end and name.startswith("/"):
            return name
    return "a file"
