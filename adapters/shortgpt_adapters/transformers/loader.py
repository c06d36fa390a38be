"""Opens a checkpoint as any user of transformers would: what verification runs in a fresh process."""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from shortgpt.basics.inputs import NearDistance
from shortgpt.errors import StreamingError
from shortgpt.models.probing.logit_comparison import CACHED, compare_logits
from shortgpt.models.probing.reach import set_near
from shortgpt_adapters.transformers.generation import generate_plainly

if TYPE_CHECKING:
    from shortgpt.torch_models.streaming import BlockWeights
    from shortgpt_adapters.transformers.streaming import StreamedWeights

AUTO_CLASSES = {
    AutoModelForCausalLM: MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForImageTextToText: MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForMaskedLM: MODEL_FOR_MASKED_LM_MAPPING,
}

LOOK_AHEAD = 4
"""Tokens on which a model is asked whether it attends to later ones."""

STREAMED_BY = "5.17 to 5.23"
"""The versions of transformers with which streaming was tested."""


def unfit(info: dict[str, Any]) -> dict[str, list[str]]:
    """What `from_pretrained` had to invent, drop or could not fit, by kind."""
    problems = {kind: sorted(map(str, names)) for kind, names in info.items()}
    return {kind: names for kind, names in problems.items() if names}


