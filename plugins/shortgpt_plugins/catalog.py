"""Criteria, calibration sources, evaluators and reporters that come with shortgpt, by the same door as anybody's."""

from shortgpt.basics.registry import Extension
from shortgpt.hookspecs import hookimpl

HERE = "shortgpt_plugins"


@hookimpl
def shortgpt_criteria() -> tuple[Extension, ...]:
    return (
        Extension(
            "block-influence",
            "shortgpt.measuring.scoring.influence:BlockInfluence",
            "1 - cos(x_i, x_i+1), Eq. 1 of ShortGPT",
        ),
        Extension("angular-distance", f"{HERE}.criteria:AngularDistance", "arccos(cos(x_i, x_i+1)) / pi, all tokens"),
        Extension("angular-distance-last", f"{HERE}.criteria:AngularDistanceLast", "the same at the last token only"),
        Extension("relative-magnitude", f"{HERE}.criteria:RelativeMagnitude", "norm of the update over that of x_i+1"),
        Extension("norm", f"{HERE}.criteria:Norm", "minus the norm of x_i+1: the longest stream goes first"),
        Extension("euclidean-distance", f"{HERE}.criteria:EuclideanDistance", "norm of the update"),
        Extension(
            "relative-euclidean-distance",
            f"{HERE}.criteria:RelativeEuclideanDistance",
            "norm of the update over that of x_i",
        ),
        Extension(
            "kl-divergence",
            f"{HERE}.ablating:KlDivergence",
            "KL(p_i+1 || p_i) of the next token, read through final norm and head",
        ),
        Extension("perplexity", f"{HERE}.ablating:RemovalPerplexity", "log-perplexity of the model without the block"),
        Extension("greedy", f"{HERE}.ablating:Greedy", "least perplexity, re-scored after each removal (SLEB)"),
        Extension(
            "iterative-block-influence",
            f"{HERE}.ablating:IterativeBlockInfluence",
            "Block Influence, re-scored after each removal",
        ),
        Extension("sequential", f"{HERE}.orders:Sequential", "by place, the first block first"),
        Extension("reverse-order", f"{HERE}.orders:ReverseOrder", "by place, the last block first"),
        Extension("random", f"{HERE}.orders:Random", "a random order by the seed, the control"),
    )


@hookimpl
def shortgpt_calibrations() -> tuple[Extension, ...]:
    return (
        Extension("stdlib", f"{HERE}.texts:stdlib", "the running Python's own standard library; needs no download"),
        Extension("prose", f"{HERE}.texts:prose", "English, the running Python's language reference; no download"),
        Extension("pg19", f"{HERE}.texts:pg19", "books of Project Gutenberg before 1919 (hub)"),
        Extension("wikitext2", f"{HERE}.texts:wikitext2", "WikiText-2, raw (hub)"),
        Extension("c4", f"{HERE}.texts:c4", "C4, English (hub)"),
        Extension(
            "hub",
            f"{HERE}.texts:hub",
            "hub:NAME, hub:OWNER/NAME or hub:OWNER/NAME/CONFIG, with @SPLIT: any text of the hub",
        ),
    )


@hookimpl
def shortgpt_evaluators() -> tuple[Extension, ...]:
    return (
        Extension("perplexity", f"{HERE}.evaluators:Perplexity", "exp of the mean loss of the next token"),
        Extension("accuracy", f"{HERE}.evaluators:Accuracy", "how often the next token is the likeliest"),
    )


@hookimpl
def shortgpt_task_suites() -> tuple[Extension, ...]:
    return (
        Extension(
            "lm-evaluation-harness",
            f"{HERE}.harness.suite:HarnessSuite",
            "hellaswag, mmlu, shortgpt-paper and any other of its names, task files of yours beside (extra: eval)",
        ),
    )


@hookimpl
def shortgpt_published() -> tuple[Extension, ...]:
    paper = f"{HERE}.published.shortgpt_paper"
    return tuple(
        Extension(name, f"{paper}:{function}", "of ShortGPT's tables (arXiv:2403.03853)")
        for name, function in (
            ("llama-2-7b", "llama_2_7b"),
            ("llama-2-13b", "llama_2_13b"),
            ("llama-2-70b", "llama_2_70b"),
            ("llama-7b", "llama_7b"),
            ("llama-13b", "llama_13b"),
            ("baichuan2-7b", "baichuan2_7b"),
            ("baichuan2-13b", "baichuan2_13b"),
            ("mamba-2.8b", "mamba_2_8b"),
            ("rwkv-v5-7b", "rwkv_v5_7b"),
        )
    )


@hookimpl
def shortgpt_reporters() -> tuple[Extension, ...]:
    return (
        Extension("json", f"{HERE}.reporters:as_json", "everything, to read back"),
        Extension("csv", f"{HERE}.reporters:as_csv", "a row a block"),
        Extension("markdown", f"{HERE}.reporters:as_markdown", "a table for a README or a paper's notes"),
    )


@hookimpl
def shortgpt_tasks() -> tuple[Extension, ...]:
    return (
        Extension("bits-per-byte", f"{HERE}.tasks.reading:BitsPerByte", "bits per byte of held-out text"),
        Extension("perplexity", f"{HERE}.tasks.reading:TaskPerplexity", "exp of the mean loss per token of the same"),
        Extension("next-token", f"{HERE}.tasks.reading:NextToken", "how often the next token is the likeliest"),
        Extension("cloze", f"{HERE}.tasks.reading:Cloze", "which of four continuations is the passage's own"),
        Extension("copy", f"{HERE}.tasks.exercises:Copy", "repeat the words of the line above"),
        Extension("brackets", f"{HERE}.tasks.exercises:Brackets", "close what is open, in the right order"),
        Extension("arithmetic", f"{HERE}.tasks.exercises:Arithmetic", "sums of 1 to 3 digits, by example"),
        Extension("language", f"{HERE}.tasks.continuing:Language", "does greedy text stay in the passage's language"),
        Extension("repetition", f"{HERE}.tasks.continuing:Repetition", "repeated 4-grams in 128 greedy tokens"),
    )
