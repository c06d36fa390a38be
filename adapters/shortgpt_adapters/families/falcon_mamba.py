"""FalconMamba: Mamba with an RMSNorm, without weights, on B, C and Δ inside the mixer. The stream is the same."""

from shortgpt_adapters.families.mamba import Mamba


class FalconMamba(Mamba):
    architecture = "falcon_mamba"
