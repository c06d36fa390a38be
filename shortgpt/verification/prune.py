"""From a model to a proven shorter checkpoint: the whole road in one call.

::

    selection ─┬─ by scores ─▶ score ─▶ choose ─┐
               └─ by name, by plan ─────────────┴─▶ Plan ─▶ effect ─▶ remove ─▶ verify ─▶ output/
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack

from shortgpt.basics.inputs import CalibrationOptions, MeasuringOptions, Progress, apart
from shortgpt.basics.progress import shown
from shortgpt.checkpoints.new_folder import check_output
from shortgpt.errors import ModelError, OutputError, SelectionError, VerificationError
from shortgpt.measuring.calibration import Calibration, calibrate, held_out, items_of
from shortgpt.measuring.compensation.fit import fit
from shortgpt.measuring.compensation.fitted import Fitted
from shortgpt.measuring.costs.budgets import bounds_of
from shortgpt.measuring.effect import effect as measured_effect
from shortgpt.measuring.scoring.score import score
from shortgpt.measuring.search.search import searched
from shortgpt.measuring.selection import choose, enough
from shortgpt.models import processes
from shortgpt.models.devices import started
from shortgpt.models.memory import release_memory
from shortgpt.models.sequence import BlockSequence
from shortgpt.values.choosing.budget import Bound
from shortgpt.values.choosing.search import Search, SearchOptions
from shortgpt.values.plan import Plan
from shortgpt.values.scores import DEFAULT_CRITERION, Scores
from shortgpt.values.selection import Selection
from shortgpt.verification.requirements import hold_to, required_tasks
from shortgpt.verification.targets import Target, Written, opened

DEFAULT_CALIBRATION = "stdlib"


def prune(
    model: Any,
    output: str | Path | None = None,
    *,
    blocks: int | None = None,
    ratio: float | None = None,
    contiguous: int | None = None,
    max_perplexity_ratio: float | None = None,
    target: str | Iterable[str] = (),
    remove: str | Iterable[int] | None = None,
    plan: Plan | str | Path | None = None,
    keep: str | Iterable[int] = (),
    criterion: str | None = None,
    scores: Scores | str | Path | None = None,
    search: str | None = None,
    objective: str | None = None,
    evaluations: int | None = None,
    width: int | None = None,
    resume: str | Path | None = None,
    calibration: Any = None,
    effect: bool | None = None,
    compensate: bool | None = None,
    verify: bool = True,
    exports: Sequence[str] = (),
    export_as: str | None = None,
    merge_adapter: bool = False,
    rehash: bool = False,
    dry_run: bool = False,
    require: Sequence[str] = (),
    progress: Progress | bool | None = None,
    **options: Unpack[MeasuringOptions],
) -> Plan | None:
    """Choose blocks of a model, remove them, write the shorter checkpoint, and prove it.

    One of `blocks`, `ratio`, `contiguous`, `max_perplexity_ratio`, `target`, `remove`, `plan` says which blocks go;
    `shortgpt.values.selection.Selection` says what each means. A model that is named is never in memory when
    it is made shorter: its files are rewritten (`shortgpt.prune_checkpoint`). One that is handed over is written as it
    is in memory.

    Args:
        model: a model folder or file, a hub id, a shipped name; or a model in memory: a block sequence, or one of a
            library, which is wrapped.
        output: a folder that does not exist, or is empty. It may be left out of a dry run.
        target: what the result is to cost at the most, such as "parameters<=110M", "memory<=1.5GB@4096x8" or
            "tokens/s>=1.3x@1x512", one or several; see docs/cost.md.
        keep: blocks that stay whatever they score.
        criterion: the score to choose by; default: Block Influence. Beside a search it chooses nothing, and is shown.
        scores: choose by these, measured before and perhaps elsewhere, or by those in a JSON file of scores.
        search: a method of `shortgpt.search`: choose the set of so many blocks by what the model does without it, and,
            with `compensate`, among the best by what makes up for that. `objective`, `evaluations`, `width` and
            `resume` are its options.
        calibration: what is scored, as `shortgpt.score` takes it; default: `stdlib`.
        effect: measure perplexity, a continuation and speed before and after, on text that comes after what is scored
            (`shortgpt.effect`). Default: where blocks are scored here.
        compensate: make up for each removed run by a linear map that is multiplied into the last projection of the
            block in front of it (`shortgpt.compensate`), fitted on the calibration's text. Default: where a plan says
            that its removal was made up for.
        verify: open the result in a fresh process, and compare it with the original with these blocks skipped, and with
            the same maps.
        exports: other tools, for which the same removal is written beside the result.
        export_as: write the result as this architecture.
        merge_adapter: the model is a LoRA folder of peft: take it merged into its base model.
        rehash: read the source's files for the SHA-256 that is recorded, even where the hub's cache names them by it.
        dry_run: choose, and measure the effect, but write nothing.
        require: what the result is to be worth on tasks, such as "cloze>=0.95x" (see `shortgpt.evaluate`): it is judged
            until that is settled, and kept only where all of it holds.
        progress: True for bars; or it is called with what is being counted, how many are done, and of how many.
        options: how the model is opened (`shortgpt.load`; with `stream` it is scored and verified with the weights
            read block by block), and what text is taken (`shortgpt.calibrate`).

    Returns:
        The plan as it stands in the output's `shortgpt.json`; of a dry run as it would stand there. None in all
        processes that `torchrun` started but the first, which writes.

    Raises:
        SelectionError: which blocks go is not said, or said twice; they may not go; or an option would do nothing.
        VerificationError: the result is not what skipping says it should be.
        GateError: something that is required of it does not hold, or is not settled; RequirementError: it says nothing.
        ModelError, CalibrationError, UnknownNameError, OutputError: as what is called here raises them.
            In every case nothing is left at `output`.
    """
    progress = shown(progress)
    selection = Selection.of(
        blocks=blocks,
        ratio=ratio,
        contiguous=contiguous,
        max_perplexity_ratio=max_perplexity_ratio,
        target=target,
        remove=remove,
        plan=plan,
        keep=keep,
    )
    measured = scores if scores is None or isinstance(scores, Scores) else Scores.read(scores)
    wanted = SearchOptions.of(search, objective=objective, evaluations=evaluations, width=width, resume=resume)
    if require and dry_run:
        raise SelectionError("--require judges what is written, and --dry-run writes nothing; take one")
    required_tasks(require)
    texts, opening = apart(options)
    given = {"criterion": criterion, "keep": selection.keep or None, "calibration": calibration, **texts, **opening}
    if compensate is None:
        compensate = selection.plan is not None and selection.plan.compensation is not None
    runs = {"effect": bool(effect), "compensate": compensate, "search": wanted is not None}
    names = [name for name, value in given.items() if value is not None]
    _refuse_idle(selection, measured is not None, runs, verify, names)
    first = started()[0] == 0
    if not first and not selection.scored:
        return None  # nothing is scored, so there is nothing to share
    if output is not None:
        check_output(output)
    elif not dry_run:
        raise OutputError("there is no folder to write to; name one (--output), or ask for a dry run (--dry-run)")
    written = Written(None if output is None else Path(output), tuple(exports), export_as, verify, rehash)
    source = DEFAULT_CALIBRATION if calibration is None else calibration
    if not isinstance(source, (str, Path, Calibration)):
        source = items_of(source)  # it is read more than once
    with opened(model, opening, merge_adapter) as origin:
        origin.check(selection, written)
        chosen: _Chosen | None
        if measured is not None:
            ranked = measured.of(criterion or measured.criteria[0])
            chosen = _by_scores(origin, selection, ranked, source, texts, progress)
        elif selection.scored:
            by = wanted if wanted is None else partial(_found, origin, selection, wanted, compensate)
            chosen = _scored(origin, selection, criterion or DEFAULT_CRITERION, by, source, texts, progress)
            effect = effect is not False
        else:
            chosen = _Chosen(selection.plan or origin.plan(selection.remove or ()))
        if chosen is None or not first:
            return None
        if effect is False:
            chosen = replace(chosen, plan=replace(chosen.plan, effect=None))
        made, fitted = _measured(origin, chosen, bool(effect), compensate, source, texts, progress)
        del chosen
        release_memory()
        made = replace(made, exports=tuple(dict.fromkeys((*made.exports, *exports))))
        if dry_run:
            return origin.foreseen(made, fitted, written)
        try:
            done = origin.prune(made, fitted, written, progress)
        except VerificationError as error:
            raise VerificationError(f"{error}; nothing was kept") from error
        if require and output is not None:
            text = source if isinstance(source, (str, Path)) else DEFAULT_CALIBRATION
            told = hold_to(require, origin.load(), Path(output), text, texts, opening, progress)
            done = replace(done, notes=(*done.notes, *told))
        return done


@dataclass(frozen=True)
class _Chosen:
    """A plan, and what it was chosen with, where that was by scores.

    Attributes:
        model: the model in memory.
        text: held-out text.
    """

    plan: Plan
    model: BlockSequence | None = None
    text: Calibration | None = None


def _scored(
    target: Target,
    selection: Selection,
    criterion: str,
    search: Callable[..., Search] | None,
    calibration: Any,
    texts: CalibrationOptions,
    progress: Progress | None,
) -> _Chosen | None:
    """The plan by scores; None in all processes but the first."""
    text = None
    with processes.group(target.device):
        model = processes.agreed(target.load)
        if selection.max_perplexity_ratio is not None:
            text = processes.agreed(lambda: held_out(calibration, model, **texts))
        bounds = () if started()[0] > 0 else _bounds(target, selection, lambda: model, progress)
        spans = selection.contiguous is not None
        scores = score(model, calibration, criteria=(criterion,), spans=spans, progress=progress, **texts)
    if started()[0] > 0:
        return None
    scores = scores.keeping(selection.keep)
    if search is None:
        plan = Plan.chosen(scores, choose(selection, scores, model, text, target.refuse, progress, bounds))
    else:
        found = search(model, scores, calibration, bounds, progress, **texts)
        plan = Plan.chosen(scores.with_search(found), (found.blocks, found.choice))
    return _Chosen(plan, model, text)


def _by_scores(
    target: Target,
    selection: Selection,
    scores: Scores,
    calibration: Any,
    texts: CalibrationOptions,
    progress: Progress | None,
) -> _Chosen:
    """The plan by scores that were measured before.

    Raises:
        ModelError: they are of another architecture or depth.
    """
    if (scores.architecture, len(scores)) != (target.architecture, target.depth):
        raise ModelError(
            f"the scores are of {len(scores)} blocks of the architecture {scores.architecture}, {target.name} has "
            f"{target.depth} of {target.architecture}"
        )
    scores = replace(scores, pinned=dict(target.pinned), chosen=(), search=None).keeping(selection.keep)
    model, text = None, None
    if selection.max_perplexity_ratio is not None:
        model = target.load()
        text = held_out(calibration, model, **texts)
    bounds = _bounds(target, selection, target.load, progress)
    chosen = choose(selection, scores, model, text, target.refuse, progress, bounds)
    return _Chosen(Plan.chosen(scores, chosen), model, text)


def _bounds(
    target: Target, selection: Selection, load: Callable[[], BlockSequence], progress: Progress | None
) -> tuple[Bound, ...]:
    """What a selection's budgets ask of the blocks; nothing where it has none."""
    if selection.target is None:
        return ()
    return bounds_of(selection.target, target.weight_sizes(), load, progress)


