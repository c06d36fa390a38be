"""Finds the blocks of a model never seen before: by what runs, in order, during one forward pass of a tiny probe.

::

    every child of every module list is watched ──▶ calls, in order ──▶ the outermost list whose children run 0, 1, ...
                                                                       once each, and hand one tensor on to the next
    block i's output ──is──▶ block i + 1's argument   = the stream's place; what else is handed on is side state
    the stream's axes ──▶ where the probe's rows and tokens are; all others make up the width

The probe runs on a model with weights, or on one on the meta device, which costs nothing and needs only the config:
there, questions about values are answered by zero, and a pass that breaks off still shows which list began to run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from shortgpt.basics.block_lists import NormPlacement, block_numbers
from shortgpt.errors import AdapterError, reason_of
from shortgpt.models.sequence import BlockSequence
from shortgpt.torch_models.in_memory import prove
from shortgpt.torch_models.sequence import TorchBlockSequence
from shortgpt_adapters.transformers.loader import arguments

PROBE = (2, 5)
"""Rows and tokens: sizes that tell the axes apart."""

Place = int | str
"""An argument by position or keyword; an item of an output by position."""


@dataclass(frozen=True)
class Structure:
    """Where a model's blocks are, and how they hand the stream on.

    Attributes:
        path: the module list.
        classes: each block's class.
        stream_in: the argument of a block that is the stream.
        stream_out: the item of a block's output that is the stream; None where the output is the stream itself.
        layout: the stream's axes in the order [batch, tokens, the rest]; the rest is flattened to the width. Empty
            where the probe's rows and tokens are not among them.
        side: what else a block hands on to the next: item of the output, argument of the call.
        norm_placement: where the blocks normalise the stream.
        complete: whether the pass came to the last block; otherwise everything but `path` and `classes` is a guess.
    """

    path: str
    classes: tuple[str, ...]
    stream_in: Place = 0
    stream_out: int | None = None
    layout: tuple[int, ...] = (0, 1, 2)
    side: tuple[tuple[int, Place], ...] = ()
    norm_placement: NormPlacement = "unknown"
    complete: bool = True

    def __str__(self) -> str:
        """How the blocks hand the stream on, in words."""
        if not self.complete:
            return f"{self.path}; the rest is found when the model runs"
        given = f"argument {self.stream_in!r}"
        returned = "the output" if self.stream_out is None else f"output {self.stream_out}"
        names = ["batch", "tokens", *("width" if i == len(self.layout) - 1 else "stream" for i in range(2, 9))]
        axes = {axis: names[place] for place, axis in enumerate(self.layout)}
        layout = f"[{', '.join(axes[axis] for axis in sorted(axes))}]" if axes else "an axis of its own for the tokens"
        side = "".join(f"; beside it output {out} goes on as argument {place!r}" for out, place in self.side)
        return f"{self.path}: comes in as {given}, goes out as {returned}, {layout}{side}"


@dataclass(eq=False)
class _Call:
    module: nn.Module
    path: str
    index: int
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any = None
    done: bool = False
    inner: list[_Call] = field(default_factory=list)


def find_structure(model: nn.Module, inputs: Mapping[str, Any] | None = None) -> Structure:
    """The structure of a model. It is left as it was.

    Args:
        inputs: what the model is called with; without it, `PROBE` token ids.

    Raises:
        AdapterError: no list of blocks runs in order, or one runs more than once.
    """
    first = next((p.device for p in model.parameters()), torch.device("cpu"))
    device = torch.device("meta") if is_empty(model) else first
    if inputs is None:
        inputs = arguments(model, {"input_ids": torch.zeros(PROBE, dtype=torch.long, device=device)})
    calls, failure = _watch(model, inputs, device)
    runs: dict[str, list[_Call]] = {}
    for call in calls:
        runs.setdefault(call.path, []).append(call)
    ordered = {path: run for path, run in runs.items() if _in_order(run, len(_children(model, path)), failure)}
    if failure is None:
        ordered = {path: run for path, run in ordered.items() if _link(run) is not None}
    elif device.type != "meta":
        raise AdapterError(f"{type(model).__name__} cannot be run on {PROBE[1]} token ids: {failure}") from failure
    if not ordered:
        told = _told(runs) + ("" if failure is None else f"; the pass ended early: {reason_of(failure)}")
        raise AdapterError(f"{type(model).__name__}: no list of blocks runs in order, each once ({told})")

    def weight(path: str) -> tuple[bool, int]:
        """A list of one counts where there is no chain."""
        return len(ordered[path]) > 1, sum(p.numel() for p in model.get_submodule(path).parameters())

    path = max(ordered, key=weight)
    run = ordered[path]
    classes = tuple(type(block).__name__ for block in _children(model, path))
    if failure is not None:
        others = [
            other for other in _outermost(model) if other != path and len(_children(model, other)) == len(classes)
        ]
        if others:
            raise AdapterError(
                f"{type(model).__name__}: {path} or {', '.join(others)}? A pass without weights breaks off "
                f"({failure}); open the model, and remove blocks in memory"
            )
        return Structure(path, classes, complete=False)
    link = _link(run)
    assert link is not None
    stream_out, stream_in = link
    return Structure(
        path,
        classes,
        stream_in,
        stream_out,
        _layout(_item(run[0].output, stream_out), inputs),
        _side_state(run, stream_out, stream_in),
        _norm_placement(run[len(run) // 2], stream_in, stream_out),
    )


def is_empty(model: nn.Module) -> bool:
    """Whether a model is on the meta device: shapes without values."""
    return any(parameter.is_meta for parameter in model.parameters())


# -- watching -------------------------------------------------------------------------------------------------


def _watch(model: nn.Module, inputs: Mapping[str, Any], device: torch.device) -> tuple[list[_Call], Exception | None]:
    """The outermost calls of children of module lists, in order; and what ended the pass early."""
    places: dict[nn.Module, tuple[str, int]] = {}
    for path, module in model.named_modules():
        if isinstance(module, (nn.ModuleList, nn.Sequential)):
            for index, child in enumerate(module):
                places.setdefault(child, (path, index))
    within = {
        inner
        for block in places
        for inner in block.modules()
        if inner is not block and not isinstance(inner, (nn.ModuleList, nn.Sequential))
    }
    calls: list[_Call] = []
    stack: list[_Call] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not stack and module not in places:
            return
        call = _Call(module, *places.get(module, ("", -1)), args, kwargs)
        (stack[-1].inner if stack else calls).append(call)
        stack.append(call)

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if stack and stack[-1].module is module:
            call = stack.pop()
            call.output, call.done = output, True

    training = {module: module.training for module in model.modules()}
    failure: Exception | None = None
    with torch.no_grad(), ExitStack() as hooks:
        for module in {*places, *within}:
            hooks.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            hooks.callback(module.register_forward_hook(after).remove)
        if device.type == "meta":
            hooks.enter_context(Blank())
        model.eval()
        try:
            model(**inputs)
        except Exception as error:  # on the meta device a model can fail in any way; elsewhere it is told
            failure = error
        finally:
            for module, flag in training.items():
                module.training = flag
    return calls, failure


def _children(model: nn.Module, path: str) -> list[nn.Module]:
    return list(model.get_submodule(path).children())


def _outermost(model: nn.Module) -> list[str]:
    """The module lists that are in no other one."""
    paths = [path for path, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    return [path for path in paths if not any(path.startswith(f"{other}.") for other in paths)]


class Blank(TorchDispatchMode):
    """Answers what is asked about the values of tensors that have none: zero, and one place that is not zero."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return args[0].dtype != torch.bool and 0
        if func is torch.ops.aten.nonzero.default and args[0].is_meta:
            return torch.empty((1, args[0].dim()), dtype=torch.long, device="meta")
        return func(*args, **(kwargs or {}))


