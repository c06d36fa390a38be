"""Scoring and evaluation that go on where a run was stopped: the sums of each batch are kept in a journal.

::

    FOLDER/score-0.jsonl     rank 0's batches; every process of a run writes a file of its own and reads all of them
    FOLDER/quality-0.jsonl   what an evaluator made of each batch without sets of blocks
    FOLDER/model-3/...       those of the third model of several

A batch's sums hang on its tokens, the model, its arithmetic, and nothing else: which process took it, and when, moves
nothing. So continuing gives exactly what an uninterrupted run gives. Of a streamed model all batches pass a block
together, and what is kept is what has passed all of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shortgpt._version import __version__
from shortgpt.basics.journal import Journal, resumed_folder
from shortgpt.basics.untrusted import local_path
from shortgpt.errors import OutputError
from shortgpt.measuring.scoring.batch_sums import BatchSums
from shortgpt.models import processes

if TYPE_CHECKING:
    from torch import Tensor

    from shortgpt.measuring.calibration import Calibration
    from shortgpt.models.sequence import BlockSequence

MEANINGS = {
    "model": "the model's weights or config are others",
    "text": "it was measured on another text, or in other batches",
    "device": "it was computed on another kind of device",
    "dtype": "it was computed in another floating-point type",
    "version": "another version of shortgpt wrote it",
    "torch": "it was computed by another version of torch",
}
"""For each name of a journal's identity, what it means that it differs."""


@contextmanager
def journal_of(
    folder: str | Path | None, name: str, model: BlockSequence, data: Calibration
) -> Iterator[Journal | None]:
    """The journal of a run in a folder, which is made where it is not there; None where no folder is named.

    Raises:
        ResumeError: it is of another model, text, or version. OutputError: it cannot be written.
    """
    if folder is None:
        yield None
        return
    place = resumed_folder(folder)
    rank, _ = processes.rank_and_size()
    others = sorted(place.glob(f"{name}-*.jsonl")) if place.is_dir() else []
    processes.gathered(None)  # no process begins to write before all have looked at what there is
    with Journal(place / f"{name}-{rank}.jsonl", _identity(model, data), MEANINGS, others) as journal:
        yield journal


@dataclass(frozen=True)
class Kept:
    """The sums of batches that stand in a journal, if there is one, by a stage of a run and a batch's number."""

    journal: Journal | None
    stage: str

    def __bool__(self) -> bool:
        return self.journal is not None

    def batch(self, number: int) -> BatchSums | None:
        """The sums of a batch; None where it was not taken yet."""
        import torch

        found = None if self.journal is None else self.journal.get(f"{self.stage} {number}")
        if found is None:
            return None

        def numbers(name: str) -> Tensor:
            return torch.tensor(found[name], dtype=torch.float64).reshape(found["shapes"][name])

        return BatchSums(
            number=number,
            sums={name: torch.tensor(rows, dtype=torch.float64) for name, rows in found["sums"].items()},
            counts=found["counts"],
            norms=numbers("norms"),
            broken=numbers("broken"),
            lengths=found["lengths"],
            dtype=found["dtype"],
            spans=None if found["spans"] is None else torch.tensor(found["spans"], dtype=torch.float64),
        )

    def add(self, batch: BatchSums) -> BatchSums:
        """The same sums, which are on the host, after they were written down."""
        if self.journal is not None:
            value = {
                "sums": {name: rows.tolist() for name, rows in batch.sums.items()},
                "counts": batch.counts,
                "norms": batch.norms.tolist(),
                "broken": batch.broken.tolist(),
                "shapes": {"norms": list(batch.norms.shape), "broken": list(batch.broken.shape)},
                "lengths": batch.lengths,
                "dtype": batch.dtype,
                "spans": None if batch.spans is None else batch.spans.tolist(),
            }
            self.journal.add(f"{self.stage} {batch.number}", value)
        return batch


def _identity(model: BlockSequence, data: Calibration) -> dict[str, str]:
    import torch

    sizes = [len(batch["input_ids"]) for batch in data.batches]
    return {
        "model": fingerprint(model),
        "text": f"{data.info.token_hash} {sizes}",
        "device": model.device.type,
        "dtype": str(model.bytes_per_number),
        "version": __version__,
        "torch": torch.__version__,
    }


def fingerprint(model: BlockSequence) -> str:
    """SHA-256 of a model's config and tensors; of one whose weights stay in their files, of what the system says of
    these; of one that is not made of torch modules, of its logits on a few random tokens."""
    from shortgpt.torch_models.interface import TorchModel

    digest = hashlib.sha256()
    for part in _parts(model, isinstance(model, TorchModel)):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def _parts(model: Any, is_torch: bool) -> Iterator[bytes]:
    import torch

    from shortgpt.models.probing.probes import probe

    config = {key: value for key, value in model.config.items() if not key.startswith("_")}  # such as where it lay
    yield json.dumps([model.architecture, config], sort_keys=True, default=str).encode()
    if model.streamed and model.source is not None:
        for file, stamp in model.source.stamps.items():
            yield f"{file.name} {stamp.size} {stamp.modified}".encode()
    elif is_torch:
        for name, tensor in sorted(model.tensors().items()):
            flat = tensor.detach().cpu().contiguous().flatten()
            yield f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
            yield flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    else:
        batch = {"input_ids": probe(model.vocab_size, model.max_tokens).to(model.device)}
        for logits in model.logits_without(batch, [(), tuple(range(1, len(model), 2))]):
            yield logits.float().cpu().numpy().tobytes()


def folder_for(resume: str | Path | None, model: int, models: int) -> Path | None:
    """The folder of one of several models."""
    if resume is None or Path(resume).suffix == ".jsonl":  # the file of a search
        return None
    place = local_path(resume, OutputError)
    return place if models == 1 else place / f"model-{model + 1}"
