"""A task of lm-evaluation-harness as a `Task`: its own documents, prompts, filters and metrics, an outcome an item.

::

    documents ─▶ build_all_requests ─▶ BlocksLM ─▶ filters ─▶ process_results ─▶ value of the metric ─▶ Outcome
                 (few-shot examples,
                  chat template)

A group of tasks that are averaged (MMLU) is one task whose items are those of all its parts.
"""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.task import Task as LibraryTask

from shortgpt.errors import TaskDataError, reason_of
from shortgpt.measuring.tasks.language_model import LanguageModel
from shortgpt.measuring.tasks.task import Task
from shortgpt.values.evaluation.outcomes import Outcome
from shortgpt_plugins.harness.lm import BlocksLM
from shortgpt_plugins.harness.metrics import SHARES, choose

SOME = 256
"""Documents whose choices are counted to say what guessing would give."""
FEWSHOT_SEED = 1234
"""The library's own, of its command line."""


@dataclass
class Part:
    """One of the library's tasks, as a part of ours.

    Attributes:
        weight: of each of its items.
        requests: what was built of its items for models without a chat template, by item.
    """

    task: LibraryTask
    weight: float = 1.0
    requests: dict[int, list[Instance]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.task.eval_docs)


class HarnessTask(Task):
    """A task of the library, or several that it averages.

    Args:
        metric: the one to judge by; None: see `metrics.PREFERRED`.
        filtered: the name of the filter whose answers are judged; None: the first.
        alike: whether a group's tasks count alike, however many items each has.

    Raises:
        TaskDataError: no metric of the task is a mean over items.
    """

    def __init__(
        self,
        name: str,
        tasks: Sequence[LibraryTask],
        *,
        metric: str | None = None,
        filtered: str | None = None,
        alike: bool = False,
        shots: int | None = None,
        chat_template: bool = False,
        recorded: Mapping[str, Any] = {},
    ) -> None:
        first = tasks[0]
        self.name = name
        self.parts = [Part(task) for task in tasks]
        if alike:
            for part in self.parts:
                part.weight = 1.0 / len(part)
        self.starts = [0, *accumulate(len(part) for part in self.parts)]
        for task in tasks:
            _set_shots(task, shots)
        self.value_of, self.by = choose(name, first.aggregation(), metric)
        self.filtered = filtered
        self.chat_template = chat_template
        self.metric = _METRICS.get(self.value_of, self.value_of)
        self.lower_is_better = not first.higher_is_better().get(self.value_of, True)
        self.kind, self.scale = self.by.kind, self.by.scale
        self.bounds = (0.0, 1.0) if self.value_of in SHARES else None
        self.version = str(first.VERSION)
        config = first.config
        self.settings = {
            "metric": self.value_of,
            "filter": filtered or "first",
            "shots": config.num_fewshot,
            "few_shot_seed": FEWSHOT_SEED,
            "chat_template": chat_template,
            "output_type": config.output_type,
            "data_set": "/".join(filter(None, (config.dataset_path, config.dataset_name))),
            "split": config.test_split or config.validation_split,
            "tasks": len(tasks),
            **recorded,
        }

    def __len__(self) -> int:
        return self.starts[-1]

    @cached_property
    def chance(self) -> float | None:  # type: ignore[override]
        """One over the number of choices, on average over items."""
        docs = [(part, doc) for part in self.parts for doc in _some(part.task.eval_docs)]
        if self.parts[0].task.OUTPUT_TYPE != "multiple_choice":
            return None
        weights = [part.weight for part, _ in docs]
        shares = [part.weight / len(_choices(part.task, doc)) for part, doc in docs]
        return sum(shares) / sum(weights)

    def outcomes(self, model: LanguageModel, items: Sequence[int]) -> list[Outcome]:
        lm = BlocksLM(model)
        found: dict[int, Outcome] = {}
        for part, start, end in zip(self.parts, self.starts[:-1], self.starts[1:], strict=True):
            here = [item - start for item in items if start <= item < end]
            for item, outcome in zip(here, self._judged(part, lm, here), strict=True):
                found[start + item] = outcome
        return [found[item] for item in items]

    def _judged(self, part: Part, lm: BlocksLM, items: Sequence[int]) -> Iterator[Outcome]:
        if not items:
            return
        asked = self._asked(part, lm, items)
        kinds: dict[str, list[Instance]] = defaultdict(list)
        for item in items:
            for request in asked[item]:
                kinds[request.request_type] += [request] * (request.repeats or 1)
        for kind, requests in kinds.items():
            for request, answer in zip(requests, getattr(lm, kind)(requests), strict=True):
                request.resps.append(answer)
        # The library filters the answers of what it built last; so do we those of these items.
        part.task._instances = [request for item in items for request in asked[item]]
        part.task.apply_filters()
        for item in items:
            requests = sorted(asked[item], key=lambda request: request.idx)
            yield self._outcome(part, requests)

    def _outcome(self, part: Part, requests: Sequence[Instance]) -> Outcome:
        """What was done on one item."""
        name = self._filter(requests[0])
        answers = [request.filtered_resps[name] for request in requests]
        doc = requests[0].doc
        value = part.task.process_results(doc, answers)[self.value_of]
        score, weight = self.by.scored(value)
        answered, right = _answer(part.task, doc, answers, self.value_of, score)
        return Outcome(score * part.weight, weight * part.weight, answered, right)

    def _filter(self, request: Instance) -> str:
        names = list(request.filtered_resps)
        if self.filtered is not None and self.filtered not in names:
            raise TaskDataError(f"{self.name}: no filter {self.filtered!r}; it has {', '.join(names)}")
        return self.filtered or names[0]

    def _asked(self, part: Part, lm: BlocksLM, items: Sequence[int]) -> dict[int, list[Instance]]:
        """Fresh requests of these items, by item.

        Few-shot examples are drawn anew for each document, from the first one on, so that those of one depend on the
        ones before it; all are built in that order, once, as the library does. Without examples only what is asked is.
        """
        if self.chat_template or not part.requests.keys() >= set(items):
            drawn = bool(part.task.config.num_fewshot)
            built = self._built(part.task, lm, None if drawn else list(items))
            part.requests = built if drawn or self.chat_template else part.requests | built
        return {item: [_fresh(request) for request in part.requests[item]] for item in items}

    def _built(self, task: LibraryTask, lm: BlocksLM, items: list[int] | None) -> dict[int, list[Instance]]:
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
        with contextlib.redirect_stderr(io.StringIO()):  # it draws a progress bar of its own
            task.build_all_requests(
                samples=items,
                rank=0,
                world_size=1,
                apply_chat_template=self.chat_template,
                fewshot_as_multiturn=True,
                chat_template=lm.apply_chat_template if self.chat_template else None,
                tokenizer_name=lm.tokenizer_name if self.chat_template else "",
            )
        found: dict[int, list[Instance]] = defaultdict(list)
        for request in task.instances:
            found[request.doc_id if items is None else items[request.doc_id]].append(request)
        return found


