"""Publishing: what is handed to the hub's library, which stands here for the hub."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import HFValidationError

import shortgpt
from shortgpt.errors import ModelError, OutputError


class Hub:
    """Stands for `huggingface_hub.HfApi`: keeps what it is told, and reads the folder as an upload does."""

    def __init__(self, token: str | None = None) -> None:
        self.token = token
        self.told: list[tuple[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.error: Exception | None = None

    def __call__(self, token: str | None = None) -> "Hub":
        self.token = token
        return self

    def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> Any:
        if self.error is not None:
            raise self.error
        self.told.append(("repository", (repo_id, private, exist_ok)))
        return SimpleNamespace(repo_id=f"me/{repo_id}" if "/" not in repo_id else repo_id)

    def create_branch(self, repo_id: str, *, branch: str, exist_ok: bool) -> None:
        self.told.append(("branch", (repo_id, branch, exist_ok)))

    def upload_folder(self, *, folder_path: Path, ignore_patterns: list[str], **options: Any) -> Any:
        self.told.append(("upload", options))
        self.files = {file.name: file.read_bytes() for file in folder_path.iterdir() if file.is_file()}
        assert ignore_patterns == [".*"]
        return SimpleNamespace(commit_url="https://hub/commit/1", pr_url="https://hub/pull/1")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", made)
    return made


@pytest.fixture(scope="module")
def shorter(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "shorter"
    shortgpt.prune_checkpoint(llama_folder, folder, [2, 3], verify=False)
    return folder


def test_a_pruned_folder_is_uploaded_with_its_card(shorter: Path, hub: Hub) -> None:
    assert shortgpt.push_to_hub(shorter, "me/shorter", private=True, token="secret") == "https://hub/commit/1"
    assert hub.token == "secret"
    (_, repository), (_, upload) = hub.told
    assert repository == ("me/shorter", True, True)
    assert upload == {
        "repo_id": "me/shorter",
        "commit_message": "llama without 2 of 6 blocks, by shortgpt",
        "create_pr": False,
    }
    assert hub.files["README.md"] == (shorter / "README.md").read_bytes()
    assert {"config.json", "model.safetensors", "shortgpt.json"} <= set(hub.files)


def test_a_shorter_model_in_memory_is_saved_for_it(llama_folder: Path, hub: Hub) -> None:
    whole = shortgpt.load(llama_folder, device="cpu")
    assert shortgpt.push_to_hub(shortgpt.remove(whole, [1]), "shorter", create_pr=True) == "https://hub/pull/1"
    assert json.loads(hub.files["config.json"])["num_hidden_layers"] == 5
    assert hub.told[-1][1]["repo_id"] == "me/shorter"
    with pytest.raises(ModelError, match="no block was removed"):
        shortgpt.push_to_hub(whole, "shorter")


def test_another_branch_is_made(shorter: Path, hub: Hub) -> None:
    shortgpt.push_to_hub(shorter, "me/shorter", revision="half", message="as asked")
    assert hub.told[1] == ("branch", ("me/shorter", "half", True))
    assert hub.told[2][1]["revision"] == "half"
    assert hub.told[2][1]["commit_message"] == "as asked"


def test_what_was_not_made_here_is_refused_before_the_hub_is_asked(
    llama_folder: Path, shorter: Path, hub: Hub, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"holds no shortgpt\.json"):
        shortgpt.push_to_hub(llama_folder, "me/shorter")
    with pytest.raises(ModelError, match="no such folder"):
        shortgpt.push_to_hub(tmp_path / "nowhere", "me/shorter")
    (tmp_path / "shortgpt.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match="not a plan"):
        shortgpt.push_to_hub(tmp_path, "me/shorter")
    assert hub.told == []


def test_the_hubs_refusal_is_told(shorter: Path, hub: Hub) -> None:
    hub.error = HFValidationError("Repo id must use alphanumeric chars")
    with pytest.raises(OutputError, match=r"me/a b: the hub did not take .*alphanumeric.*hf auth login"):
        shortgpt.push_to_hub(shorter, "me/a b")
