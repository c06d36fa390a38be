"""What is published: the source distribution, and the wheel that is built from it, work without the repository."""

import base64
import csv
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from email.parser import BytesParser
from pathlib import Path

import pytest
from packaging.metadata import Metadata

from shortgpt._version import __version__
from tests.fresh_processes import run_python

ROOT = Path(__file__).parents[1]
PACKAGES = {"shortgpt": ROOT, "shortgpt_adapters": ROOT / "adapters", "shortgpt_plugins": ROOT / "plugins"}
INFO = f"shortgpt_blocks-{__version__}.dist-info"

SMOKE = """
import importlib.metadata, sys
# The repository is nowhere; an environment in it may be.
sys.path = [place for place in sys.path if not place.startswith(sys.argv[1]) or "site-packages" in place]
import shortgpt
from shortgpt.cli import main

assert shortgpt.__file__.startswith(sys.argv[2]), shortgpt.__file__
assert importlib.metadata.version("shortgpt-blocks") == shortgpt.__version__
for command in (
    ["plugins"],
    ["score", "zoo:llama", "--sequences", "1", "--tokens", "16", "--device", "cpu", "-q"],
    ["prune", "zoo:llama", "--remove", "1", "--output", "out", "--no-verify", "-q"],
    ["inspect", "out"],
):
    try:
        main(command)
    except SystemExit as stop:
        assert stop.code == 0, (command, stop.code)
"""


def build(source: Path, target: str, into: Path) -> Path:
    """What hatchling builds of a source tree."""
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", target, "-d", into], cwd=source, check=True)
    (built,) = into.iterdir()
    return built


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, unpacked."""
    with tarfile.open(build(ROOT, "sdist", tmp_path_factory.mktemp("sdist"))) as archive:
        archive.extractall(folder := tmp_path_factory.mktemp("source"), filter="data")
    return folder / f"shortgpt_blocks-{__version__}"


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel that is built from it."""
    return zipfile.ZipFile(build(sdist, "wheel", tmp_path_factory.mktemp("wheel")))


def test_the_source_distribution_holds_what_it_takes_to_build_and_test_and_nothing_that_is_made(sdist: Path) -> None:
    assert {"README.md", "CHANGELOG.md", "LICENSE", "Makefile", "constraints.txt"} <= {f.name for f in sdist.iterdir()}
    assert (sdist / "tests" / "conftest.py").is_file()
    made = [f for f in sdist.rglob("*") if f.suffix in (".pyc", ".so") or f.name in ("__pycache__", ".venv", ".git")]
    assert not made


def test_the_wheel_holds_every_file_of_the_three_packages_and_no_other(wheel: zipfile.ZipFile) -> None:
    expected = {
        file.relative_to(place).as_posix()
        for package, place in PACKAGES.items()
        for file in (place / package).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert {name for name in wheel.namelist() if not name.startswith(INFO)} == expected
    assert "shortgpt/py.typed" in expected


def test_its_record_names_every_file_with_its_hash(wheel: zipfile.ZipFile) -> None:
    rows = {row[0]: row[1] for row in csv.reader(io.StringIO(wheel.read(f"{INFO}/RECORD").decode()))}
    assert rows.keys() == {*wheel.namelist()}
    for name in rows.keys() - {f"{INFO}/RECORD"}:
        digest = base64.urlsafe_b64encode(hashlib.sha256(wheel.read(name)).digest()).rstrip(b"=").decode()
        assert rows[name] == f"sha256={digest}"


def test_its_metadata_are_valid_and_say_what_it_is(wheel: zipfile.ZipFile) -> None:
    text = wheel.read(f"{INFO}/METADATA")
    metadata = Metadata.from_email(text, validate=True)
    assert (metadata.name, str(metadata.version)) == ("shortgpt-blocks", __version__)
    assert (metadata.license_expression, metadata.license_files) == ("Apache-2.0", ["LICENSE"])
    assert BytesParser().parsebytes(text)["Description-Content-Type"] == "text/markdown"
    assert "shortgpt = shortgpt.cli:main" in wheel.read(f"{INFO}/entry_points.txt").decode()


def test_installed_without_the_repository_it_scores_and_prunes(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path / "site")
    (tmp_path / "work").mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PYTHONPATH": str(tmp_path / "site"), "SHORTGPT_STRICT_PLUGINS": "1"}
    ran = run_python("-c", SMOKE, ROOT, tmp_path / "site", cwd=tmp_path / "work", env=environment)
    assert ran.returncode == 0, ran.stderr
    assert "block" in ran.stdout
    assert (tmp_path / "work" / "out" / "model.safetensors").is_file()
