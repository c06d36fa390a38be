"""`python -m shortgpt` is the command `shortgpt`."""

from shortgpt.cli import main

main()
