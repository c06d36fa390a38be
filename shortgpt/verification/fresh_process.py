"""What a checkpoint computes in a fresh process, opened by its family's own loader.

::

    this process                            a fresh one
    probe, how to open ──── JSON, file ───▶ loader(directory, ...) ─▶ logits, greedy tokens with a cache and without
    `Answer` ◀───────────────── file ────── `Answer`

A fresh process shares nothing with this one: no module that was changed, no tensor that was left over.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from shortgpt.basics.inputs import NearDistance, OpenOptions
from shortgpt.basics.leftovers import no_room_for_temporary, temporary_folder
from shortgpt.basics.stages import stage
from shortgpt.basics.targets import load_target
from shortgpt.errors import AdapterError, StreamingError, VerificationError, reason_of
from shortgpt.models.family import Family
from shortgpt.models.memory import SIGNS, is_lack_of_memory, lacking_memory
from shortgpt.models.probing.logit_comparison import is_half
from shortgpt.models.probing.probes import NEW_TOKENS, Probe, drawn, some_of
from shortgpt.values.plan import Verification

if TYPE_CHECKING:
    from torch import Tensor

START = """\
import ctypes, json, os, signal, sys
request = json.loads(sys.argv[1])
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: it ends with the process that asks
if os.name == "posix" and os.getppid() != request["parent"]:
    os._exit(1)  # which had ended before
