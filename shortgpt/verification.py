"""Is the shorter model what skipping says it should be?

::

    original, these blocks skipped ──▶ logits on a probe batch ─┐
                                                                 ├─ equal?   ─▶ Verification
    what was written, opened in a fresh process ──▶ logits ─────┘
      by the family's own loader               └──▶ 8 greedy tokens, cached and uncached: the same?

Skipping and removal are independent code, so they check each other; a fresh process shares nothing with this one. The
two models are held one after the other, never together.
"""

from __future__ import annotations

import copy
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from shortgpt import plugins
from shortgpt.errors import ModelError, VerificationError
from shortgpt.families import Family, OpenOptions, Source
from shortgpt.plan import Plan, Verification

if TYPE_CHECKING:
    from torch import Tensor

    from shortgpt.blocks import BlockSequence

PROBE = (2, 32)
NEW_TOKENS = 8


class Reloaded(Protocol):
    """A checkpoint opened by its family's own loader; what a `Family.loader` returns.

    Its attribute `dtype`, where it has one, says what the model computes in; without it, that is the logits' dtype.
    `cannot_generate`, where it is there and not None, says why cached generation cannot be compared with uncached.
    """

    def logits(self, input_ids: Tensor) -> Tensor:
        """[batch, tokens] → [batch, tokens, vocabulary], uncached."""

    def generate(self, input_ids: Tensor, new_tokens: int, *, cached: bool) -> Tensor:
        """The logits of each greedily generated token after a [1, tokens] prompt: [new_tokens, vocabulary]."""


@dataclass(frozen=True)
class Expectation:
    """What the shorter model's logits have to be."""

    input_ids: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Answer:
    """What a reloaded model computes on the probe batch, in float32 on the CPU.

    Attributes:
        logits: [batch, tokens, vocabulary].
        dtype: what the model computes in.
        cached, uncached: the logits of greedily generated tokens, [tokens, vocabulary].
        cannot_generate: why there are none.
    """

    logits: Tensor
    dtype: str
    cached: Tensor | None = None
    uncached: Tensor | None = None
    cannot_generate: str | None = None

    @classmethod
    def by(cls, model: Reloaded, input_ids: Tensor) -> Answer:
        """Ask a model."""
        import torch

        with torch.no_grad():
            logits = model.logits(input_ids)
            dtype = str(getattr(model, "dtype", logits.dtype)).removeprefix("torch.")
            cannot: str | None = getattr(model, "cannot_generate", None)
            if cannot is not None:
                return cls(logits.float().cpu(), dtype, cannot_generate=cannot)
            first = input_ids[:1]
            cached, uncached = (model.generate(first, NEW_TOKENS, cached=c).float().cpu() for c in (True, False))
            return cls(logits.float().cpu(), dtype, cached, uncached)

    def tensors(self) -> dict[str, Tensor]:
        """As named tensors: the form in which it crosses from one process to the other."""
        import torch

        texts = {name: text for name in ("dtype", "cannot_generate") if (text := getattr(self, name)) is not None}
        encoded = {name: torch.tensor(list(text.encode()), dtype=torch.uint8) for name, text in texts.items()}
        numbers = {"logits": self.logits, "cached": self.cached, "uncached": self.uncached}
        return encoded | {name: tensor.contiguous() for name, tensor in numbers.items() if tensor is not None}

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> Answer:
        """The inverse of `tensors`."""
        texts = ("dtype", "cannot_generate")
        return cls(**{n: bytes(t.tolist()).decode() if n in texts else t for n, t in tensors.items()})  # type: ignore[arg-type]


def probe(vocab_size: int, longest: int | None = None) -> Tensor:
    """The probe batch: the same random token ids every time, [2, 32]; shorter where the model's window is, so that
    the new tokens fit behind it."""
    import torch

    rows, tokens = PROBE
    if longest is not None:
        tokens = max(1, min(tokens, longest - NEW_TOKENS))
    return torch.randint(0, vocab_size, (rows, tokens), generator=torch.Generator().manual_seed(0))


