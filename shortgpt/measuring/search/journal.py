"""What a search has measured, in a file, so that it can go on where it was stopped.

::

    {"schema": "shortgpt/search-journal/1", "model": SHA-256, "text": SHA-256, "objective": ..., ..., "sum": ...}
    {"blocks": [3, 4], "variant": "", "first": 0, "sums": [...], "counts": [...], "sum": ...}

A line is written when it is measured, and holds its own checksum. One that was cut off at the end of the file is
dropped; a damaged one elsewhere is an error. Floats are written so that they are read as they were.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shortgpt._version import __version__
from shortgpt.errors import OutputError, ShortGPTError

if TYPE_CHECKING:
    from shortgpt.measuring.calibration import Calibration
    from shortgpt.models.sequence import BlockSequence

SCHEMA = "shortgpt/search-journal/1"
FILE = "search.jsonl"
CHECKSUM = "sum"

WHAT = {
    "model": "the model's weights or config are others",
    "text": "it was measured on another text",
    "objective": "it was measured by another objective",
    "device": "it was computed on another kind of device",
    "version": "another version of shortgpt wrote it",
    "torch": "it was computed by another version of torch",
}
"""For each key of the first line, what it means that it differs."""


class Journal:
    """A file of what was measured, each line kept as soon as it is.

    Args:
        place: a file that is there or is called `.jsonl`, or else a folder that holds it or will; made where it is not.
        identity: what the numbers hang on, by the keys of `WHAT`.
        name: of the file, where a folder is named.

    Raises:
        ShortGPTError: the file is of another model, text, objective or version, or it is damaged.
        OutputError: it cannot be written.
    """

    def __init__(self, place: str | Path, identity: Mapping[str, str], name: str = FILE) -> None:
        path = Path(place).expanduser()
        self.file = path if path.is_file() or path.suffix == ".jsonl" else path / name
        self.lines: list[dict[str, Any]] = []
        header = {"schema": SCHEMA, **identity}
        self._empty = not self.file.exists()
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            whole = self._read(header) if self.file.exists() else 0
            self._out = open(self.file, "ab")  # noqa: SIM115 - closed by `close`
            self._out.truncate(whole)
        except OSError as error:
            raise OutputError(f"{self.file}: cannot be written ({error.strerror})") from None
        if not whole:
            self._append(header)

    def write(self, blocks: tuple[int, ...], variant: str, first: int, sums: list[float], counts: list[int]) -> None:
        """Keep what was measured of the sequences from `first` on."""
        self._empty = False
        kept = [value if math.isfinite(value) else None for value in sums]
        self._append({"blocks": list(blocks), "variant": variant, "first": first, "sums": kept, "counts": counts})

    def close(self) -> None:
        """Close the file; one that was made here and in which nothing was measured is taken away."""
        self._out.close()
        if self._empty:
            self.file.unlink(missing_ok=True)

    def _append(self, line: dict[str, Any]) -> None:
        try:
            self._out.write(_sealed(line))
            self._out.flush()
        except OSError as error:
            raise OutputError(f"{self.file}: cannot be written ({error.strerror}); free some space") from None

    def _read(self, header: Mapping[str, Any]) -> int:
        """Take what the file holds; how many bytes of it are whole lines."""
        data = self.file.read_bytes()
        end = data.rfind(b"\n") + 1
        lines = data[:end].splitlines()
        for number, text in enumerate(lines, start=1):
            line = _opened(text)
            if line is None:
                raise ShortGPTError(
                    f"{self.file}, line {number}: damaged, or no line of a search; take a copy of before, or remove "
                    "the file to search from the beginning"
                )
            if number == 1:
                self._check(line, header)
            else:
                self.lines.append(line)
        if not lines and end != len(data):
            raise ShortGPTError(f"{self.file}: no search that shortgpt keeps; name another file (--resume)")
        return end

    def _check(self, found: Mapping[str, Any], header: Mapping[str, Any]) -> None:
        if found.get("schema") != SCHEMA:
            raise ShortGPTError(
                f"{self.file}: found the schema {found.get('schema')!r}, this version of shortgpt reads {SCHEMA!r}; "
                "name another file (--resume)"
            )
        others = [reason for key, reason in WHAT.items() if found.get(key) != header[key]]
        if others:
            raise ShortGPTError(
                f"{self.file}: not the search that is asked for: {'; '.join(others)}. Name another file (--resume), or "
                "ask as before"
            )


def identity(model: BlockSequence, data: Calibration, objective: str) -> dict[str, str]:
    """What the numbers of a search hang on."""
    import torch

    return {
        "model": fingerprint(model),
        "text": data.info.token_hash,
        "objective": objective,
        "device": model.device.type,
        "version": __version__,
        "torch": torch.__version__,
    }


def fingerprint(model: BlockSequence) -> str:
    """SHA-256 of a model's tensors and of its config; of one that is not made of torch modules, of its logits on a few
    random tokens, whole and without every second block."""
    from shortgpt.torch_models.interface import TorchModel

    digest = hashlib.sha256()
    for part in _tensors(model) if isinstance(model, TorchModel) else _logits(model):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def _tensors(model: Any) -> Iterator[bytes]:
    import torch

    config = {key: value for key, value in model.config.items() if not key.startswith("_")}  # such as where it lay
    yield json.dumps(config, sort_keys=True, default=str).encode()
    for name, tensor in sorted(model.tensors().items()):
        flat = tensor.detach().cpu().contiguous().flatten()
        yield f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
        yield flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def _logits(model: BlockSequence) -> Iterator[bytes]:
    from shortgpt.models.probing.probes import probe

    batch = {"input_ids": probe(model.vocab_size, model.max_tokens).to(model.device)}
    for logits in model.logits_without(batch, [(), tuple(range(1, len(model), 2))]):
        yield logits.float().cpu().numpy().tobytes()


def _sealed(line: dict[str, Any]) -> bytes:
    text = json.dumps(line, allow_nan=False)
    seal = hashlib.sha256(text.encode()).hexdigest()[:16]
    return f'{text[:-1]}, "{CHECKSUM}": "{seal}"}}\n'.encode()


def _opened(text: bytes) -> dict[str, Any] | None:
    """A line as it was sealed; None where it is not whole."""
    try:
        line = json.loads(text)
        seal = line.pop(CHECKSUM)
    except (ValueError, RecursionError, KeyError, AttributeError, TypeError):
        return None
    found = hashlib.sha256(json.dumps(line, allow_nan=False).encode()).hexdigest()[:16]
    return line if found == seal else None
