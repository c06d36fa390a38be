"""What a run is handed: where a model's files lie, how it is opened, what it is measured on, whom to tell progress."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, cast

from shortgpt.basics import file_changes, untrusted
from shortgpt.basics.untrusted import MAX_HEADER as MAX_HEADER
from shortgpt.basics.value import Value
from shortgpt.errors import CheckpointError, ModelError

if TYPE_CHECKING:
    from torch import Tensor


Config = dict[str, Any]


Fold = Callable[["Tensor", Mapping[str, "Tensor"]], "Tensor"]
"""(a tensor as it was, all tensors of the source by name) → what becomes of it. It writes into neither, and on the meta
device it gives a tensor of the right shape."""


@dataclass(frozen=True)
class Source:
    """Where a model's files lie: a folder, or one file.

    Attributes:
        name: what the user called it.
        adapter_base: the base model where this is an adapter that was merged into it; None for others.
        stamps: what tells whether its files are still those that were there when this was made; see `unchanged`.
    """

    name: str
    path: Path
    adapter_base: str | None = None
    stamps: Mapping[Path, file_changes.Stamp] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "stamps", file_changes.stamps(self.path))

    @cached_property
    def config(self) -> Config:
        """The folder's config.json as it stands; empty for a single file.

        Raises:
            ModelError: there is no config.json, or it is not a JSON object.
        """
        if self.path.is_file():
            return {}
        file = self.path / "config.json"
        if not file.is_file():
            raise ModelError(
                f"{self.name}: the folder holds no config.json, so it is not a model; "
                "name the folder that the model was saved to"
            )
        config = untrusted.read_object(self.name, file)
        if not isinstance(config.get("model_type"), (str, type(None))):
            found = type(config["model_type"]).__name__
            raise CheckpointError(f"{self.name}: config.json has a {found} for model_type, where a text belongs")
        untrusted.check_counts(self.name, config)
        return config


@dataclass(frozen=True)
class NearDistance(Value):
    """A distance between tokens that a config speaks of, and the smaller one that stood in its place while two models
    were compared: so a few tokens show what the field does.

    Attributes:
        field: the field's name; what stands inside it has that name too.
        number: what stands there, in tokens.
        small: what stood there instead.
        fingerprint: some of the logits then, as `Verification.fingerprint`; empty before they were compared.
    """

    field: str
    number: int
    small: int
    fingerprint: tuple[float, ...] = ()

    def __str__(self) -> str:
        return f"{self.field} {self.number:,}"


@dataclass(frozen=True)
class OpenOptions:
    """How to open a model. `device` "auto" spreads it over all devices; `dtype` is a torch dtype's name, or "auto": the
    one it was saved in. With `stream` the blocks' weights stay in their files, read when a block's turn comes. With
    `near` a distance in its config is another one than it was saved with."""

    device: str = "cpu"
    dtype: str = "auto"
    trust_remote_code: bool = False
    stream: bool = False
    near: NearDistance | None = None


class LoadOptions(TypedDict, total=False):
    """The keywords of `shortgpt.load`, which says what each means."""

    device: str | None
    dtype: str
    tokenizer: Any
    trust_remote_code: bool
    architecture: str | None
    stream: bool
    revision: str | None


class CalibrationOptions(TypedDict, total=False):
    """The keywords of `shortgpt.calibrate`, which says what each means."""

    sequences: int | None
    tokens: int | None
    seed: int
    field: str | None
    batch_size: int | None


class MeasuringOptions(CalibrationOptions, LoadOptions, total=False):
    """The keywords of what loads models and measures them: `apart` parts them again."""


def apart(options: MeasuringOptions) -> tuple[CalibrationOptions, LoadOptions]:
    """The keywords for `shortgpt.calibrate`, and those for `shortgpt.load`.

    Raises:
        TypeError: one is for neither, as Python itself raises it.
    """
    texts = {name: value for name, value in options.items() if name in CalibrationOptions.__annotations__}
    loading = {name: value for name, value in options.items() if name in LoadOptions.__annotations__}
    for name in options:
        if name not in texts and name not in loading:
            raise TypeError(f"unexpected keyword argument {name!r}")
    return cast(CalibrationOptions, texts), cast(LoadOptions, loading)


Progress = Callable[[str, int, int], None]
"""Called with what is being counted ("blocks", "batches"), how many are done, and of how many."""


@dataclass(frozen=True)
class CalibrationInfo(Value):
    """What scores were measured on.

    Attributes:
        source: the source as it was named, or "texts" or "token batches" for values handed in.
        sequences, tokens: how many sequences, and the length of the longest.
        seed: of the sampling; None where nothing was sampled.
        field: of the records that the texts were taken from (JSON Lines, a data set), named or found; None elsewhere.
        text_hash: SHA-256 of the texts the windows begin in, equal for any tokenizer; of the tokens where there was
            no text. Scores of different models are comparable where it is equal.
        token_hash: SHA-256 of token ids and masks.
        documents: of how many documents the sequences are; None where that is not known.
    """

    source: str
    sequences: int
    tokens: int
    seed: int | None
    field: str | None
    text_hash: str
    token_hash: str
    documents: int | None = None
