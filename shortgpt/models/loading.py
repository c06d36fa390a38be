"""`load` and `wrap`: a name, or a model in memory, to a `BlockSequence`."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from shortgpt.basics.inputs import LoadOptions, OpenOptions, Source
from shortgpt.basics.stages import log, stage
from shortgpt.basics.untrusted import check_folder, local_path
from shortgpt.errors import ModelError, ShortGPTError, StreamingError, is_panic, reason_of
from shortgpt.models.devices import checked_dtype, default_device
from shortgpt.models.family import Family, at_work
from shortgpt.models.recognition import recognise, recognise_model, resolve
from shortgpt.models.sequence import BlockSequence, check_complete
from shortgpt.values.plan import Plan

T = TypeVar("T")


def load(
    name: str | Path | Source,
    *,
    device: str | None = None,
    dtype: str = "auto",
    tokenizer: Any = None,
    trust_remote_code: bool = False,
    architecture: str | None = None,
    stream: bool = False,
    revision: str | None = None,
) -> BlockSequence:
    """Open a model.

    Args:
        name: a model folder, a checkpoint file, a hub id, or the name of a model that a plugin ships (`zoo:llama`).
        device: such as "cpu" or "cuda:1"; "auto" lets accelerate spread a model of transformers over all devices, and
            memory and disk behind them; default: the accelerator where there is one.
        dtype: "float32", "bfloat16", "float16", or "auto": what it was saved in.
        tokenizer: in place of the model's own: a callable, or the folder or hub id of one.
        architecture: take this adapter instead of looking for one.
        stream: leave the blocks' weights in their files; `shortgpt.score` reads them block by block, so that a model
            larger than memory can be scored. Such a model can be traced and scored, and gives logits (its weights are
            read at every call); it cannot be made shorter in memory, nor saved.
        revision: of a model of the hub: a branch, a tag or a commit.

    Raises:
        ModelError: it cannot be found, read or recognised. StreamingError: it cannot be streamed.
    """
    source = name if isinstance(name, Source) else resolve(name, architecture, revision)
    with stage(f"loading {source.name}"):
        family = recognise(source, architecture)
        options = open_options(source, family, device, dtype, trust_remote_code, stream)
        with at_work(family, source.name):
            model = check_complete(family.open(source, options))
    if tokenizer is not None:
        model.tokenizer = named_tokenizer(tokenizer)
    model.plan = Plan.beside(source.path)
    log.info("%s: %s, %d blocks, on %s", source.name, model.architecture, len(model), model.device)
    return model


def open_options(
    source: Source, family: Family, device: str | None, dtype: str, trust_remote_code: bool, stream: bool
) -> OpenOptions:
    """How to open a model of that family.

    Raises:
        ModelError: there is no such device or dtype, or models of the family cannot be opened so.
    """
    options = OpenOptions(default_device(device), checked_dtype(dtype), trust_remote_code, stream)
    if stream and not family.streams:
        raise StreamingError(
            f"{source.name}: models of the adapter {family.architecture!r} cannot be streamed block by block, only "
            "those that transformers loads; load it whole (without --stream)"
        )
    if options.device == "auto" and (stream or not family.spreads):
        found = "blocks that are streamed" if stream else f"models of the adapter {family.architecture!r}"
        raise ModelError(f"{source.name}: {found} run on one device; name it in place of auto")
    return options


def named_tokenizer(name: Any) -> Any:
    """The tokenizer of a folder or hub id; a tokenizer itself is given back.

    Raises:
        ModelError: there is none.
    """
    from transformers import AutoTokenizer

    if not isinstance(name, (str, Path)):
        return name
    folder = local_path(name)
    if folder.exists():
        check_folder(str(name), folder)
    try:
        return AutoTokenizer.from_pretrained(folder if folder.exists() else name)
    except BaseException as error:  # the library has many
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise ModelError(f"{name}: no tokenizer can be loaded from it ({reason_of(error)})") from None


def tried(
    model: Any, measure: Callable[[BlockSequence], T], *, tokenizer: Any = None, **options: Any
) -> tuple[str, T | None, str | None]:
    """What is measured of one model among several: one that fails does not end the others.

    Args:
        model: a block sequence; a name or path, which is loaded with these options and let go again; or a model of a
            library in memory.
        tokenizer: for a model that brings none.

    Returns:
        What the model is called; what `measure` gave of it; and where it is None, why.
    """
    name = str(model) if isinstance(model, (str, Path)) else str(getattr(model, "name", type(model).__name__))
    blocks: BlockSequence | None = None
    try:
        if isinstance(model, (str, Path)):
            blocks = load(model, **options)
        else:
            blocks = wrap(model)
            name = blocks.name
        if blocks.tokenizer is None and tokenizer is not None:
            blocks.tokenizer = named_tokenizer(tokenizer)
        return name, measure(blocks), None
    except ShortGPTError as error:
        return name, None, str(error)
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # a model's own code, a device's memory, a library in Rust that gives up
        if isinstance(error, SystemExit) and type(error) is not SystemExit:  # a signal that ends all
            raise
        return name, None, f"{type(error).__name__}: {error}"
    finally:
        blocks = None
        gc.collect()  # before the next model is loaded


def opened(model: Any, options: LoadOptions) -> BlockSequence:
    """A model as blocks, whatever it was given as.

    Args:
        model: a block sequence; a name or path, which is loaded with the options; or a model of a library in memory,
            which is wrapped, with the options' `tokenizer`.

    Raises:
        ModelError: it is none of these, or an option would do nothing to it.
    """
    if isinstance(model, (str, Path, Source)):
        return load(model, **options)
    takes = () if isinstance(model, BlockSequence) else ("tokenizer", "architecture")
    idle = [name for name, value in options.items() if name not in takes and value is not None]
    if idle:
        name = getattr(model, "name", type(model).__name__)
        raise ModelError(f"{name}: the model is in memory, so that {', '.join(idle)} would do nothing; leave it out")
    if isinstance(model, BlockSequence):
        return model
    return wrap(model, tokenizer=options.get("tokenizer"), architecture=options.get("architecture"))


def listed(models: Any) -> list[Any]:
    """One model, or several, as a list."""
    alone = (
        isinstance(models, (BlockSequence, str, Path)) or not isinstance(models, Iterable) or hasattr(models, "forward")
    )
    return [models] if alone else list(models)


def wrap(
    model: Any, *, tokenizer: Any = None, name: str | None = None, architecture: str | None = None
) -> BlockSequence:
    """The blocks of a model already in memory. It is put into eval mode and otherwise left as it is.

    Raises:
        UnknownArchitectureError: no adapter knows its class or config.
    """
    if isinstance(model, BlockSequence):
        return model
    model = _unwrapped(model)
    label = name or getattr(getattr(model, "config", None), "name_or_path", None) or type(model).__name__
    return check_complete(recognise_model(model, label, architecture).wrap(model, name=label, tokenizer=tokenizer))


def _unwrapped(model: Any) -> Any:
    """The model itself where torch wraps it, to compile it or to share it among processes; its tensors are the same."""
    for holder in ("_orig_mod", "module"):
        inner = getattr(model, holder, None)
        if inner is not None and type(model).__module__.startswith(("torch._dynamo", "torch.nn.parallel")):
            return _unwrapped(inner)
    return model