def _found(
    target: Target,
    selection: Selection,
    wanted: SearchOptions,
    compensate: bool,
    model: BlockSequence,
    scores: Scores,
    calibration: Any,
    bounds: tuple[Bound, ...],
    progress: Progress | None,
    **texts: Unpack[CalibrationOptions],
) -> Search:
    """The search for the set that a selection asks for; the set of least score is compensated beside the best."""
    rules: dict[str, Any] = {"refuse": target.refuse, "compensate": compensate, "refuse_change": target.refuse_change}
    if bounds:
        rules |= {"bounds": bounds, "besides": [enough(scores, bounds, target.refuse)[0]]}
    elif selection.contiguous is None:
        rules["besides"] = [scores.least_influential(selection.number(len(scores)))]
    return searched(selection, model, calibration, wanted, progress=progress, **rules, **texts)


def _measured(
    target: Target,
    chosen: _Chosen,
    effect: bool,
    compensate: bool,
    calibration: Any,
    texts: CalibrationOptions,
    progress: Progress | None,
) -> tuple[Plan, Fitted | None]:
    """The plan with its effect, and what makes up for the removal, where that is asked for."""
    plan, fitted = chosen.plan, None
    if not effect and not compensate:
        return plan, fitted
    model = target.load() if chosen.model is None else chosen.model
    if compensate:
        data = calibrate(calibration, model, **texts)
        fitted = fit(model, plan.blocks, data, refuse=target.refuse_change, progress=progress)
    if effect:
        changes = () if fitted is None else fitted.changes
        text = calibration if chosen.text is None else chosen.text
        if plan.source_hashes:  # what it tells of the weights that it was made from does not hold of these
            plan = replace(plan, source_hashes={}, base=None)
        plan = replace(plan, effect=measured_effect(model, plan, text, changes=changes, progress=progress, **texts))
    return plan, fitted


