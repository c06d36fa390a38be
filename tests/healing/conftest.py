"""What tests of training share."""

from pathlib import Path

import pytest

import shortgpt


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text that is easy to learn."""
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("".join(f"line {i}: {i * i} is the square of {i}\n" for i in range(400)))
    return file


@pytest.fixture(scope="session")
def shorter(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama without two of its blocks."""
    folder = tmp_path_factory.mktemp("shorter") / "shorter"
    shortgpt.prune_checkpoint(llama_folder, folder, (2, 3), verify=False)
    return folder
