"""Mistral: Llama's block with sliding-window attention.

The window (`sliding_window`) is one number for all blocks, so removal leaves it alone; with fewer blocks the model sees
less far back, window × blocks tokens.
"""

from shortgpt_adapters.families.llama import Llama


class Mistral(Llama):
    architecture = "mistral"