def _refuse_idle(
    selection: Selection, measured: bool, runs: Mapping[str, bool], verify: bool, given: Sequence[str]
) -> None:
    """Raise a `SelectionError` for options that would do nothing.

    Args:
        measured: whether there are scores already.
        runs: what needs the whole model, and whether it is asked for.
        given: the names of the options that were given.
    """

    def told(names: Iterable[str]) -> str:
        return ", ".join(f"--{name.replace('_', '-')}" for name in names if name in given)

    whole = {
        "--max-perplexity-ratio": selection.max_perplexity_ratio is not None,
        "--search": runs["search"],
        "--compensate": runs["compensate"],
        "--effect": runs["effect"] and not selection.scored,
    }
    if runs["search"] and measured:
        raise SelectionError("--scores and --search both choose; give one (`score --search` measures both)")
    if runs["search"] and (not selection.scored or selection.max_perplexity_ratio is not None):
        raise SelectionError(
            f"--search looks for the best set of so many blocks, and {selection.rule} says no number of them; leave it "
            "out, or give --blocks, --ratio, --contiguous or --target"
        )
    for option in (option for option, is_asked in whole.items() if is_asked and told(["stream"])):
        raise SelectionError(f"{option} runs the whole model, and --stream leaves its weights in their files; take one")
    texts = ["calibration", *CalibrationOptions.__annotations__, "tokenizer"]
    if measured and not selection.scored:
        raise SelectionError(f"--scores: nothing is chosen by score with {selection.rule}; leave them out")
    if measured and not any((*runs.values(), whole["--max-perplexity-ratio"])) and (idle := told(texts)):
        raise SelectionError(f"{idle}: --scores were measured before; leave them out, or measure the --effect on it")
    if selection.scored:
        return
    if idle := told(["criterion", "keep", *([] if verify else ["stream"])]):
        raise SelectionError(f"{idle}: nothing is scored with {selection.rule}; leave them out")
    if not any(runs.values()) and (idle := told(texts)):
        raise SelectionError(
            f"{idle}: nothing is scored with {selection.rule}; leave them out, or measure the --effect on it, or "
            "--compensate"
        )
