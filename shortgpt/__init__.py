"""shortgpt: which blocks of a language model are redundant, and the model without them, proven.

Public names are imported on first use, so that `import shortgpt` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from shortgpt._version import __version__
from shortgpt.errors import ShortGPTError

_HOMES = {
    "Ablation": "values.ablation",
    "Architecture": "basics.registry",
    "BatchCriterion": "measuring.criteria",
    "BlockInfluence": "measuring.scoring.influence",
    "BlockInfluenceMonitor": "measuring.monitor",
    "BlockSequence": "models.sequence",
    "Calibration": "measuring.calibration",
    "Choice": "values.choosing.choice",
    "Comparison": "values.comparison",
    "Compensation": "values.compensation",
    "Cost": "values.cost",
    "Criterion": "measuring.criteria",
    "Curves": "values.curves",
    "Cut": "models.sequence",
    "Effect": "values.effect",
    "Evaluation": "values.evaluation.evaluation",
    "Healing": "values.healing",
    "Evaluator": "measuring.evaluation",
    "Extension": "basics.registry",
    "Family": "models.family",
    "OrderCriterion": "measuring.criteria",
    "Plan": "values.plan",
    "Scores": "values.scores",
    "Search": "values.choosing.search",
    "Source": "basics.inputs",
    "Step": "measuring.step",
    "StepCriterion": "measuring.criteria",
    "Tap": "models.sequence",
    "TokenBatch": "models.sequence",
    "TorchBlockSequence": "torch_models.sequence",
    "TorchFamily": "torch_models.sequence",
    "Training": "values.training",
    "Verification": "values.plan",
    "ablate": "measuring.ablation",
    "calibrate": "measuring.calibration",
    "compare": "measuring.comparison",
    "compensate": "measuring.compensation.compensate",
    "cost": "measuring.costs.cost",
    "curve": "measuring.curve",
    "effect": "measuring.effect",
    "evaluate": "measuring.tasks.evaluate",
    "heal": "healing.heal",
    "hookimpl": "hookspecs",
    "inspect": "checkpoints.inspection",
    "load": "models.loading",
    "prefill_skipping": "measuring.costs.prefill",
    "prune": "verification.prune",
    "prune_checkpoint": "verification.removal_on_disk",
    "push_to_hub": "checkpoints.publishing",
    "remove": "models.removal",
    "score": "measuring.scoring.score",
    "search": "measuring.search.search",
    "trace": "measuring.tracing",
    "verify": "verification.verify",
    "wrap": "models.loading",
}

__all__ = ["ShortGPTError", "__version__", *sorted(_HOMES)]

if TYPE_CHECKING:
    from shortgpt.basics.inputs import Source as Source
    from shortgpt.basics.registry import Architecture as Architecture
    from shortgpt.basics.registry import Extension as Extension
    from shortgpt.checkpoints.inspection import inspect as inspect
    from shortgpt.checkpoints.publishing import push_to_hub as push_to_hub
    from shortgpt.healing.heal import heal as heal
    from shortgpt.hookspecs import hookimpl as hookimpl
    from shortgpt.measuring.ablation import ablate as ablate
    from shortgpt.measuring.calibration import Calibration as Calibration
    from shortgpt.measuring.calibration import calibrate as calibrate
    from shortgpt.measuring.comparison import compare as compare
    from shortgpt.measuring.compensation.compensate import compensate as compensate
    from shortgpt.measuring.costs.cost import cost as cost
    from shortgpt.measuring.costs.prefill import prefill_skipping as prefill_skipping
    from shortgpt.measuring.criteria import BatchCriterion as BatchCriterion
    from shortgpt.measuring.criteria import Criterion as Criterion
    from shortgpt.measuring.criteria import OrderCriterion as OrderCriterion
    from shortgpt.measuring.criteria import StepCriterion as StepCriterion
    from shortgpt.measuring.curve import curve as curve
    from shortgpt.measuring.effect import effect as effect
    from shortgpt.measuring.evaluation import Evaluator as Evaluator
    from shortgpt.measuring.monitor import BlockInfluenceMonitor as BlockInfluenceMonitor
    from shortgpt.measuring.scoring.influence import BlockInfluence as BlockInfluence
    from shortgpt.measuring.scoring.score import score as score
    from shortgpt.measuring.search.search import search as search
    from shortgpt.measuring.step import Step as Step
    from shortgpt.measuring.tasks.evaluate import evaluate as evaluate
    from shortgpt.measuring.tracing import trace as trace
    from shortgpt.models.family import Family as Family
    from shortgpt.models.loading import load as load
    from shortgpt.models.loading import wrap as wrap
    from shortgpt.models.removal import remove as remove
    from shortgpt.models.sequence import BlockSequence as BlockSequence
    from shortgpt.models.sequence import Cut as Cut
    from shortgpt.models.sequence import Tap as Tap
    from shortgpt.models.sequence import TokenBatch as TokenBatch
    from shortgpt.torch_models.sequence import TorchBlockSequence as TorchBlockSequence
    from shortgpt.torch_models.sequence import TorchFamily as TorchFamily
    from shortgpt.values.ablation import Ablation as Ablation
    from shortgpt.values.choosing.choice import Choice as Choice
    from shortgpt.values.choosing.search import Search as Search
    from shortgpt.values.comparison import Comparison as Comparison
    from shortgpt.values.compensation import Compensation as Compensation
    from shortgpt.values.cost import Cost as Cost
    from shortgpt.values.curves import Curves as Curves
    from shortgpt.values.effect import Effect as Effect
    from shortgpt.values.evaluation.evaluation import Evaluation as Evaluation
    from shortgpt.values.healing import Healing as Healing
    from shortgpt.values.plan import Plan as Plan
    from shortgpt.values.plan import Verification as Verification
    from shortgpt.values.scores import Scores as Scores
    from shortgpt.values.training import Training as Training
    from shortgpt.verification.prune import prune as prune
    from shortgpt.verification.removal_on_disk import prune_checkpoint as prune_checkpoint
    from shortgpt.verification.verify import verify as verify


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'shortgpt' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"shortgpt.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
