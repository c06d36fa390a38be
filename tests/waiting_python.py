"""A Python that has imported torch and transformers, and nothing of ours, and forks for each request.

Run as a script, by `tests.fresh_processes`. Each line of its standard input is a request, in JSON; its answer is the
exit status of the fork, on a line of the standard output.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import sys
import traceback
from types import ModuleType
from typing import Any

IMPORTED = (
    "torch",
    "safetensors.torch",
    "transformers.modeling_utils",
    "transformers.models.auto",
    "transformers.generation",
)


def serve() -> None:
    """Answer requests until the standard input ends."""
    for module in IMPORTED:
        importlib.import_module(module)
    gc.freeze()  # what is there by now is no garbage
    for line in sys.stdin:
        process = os.fork()
        if not process:
            become(json.loads(line))
        _, status = os.waitpid(process, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def become(request: dict[str, Any]) -> None:
    """Go on as a Python that was started with the arguments of a request; never return."""
    for number, name in enumerate(request["files"]):
        file = os.open(name, os.O_RDWR)
        os.dup2(file, number)
        os.close(file)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(fd, mode, encoding="utf-8") for fd, mode in enumerate("rww"))
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    status: Any = 0
    try:
        run(request["arguments"])
    except SystemExit as stop:
        status = stop.code
        if isinstance(status, str):
            print(status, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))


def run(arguments: list[str]) -> None:
    """What `python` does with arguments: `[-I] -c CODE ...`, `[-I] -m MODULE ...` or `FILE ...`."""
    isolated = arguments[0] == "-I"
    first, *rest = arguments[isolated:]
    if not isolated:
        beside = {"-c": "", "-m": os.getcwd()}.get(first, os.path.dirname(first))
        sys.path[:0] = [beside, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    if first == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.modules["__main__"] = main = ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)
    elif first == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [first, *rest]
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    serve()