# -- reading what was seen ------------------------------------------------------------------------------------


def _in_order(run: list[_Call], size: int, failure: Exception | None) -> bool:
    """Whether the children of a list ran one after another, each once; the first of them, where the pass broke off."""
    return [call.index for call in run] == list(range(size if failure is None else len(run)))


def _told(runs: Mapping[str, list[_Call]]) -> str:
    told = [f"{path} ran {[call.index for call in run][:20]}" for path, run in runs.items()]
    return "; ".join(told) or "none runs at all"


def _tensors(output: Any) -> Iterator[tuple[int | None, Tensor]]:
    """The tensors of a block's output with their places."""
    if isinstance(output, Tensor):
        yield None, output
    elif isinstance(output, (tuple, list)):
        yield from ((place, item) for place, item in enumerate(output) if isinstance(item, Tensor))


def _given(call: _Call) -> Iterator[tuple[Place, Tensor]]:
    yield from ((place, value) for place, value in enumerate(call.args) if isinstance(value, Tensor))
    yield from ((name, value) for name, value in call.kwargs.items() if isinstance(value, Tensor))


def _links(run: list[_Call]) -> list[tuple[int | None, Place]]:
    """What every block hands on to the next: item of the output, argument of the call.

    A single block hands on nothing, so of it that is what it gives back in the shape in which it was given.
    """
    if len(run) == 1:
        return [
            (o, p) for o, made in _tensors(run[0].output) for p, given in _given(run[0]) if made.shape == given.shape
        ]
    common: list[tuple[int | None, Place]] | None = None
    for call, following in pairwise(run):
        here = [
            (out, place)
            for out, tensor in _tensors(call.output)
            for place, value in _given(following)
            if _same(value, tensor)
        ]
        common = here if common is None else [link for link in common if link in here]
    return common or []


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are one, or views of all of it."""
    return a is b or (
        a.shape == b.shape
        and a.stride() == b.stride()
        and a.storage_offset() == b.storage_offset()
        and a.untyped_storage()._cdata == b.untyped_storage()._cdata
    )


def _link(run: list[_Call]) -> tuple[int | None, Place] | None:
    """The stream's place among what is handed on: a floating point tensor that keeps its shape."""
    for out, place in _links(run):
        shapes = {dict(_tensors(call.output))[out].shape for call in run}
        if len(shapes) == 1 and dict(_tensors(run[0].output))[out].is_floating_point():
            return out, place
    return None


