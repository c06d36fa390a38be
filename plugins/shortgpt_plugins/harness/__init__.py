"""lm-evaluation-harness, over any `BlockSequence`.

::

    shortgpt evaluate --task hellaswag ──▶ suite.HarnessSuite ─▶ task.HarnessTask ─┐
                                                                                   ├─▶ lm.BlocksLM ─▶ LanguageModel
    python -m shortgpt_plugins.harness --model shortgpt ──▶ the library's own run ─┘

`tasks/` holds the task files that the library lacks. Nothing here is imported, and the library neither, before a task
of that library is asked for.
"""
