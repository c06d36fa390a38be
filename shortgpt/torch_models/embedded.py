"""What embeddings give, without holding it while a pass waits at its blocks.

::

    forward:  embedded = embed(ids) ─▶ hidden = embedded ─▶ block 0 ─▶ block 1 ─ ... ─▶ block L-1
                  └ a variable of the model's code, alive to its end ┘ ╰─ let go from here on ─╯

The model's code keeps what it embedded in a variable to the end of its pass, though the first block has read it: for
the batches of a streamed pass, which all wait together, the stream of all texts once more. So it is let go behind the
first block; code that looks at it all the same, as that of types which add it in at later blocks does, has it embedded
again, of the same tokens and weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from shortgpt.torch_models.waiting_passes import Pass


class Embedded(Tensor):
    """Stands for an embedding's output, which can be let go: every function that is given it is given that output.

    It has the output's shape, dtype and device, and a single NaN for code that reads memory past all functions.

    Attributes:
        output: what it stands for; None while that is let go.
        version: how often the output had been written to when it was embedded.
        again: embeds once more.
    """

    output: Tensor | None
    version: int
    again: Callable[[], Tensor]

    @classmethod
    def of(cls, output: Tensor, again: Callable[[], Tensor]) -> Embedded:
        made = output.new_full((1,), torch.nan).expand(output.shape).as_subclass(cls)
        made.output, made.version, made.again = output, output._version, again
        return made

    def let_go(self) -> None:
        """Hold the output no longer; one that was written into could not be made again, and stays."""
        if self.output is not None and self.output._version == self.version:
            self.output = None

    def values(self) -> Tensor:
        """The output."""
        if self.output is None:
            self.output = self.again()
            self.version = self.output._version
        return self.output

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in FORM:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args)
        return func(*ordinary(args), **ordinary(kwargs or {}))


FORM = frozenset(
    (*(getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim")), Tensor.size, Tensor.dim)
)
"""What is known of a tensor without its values."""


def ordinary(value: Any) -> Any:
    """The same, with values in the place of what may be let go; also in tuples, lists and dictionaries."""
    if isinstance(value, Embedded):
        return value.values()
    if type(value) in (tuple, list):
        return type(value)(map(ordinary, value))
    if type(value) is dict:
        return {key: ordinary(item) for key, item in value.items()}
    return value


@contextmanager
def letting_go(model: nn.Module) -> Iterator[None]:
    """Inside it what embeddings give in a `Pass` is noted there (`Pass.embedded`), to be let go."""

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        pass_: Pass | None = getattr(Pass.current, "it", None)
        if pass_ is None or type(output) is not Tensor:
            return output

        def again() -> Tensor:
            with torch.no_grad():
                output: Tensor = module.forward(*args, **kwargs)
            return output

        pass_.embedded.append(Embedded.of(output, again))
        return pass_.embedded[-1]

    with ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                hooks.callback(module.register_forward_hook(note, with_kwargs=True).remove)
        yield
