"""Which projection of a block reaches the stream by addition alone: found by trying.

::

    block's call on a few tokens, recorded ─▶ y                       with the weights as they are
                                           ─▶ y₀                      with those of one projection zero: u = y − y₀
                                           ─▶ y₀ + R u ?              multiplied by a random matrix R

Nothing of the block's code need be known. A projection in the middle of a block fails, since what comes behind it reads
what it gave; one with a norm or a gate behind it fails too. Where no matrix passes, a random diagonal is tried, and
then the gains of norms. The experts of a mixture, and branches that run side by side, are taken together: one matrix
for all that they add.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from shortgpt.models.projections import Addition, Change, Form, Projection
from shortgpt.torch_models.replay import PROBE_TOKENS, PassEnded

if TYPE_CHECKING:
    from shortgpt.models.sequence import TokenBatch
    from shortgpt.torch_models.interface import TorchModel

TOLERANCE = 2e-5
"""Of a token's stream: what sums in float32 round. A matrix that something reads on its way is off by far more."""


def find_projection(model: TorchModel, block: int, batch: TokenBatch | None = None) -> Projection | str:
    """The projection of a block that can be changed, or why there is none.

    Args:
        batch: what it is tried on, on the model's device; without it, random tokens.
    """
    recorded = _Recorded.of(model, block, batch)
    if isinstance(recorded, str):
        return recorded
    groups = _candidates(recorded.module, recorded.width)
    if not groups:
        return _no_candidates(recorded)
    flat, gains = _split(groups, recorded.module)
    tries: tuple[tuple[Form, list[dict[str, int]]], ...] = (("map", flat), ("scale", flat), ("gain", gains))
    for form, tried in tries:
        passing = [group for group in tried if recorded.passes(form, group)]
        if not passing:
            continue
        together = {name: axis for group in passing for name, axis in group.items()}
        if form == "gain" or not recorded.passes(form, together):
            together = passing[-1]
        if shared := _shared_with_others(model, block).intersection(together):
            return f"{min(shared)} is used in other places of the model as well (tied weights)"
        return Projection(block, form, together, recorded.width, _REASONS[form])
    return "none of its projections reaches the stream by addition alone, and no gain of a norm does"


_REASONS: Mapping[Form, str | None] = {
    "map": None,
    "scale": "a gate stands behind its last projection, so only the rows of that are scaled",
    "gain": "a norm stands behind its last projection, so only the gain of that is fitted",
}