_METRICS = {
    "acc": "accuracy",
    "acc_norm": "accuracy by likelihood a character",
    "exact_match": "exact match",
    "word_perplexity": "perplexity a word",
    "byte_perplexity": "perplexity a byte",
    "bits_per_byte": "bits per byte",
}


def _choices(task: LibraryTask, doc: Any) -> Sequence[str]:
    """Of a multiple choice; tasks that are classes of their own have them in their documents."""
    return task.doc_to_choice(doc) if hasattr(task, "doc_to_choice") else doc["choices"]


def _some(docs: Sequence[Any]) -> Sequence[Any]:
    """A few hundred documents, evenly spread."""
    return [docs[place] for place in range(0, len(docs), max(1, len(docs) // SOME))]


def _set_shots(task: LibraryTask, shots: int | None) -> None:
    """As the library's own command does it: a task that says 0 stays with it."""
    own = task.get_config("num_fewshot")
    if own is None:
        task.set_config(key="num_fewshot", value=shots or 0)
    elif shots is not None and own != 0:
        task.set_config(key="num_fewshot", value=shots)


def _fresh(request: Instance) -> Instance:
    """The same request, unanswered."""
    return Instance(
        request_type=request.request_type,
        doc=request.doc,
        arguments=request.arguments,
        idx=request.idx,
        metadata=request.metadata,
    )


def _answer(
    task: LibraryTask, doc: Any, answers: Sequence[Any], metric: str, score: float
) -> tuple[tuple[str, ...], tuple[bool, ...]]:
    """What was answered, as text, and whether it is right; nothing where a metric is no right or wrong."""
    if metric not in SHARES or score not in (0.0, 1.0):
        return (), ()
    if task.OUTPUT_TYPE == "multiple_choice":
        likelihoods = np.array([answer[0] for answer in answers])
        choices = _choices(task, doc)
        likelihoods = likelihoods[: len(choices)]
        if metric == "acc_norm":
            likelihoods = likelihoods / np.array([float(len(choice)) for choice in choices])
        elif metric == "acc_bytes":
            likelihoods = likelihoods / np.array([float(len(choice.encode("utf-8"))) for choice in choices])
        return (str(choices[int(np.argmax(likelihoods))]),), (score == 1.0,)
    if task.OUTPUT_TYPE == "generate_until":
        return (str(answers[0]),), (score == 1.0,)
    return (str(answers[0][1]),), (score == 1.0,)  # of a text to be continued: whether it is the likeliest


def data_error(name: str, error: Exception) -> TaskDataError:
    """Why a task cannot be made, in our words."""
    return TaskDataError(
        f"{name}: its data cannot be had ({reason_of(error)}); check the network, or write a task file that reads "
        "local files (dataset_path: json, dataset_kwargs: data_files) and name its folder by --include-path"
    )