def expected_logits(model: BlockSequence, blocks: Iterable[int]) -> Expectation:
    """The original's logits under `skipping(blocks)`."""
    ids = probe(model.vocab_size, model.max_tokens)
    with model.skipping(blocks):
        return Expectation(ids, model.logits({"input_ids": ids}).float().cpu())


def expectation(
    source: Source, family: Family, blocks: Sequence[int], options: OpenOptions, size: int
) -> Expectation | Verification:
    """Load the original, skip, and let it go again; or say why it cannot be held."""
    lack = lacking_memory(size, options.device)
    if lack:
        return Verification(verified=False, reason=lack)
    model = family.open(source, options)
    result = expected_logits(model, blocks)
    del model
    release_memory()
    return result


def verify(
    original: BlockSequence,
    directory: str | Path,
    blocks: Iterable[int],
    *,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    family: Family | None = None,
) -> Verification:
    """Check a saved shorter model against its original in memory.

    Args:
        original: the model before the removal.
        directory: where the shorter one was saved.
        blocks: what was removed.
        dtype: what the saved one is opened in; "auto" is what it was saved in.
        family: the adapter's torch-free side; found from the folder where it is not given.

    Raises:
        VerificationError: they differ, or what was saved cannot be loaded.
    """
    from shortgpt.families import recognise, resolve
    from shortgpt.weights import Weights

    gone = set(blocks)
    source = resolve(Path(directory))
    chosen = copy.copy(family) if family else recognise(source)  # what it learns of the shorter model stays here
    keep = [block for block in range(len(original)) if block not in gone]
    config = chosen.read_config(source, trust_remote_code=trust_remote_code)
    folded = bool(chosen.folds(config, keep, Weights(source).names))
    options = OpenOptions(device=str(original.device), dtype=dtype, trust_remote_code=trust_remote_code)
    return check(Path(directory), chosen, expected_logits(original, gone), options, folded=folded)


def lacking_memory(size: int, device: str) -> str | None:
    """Why a model of `size` bytes cannot be loaded, or None where it can."""
    import torch

    if device.startswith("cuda"):
        free = torch.cuda.mem_get_info(torch.device(device))[0]
    else:
        import psutil

        free = psutil.virtual_memory().available
    need = int(size * 1.2) + (256 << 20)  # weights, activations of the probe, the libraries
    if free >= need:
        return None
    return f"it needs about {need / 2**30:.1f} GiB on {device}, {free / 2**30:.1f} GiB are free"


