"""What pruning on disk costs beside `cp` of the bytes that stay, beside SHA-256, and beside other ways.

    python benchmarks/pruning.py [--width 2048] [--blocks 16] [--rounds 5] [--folder DIR] [--mergekit PYTHON]

A Llama's checkpoint of random bytes in bfloat16 is made in a temporary folder, in shards, and a quarter of its blocks
is removed, each time in a process of its own, the ways in turns:

    cp           cp -r of a folder that holds the bytes that stay: the floor of what does not wait for the disk
    durable_cp   the same, and then each file's fsync: the floor of what does, as shortgpt does before it gives a folder
                 its name
    copying      shortgpt's copying alone: the headers are read, the tensors that stay are written, and the index
    sha256       SHA-256 of as many bytes as the source has, without reading them, on all cores: the floor of the hashes
    hashes       shortgpt's hashes of the source alone
    prune        shortgpt.prune_checkpoint(verify=False): both at once, with config, tokenizer and records
    cached       the same of a source that lies in the hub's cache, which tells its files' SHA-256: nothing is hashed
    usual        AutoModelForCausalLM.from_pretrained, delete the blocks, save_pretrained; no hashes
    passthrough  what mergekit's method of that name comes to: each tensor that stays is mapped, and saved together with
                 others when they are 5 GB; no hashes
    mergekit     that method itself; only where a Python is named that has mergekit 0.1.5 (PyPI) beside the rest

The source is in the page cache. Given are medians, and medians of the ratios of neighbouring runs, each begun when the
disk has nothing left to write. Each process first does the same to a tiny model: what that
takes, imports for the most part, is the fixed cost, and stands beside. Memory is what a process holds beyond that,
its own and mapped from files, sampled every 3 ms.
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
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from watching import Peak, memory

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("width", 2048), ("blocks", 16), ("shard-mib", 256), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--folder", help="where the temporary folder is made, on the disk to be measured")
    parser.add_argument("--mergekit", metavar="PYTHON", help="an interpreter that can import mergekit")
    parser.add_argument("--way", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    chosen = vars(parser.parse_args())
    way = chosen.pop("way")
    if way:
        print(json.dumps(measured(WAY[way[0]], Path(way[1]))))
        return
    for row in measure(**chosen):
        line = f"{row['way']:>12} {row['seconds']:7.2f} s ({row['least']:.2f} to {row['greatest']:.2f})"
        if row["over"]:
            line += f"  {row['ratio']:5.2f} x {row['over']:<10} {row['to_cp']:5.2f} x cp"
            line += f"  {row['own_mib']:7.1f} MiB, {row['mapped_mib']:6.0f} mapped"
            line += f"   fixed {row['fixed_seconds']:.1f} s"
        print(line)
    print(f"{row['source_mib']:,.0f} MiB, of which {row['kept_mib']:,.0f} MiB stay; {os.cpu_count()} CPU cores")


def measure(
    folder: str | None = None,
    *,
    width: int = 2048,
    blocks: int = 16,
    shard_mib: int = 256,
    rounds: int = 5,
    mergekit: str | None = None,
) -> list[Row]:
    """One row a way.

    Args:
        folder: where the temporary folder is made; it takes about three times the checkpoint.
        mergekit: an interpreter that can import mergekit; without it that way is left out.
    """
    ways = [way for way in WAY if way != "mergekit" or mergekit]
    with tempfile.TemporaryDirectory(prefix="shortgpt-pruning-", dir=folder) as temporary:
        place = Path(temporary)
        make(place / "tiny", 64, 4, 64, 1 << 30)
        size = make(place / "source", width, blocks, 32_000, shard_mib << 20)
        for name in ("tiny", "source"):
            copying(place / name, place / f"{name} kept")  # what cp copies
            as_in_the_cache(place / name)
        kept = sum(file.stat().st_size for file in (place / "source kept").iterdir())
        runs: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way in ways:
                python = mergekit if way == "mergekit" and mergekit else sys.executable
                command = [python, __file__, "--way", way, str(place)]
                ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                runs[way].append(json.loads(ran.stdout.splitlines()[-1]))
    return [row_of(way, runs, size, kept) for way in ways]


def row_of(way: str, runs: dict[str, list[dict[str, float]]], size: int, kept: int) -> Row:
    """Seconds, and the ratio to its floor; `own_mib` and `mapped_mib` beyond what the fixed part took."""
    results, over = runs[way], FLOORS.get(way)
    floor = runs[over] if over else results
    seconds = [run["seconds"] for run in results]
    return {
        "way": way,
        "over": over,
        "ratio": statistics.median(a / b["seconds"] for a, b in zip(seconds, floor, strict=True)),
        "to_cp": statistics.median(a / b["seconds"] for a, b in zip(seconds, runs["cp"], strict=True)),
        "seconds": statistics.median(seconds),
        "least": min(seconds),
        "greatest": max(seconds),
        "fixed_seconds": statistics.median(run["fixed"] for run in results),
        "own_mib": max(run["own"] for run in results),
        "mapped_mib": max(run["mapped"] for run in results),
        "source_mib": size / 2**20,
        "kept_mib": kept / 2**20,
    }


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


def as_in_the_cache(source: Path) -> None:
    """A snapshot beside it as the hub's cache has them: links to blobs, which are called by their SHA-256."""
    snapshot = in_cache(source)
    blobs = snapshot.parents[1] / "blobs"
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    for file in source.iterdir():
        with file.open("rb") as reader:
            blob = blobs / hashlib.file_digest(reader, "sha256").hexdigest()
        blob.hardlink_to(file)
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)


