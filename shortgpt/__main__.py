"""`python -m shortgpt` is the command `shortgpt`."""

import os
import sys

# For `-m`, Python puts the current folder first. It may be that of an untrusted model, and is none to import from.
if not sys.flags.safe_path and sys.path[0] == os.getcwd():
    del sys.path[0]

from shortgpt.cli import main

main()
