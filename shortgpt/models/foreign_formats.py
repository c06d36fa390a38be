"""What people point at that is no model folder of transformers, named for what it is, with what to do instead."""

from __future__ import annotations

import json
from pathlib import Path

from shortgpt import plugins

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

_WEIGHTS = "one file of weights, and a model is a folder with a config.json beside its weights"
_FORMATS = {
    ".onnx": "an ONNX graph, which holds no named blocks",
    ".ckpt": "a training checkpoint",
    ".h5": "weights of TensorFlow",
    ".msgpack": "weights of Flax",
    ".tflite": "a model of TensorFlow Lite",
    ".pte": "a model of ExecuTorch",
    ".engine": "an engine of TensorRT",
}
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")


def foreign(path: Path) -> str | None:
    """What a file or folder is that cannot be opened as it is, and what to do; None where nothing speaks against it."""
    return _file(path) if path.is_file() else _folder(path)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a LoRA or another adapter of peft: beside it there may be the model that it belongs to."""
    weights = any((folder / name).is_file() for name in ADAPTER_WEIGHTS)
    return (folder / ADAPTER_CONFIG).is_file() and (weights or not (folder / "config.json").is_file())


def base_of(folder: Path) -> str | None:
    """The model that an adapter was made for, as its config names it."""
    try:
        base = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError):  # told as unknown; peft says what is wrong
        return None
    return base if isinstance(base, str) and base else None


def _folder(folder: Path) -> str | None:
    if is_adapter(folder):
        apart = ", in a folder of its own" if (folder / "config.json").is_file() else ""
        return (
            f"a LoRA adapter of peft, made for the model {base_of(folder) or '(not named)'}; take it merged into that "
            f"model with --merge-adapter (prune and score), or name the model{apart}"
        )
    if not (folder / "config.json").is_file() and (files := sorted(folder.glob("*.gguf"))):
        return _gguf(files[0])
    return None


def _file(file: Path) -> str | None:
    if _begins(file) == b"GGUF" or file.suffix == ".gguf":
        return _gguf(file)
    if any(file.suffix in entry.suffixes for entry in plugins.registry().architectures):
        return None
    beside = f"; name the folder {file.parent}" if (file.parent / "config.json").is_file() else ""
    if file.suffix in _WEIGHT_SUFFIXES:
        return _WEIGHTS + (beside or "; save the model as such a folder (save_pretrained)")
    if file.suffix in _FORMATS:
        return f"{_FORMATS[file.suffix]}; shortgpt reads folders that transformers saves{beside}"
    if file.name.endswith(".index.json"):
        return f"an index of weight files{beside or '; a model is a folder with a config.json beside its weights'}"
    if file.suffix == ".json":
        return f"a JSON file{beside or '; a model is a folder with a config.json beside its weights'}"
    return None


def _begins(file: Path) -> bytes:
    try:
        with file.open("rb") as reader:
            return reader.read(4)
    except OSError:  # told by whoever reads the file
        return b""


def _gguf(file: Path) -> str:
    return (
        f"a GGUF file of llama.cpp ({file.name}); take the model that it was made from, or have transformers turn it "
        f"into a folder: AutoModelForCausalLM.from_pretrained({str(file.parent)!r}, gguf_file={file.name!r}), then "
        "save_pretrained"
    )
