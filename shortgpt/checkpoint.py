"""The rewrite on disk: kept tensors move from file to file as bytes, without a model being loaded.

::

    model-00001-of-3.safetensors ─┐   rename, drop    ┌─ model-00001-of-2.safetensors
    model-00002-of-3.safetensors ─┼──────────────────▶┼─ model-00002-of-2.safetensors      .out.partial-x/ ─▶ out/
    model-00003-of-3.safetensors ─┘                   └─ index, tokenizer ..., config.json last

Everything is written into a folder beside the target and renamed into place at the end: a run that dies leaves nothing
that carries the target's name.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from shortgpt.errors import ModelError, OutputError, SelectionError
from shortgpt.exports import EXPORT_FILES
from shortgpt.families import Config, Family, Source, recognise, resolve
from shortgpt.plan import CARD_FILE, PLAN_FILE, Plan, Verification, write_records
from shortgpt.scores import Progress
from shortgpt.weights import INDEXES, Weights, file_hash

WEIGHT_SUFFIXES = frozenset({".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx"})


def prune_checkpoint(
    source: str | Path | Source,
    output: str | Path,
    blocks: Plan | Iterable[int],
    *,
    verify: bool = True,
    device: str | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    architecture: str | None = None,
    export_as: str | None = None,
    stream: bool = False,
    progress: Progress | None = None,
) -> Plan:
    """Remove blocks from a checkpoint on disk, without loading the model, and prove the result.

    Args:
        source: a model folder or file, a hub id, or a shipped name.
        output: a folder that does not exist, or is empty.
        blocks: what goes: block numbers, or a `Plan`.
        verify: open both models, one after the other, and compare; see `shortgpt.verification`.
        device, dtype: of the verification, as `shortgpt.load` takes them.
        export_as: write the result as another architecture that the family can be written as, exactly.
        stream: verify with the weights read block by block, so that neither model is ever in memory. So it is done
            anyway where memory does not suffice.
        progress: called after every tensor written.

    Returns:
        The plan, with its verification and the source's hashes, as it stands in the output's `shortgpt.json`.

    Raises:
        ModelError: the source cannot be read. SelectionError: the blocks may not go. OutputError: the output cannot
            be written. VerificationError: the result is not what skipping says it should be. In every case nothing is
            left at `output`.
    """
    from shortgpt import verification
    from shortgpt.loading import open_options

    origin = source if isinstance(source, Source) else resolve(source, architecture)
    family = recognise(origin, architecture)
    if export_as is None and isinstance(blocks, Plan):
        export_as = blocks.export_as
    if export_as is not None and export_as not in family.exports:
        can = ", ".join(family.exports) or "none"
        raise ModelError(f"{origin.name}: {family.architecture} cannot be written as {export_as!r} (supported: {can})")
    config = family.read_config(origin, trust_remote_code=trust_remote_code)
    reason = export_as and family.refuse_export(config, export_as)
    if reason:
        raise ModelError(f"{origin.name}: {reason}")
    plan = blocks if isinstance(blocks, Plan) else None
    keep = family.keep(config, blocks.blocks if isinstance(blocks, Plan) else blocks)
    depth = family.depth(config)
    if len(keep) == depth:
        raise SelectionError("no blocks were asked for, so there is nothing to remove; name at least one")
    if plan is None:
        gone = tuple(i for i in range(depth) if i not in set(keep))
        plan = Plan(model=origin.name, architecture=family.architecture, depth=depth, blocks=gone)
    else:
        check_plan(plan, origin.name, family, config)
    weights = Weights(origin)
    family.check_tensors(config, weights.names)
    renamed = family.rename(weights.names, depth, keep)
    folds = family.folds(config, keep, renamed)
    options = open_options(origin, family, device, dtype, trust_remote_code, stream and family.streams)
    options = replace(options, stream=stream)  # verification says what cannot be streamed; the removal is done
    rounding = 0.0
    if export_as is not None:  # in half precision the rounding of two architectures would hide a wrong export
        rounding = 0.02 if weights.is_half else 1e-5
        options = replace(options, dtype="float32")
    base = Plan.beside(origin.path)
    with new_folder(output) as folder, ThreadPoolExecutor(1) as pool, ExitStack() as cleanup:
        stop = threading.Event()
        cleanup.callback(stop.set)  # or an interruption would wait for the hashes of all the files
        hashes = pool.submit(weights.hashes, stop)
        outcome = Verification(verified=False, reason="it was not asked for")
        expected = verification.expectation(origin, family, config, plan.blocks, weights, options) if verify else None
        written = family
        with tempfile.TemporaryDirectory(dir=folder) as inner:
            stage = folder if export_as is None else Path(inner)
            weights.write(stage, renamed, folds, progress)
            family.write_config(family.rewrite_config(config, keep), origin, stage)
            if export_as is not None:
                family.export(Source(origin.name, stage), export_as, folder)
                exported = Source(str(folder), folder)
                written = recognise(exported)
                written.read_config(exported, trust_remote_code=trust_remote_code)
        if isinstance(expected, Verification):
            outcome = expected
        elif expected is not None:
            made = Weights(resolve(folder))
            made_hashes = pool.submit(made.hashes, stop)  # while the other process is at work
            outcome = verification.check(
                folder,
                written,
                expected,
                options,
                folded=bool(folds),
                shifted=export_as is None and verification.moved(weights, made, renamed),
                rounding=rounding,
            )
            hashed = made_hashes.result()
            others = {
                file.name: file_hash(file)
                for file in sorted(folder.iterdir())
                if file.is_file() and file.name not in hashed
            }
            # The config is judged by what the model computes: some of its fields may change.
            outcome = replace(outcome, files={n: h for n, h in (hashed | others).items() if n != "config.json"})
        before = family.parameters(config) or weights.parameters(weights.names)
        after = family.parameters(family.rewrite_config(config, keep)) or weights.parameters(renamed.values())
        found = hashes.result()
        plan = replace(
            plan,
            model=origin.name,
            export_as=export_as,
            verification=outcome,
            parameters_before=before,
            parameters_after=after,
            source_hashes=found,
            effect=plan.effect if plan.source_hashes in ({}, found) else None,  # it was measured on those weights
            load=written.load_example,
            notes=family.notes(config),
            base=base or (plan.base if plan.source_hashes in ({}, found) else None),  # so does that speak of them
        )
        write_records(folder, plan)
    return plan


def check_plan(plan: Plan, name: str, family: Family, config: Config) -> None:
    """Raise where a plan is not for the model `name`.

    Raises:
        ModelError: it is for another architecture or depth. SelectionError: its blocks may not go.
    """
    depth = family.depth(config)
    if plan.architecture != family.architecture:
        raise ModelError(f"the plan is for the architecture {plan.architecture}, {name} is {family.architecture}")
    if plan.depth != depth:
        raise ModelError(f"the plan is for a model of {plan.depth} blocks, {name} has {depth}")
    family.keep(config, plan.blocks)


@contextmanager
def new_folder(output: str | Path) -> Iterator[Path]:
    """A temporary folder that becomes `output` when the context ends well, and vanishes when it does not.

    Raises:
        OutputError: `output` exists and is not an empty folder, or the disk is full or not writable.
    """
    target = check_output(output)
    made = [folder for folder in target.parents if not folder.exists()]
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
        temporary.chmod(0o777 & ~_umask())
        yield temporary
        os.replace(temporary, target)
    except OSError as error:
        if error.filename is not None and not _inside(error.filename, target.parent):
            raise
        raise OutputError(
            f"{target}: cannot be written ({error.strerror or error}); nothing was left behind"
        ) from error
    except Exception as error:
        # safetensors has an error of its own for what the operating system refuses, worded as Rust words it.
        if type(error).__name__ == "SafetensorError" and (found := re.search(r"[^:]*\(os error \d+\)", str(error))):
            raise OutputError(f"{target}: cannot be written ({found[0].strip()}); nothing was left behind") from error
        raise
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)
        for folder in made:
            with suppress(OSError):  # it holds something
                folder.rmdir()


def check_output(output: str | Path) -> Path:
    """The folder to write, which must not exist, or be empty; another one takes its place.

    Raises:
        OutputError: it exists and is not an empty folder, or is one that cannot be replaced.
    """
    if not str(output):
        raise OutputError("the name of the folder to write is empty; name a new one")
    target = Path(output).expanduser().resolve()
    if target == Path.cwd() or target.is_mount():
        kind = "the current folder" if target == Path.cwd() else "a mount point"
        raise OutputError(f"{target}: is {kind}, which cannot be replaced; name a new folder inside it")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise OutputError(f"{target}: exists and is not an empty folder; name a new one, nothing is overwritten")
    return target


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _inside(name: Any, folder: Path) -> bool:
    try:
        return Path(os.fsdecode(name)).resolve().is_relative_to(folder.resolve())
    except TypeError:
        return True


def copy_companions(source: Source, directory: Path) -> None:
    """Copy what lies beside the weights: tokenizer, generation config, code, licence. Not the card, not the config."""
    if not source.path.is_dir():
        return
    left = {"config.json", CARD_FILE, PLAN_FILE, *EXPORT_FILES, *INDEXES}
    for file in sorted(source.path.iterdir()):
        if file.is_file() and file.name not in left and file.suffix not in WEIGHT_SUFFIXES and file.name[0] != ".":
            shutil.copyfile(file, directory / file.name)
