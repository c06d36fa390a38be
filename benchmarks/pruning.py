"""What pruning on disk costs beside `cp` of the bytes that stay, beside SHA-256, and beside the usual way.

    python benchmarks/pruning.py [--width 2048] [--blocks 16] [--folder DIR]

A Llama's checkpoint of random bytes in bfloat16 is made in a temporary folder, in shards, and a quarter of its blocks
is removed, each time in a process of its own, the ways in turns:

    cp         cp -r of a folder that holds the bytes that stay: the floor of the copying
    copying    shortgpt's copying alone: the headers are read, the tensors that stay are written, and the index
    sha256     SHA-256 of as many bytes as the source has, without reading them, on all cores: the floor of the hashes
    hashes     shortgpt's hashes of the source alone
    prune      shortgpt.prune_checkpoint(verify=False): both at once, with config, tokenizer and records
    usual      AutoModelForCausalLM.from_pretrained, delete the blocks, save_pretrained; no hashes

The source is in the page cache, and what is written may stay there: times are the machine's, not the disk's. Printed
are medians, and medians of the ratios of neighbouring runs. Each process first does the same to a tiny model: what that
takes, imports for the most part, is the fixed cost, and stands beside. Memory is what a process holds beyond that,
its own and mapped from files, sampled every 2 ms.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("width", 2048), ("blocks", 16), ("shard-mib", 256), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--folder", help="where the temporary folder is made, on the disk to be measured")
    parser.add_argument("--way", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.way:
        print(json.dumps(measured(WAY[chosen.way[0]], Path(chosen.way[1]))))
        return
    with tempfile.TemporaryDirectory(dir=chosen.folder) as temporary:
        folder = Path(temporary)
        make(folder / "tiny", 64, 4, 64, 1 << 30)
        size = make(folder / "source", chosen.width, chosen.blocks, 32_000, chosen.shard_mib << 20)
        for name in ("tiny", "source"):  # what cp copies
            copying(folder / name, folder / f"{name} kept")
        runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAY}
        for _ in range(chosen.rounds):
            for way in WAY:
                command = [sys.executable, __file__, "--way", way, str(folder)]
                ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                runs[way].append(json.loads(ran.stdout.splitlines()[-1]))
        kept = sum(file.stat().st_size for file in (folder / "source kept").iterdir())
    print(f"{size / 2**30:.2f} GiB, of which {kept / 2**30:.2f} GiB stay; {os.cpu_count()} CPU cores")
    for way, results in runs.items():
        seconds = statistics.median(run["seconds"] for run in results)
        line = f"{way:>10} {seconds:7.2f} s"
        if way in FLOORS:
            floor = runs[FLOORS[way]]
            ratio = statistics.median(a["seconds"] / b["seconds"] for a, b in zip(results, floor, strict=True))
            own, mapped = (max(run[kind] for run in results) for kind in ("own", "mapped"))
            fixed = statistics.median(run["fixed"] for run in results)
            line += f"  {ratio:5.2f} x {FLOORS[way]:<6}  {own:7.1f} MiB, {mapped:6.0f} mapped   fixed {fixed:.1f} s"
        print(line)


def make(folder: Path, width: int, blocks: int, vocabulary: int, shard: int) -> int:
    """A Llama's checkpoint of random bytes, in shards of up to `shard` bytes; returns its size."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=blocks,
        num_attention_heads=width // 64,
        num_key_value_heads=max(width // 256, 1),
        vocab_size=vocabulary,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    config.save_pretrained(folder)
    parts: list[list[str]] = [[]]
    room = shard
    for name, shape in shapes.items():
        room -= 2 * math.prod(shape)
        if room < 0 and parts[-1]:
            parts.append([])
            room = shard - 2 * math.prod(shape)
        parts[-1].append(name)
    weight_map: dict[str, str] = {}
    for number, part in enumerate(parts, start=1):
        file = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        random = {name: torch.randint(0, 256, (*shapes[name], 2), dtype=torch.uint8) for name in part}
        tensors = {name: value.view(torch.bfloat16).squeeze(-1) for name, value in random.items()}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    size = sum(2 * math.prod(shape) for shape in shapes.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return size


def measured(way: Callable[[Path, Path], None], folder: Path) -> dict[str, float]:
    """Seconds, and MiB of anonymous memory, of one way in this process."""
    fixed = seconds(lambda: way(folder / "tiny", folder / "out"))
    shutil.rmtree(folder / "out", ignore_errors=True)
    gc.collect()
    base = memory()
    peak, ended = dict(base), threading.Event()

    def watch() -> None:
        while not ended.wait(0.002):
            peak.update({kind: max(peak[kind], held) for kind, held in memory().items()})

    watcher = threading.Thread(target=watch)
    watcher.start()
    taken = seconds(lambda: way(folder / "source", folder / "out"))
    ended.set()
    watcher.join()
    shutil.rmtree(folder / "out", ignore_errors=True)
    return {"seconds": taken, "fixed": fixed, **{kind: (peak[kind] - base[kind]) / 2**20 for kind in peak}}


def seconds(call: Callable[[], None]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def memory() -> dict[str, int]:
    """Bytes of this process's memory: its own, and those that are mapped from files."""
    with open("/proc/self/status") as status:
        held = dict(line.split(":", 1) for line in status)
    return {kind: int(held[field].split()[0]) << 10 for kind, field in (("own", "RssAnon"), ("mapped", "RssFile"))}


def gone(source: Path) -> list[int]:
    """A quarter of the blocks, in the middle."""
    blocks = json.loads((source / "config.json").read_text())["num_hidden_layers"]
    return list(range(blocks // 2, blocks // 2 + blocks // 4))


def cp(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-r", source.with_name(f"{source.name} kept"), target], check=True)


def copying(source: Path, target: Path) -> None:
    from shortgpt.families import recognise, resolve
    from shortgpt.weights import Weights

    found = resolve(source)
    weights, blocks = Weights(found), found.config["num_hidden_layers"]
    keep = [index for index in range(blocks) if index not in gone(source)]
    target.mkdir()
    weights.write(target, recognise(found).rename(weights.names, blocks, keep), {}, None)


def sha256(source: Path, target: Path) -> None:
    piece, cores = bytes(1 << 20), os.cpu_count() or 1
    pieces = sum(file.stat().st_size for file in source.glob("*.safetensors")) // len(piece)

    def share(_: int) -> None:
        digest = hashlib.sha256()
        for _ in range(pieces // cores):
            digest.update(piece)

    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(share, range(cores)))


def hashes(source: Path, target: Path) -> None:
    from shortgpt.families import resolve
    from shortgpt.weights import Weights

    Weights(resolve(source)).hashes()


def prune(source: Path, target: Path) -> None:
    import shortgpt

    shortgpt.prune_checkpoint(source, target, gone(source), verify=False)


def usual(source: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    layers = [layer for index, layer in enumerate(model.model.layers) if index not in gone(source)]
    model.model.layers = torch.nn.ModuleList(layers)
    model.config.num_hidden_layers = len(layers)
    model.save_pretrained(target, max_shard_size="256MB")


WAY = {way.__name__: way for way in (cp, copying, sha256, hashes, prune, usual)}
FLOORS = {"copying": "cp", "hashes": "sha256", "prune": "cp", "usual": "cp"}

if __name__ == "__main__":
    main()
