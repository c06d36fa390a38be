"""shortgpt from another project: score a model, choose blocks, remove them, save and prove the result, and compare.

::

    python library_call.py FOLDER

writes a shorter copy of each shipped model into FOLDER. Models of your own are named by path or hub id, or handed
over as they are in memory, by `shortgpt.wrap(model, tokenizer=tokenizer)`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import shortgpt

MODELS = ("zoo:llama", "zoo:mamba")


def shorten(name: str, folder: Path, count: int = 3) -> shortgpt.Scores:
    """Write a model without its `count` least influential blocks into `folder`; what was measured is returned."""
    model = shortgpt.load(name, device="cpu")
    scores = shortgpt.score(model, "stdlib", sequences=4, tokens=128)
    print(f"{name}: least influential first {', '.join(map(str, scores.ranking()))}")

    plan = scores.plan(count)  # or any choice of your own: remove() takes block numbers as well
    shorter = shortgpt.remove(model, plan)  # `model` is untouched, and shares its tensors with `shorter`
    shorter.save(folder)
    verification = shortgpt.verify(model, folder, plan.blocks)
    print(f"{name}: without {', '.join(map(str, plan.blocks))}, {len(model)} blocks became {len(shorter)}")
    print(f"{name}: {verification}")
    return scores


def main(folder: Path) -> None:
    try:
        measured = [shorten(name, folder / name.partition(":")[2]) for name in MODELS]
        print(shortgpt.compare(measured))
    except shortgpt.ShortGPTError as error:  # every error that shortgpt raises on purpose
        sys.exit(f"shortgpt: {error}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