def _side_state(run: list[_Call], stream_out: int | None, stream_in: Place) -> tuple[tuple[int, Place], ...]:
    """Tensors beside the stream that some block hands on to the next."""
    places: dict[tuple[int, Place], None] = {}
    for call, following in pairwise(run):
        for out, tensor in _tensors(call.output):
            for place, value in _given(following):
                if _same(value, tensor) and out is not None and (out, place) != (stream_out, stream_in):
                    places[out, place] = None
    return tuple(places)


def _item(output: Any, place: int | None) -> Tensor:
    value = output if place is None else output[place]
    assert isinstance(value, Tensor)
    return value


def _layout(stream: Tensor, inputs: Mapping[str, Any]) -> tuple[int, ...]:
    """The axes of the stream, those of the probe's rows and tokens first; empty where they are not there."""
    rows, tokens = next(value.shape[:2] for value in inputs.values() if isinstance(value, Tensor) and value.dim() >= 2)
    shape = tuple(stream.shape)
    for order in ((0, 1), (1, 0), (1, 2), (2, 1)):
        if len(shape) > max(order) + 1 and (shape[order[0]], shape[order[1]]) == (rows, tokens):
            return (*order, *(axis for axis in range(len(shape)) if axis not in order))
    return ()


def _norm_placement(call: _Call, stream_in: Place, stream_out: int | None) -> NormPlacement:
    """Where one block normalises: what its norms read, and what reads them."""
    stream, result = dict(_given(call))[stream_in], _item(call.output, stream_out)
    modules = list(_below(call))
    norms = {norm: value for norm in modules if _is_norm(norm.module) for _, value in list(_given(norm))[:1]}
    made = {norm: tensor for norm in norms for _, tensor in list(_tensors(norm.output))[:1]}
    if any(_same(tensor, result) for tensor in made.values()):
        return "post"
    before = [made[norm] for norm, value in norms.items() if norm in made and _same(value, stream)]
    if not before:
        return "unknown"
    parts = [inner for inner in call.inner if inner not in norms and any(inner.module.children())]
    read = [value for module in modules for _, value in _given(module)]
    for norm, value in norms.items():
        of_a_part = any(_same(value, tensor) for part in parts for _, tensor in _tensors(part.output))
        if of_a_part and norm in made and not any(_same(value, made[norm]) for value in read):
            return "sandwich"
    readers = [part for part in parts if any(_same(value, out) for _, value in _given(part) for out in before)]
    return "parallel" if len(readers) > 1 else "pre"


def _below(call: _Call) -> Iterator[_Call]:
    for inner in call.inner:
        yield inner
        yield from _below(inner)


def _is_norm(module: nn.Module) -> bool:
    return re.search(r"norm(\d\w*)?$", type(module).__name__, re.IGNORECASE) is not None


# -- the blocks that were found -------------------------------------------------------------------------------


class FoundBlocks(TorchBlockSequence):
    """Blocks whose family holds a `structure` that was found by looking.

    No one has looked at the type of such a model, so each removal in memory is proven on the spot: skipping is another
    road to the same logits.
    """

    @property
    def structure(self) -> Structure:
        structure = getattr(self.family, "structure", None)
        assert isinstance(structure, Structure)
        return structure

    def stream(self, block: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        value = _argument(self.structure.stream_in, args, kwargs)
        assert isinstance(value, Tensor)
        return value

    def stream_out(self, block: int, output: Any) -> Tensor:
        return _item(output, self.structure.stream_out)

    def with_stream(self, block: int, output: Any, hidden: Tensor) -> Any:
        return _with_item(output, self.structure.stream_out, hidden)

    def bypassed(self, block: int, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
        # What is handed from block to block beside the stream passes a skipped block by, too.
        output = super().bypassed(block, args, kwargs, output)
        for item, place in self.structure.side:
            output = _with_item(output, item, _argument(place, args, kwargs))
        return output

    def observed(self, boundary: int, hidden: Tensor) -> Tensor:
        layout = self.structure.layout
        if not layout:
            shape = tuple(hidden.shape)
            raise AdapterError(
                f"{self.name}: a stream of the shape {shape} has no axes for the batch's rows and tokens"
            )
        return hidden.permute(layout).flatten(2)

    def without(self, blocks: Iterable[int]) -> BlockSequence:
        gone = block_numbers(blocks, len(self))
        shorter = self.shorter(gone)
        prove(self, shorter, gone, folded=self.folds_without(gone))
        return shorter


def _argument(place: Place, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    return args[place] if isinstance(place, int) else kwargs[place]


def _with_item(output: Any, place: int | None, value: Any) -> Any:
    if place is None:
        return value
    if hasattr(output, "_replace"):
        return output._replace(**{output._fields[place]: value})
    return type(output)([*output[:place], value, *output[place + 1 :]])
