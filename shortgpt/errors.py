"""Every error of shortgpt. One message each: what was found, what is supported, what to do.

::

    ShortGPTError
    ├── PluginError                a plugin, or an answer it gave, that cannot be used
    ├── UnknownNameError           no model, criterion, source, ... of that name is installed
    ├── ModelError                 what was named is not a model that can be opened
    │   ├── UnknownArchitectureError   no installed adapter knows it
    │   ├── AmbiguousArchitectureError several adapters claim it with equal priority
    │   ├── CheckpointError            files are missing, truncated, or say something else than the config
    │   └── StreamingError             its weights cannot be read block by block
    ├── CalibrationError           no tokens can be made of that text
    ├── TaskDataError              a task's items cannot be had
    ├── RequirementError           a requirement that says nothing, or of a task that was not run
    ├── HiddenStateError           NaN, infinity or zero vectors in the residual stream
    ├── SelectionError             those blocks cannot be removed
    │   └── ConfigRewriteError         a per-block config field that no rule explains
    ├── ResumeError                what was measured before is of another run
    ├── OutputError                the target folder cannot be written
    ├── PeerError                  another process that torchrun started failed, or stands still
    ├── AdapterError               an adapter broke its contract (see `shortgpt.testing`)
    ├── GateError                  what was required of a shorter model does not hold, or is not settled
    └── VerificationError          the shorter model is not what skipping says it should be

The command line answers `VerificationError` with exit status 1, `GateError` with 1 or 3 and every other one with 2.
"""

LONGEST = 500
"""Characters of somebody else's message that are told."""


def reason_of(error: BaseException | str) -> str:
    """What another library says, as one paragraph of at most 500 printable characters: its lines joined.

    The reason is not always in the first line: a config that transformers refuses has it in the second.
    """
    text = " ".join("".join(sign if sign.isprintable() else " " for sign in str(error)).split())
    if not text:
        return type(error).__name__ if isinstance(error, BaseException) else "no reason was given"
    return text if len(text) <= LONGEST else text[: LONGEST - 1].rstrip() + "…"


def kind_and_reason(error: BaseException) -> str:
    """An error's class and what it says."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def printable(text: str) -> str:
    """A text without what a terminal acts upon, such as the codes that move its cursor, or that turn a line's direction
    around: each sign is shown by its number. Line breaks and tabs stay."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() or sign in "\n\t" else _shown(sign) for sign in text)


def _shown(sign: str) -> str:
    # What a name of a file holds that is no UTF-8 is half of a sign here.
    return sign if sign in SPACES else f"\\x{ord(sign):02x}" if ord(sign) < 256 else f"\\u{ord(sign):04x}"


SPACES = frozenset("\u00a0\u202f\u2009\u3000")
"""Signs that are not printable as Python has it and that do nothing but leave room."""


def is_panic(error: BaseException) -> bool:
    """Whether it is what a library in Rust raises where it gives up: no `Exception`, so that nothing catches it."""
    return type(error).__name__ == "PanicException"


class ShortGPTError(Exception):
    """The root: catch this to catch every error that shortgpt raises on purpose."""


class PluginError(ShortGPTError):
    """A plugin, or an answer it gave, cannot be used."""


class UnknownNameError(ShortGPTError):
    """Nothing of that name is installed; the message lists what is, closest first."""


class ModelError(ShortGPTError):
    """What was named is not a model that can be opened."""


class UnknownArchitectureError(ModelError):
    """No installed adapter recognises the model."""


class AmbiguousArchitectureError(ModelError):
    """Several adapters of equal priority recognise the model."""


class CheckpointError(ModelError):
    """A checkpoint's files are missing, damaged, or contradict its config."""


class StreamingError(ModelError):
    """A model's weights cannot be read block by block; the whole model can be loaded."""


class CalibrationError(ShortGPTError):
    """The calibration source is empty, too short, or cannot be tokenised."""


class TaskDataError(ShortGPTError):
    """A task is known, and its items cannot be had: the others of a run go on."""


class RequirementError(ShortGPTError):
    """A requirement cannot be read, or names a task that was not run."""


class HiddenStateError(ShortGPTError):
    """The residual stream holds NaN, infinity or a zero vector; the message names block and batch."""


class SelectionError(ShortGPTError):
    """The blocks asked for cannot be removed."""


class ConfigRewriteError(SelectionError):
    """A config field looks as if it depended on the blocks, and no rule explains it."""


class ResumeError(ShortGPTError):
    """What a folder holds of an earlier run is of another model, task version or setting."""


class OutputError(ShortGPTError):
    """The target cannot be written. Nothing was left behind."""


class PeerError(ShortGPTError):
    """Another process of the run failed, or stands still."""


class AdapterError(ShortGPTError):
    """An adapter did not keep the contract of `BlockSequence`."""


class GateError(ShortGPTError):
    """What was required of a shorter model does not hold, or is not settled.

    Attributes:
        failed: whether something was seen not to hold.
    """

    def __init__(self, message: str, *, failed: bool) -> None:
        super().__init__(message)
        self.failed = failed


class VerificationError(ShortGPTError):
    """A shorter model's logits or generation differ from the original's with those blocks skipped."""
