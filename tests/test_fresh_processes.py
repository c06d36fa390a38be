"""The fresh processes that tests run: forks of a Python that has imported nothing of ours."""

import signal
from pathlib import Path

from tests.fresh_processes import run_python

PROGRAM = """
import sys
ours = {"shortgpt", "shortgpt_adapters", "shortgpt_plugins", "tests"}
print(ours & {name.partition(".")[0] for name in sys.modules}, sys.argv, __name__, sys.stdin.read())
sys.modules["torch"] = None
sys.exit(3)
"""


def test_a_fork_is_a_python_that_has_imported_nothing_of_ours_and_leaves_nothing_to_the_next() -> None:
    for _ in range(2):
        ran = run_python("-c", PROGRAM, "an argument", stdin="a text")
        assert (ran.returncode, ran.stdout, ran.stderr) == (3, "set() ['-c', 'an argument'] __main__ a text\n", "")
    assert run_python("-c", "import torch; torch.ones(1)").returncode == 0


def test_it_has_the_environment_the_folder_and_the_import_path_of_one_that_began_there(
    tmp_path: Path,
) -> None:
    (tmp_path / "beside.py").write_text("import os; print(__name__, os.getcwd(), os.environ['A'])")
    of_ours = {"cwd": tmp_path, "env": {"A": "b"}}
    for arguments in (("-c", "import beside"), ("-m", "beside"), (tmp_path / "beside.py",)):
        name = "beside" if arguments[0] == "-c" else "__main__"
        assert run_python(*arguments, **of_ours).stdout.startswith(f"{name} {tmp_path} b")
    assert "ModuleNotFoundError: No module named 'beside'" in run_python("-I", "-c", "import beside", **of_ours).stderr


def test_how_it_ended_is_told() -> None:
    failed = run_python("-c", "raise ValueError('this')")
    assert (failed.returncode, failed.stderr.splitlines()[-1]) == (1, "ValueError: this")
    assert run_python("-c", "import os; os.kill(os.getpid(), 9)").returncode == -signal.SIGKILL
    told = run_python("-c", "import sys; sys.exit('why')")
    assert (told.returncode, told.stderr) == (1, "why\n")
