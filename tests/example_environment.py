"""A clean environment with the packages of examples/ in it, installed as their users would install them."""

from __future__ import annotations

import os
import subprocess
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from tests.fresh_processes import waiting

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
PACKAGES = ("third_party_architecture", "criterion_and_reporter")
OUR_OWN = ("PYTHONPATH", "SHORTGPT_STRICT_PLUGINS")


@dataclass(frozen=True)
class Environment:
    """A virtual environment. It sees what is installed beside this test, shortgpt and torch, and more on top."""

    folder: Path

    @property
    def python(self) -> Path:
        scripts = "Scripts" if os.name == "nt" else "bin"
        return self.folder / scripts / ("python.exe" if os.name == "nt" else "python")

    def run(
        self, *arguments: str | Path, cwd: Path | None = None, stdin: str | None = None, anew: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run its Python, outside the repository; once all is installed, in a fork of one that waits, or `anew`."""
        env = {name: value for name, value in os.environ.items() if name not in OUR_OWN} | {"PYTHONUTF8": "1"}
        command, folder = [str(argument) for argument in arguments], cwd or self.folder
        python = waiting(self.python) if self.is_ready and not anew else None
        if python is not None:
            return python.run(command, cwd=folder, env=env, stdin=stdin)
        return subprocess.run(
            [self.python, *command],
            cwd=folder,
            input=stdin,
            env=env,
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
        )

    @property
    def is_ready(self) -> bool:
        """Whether all is installed."""
        return self._ready.is_file()

    @property
    def _ready(self) -> Path:
        return self.folder / "ready"

    def ok(self, *arguments: str | Path, cwd: Path | None = None, stdin: str | None = None, anew: bool = False) -> str:
        """Run its Python and return what it printed; anything but exit status 0 fails the test."""
        done = self.run(*arguments, cwd=cwd, stdin=stdin, anew=anew)
        command = " ".join(map(str, arguments))[:200]
        assert done.returncode == 0, f"{command}: exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout


def create(folder: Path) -> Environment:
    """A new environment on top of this one, with nothing of ours but a line that points here."""
    environment = Environment(folder)
    venv.create(folder, symlinks=os.name != "nt")
    purelib = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    # addsitedir, not the bare path: it also follows the .pth files there, such as that of an editable install.
    here = sysconfig.get_path("purelib")
    (purelib / "outer.pth").write_text(f"import site; site.addsitedir({here!r})\n", encoding="utf-8")
    return environment


def install_examples(environment: Environment) -> None:
    """Build a wheel of each example by its own build backend, and install it."""
    environment.ok(
        *("-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"),
        *("--disable-pip-version-check", "--no-input", *(EXAMPLES / package for package in PACKAGES)),
    )
    environment._ready.touch()


def shared(folder: Path) -> Environment:
    """The environment with the examples in that folder, made by the first process that asks for it."""
    environment = Environment(folder)
    with FileLock(folder.with_suffix(".lock")):
        if not environment.is_ready:
            create(folder)
            install_examples(environment)
    return environment
