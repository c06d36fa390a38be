"""Broken and hostile inputs, made by Hypothesis: what may come of each is a result or a `ShortGPTError`.

::

    a good model ─ copied ─▶ one file of it changed ─▶ an operation ─▶ fine, or one clear error, soon, in little memory
                                                          └ an audit hook watches every file that is opened or written

`python -m tests.hostile 20000` (`make hostile`) tries so many; the test run tries some.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import pickle
import resource
import shutil
import sys
import sysconfig
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import shortgpt
from shortgpt import Plan, Scores, ShortGPTError
from shortgpt.checkpoints.weights import Weights
from shortgpt.models.recognition import resolve
from tests import support

SECONDS = 10.0
MEBIBYTES = 500

# -- the watch ------------------------------------------------------------------------------------------------------

READ_BY_PYTHON = tuple(
    os.path.realpath(place)
    for place in {
        *sys.path,
        sys.prefix,
        sys.base_prefix,
        *sysconfig.get_paths().values(),
        "/proc",
        "/sys",
        "/dev",
        "/usr",
    }
    if place
)
WRITES = frozenset(
    {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.symlink", "os.link", "os.chmod", "os.truncate"}
)
DESCRIPTORS = frozenset({"os.remove", "os.rmdir", "os.mkdir", "os.chmod"})
"""Events that name a folder's descriptor last, where a path is one inside it."""
_watched: list[Watch] = []


@dataclass
class Watch:
    """What was opened or changed outside of the places that an operation may touch."""

    allowed: tuple[str, ...]
    outside: list[str] = field(default_factory=list)

    def note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" and event not in WRITES:
            return
        path = arguments[0]
        if not isinstance(path, (str, bytes)) or path in ("", b""):
            return  # a descriptor that is open already
        inside = (
            arguments[-1] if event in DESCRIPTORS and isinstance(arguments[-1], int) and arguments[-1] > 0 else None
        )
        folder = "" if inside is None else os.readlink(f"/proc/self/fd/{inside}")
        place = os.path.realpath(os.path.join(folder, os.fsdecode(path)))
        reads = event == "open" and not any(sign in str(arguments[1] or "r") for sign in "wax+")
        if event == "os.mkdir" and any(one.startswith(place + os.sep) for one in self.allowed):
            return  # it is there: that of the folder around the output
        if reads and os.path.isdir(place) and any(one.startswith(place + os.sep) for one in self.allowed):
            return  # to have the disk hold what it names
        if place.startswith(self.allowed) or (reads and place.startswith(READ_BY_PYTHON)):
            return
        if reads and not os.path.exists(place):
            return
        self.outside.append(f"{event} {place}")


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    for watch in _watched:
        watch.note(event, arguments)


@cache
def _install_audit() -> None:
    sys.addaudithook(_audit)  # for good: none can be taken off


@contextlib.contextmanager
def watching(*allowed: Path) -> Iterator[Watch]:
    """Inside it every file that is opened outside of these folders is noted."""
    _install_audit()
    watch = Watch(tuple(os.path.realpath(folder) for folder in allowed))
    _watched.append(watch)
    try:
        yield watch
    finally:
        _watched.remove(watch)


# -- what is broken -------------------------------------------------------------------------------------------------

SECRET = "a file that is none of the model's"
ODD = st.sampled_from(
    [
        *(None, True, -1, 0, 1, 3, 8000, 10**9, 10**30, 2**63, -(10**18), 1e308, float("nan"), float("inf")),
        *("", "..", "/etc/passwd", "../secret", "a\x00b", "\x1b[31m", "\ud800", "x" * 5000, "LlamaForCausalLM", "gpt2"),
        *([], {}, [[]], [None] * 7, [0] * 3000, ["full_attention"] * 6, {"a": {"b": [1]}}, [10**6, "x"]),
    ]
)
JSON = st.recursive(
    ODD, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)


@dataclass(frozen=True)
class Place:
    """Where in a JSON value something else is put."""

    path: tuple[str | int, ...]