def read_config(directory: Path, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The config of a folder; of a part of a larger model that has no model type of its own, too."""
    written = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    named = named_class(written.get("architectures"))
    if named is not None and written.get("model_type") not in CONFIG_MAPPING and "auto_map" not in written:
        return named.config_class.from_pretrained(directory)
    return AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code)


def loading_class(config: PreTrainedConfig, trust_remote_code: bool = False) -> Any:
    """What opens a model of this config: the Auto class whose model the config names, or else that model's own class.

    A config's type goes before the class that it names, as in the Auto classes: that name may be of another time, of
    another library, or of code that the folder brings along and nobody asked to run.

    Raises:
        ValueError: none is known for its type.
    """
    names = config.architectures or ()
    local = type(config).__module__.startswith("transformers.")
    own_code = (getattr(config, "auto_map", None) or {}) if trust_remote_code or not local else {}
    named = named_class(names)
    if named is not None and local and config.model_type not in CONFIG_MAPPING:
        return named  # the Auto classes would ask for the type, and do not know it
    for auto, mapping in AUTO_CLASSES.items():
        if auto.__name__ in own_code:
            return auto
        if type(config) in mapping and (not names or _names(mapping[type(config)]) & set(names)):
            return auto
    parts = (config, *(getattr(config, key, None) for key in config.sub_configs))
    if named is not None and any(isinstance(part, named.config_class or ()) for part in parts):
        return named
    for auto, mapping in AUTO_CLASSES.items():
        if type(config) in mapping:
            return auto
    raise ValueError(f"transformers has no language model for a {type(config).__name__}, {list(names)}")


def _names(classes: Any) -> set[str]:
    return {cls.__name__ for cls in (classes if isinstance(classes, tuple) else (classes,))}


def named_class(names: Any) -> Any:
    """The model class of transformers that a config's `architectures` names first; None where it is none."""
    first = names[0] if isinstance(names, (list, tuple)) and names else None
    named = getattr(transformers, first, None) if isinstance(first, str) else None
    return named if isinstance(named, type) and issubclass(named, PreTrainedModel) else None


def arguments(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """A token batch as this model's forward takes it: without a cache, token ids under the name that it uses."""
    parameters = inspect.signature(model.forward).parameters
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    given = dict(batch)
    if "input_ids" in given and "input_ids" not in parameters and not open_ended:
        given[next(iter(parameters))] = given.pop("input_ids")
    if "use_cache" in parameters or (open_ended and isinstance(model, PreTrainedModel)):
        given["use_cache"] = False
    return given


class ReloadedCausalLM:
    """A `shortgpt.verification.verify.Reloaded` of transformers.

    Args:
        weights: where the blocks' weights come from when they are not in memory.
    """

    left_over: tuple[str, ...] = ()
    mended: str | None = None  # what is changed about the library to compare, and why

    def __init__(self, model: PreTrainedModel, weights: BlockWeights | None = None) -> None:
        self.model, self.weights = model.eval(), weights
        self.dtype = model.dtype  # the logits of some types are float32 whatever it is
        self.device = model.device if weights is None else weights.device

    @property
    def cannot_generate(self) -> str | None:
        """Why cached generation cannot be compared, or None."""
        if not self.model.can_generate():
            return f"a {type(self.model).__name__} does not generate"
        if self.looks_ahead():
            return "its blocks attend to both sides (a later token changes the logits of earlier ones)"
        return None

    def looks_ahead(self) -> bool:
        """Whether an earlier token's logits depend on a later one. It is tried: what configs say of it is no rule."""
        if self.weights is not None and getattr(self.model.config, "is_decoder", True):
            return False  # two passes more would read all weights twice more, and a causal model is the rule
        ids = torch.arange(1, LOOK_AHEAD + 1)[None]
        others = torch.cat((ids[:, :-1], ids[:, :1]), dim=1)
        with torch.no_grad():
            one, other = (self.logits(given)[..., :-1, :] for given in (ids, others))
        return not compare_logits(one, other, CACHED).equal

    def logits(self, input_ids: Tensor, **side: Tensor) -> Tensor:
        batch = {"input_ids": input_ids.to(self.device)}
        batch |= {name: tensor.to(self.device, self.dtype) for name, tensor in side.items()}
        return logits_of(self._run(lambda: self.model(**arguments(self.model, batch))))

    def generate(self, input_ids: Tensor, new_tokens: int, *, cached: bool) -> Tensor:
        own = self.model.generation_config
        greedy = GenerationConfig(
            max_new_tokens=new_tokens,
            do_sample=False,
            num_beams=1,
            use_cache=cached,
            output_logits=True,
            return_dict_in_generate=True,
            bos_token_id=own.bos_token_id,
            eos_token_id=None,  # no early end
            pad_token_id=own.pad_token_id if own.pad_token_id is not None else 0,
        )
        ids = input_ids.to(self.device)
        return torch.cat(self._generated(ids, greedy, attention_mask=ids.new_ones(ids.shape)))

    def _generated(self, input_ids: Tensor, greedy: GenerationConfig, **inputs: Any) -> tuple[Tensor, ...]:
        """The logits of each token that the library makes by these settings."""
        run = partial(generate_plainly, self.model, input_ids, greedy, **inputs)
        logits: tuple[Tensor, ...] = self._run(run).logits
        return logits

    def _run(self, work: Callable[[], Any]) -> Any:
        """Do what runs the model."""
        if self.weights is None:
            return work()
        from shortgpt.torch_models.streaming import run_by_block

        return run_by_block(self.weights, work)


UNBOUNDED = (0.0, float("inf"))


class UnboundedTimeSteps(ReloadedCausalLM):
    """For mixers that bound their time steps in a prompt and not in a token that is decoded with a cache."""

    def __init__(self, model: PreTrainedModel, weights: BlockWeights | None = None) -> None:
        super().__init__(model, weights)
        if any(tuple(mixer.time_step_limit) != UNBOUNDED for mixer in self._mixers()):
            self.mended = (
                "cached generation was compared without the bounds of the mixers' time steps, which transformers heeds "
                "in a prompt and not in a cached token"
            )

    def _mixers(self) -> list[Any]:
        return [module for module in self.model.modules() if hasattr(module, "time_step_limit")]

    def generate(self, input_ids: Tensor, new_tokens: int, *, cached: bool) -> Tensor:
        mixers = self._mixers()
        bounds = [mixer.time_step_limit for mixer in mixers]
        try:
            for mixer in mixers:
                mixer.time_step_limit = UNBOUNDED
            return super().generate(input_ids, new_tokens, cached=cached)
        finally:
            for mixer, bound in zip(mixers, bounds, strict=True):
                mixer.time_step_limit = bound


def logits_of(output: Any) -> Tensor:
    """The logits in a model's output; the last hidden state of a model without a head."""
    return output if isinstance(output, Tensor) else output.logits if "logits" in output else output[0]


def placement(device: str) -> dict[str, Any]:
    """What tells `from_pretrained` where to put a model; "auto" leaves that to accelerate."""
    return {} if device == "cpu" else {"device_map": device if device == "auto" else {"": device}}


def with_near(config: PreTrainedConfig, near: NearDistance | None) -> dict[str, Any]:
    """What tells `from_pretrained` that a distance is another one; see `shortgpt.models.probing.reach`."""
    return {} if near is None else {"config": type(config).from_dict(set_near(config.to_dict(), near))}


def reload(
    directory: Path,
    *,
    device: str,
    dtype: str,
    trust_remote_code: bool = False,
    stream: str | None = None,
    near: NearDistance | None = None,
    kind: type[ReloadedCausalLM] = ReloadedCausalLM,
) -> ReloadedCausalLM:
    """Open a checkpoint with `AutoModelForCausalLM.from_pretrained`, or the class that its config asks for.

    Args:
        stream: the block list whose weights stay in their files.
        near: a distance in the config that is set small.

    Raises:
        ValueError: the library had to invent a tensor, or could not fit one. (What it passed over is told as
            `left_over`, and judged by what it passes over of the original.)
        StreamingError: the weights cannot be read block by block.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    config = read_config(directory, trust_remote_code=trust_remote_code)
    opener = loading_class(config, trust_remote_code)
    settings = {"dtype": dtype, "trust_remote_code": trust_remote_code, **placement(device), **with_near(config, near)}
    weights = None
    with contextlib.ExitStack() as stack:
        if stream is not None:
            weights = stack.enter_context(leaving_blocks_in_files(str(directory), stream))
        model, info = opener.from_pretrained(directory, output_loading_info=True, **settings)
    faults = unfit(info)
    left_over = faults.pop("unexpected_keys", [])
    if faults:
        raise ValueError(f"the reloaded model does not hold exactly what was saved: {faults}")
    reloaded = kind(model, weights)
    reloaded.left_over = tuple(left_over)
    return reloaded


def leaving_blocks_in_files(name: str, path: str) -> contextlib.AbstractContextManager[StreamedWeights]:
    """`transformers_stream.leaving_blocks_in_files`. It needs names that transformers may change in any version, so it
    is imported here alone, and only where streaming is asked for.

    Raises:
        StreamingError: this version of transformers lacks one of them.
    """
    try:
        from shortgpt_adapters.transformers import streaming as transformers_stream
    except ImportError as error:
        lacking = str(error).partition(" (")[0]
        raise StreamingError(
            f"{name}: streaming needs a part of transformers that version {transformers.__version__} lacks "
            f"({lacking}); take transformers {STREAMED_BY}, or load the model whole (without --stream)"
        ) from error
    return transformers_stream.leaving_blocks_in_files(name, path)