sys.path[:] = request["path"]
from shortgpt.verification.fresh_process import _child
_child(sys.argv[1])
"""
NUMBERS = (
    *("logits", "cached", "uncached", "long_logits", "float32_logits", "float32_long_logits"),
    *("long_cached", "long_uncached", "near_logits"),
)
TEXTS = ("dtype", "cannot_generate", "left_over", "generation_dtype", "mended", "cannot_continue")
"""The parts of an answer that are numbers, and that are text."""
NO_ROOM_FOR_ANSWER = 74
"""The exit status of a process that could not write its answer: EX_IOERR of sysexits.h."""

CUT_SHORT = -getattr(signal, "SIGBUS", signal.SIGTERM)
"""How a process ends that reads behind the end of a mapped file."""

CANNOT_STREAM = "cannot_stream"
"""The answer of a model that was to be streamed and cannot be: why."""


class Reloaded(Protocol):
    """A checkpoint opened by its family's own loader; what a `Family.loader` returns.

    Its attribute `dtype`, where it has one, says what the model computes in; without it, that is the logits' dtype.
    `cannot_generate`, where it is there and not None, says why cached generation cannot be compared with uncached;
    `mended`, likewise, what is changed about the library so that it can be, and why.
    Where the type's `BlockSequence` has side inputs, `logits` takes them too, by name and in float32.
    `left_over`, where it is there, names the tensors of the files that the library passed over.
    """

    def logits(self, input_ids: Tensor) -> Tensor:
        """[batch, tokens] → [batch, tokens, vocabulary], uncached."""

    def generate(self, input_ids: Tensor, new_tokens: int, *, cached: bool) -> Tensor:
        """The logits of each greedily generated token after a [1, tokens] prompt: [new_tokens, vocabulary]."""


@dataclass(frozen=True)
class Answer:
    """What a reloaded model computes on the probe batch, in float32 on the CPU.

    Attributes:
        logits: of the short probe, [batch, tokens, vocabulary].
        dtype: what the model computes in.
        long_logits: what is compared of the long probe, [1, some tokens, vocabulary]; None where there is none.
        cached, uncached: the logits of greedily generated tokens, [tokens, vocabulary].
        cannot_generate: why there are none.
        left_over: the tensors of the files that the library passed over, one a line.
        generation_dtype: what these were computed in, where that is not `dtype`.
        float32_logits, float32_long_logits: as those, from the model that generated, where that is another one.
        mended: what was changed about the library to compare, and why.
        long_cached, long_uncached: as `cached` and `uncached`, of tokens behind the long probe.
        cannot_continue: why there are none of those.
        near_logits: of the short probe with a distance set small, [distances, batch, tokens, vocabulary].
    """

    logits: Tensor
    dtype: str
    cached: Tensor | None = None
    uncached: Tensor | None = None
    cannot_generate: str | None = None
    long_logits: Tensor | None = None
    left_over: str | None = None
    generation_dtype: str | None = None
    float32_logits: Tensor | None = None
    float32_long_logits: Tensor | None = None
    mended: str | None = None
    long_cached: Tensor | None = None
    long_uncached: Tensor | None = None
    cannot_continue: str | None = None
    near_logits: Tensor | None = None

    @classmethod
    def by(cls, model: Reloaded, probe: Probe, *, half: bool = True) -> Answer:
        """Ask a model; without `half`, one in half precision for its logits only."""
        import torch

        with torch.no_grad():
            run: Callable[..., Tensor] = model.logits
            logits = run(probe.input_ids, **drawn(probe.side))
            long = None if probe.long_ids is None else some_of(run(probe.long_ids), probe.long_ids.shape[1])
            dtype = str(getattr(model, "dtype", logits.dtype)).removeprefix("torch.")
            of_all: dict[str, Any] = {
                "logits": logits.float().cpu(),
                "dtype": dtype,
                "long_logits": long,
                "left_over": "\n".join(getattr(model, "left_over", ())) or None,
                "mended": getattr(model, "mended", None),
            }
            if is_half(dtype) and not half:
                return cls(**of_all)
            cannot: str | None = getattr(model, "cannot_generate", None)
            if cannot is not None:
                return cls(**of_all, cannot_generate=cannot)
            of_all["cached"], of_all["uncached"] = _generated(model, probe.input_ids[:1], NEW_TOKENS)
            if probe.long_ids is not None and probe.continued:
                try:
                    behind = _generated(model, probe.long_ids, probe.continued)
                    of_all["long_cached"], of_all["long_uncached"] = behind
                except Exception as error:  # the original may fail at it just so, which is asked where this is judged
                    of_all["cannot_continue"] = reason_of(error)
            return cls(**of_all)

    def tensors(self) -> dict[str, Tensor]:
        """As named tensors: the form in which it crosses from one process to the other."""
        import torch

        texts = {name: text for name in TEXTS if (text := getattr(self, name)) is not None}
        encoded = {name: torch.tensor(list(text.encode()), dtype=torch.uint8) for name, text in texts.items()}
        numbers = {name: value for name in NUMBERS if (value := getattr(self, name)) is not None}
        return encoded | {name: tensor.contiguous() for name, tensor in numbers.items()}

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> Answer:
        """The inverse of `tensors`."""
        return cls(**{n: bytes(t.tolist()).decode() if n in TEXTS else t for n, t in tensors.items()})  # type: ignore[arg-type]


def _generated(model: Reloaded, prompt: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """The logits of greedy tokens behind a prompt, [1, tokens]: with a cache, and without."""
    cached, uncached = (model.generate(prompt, tokens, cached=c).float().cpu() for c in (True, False))
    if {len(cached), len(uncached)} != {tokens}:
        raise ValueError(
            f"{tokens} greedy tokens were asked for; {len(cached)} came with a cache, {len(uncached)} without"
        )
    return cached, uncached


@stage("verifying in a fresh process")
def ask(directory: Path, family: Family, probe: Probe, options: OpenOptions) -> Answer | Verification:
    """What a checkpoint answers in a fresh process; or a `Verification` that says why it could not be asked.

    Raises:
        VerificationError: it cannot be opened.
    """
    try:
        with temporary_folder() as exchange:
            return _asked(exchange, directory, family, probe, options)
    except Exception as error:
        if (full := no_room_for_temporary(error)) is None:
            raise
        return Verification(verified=False, reason=full)


def _asked(
    exchange: Path, directory: Path, family: Family, probe: Probe, options: OpenOptions
) -> Answer | Verification:
    import torch
    from safetensors.torch import load_file, save_file

    from shortgpt.models.precision import precision, unrounded_products

    opening = {"device": options.device, "dtype": options.dtype, "trust_remote_code": options.trust_remote_code}
    if options.stream:
        opening["stream"] = family.block_lists[0]
    with unrounded_products():
        probe_file, answer_file = exchange / "probe.safetensors", exchange / "answer.safetensors"
        save_file(probe.ids(), probe_file)
        request = {
            "parent": os.getpid(),
            "loader": family.loader,
            "directory": str(directory),
            "opening": opening,
            "generation": _generation(directory, options, opening),
            "probe": str(probe_file),
            "side": probe.side,
            "near": [one.to_dict() for one in probe.near],
            "continued": probe.continued,
            "answer": str(answer_file),
            # Sums depend on how they are shared out, so the two processes compute alike.
            "path": [place for place in sys.path if os.path.isabs(place)],
            "threads": torch.get_num_threads(),
            "precision": precision(),
        }
        run = subprocess.run(
            # Isolated: the current folder, which may be that of an untrusted model, is no place to import from.
            [sys.executable, "-I", "-c", START, json.dumps(request)],
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode == -signal.SIGKILL:  # what a system does that is out of memory
            return Verification(verified=False, reason="the process that loaded it was killed, as for lack of memory")
        if run.returncode == NO_ROOM_FOR_ANSWER:
            return Verification(verified=False, reason=run.stderr.strip().splitlines()[-1])
        if run.returncode != 0 or not answer_file.is_file():
            reason = _reason(run.stderr) or f"exit status {run.returncode}"
            if run.returncode == CUT_SHORT:
                reason = "a file of it was cut short while it was read, or its disk does not answer"
            if SIGNS.search(reason):
                return Verification(verified=False, reason=f"the process that loaded it ran out of memory ({reason})")
            raise VerificationError(f"what was written cannot be loaded and run by its family's own loader: {reason}")
        answer = load_file(answer_file)
        if CANNOT_STREAM in answer:
            return Verification(verified=False, reason=bytes(answer[CANNOT_STREAM].tolist()).decode())
        return Answer.of(answer)


def _generation(directory: Path, options: OpenOptions, opening: dict[str, Any]) -> dict[str, Any]:
    """How to open a model that computes in half precision once more, in float32, to compare what it generates.

    Where experts are chosen by rounded scores, generation with a cache and without differ in half precision by as much
    as those of a wrong cache. `cannot`, in the place of options, says why that cannot be done.
    """
    files = [file for file in directory.iterdir() if file.is_file()]
    lack = None
    if not options.stream:
        lack = lacking_memory(2 * sum(file.stat().st_size for file in files), options.device)
    config = directory / "config.json"
    if config.is_file() and "quantization_config" in json.loads(config.read_text(encoding="utf-8")):
        lack = "its weights are quantised"
    if lack is not None:
        return {"cannot": f"that takes float32, and {lack}"}
    return {**opening, "dtype": "float32"}


def _answered(request: dict[str, Any], probe: Probe) -> Answer:
    """What a checkpoint answers: its logits in the dtype asked for, and what it generates in float32."""
    loader, directory = load_target(request["loader"]), Path(request["directory"])
    model: Reloaded | None = loader(directory, **request["opening"])
    assert model is not None
    answer = Answer.by(model, probe, half=False)
    model = None  # no two are held together
    if probe.near:
        answer = replace(answer, near_logits=_near_logits(request, probe))
    if not is_half(answer.dtype):
        return answer
    reopened = dict(request["generation"])
    if "cannot" in reopened:
        return replace(answer, cannot_generate=reopened["cannot"])
    try:
        wide = Answer.by(loader(directory, **reopened), probe, half=False)
    except Exception as error:
        if not is_lack_of_memory(error):
            raise
        return replace(answer, cannot_generate=f"that takes float32, and memory did not suffice ({error})")
    if is_half(wide.dtype):
        return replace(answer, cannot_generate=f"that takes float32, and it computes in {wide.dtype} all the same")
    return replace(
        wide,
        logits=answer.logits,
        long_logits=answer.long_logits,
        near_logits=answer.near_logits,
        dtype=answer.dtype,
        generation_dtype=wide.dtype,
        float32_logits=wide.logits,
        float32_long_logits=wide.long_logits,
    )


def _near_logits(request: dict[str, Any], probe: Probe) -> Tensor:
    """The logits of the short probe with a distance set small, [distances, batch, tokens, vocabulary]."""
    import torch

    loader, opening = load_target(request["loader"]), request["opening"]
    logits = []
    for near in probe.near:
        model: Reloaded = loader(Path(request["directory"]), **opening, near=near)
        run: Callable[..., Tensor] = model.logits
        with torch.no_grad():
            logits.append(run(probe.input_ids, **drawn(probe.side)).float().cpu())
    return torch.stack(logits)


def _reason(stderr: str) -> str:
    """What ended a process: from the line that names the error, behind which there may be advice, to the last one that
    is indented below it; or else the last line."""
    lines = stderr.strip().splitlines() or [""]
    named = [i for i, line in enumerate(lines) if re.match(r"[\w.]+(Error|Exception|Interrupt)\b", line)]
    if not named:
        return lines[-1]
    below = takewhile(lambda line: line.startswith(" "), lines[named[-1] + 1 :])
    return reason_of("\n".join((lines[named[-1]], *below)))


def _child(text: str) -> None:
    """The fresh process: open, run, write the answer."""
    import torch
    from safetensors.torch import load_file, save_file

    from shortgpt.models.precision import set_precision

    request = json.loads(text)
    torch.set_num_threads(request["threads"])
    set_precision(request["precision"])
    near = tuple(map(NearDistance.from_dict, request["near"]))
    probe = Probe(**load_file(request["probe"]), side=request["side"], near=near, continued=request["continued"])
    try:
        answer = _answered(request, probe).tensors()
    except (StreamingError, AdapterError) as error:
        if "stream" not in request["opening"]:
            raise
        answer = {CANNOT_STREAM: torch.tensor(list(str(error).encode()), dtype=torch.uint8)}
    try:
        save_file(answer, request["answer"])
    except Exception as error:
        if (full := no_room_for_temporary(error)) is None:
            raise
        print(full, file=sys.stderr)
        sys.exit(NO_ROOM_FOR_ANSWER)