def release_memory() -> None:
    """Give back what a model held that is gone: another process is about to need it."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def check(
    directory: Path,
    family: Family,
    expected: Expectation,
    options: OpenOptions,
    *,
    folded: bool = False,
    rounding: float = 0.0,
) -> Verification:
    """Open a checkpoint in a fresh process and compare it with what is expected of it.

    Args:
        folded: weights were changed to make up for a block's new place, which rounds them.
        rounding: what else explains a difference, relative to the largest logit.

    Raises:
        VerificationError: it cannot be opened, or differs.
    """
    answer = ask(directory, family, expected.input_ids, options)
    if isinstance(answer, Verification):
        return answer
    return judge(answer, expected, family, options, folded=folded, rounding=rounding)


def ask(directory: Path, family: Family, input_ids: Tensor, options: OpenOptions) -> Answer | Verification:
    """What a checkpoint answers in a fresh process; or a `Verification` that says why it could not be asked.

    Raises:
        VerificationError: it cannot be opened.
    """
    import torch
    from safetensors.torch import load_file, save_file

    with tempfile.TemporaryDirectory() as exchange:
        probe_file, answer_file = Path(exchange) / "probe.safetensors", Path(exchange) / "answer.safetensors"
        save_file({"input_ids": input_ids}, probe_file)
        request = {
            "loader": family.loader,
            "directory": str(directory),
            "device": options.device,
            "dtype": options.dtype,
            "trust_remote_code": options.trust_remote_code,
            "probe": str(probe_file),
            "answer": str(answer_file),
            # Sums depend on how they are shared out, so the two processes compute alike.
            "threads": torch.get_num_threads(),
            "precision": torch.get_float32_matmul_precision(),
        }
        run = subprocess.run(
            [
                sys.executable,
                "-c",
                "import sys; from shortgpt.verification import _child; _child(sys.argv[1])",
                json.dumps(request),
            ],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            check=False,
        )
        if run.returncode == -signal.SIGKILL:  # what a system does that is out of memory
            return Verification(verified=False, reason="the process that loaded it was killed, as for lack of memory")
        if run.returncode != 0 or not answer_file.is_file():
            reason = (run.stderr.strip().splitlines() or [f"exit status {run.returncode}"])[-1]
            if "OutOfMemoryError" in reason or reason.startswith("MemoryError"):
                return Verification(verified=False, reason=f"the process that loaded it ran out of memory ({reason})")
            raise VerificationError(f"what was written cannot be loaded and run by its family's own loader: {reason}")
        return Answer.of(load_file(answer_file))


def judge(
    answer: Answer,
    expected: Expectation,
    family: Family,
    options: OpenOptions,
    *,
    folded: bool = False,
    rounding: float = 0.0,
) -> Verification:
    """Compare what a reloaded model answered with what is expected of it. See `check`."""
    import torch

    logits = answer.logits
    if logits.shape != expected.logits.shape:
        raise VerificationError(
            f"the logits have the shape {tuple(logits.shape)}, expected {tuple(expected.logits.shape)}"
        )
    difference = (logits - expected.logits).abs().max().item()
    largest = expected.logits.abs().max().item()
    eps = torch.finfo(getattr(torch, answer.dtype)).eps
    tolerance = max(family.tolerance, rounding)
    if folded or family.tolerance > 0:
        tolerance = max(tolerance, 16 * eps)
    if options.device != "cpu":  # two processes may be given different kernels there, whose sums round differently
        tolerance = max(tolerance, min(max(1e-4, 10 * eps), 4e-2))
    if not difference <= tolerance * largest:
        raise VerificationError(
            f"the shorter model's logits differ by {difference:.3g} from the original's with these blocks skipped "
            f"(largest logit {largest:.4g}, allowed {tolerance * largest:.3g})"
        )
    return Verification(
        verified=True,
        max_difference=difference,
        max_logit=largest,
        tolerance=tolerance,
        probe=tuple(expected.input_ids.shape),
        generated=_generation(answer, eps),
        not_generated=answer.cannot_generate,
        device=options.device,
        dtype=answer.dtype,
        probe_ids=tuple(map(tuple, expected.input_ids.tolist())),
        fingerprint=fingerprint(expected.logits),
    )


def fingerprint(logits: Tensor) -> tuple[float, ...]:
    """256 of the logits of the probe batch, always at the same places."""
    import torch

    places = torch.randint(0, logits.numel(), (256,), generator=torch.Generator().manual_seed(0))
    return tuple(logits.flatten()[places].tolist())


def verify_again(
    directory: str | Path, *, device: str = "cpu", trust_remote_code: bool = False
) -> tuple[Plan, Verification]:
    """Check a pruned checkpoint without its original, against the fingerprint in its `shortgpt.json`.

    It notices files that were damaged, lost or changed, a library that loads or computes them otherwise, and a cache
    that does not fit. Another machine sums in another order, so rounding is allowed here.

    Raises:
        ModelError: the folder holds no fingerprint: it was not made by shortgpt, or not verified then.
        VerificationError: it cannot be opened, or differs.
    """
    import torch

    from shortgpt.families import recognise, resolve
    from shortgpt.weights import Weights

    source = resolve(directory)
    plan = Plan.beside(source.path)
    if plan is None:
        raise ModelError(
            f"{source.name}: it holds no shortgpt.json; `shortgpt verify` checks what `shortgpt prune` wrote"
        )
    made = plan.verification
    if made is None or not made.fingerprint:
        raise ModelError(
            f"{source.name}: it was not verified when it was made, so there is nothing to compare with; "
            "name the model that it was made from (--original)"
        )
    family = recognise(source, plan.export_as or plan.architecture)
    family.read_config(source, trust_remote_code=trust_remote_code)  # one clear message for what cannot be opened
    weights = Weights(source)
    changed = [name for name, found in weights.hashes().items() if made.files.get(name, found) != found]
    if changed:
        raise VerificationError(f"{', '.join(changed)}: not the bytes that were written when it was made")
    short = lacking_memory(weights.bytes_in(made.dtype or "auto"), device)
    if short:
        raise VerificationError(f"it could not be opened to be verified: {short}")
    options = OpenOptions(device=device, dtype=made.dtype or "auto", trust_remote_code=trust_remote_code)
    folder = source.path if source.path.is_dir() else source.path.parent
    answer = ask(folder, family, torch.tensor(made.probe_ids), options)
    if isinstance(answer, Verification):
        raise VerificationError(f"it could not be opened to be verified: {answer.reason}")
    found, expected = torch.tensor(fingerprint(answer.logits)), torch.tensor(made.fingerprint)
    difference, largest = (found - expected).abs().max().item(), made.max_logit or 0.0
    eps = torch.finfo(getattr(torch, answer.dtype)).eps
    tolerance = max(made.tolerance or 0.0, min(max(1e-4, 10 * eps), 4e-2))
    if not difference <= tolerance * largest:
        raise VerificationError(
            f"its logits differ by {difference:.3g} from those that were expected when it was made (largest logit "
            f"{largest:.4g}, allowed {tolerance * largest:.3g})"
        )
    generated = _generation(answer, eps)
    return plan, replace(made, max_difference=difference, tolerance=tolerance, generated=generated, device=device)


def _generation(answer: Answer, eps: float) -> int:
    if answer.cached is None or answer.uncached is None:
        return 0
    return compare_generation(answer.cached, answer.uncached, eps)


def compare_generation(cached: Tensor, uncached: Tensor, eps: float) -> int:
    """Compare the logits of greedy tokens, [tokens, vocabulary], up to the first one that rounding made another.

    From that one on the texts differ. Equal tokens alone would say little: a mixed-up cache often leaves the first ones
    as they are. So the logits are compared, to 64 roundings or 1e-3 of the largest; in bfloat16, where 64 roundings
    would be half of it, to an eighth.

    Returns:
        How many tokens were the same.

    Raises:
        VerificationError: logits differ by more than rounding.
    """
    tolerance = min(max(64 * eps, 1e-3), 0.125)
    for step, (with_cache, without) in enumerate(zip(cached, uncached, strict=True)):
        difference = (with_cache - without).abs().max().item()
        largest = without.abs().max().item()
        if not difference <= tolerance * largest:
            raise VerificationError(
                f"cached generation differs from uncached at token {step}: its logits by {difference:.3g} (largest "
                f"logit {largest:.4g}, allowed {tolerance * largest:.3g})"
            )
        if int(with_cache.argmax()) != int(without.argmax()):
            return step
    return len(cached)


def _child(text: str) -> None:
    """The fresh process: open, run, write the answer."""
    import torch
    from safetensors.torch import load_file, save_file

    request = json.loads(text)
    torch.set_num_threads(request["threads"])
    torch.set_float32_matmul_precision(request["precision"])
    loader = plugins.load_target(request["loader"])
    model: Reloaded = loader(
        Path(request["directory"]),
        device=request["device"],
        dtype=request["dtype"],
        trust_remote_code=request["trust_remote_code"],
    )
    ids = load_file(request["probe"])["input_ids"]
    save_file(Answer.by(model, ids).tensors(), request["answer"])
