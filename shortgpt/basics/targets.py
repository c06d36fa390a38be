"""Objects named by a text, "module:object", imported on first use."""

from __future__ import annotations

import importlib
from typing import Any

from shortgpt.errors import PluginError, ShortGPTError, kind_and_reason


def load_target(target: str) -> Any:
    """Import `"module:object"`.

    Raises:
        PluginError: the target is malformed, its module cannot be imported, or it has no such object.
    """
    module_name, separator, attribute = target.partition(":")
    if not separator or not attribute:
        raise PluginError(f"target {target!r} is malformed; it must read 'module:object'")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except ShortGPTError:
        raise
    except Exception as error:  # whatever a stranger's module does at import
        raise PluginError(f"target {target!r} cannot be imported: {kind_and_reason(error)}") from error
