"""A shorter model on the hub: its folder, with the model card as README.md."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from shortgpt.basics.leftovers import temporary_folder
from shortgpt.basics.untrusted import local_path
from shortgpt.errors import ModelError, OutputError, reason_of
from shortgpt.models.sequence import BlockSequence
from shortgpt.values.plan import CARD_FILE, PLAN_FILE, Plan


def push_to_hub(
    model: str | Path | BlockSequence,
    repository: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    message: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
) -> str:
    """Upload a shorter model to the hub, with `huggingface_hub`. A repository that is not there is made.

    Args:
        model: a folder that shortgpt wrote; or a shorter model in memory, which is saved for that.
        repository: `user/name`.
        private: whether a repository that is made is private; None: as the account is set.
        revision: the branch, which is made where it is not there. Default: main.
        message: of the commit. Default: what was removed.
        create_pr: open a pull request in place of a commit to the branch.
        token: of the account. Default: the one that `hf auth login` keeps.

    Returns:
        The address of the commit, or of the pull request.

    Raises:
        ModelError: it is no folder of a shorter model, or no shorter model.
        OutputError: the hub refuses it, or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    with ExitStack() as stack:
        folder = _saved(model, stack)
        plan = _plan_of(folder)
        said = message or f"{Path(plan.model).name} without {len(plan.blocks)} of {plan.depth} blocks, by shortgpt"
        at: dict[str, Any] = {} if revision is None else {"revision": revision}
        api = HfApi(token=token)
        try:
            name = api.create_repo(repository, private=private, exist_ok=True).repo_id
            if revision is not None and not create_pr:
                api.create_branch(name, branch=revision, exist_ok=True)
            made = api.upload_folder(
                repo_id=name,
                folder_path=folder,
                commit_message=said,
                create_pr=create_pr,
                ignore_patterns=[".*"],
                **at,
            )
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            raise OutputError(
                f"{repository}: the hub did not take the model ({reason_of(error)}); check the name, the network, and "
                "that you are logged in with a token that may write (`hf auth login`)"
            ) from None
    return str(made.pr_url if create_pr else made.commit_url)


def _saved(model: str | Path | BlockSequence, stack: ExitStack) -> Path:
    """The folder of a model; one in memory is saved into one that is gone with the stack."""
    if not isinstance(model, BlockSequence):
        return local_path(model)
    if model.plan is None:
        raise ModelError(f"{model.name}: no block was removed from it, so there is nothing of ours to publish")
    folder = stack.enter_context(temporary_folder()) / "model"
    model.save(folder)
    return folder


def _plan_of(folder: Path) -> Plan:
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder; name one that `shortgpt prune` or `save` wrote")
    if unread := Plan.unread_beside(folder):
        raise ModelError(f"{folder}: {unread}")
    plan = Plan.beside(folder)
    if plan is None or not (folder / CARD_FILE).is_file():
        missing = PLAN_FILE if plan is None else CARD_FILE
        raise ModelError(f"{folder}: it holds no {missing}, so it is no folder that `shortgpt prune` or `save` wrote")
    return plan
