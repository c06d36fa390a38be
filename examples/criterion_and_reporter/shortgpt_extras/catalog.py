"""What this plugin provides, as plain data: the entry point of group "shortgpt" names this module."""

from shortgpt import Extension, hookimpl


@hookimpl
def shortgpt_criteria() -> tuple[Extension, ...]:
    return (Extension("norm-change", "shortgpt_extras.norm_change:NormChange", "how far a block rescales the stream"),)


@hookimpl
def shortgpt_reporters() -> tuple[Extension, ...]:
    return (Extension("ranking", "shortgpt_extras.ranking:ranking", "a line a model, for shell scripts"),)
