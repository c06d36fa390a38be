"""What is made shorter: a checkpoint, rewritten file by file, or a model in memory, saved."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shortgpt.basics.inputs import Config, LoadOptions, Progress, Source
from shortgpt.checkpoints import saving
from shortgpt.checkpoints.exports import check_export
from shortgpt.checkpoints.merging import merged
from shortgpt.checkpoints.new_folder import new_folder
from shortgpt.checkpoints.records import write_records
from shortgpt.checkpoints.weights import Weights
from shortgpt.errors import ModelError, SelectionError
from shortgpt.measuring.compensation.compensate import compensated
from shortgpt.measuring.compensation.fitted import Fitted
from shortgpt.models import loading, removal
from shortgpt.models.devices import default_device
from shortgpt.models.family import Family, refusal
from shortgpt.models.projections import Projection, why_unknown
from shortgpt.models.recognition import recognise, resolve
from shortgpt.models.sequence import BlockSequence
from shortgpt.values.plan import Plan
from shortgpt.values.selection import Selection
from shortgpt.verification.removal_on_disk import bytes_by_block, check_plan, foreseen, prune_checkpoint
from shortgpt.verification.verify import verify


@dataclass(frozen=True)
class Written:
    """Where the result goes, as what, whether it is proven, and whether hashes that a cache tells are taken anew."""

    output: Path | None
    exports: tuple[str, ...]
    export_as: str | None
    verify: bool
    rehash: bool = False


class Target(ABC):
    """The model that is made shorter.

    Attributes:
        name: what the user called it.
        architecture: the adapter.
        depth: its blocks.
        pinned: blocks that cannot be removed, each with its reason.
        device: as `shortgpt.load` takes it.
    """

    name: str
    architecture: str
    depth: int
    pinned: Mapping[int, str]
    device: str | None

    def check(self, selection: Selection, written: Written) -> None:
        """Raise for what cannot be, before anything takes time."""
        selection.check(self.depth, self.pinned)
        plan = selection.plan if selection.remove is None else self.plan(selection.remove)
        self.check_exports((*written.exports, *(plan.exports if plan is not None else ())), written.export_as)
        if plan is not None:
            self.check_plan(plan)

    def plan(self, blocks: Iterable[int]) -> Plan:
        """The plan that removes these."""
        return Plan(self.name, self.architecture, self.depth, tuple(sorted(set(blocks))))

    @abstractmethod
    def check_exports(self, exports: Sequence[str], export_as: str | None) -> None:
        """Raise a `ShortGPTError` for what cannot be written."""

    @abstractmethod
    def check_plan(self, plan: Plan) -> None:
        """Raise a `ShortGPTError` where the plan is not for this model."""

    @abstractmethod
    def refuse(self, blocks: tuple[int, ...]) -> str | None:
        """Why these blocks may not go, None where they may."""

    def weight_sizes(self) -> Mapping[str, tuple[int, ...]]:
        """Parameters and bytes by block, and last of what is in none, as they will be written; where that is another
        number than in memory, or is known without it."""
        return {}

    @abstractmethod
    def load(self) -> BlockSequence:
        """The model in memory."""

    @abstractmethod
    def refuse_change(self, projection: Projection) -> str | None:
        """Why a projection that the model in memory has cannot be changed in what is written, None where it can."""

    @abstractmethod
    def prune(self, plan: Plan, fitted: Fitted | None, written: Written, progress: Progress | None) -> Plan:
        """Write it without the plan's blocks, with what was fitted for that, and verify it."""

    @abstractmethod
    def foreseen(self, plan: Plan, fitted: Fitted | None, written: Written) -> Plan:
        """What `prune` would record, as far as it is known before anything is written."""


