"""The environment of the tests, set before a library reads it: offline, on one thread, without a user's settings."""

import os

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "TERM": "dumb",
}
for variable in ("COLUMNS", "NO_COLOR", "FORCE_COLOR", "SHORTGPT_STRICT_PLUGINS"):
    os.environ.pop(variable, None)