def places_of(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The places in a JSON value, outermost first; of long lists the first ones."""
    inner: Any = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    for key, item in list(inner)[:60]:
        yield (*path, key)
        yield from places_of(item, (*path, key))


def changed_json(draw: Callable[[Any], Any], text: str) -> str:
    """A JSON text with some of its values others, gone, or new; or cut off."""
    value = json.loads(text)
    for _ in range(draw(st.integers(1, 3))):
        found = list(places_of(value))
        if not found:
            break
        *outer, key = draw(st.sampled_from(found))
        place: Any = value
        for step in outer:
            place = place[step]
        what = draw(st.sampled_from(("other", "gone", "new", "double")))
        if what == "gone":
            del place[key]
        elif what == "new" and isinstance(place, dict):
            place[draw(st.sampled_from(NEW_FIELDS))] = copy.deepcopy(draw(JSON))
        elif what == "double":
            place[key] = [copy.deepcopy(place[key])] * 2
        else:
            place[key] = copy.deepcopy(draw(JSON))
    written = json.dumps(value)
    if draw(st.integers(0, 9)) == 0:
        written = written[: draw(st.integers(0, len(written)))]
    return written


NEW_FIELDS = (
    *("layer_types", "num_labels", "auto_map", "quantization_config", "rope_scaling", "sliding_window", "text_config"),
    *("num_local_experts", "adapter_file", "tokenizer_file", "vocab_file", "name_or_path", "base_model_name_or_path"),
    *(
        "chat_template",
        "model_max_length",
        "mlp_only_layers",
        "n_layer",
        "tie_word_embeddings",
        "torch_dtype",
        "exports",
    ),
)


def changed_bytes(draw: Callable[[Any], Any], data: bytes) -> bytes:
    """Bytes of which some are others, or that are cut off, or that are longer."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        near_begin = draw(st.booleans())
        at = draw(st.integers(0, min(len(changed) - 1, 4000) if near_begin else len(changed) - 1))
        changed[at] = draw(st.integers(0, 255))
    what = draw(st.integers(0, 5))
    if what == 0:
        del changed[draw(st.integers(0, len(changed))) :]
    elif what == 1:
        changed += b"\x00" * draw(st.integers(1, 64))
    return bytes(changed)


def changed_header(draw: Callable[[Any], Any], data: bytes) -> bytes:
    """A safetensors file whose header says something else."""
    length = int.from_bytes(data[:8], "little")
    text = changed_json(draw, data[8 : 8 + length].decode()).encode(errors="surrogatepass")
    told = draw(st.sampled_from((len(text), len(text), len(text), 0, 2**40, 2**63, len(text) + 8)))
    return told.to_bytes(8, "little") + text + data[8 + length :]


class Evil:
    """What a pickle runs that is trusted."""

    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/shortgpt-was-here",)


def pickles(draw: Callable[[Any], Any], data: bytes) -> bytes:
    """A file of torch that is broken, or holds something else."""
    what = draw(st.integers(0, 3))
    if what == 0:
        return pickle.dumps({"blocks.0.ln1.weight": Evil()})
    if what == 1:
        return pickle.dumps(draw(JSON))
    return changed_bytes(draw, data)


# -- the good model, and what is done with a broken one ---------------------------------------------------------------


@cache
def good() -> Path:
    """A tiny Llama of three blocks in shards, with a tokenizer, a plan and scores; and an RWKV file."""
    folder = Path(tempfile.mkdtemp(prefix="hostile-")) / "good"
    model = support.tiny("llama", 3)
    support.saved(model, folder / "model", max_shard_size="60KB")
    support.saved(model, folder / "single")
    model.save_pretrained(folder / "unsafe")
    (folder / "unsafe" / "model.safetensors").unlink()
    torch.save(dict(model.state_dict()), folder / "unsafe" / "pytorch_model.bin")
    opened = shortgpt.load(folder / "single", device="cpu")
    scores = shortgpt.score(opened, ["some text to score blocks on", "and another one"])
    (folder / "scores.json").write_text(scores.to_json())
    plan = shortgpt.prune_checkpoint(folder / "single", folder / "short", [1], verify=False, device="cpu")
    (folder / "plan.json").write_text(Plan(**{**vars(plan), "scores": scores}).to_json())
    return folder


def _load(folder: Path) -> None:
    model = shortgpt.load(folder, device="cpu")
    model.logits({"input_ids": torch.ones(1, 4, dtype=torch.long)})
    if model.tokenizer is not None:
        shortgpt.calibrate(["a b c " * 20], model, tokens=32)


def _prune(folder: Path) -> None:
    shortgpt.prune_checkpoint(folder, folder.parent / "out", [1], verify=False, device="cpu")


def _weights(folder: Path) -> None:
    weights = Weights(resolve(folder))
    weights.parameters(weights.names)


@dataclass(frozen=True)
class Attack:
    """What is changed, by what, and what is done then.

    Attributes:
        model: the folder of `good` that is copied.
        file: the file in it that is changed.
    """

    model: str
    file: str
    change: Callable[..., Any]
    run: Callable[[Path], None]
    share: int  # of a hundred


ATTACKS = {
    "config, loaded": Attack("single", "config.json", changed_json, _load, 3),
    "config, pruned": Attack("single", "config.json", changed_json, _prune, 3),
    "index, loaded": Attack("model", "model.safetensors.index.json", changed_json, _load, 1),
    "index, read": Attack("model", "model.safetensors.index.json", changed_json, _weights, 20),
    "header, read": Attack("single", "model.safetensors", changed_header, _weights, 25),
    "header, loaded": Attack("single", "model.safetensors", changed_header, _load, 1),
    "tokenizer": Attack("single", "tokenizer.json", changed_json, _load, 2),
    "tokenizer's config": Attack("single", "tokenizer_config.json", changed_json, _load, 2),
    "generation config": Attack("single", "generation_config.json", changed_json, _load, 1),
    "bin, read": Attack("unsafe", "pytorch_model.bin", pickles, _weights, 10),
    "bin, loaded": Attack("unsafe", "pytorch_model.bin", pickles, _load, 1),
    "plan": Attack("", "plan.json", changed_json, lambda file: _raise_nothing(Plan.read(file)), 15),
    "scores": Attack("", "scores.json", changed_json, lambda file: _compared(file), 16),
}


def _raise_nothing(plan: Plan) -> None:
    str(plan.verification)
    plan.to_json()


def _compared(file: Path) -> None:
    scores = Scores.from_json(file.read_text(encoding="utf-8"))
    shortgpt.compare([scores, file, scores])


def campaign(name: str, examples: int) -> None:
    """Try so many inputs of one kind.

    Raises:
        AssertionError: one gave an error of another kind, took too long or too much memory, or touched other files.
    """
    attack = ATTACKS[name]
    root = good()
    work = root.parent / f"work-{os.getpid()}"
    tests = settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )

    # No input is made smaller that fails: that can take minutes, and what failed says where.
    @tests
    @given(st.data())
    def run(data: Any) -> None:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        (work / "secret").write_text(SECRET)
        target = work / (attack.model or attack.file)
        if attack.model:
            shutil.copytree(root / attack.model, target)
        else:
            shutil.copyfile(root / attack.file, target)
        file = target / attack.file if attack.model else target
        binary = attack.change is not changed_json
        before = file.read_bytes()
        after = attack.change(data.draw, before if binary else before.decode())
        file.write_bytes(after if binary else after.encode(errors="surrogatepass"))
        begin, memory = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        allowed = (
            target,
            work / "out",
            work / ".out",
            work / ".shortgpt-",
            Path(tempfile.gettempdir()) / "pymp",
            *CACHES,
        )
        with watching(*allowed) as watch, contextlib.suppress(ShortGPTError):
            attack.run(target)
        taken = time.monotonic() - begin
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024
        assert watch.outside == [], watch.outside
        assert taken < SECONDS, f"{taken:.1f} s"
        assert grown < MEBIBYTES, f"{grown:.0f} MiB"

    try:
        run()
    finally:
        shutil.rmtree(work, ignore_errors=True)


CACHES = (Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface")),)


def main(total: int) -> None:
    """The whole campaign, by its shares."""
    failed = 0
    for name, attack in ATTACKS.items():
        begin, examples = time.monotonic(), max(1, total * attack.share // 100)
        try:
            campaign(name, examples)
            outcome = "0 escapes"
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            failed += 1
            outcome = "FAILED: " + "\n".join(traceback.format_exception(error, limit=-6))
        print(f"{name:20} {examples:6} cases {time.monotonic() - begin:7.1f} s  {outcome}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
