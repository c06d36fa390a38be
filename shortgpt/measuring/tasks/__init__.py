"""Tasks that language models are judged by, for any `BlockSequence`.

::

    text source ─┐
    seed ────────┴─▶ Task: items ─▶ LanguageModel: log-likelihoods, greedy text ─▶ Outcome an item ─▶ Evaluation
                                          └─ a BlockSequence, whole or with blocks skipped
"""