def addition(model: TorchModel, batch: TokenBatch, projection: Projection, removed: Sequence[int]) -> Addition:
    """What a block does to the stream without the blocks `removed`; the pass ends behind the block.

    Args:
        batch: on the model's device.
    """
    block = projection.block
    module = model.blocks[block]
    found: list[Addition] = []

    def after(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        runner = _Runner(model, block, module, args, kwargs)
        behind = runner.read(output)
        found.append(Addition(behind, _added(runner, projection.form, projection.tensors, behind)))
        raise PassEnded

    with torch.no_grad(), model.skipping(removed):
        hook = module.register_forward_hook(after, with_kwargs=True)
        try:
            with suppress(PassEnded):
                model.forward(batch)
        finally:
            hook.remove()
    return found[0]


def change_for_good(model: TorchModel, changes: Sequence[Change]) -> list[Callable[[], None]]:
    """Change blocks' tensors; each gets a new one, for the old one may be another model's as well.

    Returns:
        What undoes each of them, to be called in the opposite order.
    """
    undo = []
    for change in changes:
        module = model.blocks[change.projection.block]
        tensors = {
            name: change.of(_parameter(module, name).detach(), axis) for name, axis in change.projection.tensors.items()
        }
        undo.append(_replace(module, tensors))
    return undo


@contextmanager
def changed(model: TorchModel, changes: Sequence[Change]) -> Iterator[None]:
    """Inside it blocks' tensors are changed."""
    with ExitStack() as stack:
        for undo in change_for_good(model, changes):
            stack.callback(undo)
        yield


# -- a block by itself ----------------------------------------------------------------------------------------


class _Runner:
    """A block that is run again on what it was called with."""

    def __init__(self, model: TorchModel, block: int, module: nn.Module, args: Any, kwargs: Any) -> None:
        self.model, self.block, self.module, self.args, self.kwargs = model, block, module, args, kwargs

    def read(self, output: Any) -> Tensor:
        """The stream behind the block, [batch, tokens, width]."""
        return self.model.observed(self.block + 1, self.model.stream_out(self.block, output))

    def stream(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The same with other tensors in the place of some."""
        undo = _replace(self.module, tensors)
        try:
            return self.read(self.module.forward(*self.args, **self.kwargs))
        finally:
            undo()


class _Recorded(_Runner):
    """A block's call on a few tokens."""

    behind: Tensor

    @classmethod
    def of(cls, model: TorchModel, block: int, batch: TokenBatch | None) -> _Recorded | str:
        module, calls = model.blocks[block], []

        def before(_: nn.Module, args: Any, kwargs: Any) -> None:
            calls.append((args, kwargs))

        def see(boundary: int, hidden: Tensor) -> None:
            if boundary == block + 1:
                seen.append(hidden.detach().clone())

        seen: list[Tensor] = []
        hook = module.register_forward_pre_hook(before, with_kwargs=True)
        try:
            model.trace(_few_tokens(model, batch), see)
        finally:
            hook.remove()
        if len(calls) != 1:
            return "it is not called once a pass"
        args, kwargs = calls[0]
        if model.bytes_per_number < 4:  # in which too much would pass for rounding
            module = copy.deepcopy(module).float()
            args, kwargs = _pytree.tree_map(_widened, (args, kwargs))
        recorded = cls(model, block, module, args, kwargs)
        try:
            with torch.no_grad():
                recorded.behind = recorded.stream({})
        except Exception as error:  # code of any kind runs here, out of its pass
            return f"it does not run by itself ({type(error).__name__}: {error})"
        rounding = TOLERANCE if model.bytes_per_number >= 4 else 0.1
        if recorded.behind.shape != seen[0].shape or not _close(recorded.behind, seen[0].float(), rounding):
            return "it hands on more than one stream, or gives another one when it runs again"
        return recorded

    @property
    def width(self) -> int:
        return self.behind.shape[-1]

    def passes(self, form: Form, tensors: Mapping[str, int]) -> bool:
        """Whether changes of that form pass through from these tensors to the stream, and there is something to change.

        What the projection adds is made as large as the stream, so that all that reads it would notice.
        """
        with torch.no_grad():
            added = _added(self, form, tensors, self.behind)
            size = (added.norm(dim=-1) / self.behind.norm(dim=-1)).max()
            if not size > TOLERANCE:
                return False
            change = Change(Projection(self.block, form, tensors, self.width), self._random(form, float(1 / size)))
            numbers = change.numbers.to(added)
            if form == "map":
                moved = added @ numbers.T - added
            elif form == "scale":
                moved = added * numbers - added
            else:
                if _is_constant(added):  # a bias, not a gain
                    return False
                moved = added * numbers
            new = {name: change.of(_parameter(self.module, name), axis) for name, axis in tensors.items()}
            found = self.stream(new)
        return _close(found, self.behind + moved, TOLERANCE)

    def _random(self, form: Form, size: float) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        width = self.width
        if form == "map":
            return size * torch.randn(width, width, generator=generator, dtype=torch.float64) / width**0.5
        return size * torch.randn(width, generator=generator, dtype=torch.float64)


def _added(runner: _Runner, form: Form, tensors: Mapping[str, int], behind: Tensor) -> Tensor:
    """What is multiplied when these tensors change, see `Addition`."""
    module = runner.module
    if form == "gain":
        return runner.stream({name: _parameter(module, name).detach() + 1 for name in tensors}) - behind
    return behind - runner.stream({name: torch.zeros_like(_parameter(module, name)) for name in tensors})


def _close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    size = torch.maximum(found.norm(dim=-1), expected.norm(dim=-1))
    return bool(((found - expected).norm(dim=-1) <= tolerance * size).all())


def _is_constant(added: Tensor) -> bool:
    first = added.flatten(0, -2)[:1]
    return bool((added - first).abs().max() <= TOLERANCE * first.abs().max())


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def _few_tokens(model: TorchModel, batch: TokenBatch | None) -> TokenBatch:
    """A few of its tokens, or random ones; where there is more than tokens, which may belong to all of them, all."""
    from shortgpt.models.probing.probes import PROBE, probe

    if batch is not None and not batch.keys() <= {"input_ids", "attention_mask"}:
        return batch
    ids: Tensor = probe(model.vocab_size).to(model.device) if batch is None else batch["input_ids"]
    return {"input_ids": ids[: PROBE[0], : min(PROBE_TOKENS, model.max_tokens or PROBE_TOKENS)]}


# -- which tensors to try -------------------------------------------------------------------------------------


def _candidates(module: nn.Module, width: int) -> list[dict[str, int]]:
    """Tensors that have an axis of the stream's width, those that are numbered alike (experts) together; a square
    matrix once for either axis."""
    alike: dict[str, list[str]] = {}
    for name, parameter in module.named_parameters():
        if parameter.is_floating_point() and parameter.element_size() > 1:
            alike.setdefault(re.sub(r"\.\d+(?=\.|$)", ".*", name), []).append(name)
    found = []
    for pattern, names in alike.items():
        first = _parameter(module, names[0])
        if first.dim() == 1 and (first.shape[0] != width or re.search(r"bias$", pattern)):
            continue
        biases = [bias for stem in names if (bias := _bias_of(stem, module, width)) is not None]
        found += [
            dict.fromkeys(names, axis) | dict.fromkeys(biases, -1)
            for axis in range(-first.dim(), 0)
            if all(_parameter(module, name).shape[axis] == width for name in names)
        ]
    return found


def _bias_of(name: str, module: nn.Module, width: int) -> str | None:
    """The bias that is added to what a matrix gives."""
    known = dict(module.named_parameters())
    if known[name].dim() < 2:
        return None
    for bias in (re.sub(r"weight$", "bias", name), f"{name}_bias"):
        if bias != name and bias in known and known[bias].shape[-1] == width:
            return bias
    return None


def _split(groups: Sequence[dict[str, int]], module: nn.Module) -> tuple[list[dict[str, int]], list[dict[str, int]]]:
    """Matrices, and vectors."""
    flat = [group for group in groups if _parameter(module, next(iter(group))).dim() > 1]
    return flat, [group for group in groups if group not in flat]


def _shared_with_others(model: TorchModel, block: int) -> set[str]:
    """The block's parameters that other modules of the model use as well."""
    module = model.blocks[block]
    inside, everywhere = _uses(module), _uses(model.model)
    return {name for name, p in module.named_parameters() if everywhere[id(p)] > inside[id(p)] or inside[id(p)] > 1}


def _uses(module: nn.Module) -> Counter[int]:
    """How often each parameter stands in a module's tree, by its identity."""
    return Counter(
        id(parameter)
        for _, inner in module.named_modules(remove_duplicate=False)
        for parameter in inner._parameters.values()
    )


def _no_candidates(recorded: _Recorded) -> str:
    kinds = {parameter.dtype for parameter in recorded.module.parameters()}
    if any(not kind.is_floating_point or kind.itemsize == 1 for kind in kinds):
        return "its weights are quantised"
    return f"none of its tensors has an axis as long as the stream is wide ({recorded.width})"


# -- tensors --------------------------------------------------------------------------------------------------


def _parameter(module: nn.Module, name: str) -> Tensor:
    return module.get_parameter(name)


def _replace(module: nn.Module, tensors: Mapping[str, Tensor]) -> Callable[[], None]:
    """Put new parameters in the place of some; what undoes it."""
    before = []
    for name, tensor in tensors.items():
        path, _, leaf = name.rpartition(".")
        owner = module.get_submodule(path)
        old = owner._parameters[leaf]
        assert old is not None
        before.append((owner, leaf, old))
        owner._parameters[leaf] = nn.Parameter(tensor.to(old.dtype), requires_grad=old.requires_grad)

    def undo() -> None:
        for owner, leaf, old in before:
            owner._parameters[leaf] = old

    return undo