def in_cache(source: Path) -> Path:
    return source.with_name(f"models--benchmarks--{source.name}") / "snapshots" / "0123"


def measured(way: Callable[[Path, Path], None], folder: Path) -> dict[str, float]:
    """Seconds, and MiB of memory, of one way in this process."""
    fixed = seconds(lambda: way(folder / "tiny", folder / "out"))
    shutil.rmtree(folder / "out", ignore_errors=True)
    gc.collect()
    os.sync()
    base = memory()
    with Peak() as peak:
        taken = seconds(lambda: way(folder / "source", folder / "out"))
    shutil.rmtree(folder / "out", ignore_errors=True)
    own, mapped = (max(0.0, most - base[kind]) for kind, most in (("own", peak.own), ("mapped", peak.mapped)))
    return {"seconds": taken, "fixed": fixed, "own": own, "mapped": mapped}


def seconds(call: Callable[[], None]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def gone(source: Path) -> list[int]:
    """A quarter of the blocks, in the middle."""
    blocks = json.loads((source / "config.json").read_text())["num_hidden_layers"]
    return list(range(blocks // 2, blocks // 2 + blocks // 4))


def cp(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-r", source.with_name(f"{source.name} kept"), target], check=True)


def durable_cp(source: Path, target: Path) -> None:
    cp(source, target)
    for path in (*target.iterdir(), target):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def copying(source: Path, target: Path) -> None:
    from shortgpt.checkpoints.weights import Weights
    from shortgpt.checkpoints.writing import write
    from shortgpt.models.recognition import recognise, resolve

    found = resolve(source)
    weights, blocks = Weights(found), found.config["num_hidden_layers"]
    keep = [index for index in range(blocks) if index not in gone(source)]
    target.mkdir()
    unhashed = dict.fromkeys(weights.files, "0" * 64)
    write(weights, target, recognise(found).rename(weights.names, blocks, keep), {}, None, unhashed)


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
    from shortgpt.checkpoints.weights import Weights
    from shortgpt.models.recognition import resolve

    Weights(resolve(source)).hashes()


def prune(source: Path, target: Path) -> None:
    import shortgpt

    shortgpt.prune_checkpoint(source, target, gone(source), verify=False)


def cached(source: Path, target: Path) -> None:
    prune(in_cache(source), target)


def usual(source: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    layers = [layer for index, layer in enumerate(model.model.layers) if index not in gone(source)]
    model.model.layers = torch.nn.ModuleList(layers)
    model.config.num_hidden_layers = len(layers)
    model.save_pretrained(target, max_shard_size="256MB")


def passthrough(source: Path, target: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    target.mkdir()
    renamed = {old: new for new, old in stays(source)}
    shard: dict[str, Any] = {}
    written = 0

    def save() -> None:
        nonlocal written
        written += 1
        save_file(shard, target / f"model-{written}.safetensors", metadata={"format": "pt"})
        shard.clear()

    for file in sorted(source.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for old in renamed.keys() & set(tensors.keys()):
                shard[renamed[old]] = tensors.get_tensor(old)
                if sum(tensor.nbytes for tensor in shard.values()) > 5_000_000_000:
                    save()
    save()


def stays(source: Path) -> Iterator[tuple[str, str]]:
    """The tensors that stay: new name, old name."""
    from shortgpt.checkpoints.weights import Weights
    from shortgpt.models.recognition import recognise, resolve

    found = resolve(source)
    blocks = found.config["num_hidden_layers"]
    keep = [index for index in range(blocks) if index not in gone(source)]
    yield from recognise(found).rename(Weights(found).names, blocks, keep).items()


def mergekit(source: Path, target: Path) -> None:
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge

    blocks, removed = json.loads((source / "config.json").read_text())["num_hidden_layers"], gone(source)
    ranges = ([0, removed[0]], [removed[-1] + 1, blocks])
    slices = [{"sources": [{"model": str(source), "layer_range": part}]} for part in ranges if part[0] < part[1]]
    config = {"merge_method": "passthrough", "dtype": "bfloat16", "slices": slices}
    options = MergeOptions(copy_tokenizer=False, lazy_unpickle=True, quiet=True)
    run_merge(MergeConfiguration.model_validate(config), str(target), options)


WAY = {
    way.__name__: way for way in (cp, durable_cp, copying, sha256, hashes, prune, cached, usual, passthrough, mergekit)
}
FLOORS = (
    {"hashes": "sha256"}
    | dict.fromkeys(("copying", "prune", "cached"), "durable_cp")
    | dict.fromkeys(("durable_cp", "usual", "passthrough", "mergekit"), "cp")
)

if __name__ == "__main__":
    main()