class OnDisk(Target):
    """A checkpoint: it is loaded to be scored, and rewritten file by file."""

    def __init__(self, source: Source, options: LoadOptions) -> None:
        self.source = source
        self.options: LoadOptions = {**options, "device": default_device(options.get("device"))}
        self.family: Family = recognise(source, options.get("architecture"))
        trusted = options.get("trust_remote_code", False)
        self.config: Config = self.family.read_config(source, trust_remote_code=trusted)
        self.name, self.architecture = source.name, self.family.architecture
        self.depth, self.pinned = self.family.depth(self.config), self.family.pinned(self.config)
        self.device = self.options["device"]

    def check_exports(self, exports: Sequence[str], export_as: str | None) -> None:
        for name in exports:
            check_export(name, self.source)

    def check_plan(self, plan: Plan) -> None:
        check_plan(plan, self.name, self.family, self.config)

    def refuse(self, blocks: tuple[int, ...]) -> str | None:
        return refusal(self.family, self.config, blocks)

    def weight_sizes(self) -> Mapping[str, tuple[int, ...]]:
        return {"bytes": bytes_by_block(Weights(self.source), self.family, self.depth)}

    def load(self) -> BlockSequence:
        return loading.load(self.source, **self.options)

    def refuse_change(self, projection: Projection) -> str | None:
        weights = Weights(self.source)
        places = self.family.places(self.config, weights.names)
        return why_unknown(projection, places, weights.shape)

    def foreseen(self, plan: Plan, fitted: Fitted | None, written: Written) -> Plan:
        trusted = self.options.get("trust_remote_code", False)
        return foreseen(self.source, self.family, plan, fitted, written.export_as, trusted)

    def prune(self, plan: Plan, fitted: Fitted | None, written: Written, progress: Progress | None) -> Plan:
        assert written.output is not None
        options: dict[str, Any] = {n: value for n, value in self.options.items() if n not in ("tokenizer", "revision")}
        return prune_checkpoint(
            self.source,
            written.output,
            plan,
            verify=written.verify,
            export_as=written.export_as,
            fitted=fitted,
            rehash=written.rehash,
            progress=progress,
            **options,
        )


class InMemory(Target):
    """A block sequence: it is made shorter in memory and saved."""

    def __init__(self, model: BlockSequence) -> None:
        self.model = model
        self.name, self.architecture = model.name, model.architecture
        self.depth, self.pinned = len(model), model.pinned
        self.device = str(model.device)

    def check_exports(self, exports: Sequence[str], export_as: str | None) -> None:
        if exports or export_as is not None:
            raise ModelError(
                f"{self.name}: other tools and architectures are written from a checkpoint; save the model, and prune "
                "the folder by its name"
            )

    def check_plan(self, plan: Plan) -> None:
        removal.check_plan(self.model, plan)
        if (reason := self.refuse(plan.blocks)) is not None:
            raise SelectionError(f"{self.name}: {reason}")

    def refuse(self, blocks: tuple[int, ...]) -> str | None:
        return self.model.refuse_removal(blocks)

    def load(self) -> BlockSequence:
        return self.model

    def refuse_change(self, projection: Projection) -> str | None:
        return None

    def foreseen(self, plan: Plan, fitted: Fitted | None, written: Written) -> Plan:
        shorter = removal.remove(self.model, plan)
        foreseen = (shorter if fitted is None else compensated(shorter, fitted)).plan
        assert foreseen is not None
        return foreseen

    def prune(self, plan: Plan, fitted: Fitted | None, written: Written, progress: Progress | None) -> Plan:
        assert written.output is not None
        shorter = removal.remove(self.model, plan)
        if fitted is not None:
            shorter = compensated(shorter, fitted)
        changes = () if fitted is None else fitted.changes
        with new_folder(written.output) as folder:
            done = saving.write(shorter, folder, rehash=written.rehash)
            assert done is not None
            if written.verify:
                done = replace(done, verification=verify(self.model, folder, plan.blocks, changes=changes))
            return write_records(folder, done, self.model.source.path if self.model.source is not None else None)


@contextmanager
def opened(model: Any, options: LoadOptions, merge_adapter: bool) -> Iterator[Target]:
    """What was named or handed over; an adapter that is merged lies in a folder that is gone with the context."""
    if not isinstance(model, (str, Path, Source)):
        if merge_adapter:
            raise SelectionError("the model is in memory, so that merge_adapter would do nothing; leave it out")
        yield InMemory(loading.opened(model, options))
    elif merge_adapter:
        name = model.path if isinstance(model, Source) else model
        with merged(name, trust_remote_code=options.get("trust_remote_code", False)) as source:
            yield OnDisk(source, options)
    else:
        if not isinstance(model, Source):
            model = resolve(model, options.get("architecture"), options.get("revision"))
        yield OnDisk(model, options)
