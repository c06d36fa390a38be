"""A report format: a line a model, its name, a tab, and its blocks, the least influential first."""

from shortgpt import Comparison, Scores


def ranking(result: Scores | Comparison) -> str:
    measured = [result] if isinstance(result, Scores) else [row.scores for row in result.rows if row.scores]
    return "\n".join(f"{scores.model}\t{','.join(map(str, scores.ranking()))}" for scores in measured)
