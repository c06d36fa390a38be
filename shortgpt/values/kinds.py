"""The kinds of result that are written as documents of their own, found by what a document says of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shortgpt.basics.targets import load_target
from shortgpt.basics.untrusted import local_path, read_text
from shortgpt.basics.value import SCHEMA, Value
from shortgpt.errors import ShortGPTError
from shortgpt.values.plan import PLAN_FILE

KINDS = {
    "ablation": "shortgpt.values.ablation:Ablation",
    "compensation": "shortgpt.values.compensation:Compensation",
    "comparison": "shortgpt.values.comparison:Comparison",
    "cost": "shortgpt.values.cost:Cost",
    "curves": "shortgpt.values.curves:Curves",
    "effect": "shortgpt.values.effect:Effect",
    "evaluation": "shortgpt.values.evaluation.evaluation:Evaluation",
    "healing": "shortgpt.values.healing:Healing",
    "inspection": "shortgpt.values.inspection:Inspection",
    "plan": "shortgpt.values.plan:Plan",
    "published-comparison": "shortgpt.values.published:PublishedComparison",
    "registry": "shortgpt.basics.registry:Registry",
    "scores": "shortgpt.values.scores:Scores",
    "search": "shortgpt.values.choosing.search:Search",
    "training": "shortgpt.values.training:Training",
    "verification": "shortgpt.values.plan:Verification",
}
"""The kind in a document's schema, `shortgpt/KIND/VERSION` → its class."""


def read(path: str | Path) -> Value:
    """The result in a JSON file that shortgpt wrote, or the plan in a folder that it wrote.

    Raises:
        ShortGPTError: there is none, or it is of a kind or version that is not known here.
    """
    file = local_path(path, ShortGPTError)
    file = file / PLAN_FILE if file.is_dir() else file
    try:
        document = json.loads(read_text(file))
    except OSError as error:
        raise ShortGPTError(f"{file}: the result cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise ShortGPTError(f"{file}: it is no JSON ({error}); name a file that --json wrote") from None
    try:
        return _kind(document).from_dict(document)
    except ShortGPTError as error:
        raise ShortGPTError(f"{file}: {error}") from None


def _kind(document: Any) -> type[Value]:
    """The class of a document."""
    told = "it is no result that shortgpt wrote:"
    if not isinstance(document, dict):
        raise ShortGPTError(f"{told} found a JSON {type(document).__name__}; name a file that --json wrote")
    if SCHEMA not in document:
        raise ShortGPTError(f"{told} it names no schema; name a file that --json wrote")
    parts = str(document[SCHEMA]).split("/")
    if len(parts) != 3 or parts[0] != "shortgpt" or parts[1] not in KINDS:
        raise ShortGPTError(
            f"{document[SCHEMA]!r} is no kind of result that this version knows ({', '.join(KINDS)}); upgrade "
            "shortgpt, or name another file"
        )
    kind: type[Value] = load_target(KINDS[parts[1]])
    return kind
