"""The tokenizer of a model, with its chat template."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoTokenizer

from configs.files import read_regular_file
from configs.model_settings import Model
from configs.text_settings import TextGeneration
from wire.text import ChatPrompt, Markers, PlainPrompt, TextInfo, TextPrompt, encode_prompt
from worker.engine import TaskError, UnsupportedModel, context_exceeded
from worker.engines.text.chat_template import ChatTemplate
from worker.engines.text.detokenizer import Detokenizer
from worker.engines.text.generation_config import read_generation_config, sampling_defaults, token_ids
from worker.engines.text.markers import find_reasoning
from worker.engines.text.model_files import locate_files
from worker.engines.text.prompt_text import encode_text
from worker.engines.text.recent_results import RecentResults
from worker.engines.text.structured_output import StructuredOutput
from worker.engines.text.token_bytes import TokenBytes
from worker.engines.text.tool_formats import configured_tool_calls, find_tool_calls

_RECENT_PROMPTS = 16
_MAX_TEMPLATE_BYTES = 1 << 20
#: Of a chat template, for one chat.
_TIME_LIMIT_S = 10.0


def load_tokenization(model: Model) -> Tokenization:
    """Read the tokenizer of a configured model. Raises `UnsupportedModel`, or `OSError` for missing files."""
    files = locate_files(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(files.source, **files.options)
    except (OSError, ValueError, ImportError, KeyError) as error:
        hint = "" if files.local else "; check the name, the network, and HF_TOKEN if the model needs an account"
        raise UnsupportedModel(f"the tokenizer of {model.path} cannot be read: {error}{hint}") from error
    tokenization = Tokenization(tokenizer, model.text, read_generation_config(files))
    tokenization.structured_output.prepare()
    return tokenization


class EncodedPrompt(NamedTuple):
    """The tokens of a prompt."""

    tokens: list[int]
    #: It ends within the reasoning.
    opens_reasoning: bool = False


class Tokenization:
    """Turns prompts into tokens, and tokens into texts."""

    def __init__(
        self,
        tokenizer: Any,
        settings: TextGeneration | None = None,
        generation_config: Mapping[str, Any] | None = None,
        *,
        template_time_limit_s: float = _TIME_LIMIT_S,
    ) -> None:
        """`tokenizer`: a fast one of transformers. Raises `UnsupportedModel` for another one."""
        if not getattr(tokenizer, "is_fast", False):
            raise UnsupportedModel(f"{type(tokenizer).__name__} is no fast tokenizer: the model needs a tokenizer.json")
        self._settings = TextGeneration() if settings is None else settings
        config = generation_config or {}
        if self._settings.chat_template is not None:
            tokenizer.chat_template = _read_template(Path(self._settings.chat_template))
        self.tokenizer = tokenizer
        self._defaults = sampling_defaults(config)
        self.eos_ids = frozenset(token_ids(tokenizer.eos_token_id) + token_ids(config.get("eos_token_id")))
        self.vocabulary = max(tokenizer.get_vocab().values(), default=-1) + 1
        limit = self._settings.limits.max_prompt_chars
        self._template = ChatTemplate(tokenizer, max_chars=limit, time_limit_s=template_time_limit_s)
        tokens, special = tokenizer.added_tokens_decoder, set(tokenizer.all_special_ids)
        added = {token: each.content for token, each in tokens.items()}
        self._special = {each.content: token for token, each in tokens.items() if each.special or token in special}
        self.token_bytes = TokenBytes(tokenizer.backend_tokenizer, added)
        template = self._template.text or ""
        self._reasoning = _markers(self._settings.reasoning) or find_reasoning(template, added.values())
        configured = configured_tool_calls(self._settings.tool_calls)
        self._tool_calls = configured or find_tool_calls(self._template.tools_text)
        visible = {text for form in (self._reasoning, self._tool_calls) if form is not None for text in form.marks}
        self._recent = RecentResults[EncodedPrompt](_RECENT_PROMPTS)
        #: Special tokens without those of reasoning and tool calls: they have no text.
        self.hidden_ids = frozenset(token for text, token in self._special.items() if text not in visible)
        self.structured_output = StructuredOutput(
            tokenizer.backend_tokenizer, self.vocabulary, self.eos_ids, added, self._reasoning, self._tool_calls
        )

    def info(self, context_length: int) -> TextInfo:
        """Return the properties that clients see. `context_length`: in tokens."""
        return TextInfo(
            context_length=context_length,
            chat=self._template.is_known,
            tool_calls=self._tool_calls,
            reasoning=self._reasoning,
            vocabulary=self.vocabulary,
            defaults=self._defaults,
        )

    def encode(self, prompt: TextPrompt) -> list[int]:
        """Return the tokens of a prompt. Raises `TaskError` for one that the model does not take."""
        return list(self.encode_prompt(prompt).tokens)

    def encode_prompt(self, prompt: TextPrompt, max_tokens: int | None = None) -> EncodedPrompt:
        """Return the tokens of a prompt, and how it ends. Raises as `encode` does.

        `max_tokens`: of the prompt and the result. A text of many more tokens is refused by its start, before all of it
        is turned into tokens. The choices of one request have one prompt: it is computed once.
        """
        key = f"{max_tokens} ".encode() + _content(prompt)
        return self._recent.get(hashlib.blake2b(key).digest(), lambda: self._encode_prompt(prompt, max_tokens))

    def _encode_prompt(self, prompt: TextPrompt, max_tokens: int | None) -> EncodedPrompt:
        opens_reasoning = False
        if isinstance(prompt, ChatPrompt):
            tokens, text = self._template.encode(prompt, max_tokens)
            opens_reasoning = self._opens_reasoning(prompt, text)
        elif isinstance(prompt, PlainPrompt):
            tokens = self._encode_text(prompt.text, max_tokens)
        else:
            tokens = list(prompt.tokens)
            self.check_tokens("prompt", tokens)
        if not tokens:
            raise _invalid("the prompt has no tokens")
        if max_tokens is not None and len(tokens) >= max_tokens:  # here, so that only the error is kept
            raise context_exceeded(max_tokens, str(len(tokens)))
        return EncodedPrompt(tokens, opens_reasoning)

    def check_tokens(self, place: str, tokens: Iterable[int]) -> None:
        """Raises `TaskError` for a token that the model does not have. `place`: the parameter of the request."""
        highest = max(tokens, default=-1)
        if highest >= self.vocabulary:
            raise _invalid(f"{place}: {highest}. Tokens of this model are from 0 to {self.vocabulary - 1}.")

    def detokenizer(self, prompt: list[int]) -> Detokenizer:
        """Return what makes the text after this prompt."""
        return Detokenizer(self.tokenizer.backend_tokenizer, prompt, self.hidden_ids)

    @property
    def reasoning(self) -> Markers | None:
        """The texts around the reasoning."""
        return self._reasoning

    def special_id(self, text: str) -> int | None:
        """Return the special token that is written so."""
        return self._special.get(text)

    def _encode_text(self, text: str, max_tokens: int | None) -> list[int]:
        """Special tokens in the text are tokens. The model's begin token comes first, if it has one."""
        if len(text) > self._settings.limits.max_prompt_chars:
            limit = self._settings.limits.max_prompt_chars
            raise _invalid(f"the prompt has {len(text)} characters; at most {limit} are allowed")
        tokens = encode_text(self.tokenizer, text, max_tokens)
        return tokens or token_ids(self.tokenizer.bos_token_id)

    def _opens_reasoning(self, prompt: ChatPrompt, text: str) -> bool:
        """Return whether a rendered chat ends with the begin of the reasoning, or continues it."""
        if self._reasoning is None:
            return False
        begin, end = self._reasoning.begin, self._reasoning.end
        if prompt.add_generation_prompt:
            return text.rstrip().endswith(begin)
        continued = str(prompt.messages[-1].get("content"))
        return continued.rfind(begin) > continued.rfind(end)


def _content(prompt: TextPrompt) -> bytes:
    try:
        return encode_prompt(prompt)
    except UnicodeError as error:
        raise _invalid("the prompt is no valid Unicode text") from error
    except RecursionError as error:
        raise _invalid("the messages are too deep") from error


def _read_template(file: Path) -> str:
    try:
        return read_regular_file(file.expanduser(), _MAX_TEMPLATE_BYTES).decode("utf-8")
    except (OSError, UnicodeError) as error:
        raise UnsupportedModel(f"text.chat_template: {file} cannot be read: {error}") from error


def _markers(setting: tuple[str, str] | None) -> Markers | None:
    return None if setting is None else Markers(*setting)


def _invalid(message: str) -> TaskError:
    return TaskError("invalid", message, 400)
