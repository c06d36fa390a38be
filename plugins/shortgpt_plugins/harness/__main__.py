"""lm-evaluation-harness's own command with the model `shortgpt` and the task files of ours.

::

    python -m shortgpt_plugins.harness --model shortgpt --model_args pretrained=PATH --tasks hellaswag

All options are those of `lm_eval`, which itself knows only the models that it lists.
"""

import sys

from lm_eval.__main__ import cli_evaluate
from lm_eval.api.registry import register_model

from shortgpt_plugins.harness.catalogue import OWN
from shortgpt_plugins.harness.lm import BlocksLM


def register() -> None:
    """Let the library find the model by the name `shortgpt`, in this process."""
    register_model("shortgpt")(BlocksLM)


if __name__ == "__main__":
    register()
    if "--include_path" not in sys.argv:
        sys.argv += ["--include_path", str(OWN)]
    cli_evaluate()
