"""Mamba 2: Mamba's block with a scan over heads and a gated norm inside the mixer. The stream is the same."""

from shortgpt_adapters.families.mamba import Mamba


class Mamba2(Mamba):
    architecture = "mamba2"
