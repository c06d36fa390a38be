"""shortgpt: which blocks of a language model are redundant, and the model without them, proven.

Public names are imported on first use, so that `import shortgpt` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from shortgpt._version import __version__
from shortgpt.errors import ShortGPTError

_HOMES = {
    "Ablation": "ablation",
    "Architecture": "plugins",
    "BatchCriterion": "criteria",
    "BlockInfluence": "influence",
    "BlockSequence": "blocks",
    "Calibration": "calibration",
    "Choice": "choice",
    "Comparison": "comparison",
    "Criterion": "criteria",
    "Curves": "curves",
    "Cut": "blocks",
    "Effect": "effects",
    "Evaluator": "evaluation",
    "Extension": "plugins",
    "Family": "families",
    "OrderCriterion": "criteria",
    "Plan": "plan",
    "Scores": "scores",
    "Source": "families",
    "Step": "criteria",
    "StepCriterion": "criteria",
    "Tap": "blocks",
    "TokenBatch": "blocks",
    "TorchBlockSequence": "modules",
    "TorchFamily": "modules",
    "Verification": "plan",
    "ablate": "ablation",
    "calibrate": "calibration",
    "compare": "comparison",
    "effect": "effects",
    "curve": "curves",
    "hookimpl": "hookspecs",
    "load": "loading",
    "prune_checkpoint": "checkpoint",
    "remove": "removal",
    "score": "scoring",
    "verify": "verification",
    "wrap": "loading",
}

__all__ = ["ShortGPTError", "__version__", *sorted(_HOMES)]

if TYPE_CHECKING:
    from shortgpt.ablation import Ablation as Ablation
    from shortgpt.ablation import ablate as ablate
    from shortgpt.blocks import BlockSequence as BlockSequence
    from shortgpt.blocks import Cut as Cut
    from shortgpt.blocks import Tap as Tap
    from shortgpt.blocks import TokenBatch as TokenBatch
    from shortgpt.calibration import Calibration as Calibration
    from shortgpt.calibration import calibrate as calibrate
    from shortgpt.checkpoint import prune_checkpoint as prune_checkpoint
    from shortgpt.choice import Choice as Choice
    from shortgpt.comparison import Comparison as Comparison
    from shortgpt.comparison import compare as compare
    from shortgpt.criteria import BatchCriterion as BatchCriterion
    from shortgpt.criteria import Criterion as Criterion
    from shortgpt.criteria import OrderCriterion as OrderCriterion
    from shortgpt.criteria import Step as Step
    from shortgpt.criteria import StepCriterion as StepCriterion
    from shortgpt.curves import Curves as Curves
    from shortgpt.curves import curve as curve
    from shortgpt.effects import Effect as Effect
    from shortgpt.effects import effect as effect
    from shortgpt.evaluation import Evaluator as Evaluator
    from shortgpt.families import Family as Family
    from shortgpt.families import Source as Source
    from shortgpt.hookspecs import hookimpl as hookimpl
    from shortgpt.influence import BlockInfluence as BlockInfluence
    from shortgpt.loading import load as load
    from shortgpt.loading import wrap as wrap
    from shortgpt.modules import TorchBlockSequence as TorchBlockSequence
    from shortgpt.modules import TorchFamily as TorchFamily
    from shortgpt.plan import Plan as Plan
    from shortgpt.plan import Verification as Verification
    from shortgpt.plugins import Architecture as Architecture
    from shortgpt.plugins import Extension as Extension
    from shortgpt.removal import remove as remove
    from shortgpt.scores import Scores as Scores
    from shortgpt.scoring import score as score
    from shortgpt.verification import verify as verify


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'shortgpt' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"shortgpt.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
