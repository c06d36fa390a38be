"""A model as lm-evaluation-harness asks it: `lm_eval.api.model.TemplateLM` over a `LanguageModel`.

::

    (context, continuation) ─▶ token ids ─▶ LanguageModel.likelihoods ─▶ Σ log p, whether greedy
    text ─▶ windows of max_length tokens, each predicted once ──┘         Σ log p of the text
    (prompt, settings) ─▶ LanguageModel.generate ─▶ text up to the first stop string

Tokens are made as the library's own `hf` model makes them, so that the two agree request by request. Requests are run
the longest first, in batches of a fixed size that are padded on the right.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

import shortgpt
from shortgpt.basics.block_lists import parse_blocks
from shortgpt.errors import ModelError
from shortgpt.measuring.tasks.language_model import LanguageModel
from shortgpt.measuring.tasks.likelihood import Request
from shortgpt.measuring.tasks.subjects import tokenizer_hash
from shortgpt.models.sequence import BlockSequence

NEW_TOKENS = 256
"""Of a generation whose task names no number; that of the library."""


class BlocksLM(TemplateLM):
    """A model of any family that shortgpt opens.

    Args:
        pretrained: a folder, a `.pth` file, a hub id or `zoo:NAME`; or a model that is open.
        remove: blocks to leave out, "21-29,31".
        max_length: tokens that the model reads at most. Default: its own window, or 2,048.
        batch_size: requests that are run together; "auto" and None are the default.
        add_bos_token: whether prompts begin with the token for that; by default the tokenizer decides.
        device, dtype, tokenizer, trust_remote_code: as for `shortgpt.load`.
        max_batch_size: of no effect; the library passes it.
    """

    def __init__(
        self,
        pretrained: str | BlockSequence | LanguageModel,
        *,
        remove: str | None = None,
        max_length: int | None = None,
        batch_size: int | str | None = None,
        add_bos_token: bool | None = None,
        device: str | None = None,
        dtype: str = "auto",
        tokenizer: str | None = None,
        trust_remote_code: bool = False,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        size = None if batch_size is None or str(batch_size).startswith("auto") else int(batch_size)
        if isinstance(pretrained, str):
            opening: dict[str, Any] = {"dtype": dtype, "trust_remote_code": trust_remote_code}
            opening |= {"device": device} if device else {}
            opening |= {"tokenizer": tokenizer} if tokenizer else {}
            pretrained = shortgpt.load(pretrained, **opening)
        if isinstance(pretrained, BlockSequence):
            gone = () if remove is None else parse_blocks(remove)
            pretrained = LanguageModel(pretrained, gone, batch_size=size)
        self.language_model = pretrained
        if max_length is not None:
            self.language_model.window = int(max_length)
        self.tokenizer = self.language_model.tokenizer
        self.add_bos_token = add_bos_token
        self._device = self.language_model.model.device

    # -- tokens -----------------------------------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text; 0 where the tokenizer names none, as those of RWKV do."""
        end = getattr(self.tokenizer, "eos_token_id", None)
        return end if isinstance(end, int) else 0

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that nothing comes before."""
        prefix = self.language_model.prefix
        return self.eot_token_id if prefix is None else prefix

    @property
    def max_length(self) -> int:
        return self.language_model.window

    @property
    def batch_size(self) -> int:
        return self.language_model.batch_size

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **unused: Any) -> list[int]:
        special = self.add_bos_token if add_special_tokens is None else add_special_tokens
        encode = getattr(self.tokenizer, "encode", None)
        if encode is None:
            return self.language_model.encode(string, special=special is not False)
        if add_special_tokens is None and has_bos_prefix(string, self._prefix_text):
            special = False  # a chat template has written it already
        ids: list[int] = encode(string) if special is None else encode(string, add_special_tokens=special)
        return ids

    @property
    def _prefix_text(self) -> str:
        return str(self.tokenizer.decode([self.prefix_token_id]))

    # -- what is asked ----------------------------------------------------------------------------------------

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **unused: Any
    ) -> list[tuple[float, bool]]:
        asked = [
            Request(tuple(context) or (self.prefix_token_id,), tuple(continuation))
            for _, context, continuation in requests
        ]
        answers = [(answer.total, answer.greedy) for answer in self.language_model.likelihoods(asked)]
        for (texts, _, _), answer in zip(requests, answers, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        windows: list[tuple[None, list[int], list[int]]] = []
        counts = []
        for request in requests:
            found = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            disjoint = [(None, *make_disjoint_window(window)) for window in found]
            windows += disjoint
            counts.append(len(disjoint))
        answers = iter(self._loglikelihood_tokens(windows))
        sums = [sum(next(answers)[0] for _ in range(count)) for count in counts]
        for request, total in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return sums

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        alike: dict[tuple[int, tuple[str, ...]], list[int]] = defaultdict(list)
        for place, request in enumerate(requests):
            alike[self._settings(request)].append(place)
        texts: dict[int, str] = {}
        for (new_tokens, until), places in alike.items():
            prompts = [self.tok_encode(requests[place].args[0]) or [self.prefix_token_id] for place in places]
            made = self.language_model.generate(prompts, new_tokens, until)
            for place, generated in zip(places, made, strict=True):
                text = self.tokenizer.decode(list(generated.ids), skip_special_tokens=True)
                texts[place] = postprocess_generated_text(text, stop=list(until), think_end_token=None)
                self.cache_hook.add_partial("generate_until", requests[place].args, texts[place])
        return [texts[place] for place in range(len(requests))]

    def _settings(self, request: Instance) -> tuple[int, tuple[str, ...]]:
        """New tokens at most, and stop strings, of a request."""
        settings = dict(normalize_gen_kwargs(request.args[1], NEW_TOKENS))
        if settings.get("do_sample"):
            raise ModelError(
                f"{request.task_name}: its task file asks for sampled text (do_sample, temperature), and only greedy "
                "text is made here; take a task that is judged on greedy text"
            )
        end = self.tokenizer.decode([self.eot_token_id])
        return int(settings["max_gen_toks"]), tuple(handle_stop_sequences(settings.get("until"), eos=end or None))

    # -- chat templates ---------------------------------------------------------------------------------------

    @property
    def tokenizer_name(self) -> str:
        return tokenizer_hash(self.language_model)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        template = getattr(self.tokenizer, "apply_chat_template", None)
        if template is None or not getattr(self.tokenizer, "chat_template", None):
            name = self.language_model.name
            raise ModelError(f"{name}: its tokenizer has no chat template; leave --chat-template out")
        return str(
            template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    # -- what is recorded -------------------------------------------------------------------------------------

    def get_model_info(self) -> dict[str, Any]:
        """What the library writes beside its results."""
        model = self.language_model.model
        return {
            "model_name": self.language_model.name,
            "model_architecture": model.architecture,
            "model_num_parameters": model.total_parameters(),
            "model_tokenizer_hash": tokenizer_hash(self.language_model),
            "model_window": self.max_length,
            "model_batch_size": self.batch_size,
            "shortgpt_version": shortgpt.__version__,
        }
