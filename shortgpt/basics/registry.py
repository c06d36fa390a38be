"""What the installed plugins provide, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

from shortgpt.basics.value import Value


@dataclass(frozen=True)
class Extension(Value):
    """A named thing that a plugin provides.

    Attributes:
        name: what users call it.
        target: `"module:object"`, imported on first use.
        description: in a few words.
        plugin: filled in by the loader.
    """

    name: str
    target: str
    description: str = ""
    plugin: str = ""


@dataclass(frozen=True)
class Architecture(Extension):
    """A model family, as plain data: how to recognise it, and where its `shortgpt.Family` lives.

    A source is recognised by any of: its config's `model_type` or `architectures`; for a config without a
    `model_type`, the presence of all `config_keys`; a file's suffix. A model in memory is recognised by its config's
    `model_type`, or by its class's module being one of `modules` (or inside one).
    Of several that recognise a model, the highest `priority` wins; equal ones are an error, never a guess. The model
    type `"*"` stands for every one, and belongs to a priority below 0.

    Attributes:
        model_types, architectures, config_keys: of a config, by which a folder is recognised.
        suffixes: of a file, by which it is recognised.
        modules: of classes, by which a model in memory is recognised.
        priority: of several that recognise a model, the highest wins.
    """

    model_types: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()
    config_keys: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    priority: int = 0


@dataclass(frozen=True)
class PluginRecord(Value):
    """One entry point: what it is, where it came from, and what became of it.

    Attributes:
        name, value: of the entry point.
        distribution, version: of the installed package that it came with.
        error: why it failed to load; None when it loaded.
        provides: a line a kind of thing, with their names.
    """

    name: str
    value: str
    distribution: str
    version: str
    error: str | None = None
    provides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Registry(Value):
    """Everything the installed plugins provide, by kind. Two plugins may claim one name: using it is then an error.

    Attributes:
        records: the plugins themselves.
        architectures: the families of models that are recognised.
        criteria, calibrations, evaluators, reporters: what `--criterion`, `--calibration`, `--evaluator` and `--format`
            take.
        models: small models that ship with a plugin.
        tasks: what `--task` takes.
        suites: libraries of more tasks.
        published: what `--published` takes.
    """

    records: tuple[PluginRecord, ...]
    architectures: tuple[Architecture, ...] = ()
    criteria: tuple[Extension, ...] = ()
    calibrations: tuple[Extension, ...] = ()
    evaluators: tuple[Extension, ...] = ()
    reporters: tuple[Extension, ...] = ()
    models: tuple[Extension, ...] = ()
    tasks: tuple[Extension, ...] = ()
    suites: tuple[Extension, ...] = ()
    published: tuple[Extension, ...] = ()

    @property
    def failed(self) -> tuple[PluginRecord, ...]:
        return tuple(record for record in self.records if record.error)

    def failures_note(self) -> str:
        """A sentence for error messages, empty when every plugin loaded."""
        if not self.failed:
            return ""
        reasons = "; ".join(f"{record.name} ({record.value}): {record.error}" for record in self.failed)
        return f" Plugins that failed to load: {reasons}."


HOOKS: dict[str, tuple[str, type[Extension]]] = {
    "architectures": ("shortgpt_architectures", Architecture),
    "criteria": ("shortgpt_criteria", Extension),
    "calibrations": ("shortgpt_calibrations", Extension),
    "evaluators": ("shortgpt_evaluators", Extension),
    "reporters": ("shortgpt_reporters", Extension),
    "models": ("shortgpt_models", Extension),
    "tasks": ("shortgpt_tasks", Extension),
    "suites": ("shortgpt_task_suites", Extension),
    "published": ("shortgpt_published", Extension),
}


KINDS = tuple(HOOKS)
"""What plugins provide: the names of the registry's tables."""
