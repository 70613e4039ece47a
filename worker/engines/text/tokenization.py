"""The tokenizer of a model, with its chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer
from transformers.utils import cached_file

from configs.model_settings import Model
from configs.text_settings import TextGeneration
from wire.text import ChatPrompt, Markers, PlainPrompt, TextInfo, TextPrompt
from worker.engine import TaskError, UnsupportedModel
from worker.engines.text.chat_template import ChatTemplate
from worker.engines.text.detokenizer import Detokenizer
from worker.engines.text.markers import find_reasoning, find_tool_calls
from worker.engines.text.model_files import ModelFiles, locate_files
from worker.engines.text.token_bytes import TokenBytes

#: Of a chat template, for one chat.
_TIME_LIMIT_S = 10.0
#: Keys of generation_config.json that are defaults of requests.
_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def load_tokenization(model: Model) -> Tokenization:
    """Read the tokenizer of a configured model. Raises `UnsupportedModel`, or `OSError` for missing files."""
    files = locate_files(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(files.source, **files.options)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise UnsupportedModel(f"the tokenizer of {model.path} cannot be read: {error}") from error
    return Tokenization(tokenizer, model.text, _generation_config(files))


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
        self.generation_defaults: dict[str, float] = {
            name: config[name] for name in _DEFAULTS if isinstance(config.get(name), int | float)
        }
        self.eos_ids = frozenset(_ids(tokenizer.eos_token_id) + _ids(config.get("eos_token_id")))
        self.vocabulary = max(tokenizer.get_vocab().values(), default=-1) + 1
        limit = self._settings.limits.max_prompt_chars
        self._template = ChatTemplate(tokenizer, max_chars=limit, time_limit_s=template_time_limit_s)
        added = {token: each.content for token, each in tokenizer.added_tokens_decoder.items()}
        self._special = {text: token for token, text in added.items() if token in set(tokenizer.all_special_ids)}
        self._special |= {each.content: token for token, each in tokenizer.added_tokens_decoder.items() if each.special}
        self.token_bytes = TokenBytes(tokenizer.backend_tokenizer, added)
        template = self._template.text or ""
        self._reasoning = _markers(self._settings.reasoning) or find_reasoning(template, added.values())
        self._tool_calls = _markers(self._settings.tool_calls) or find_tool_calls(self._template.tools_text)
        visible = {text for pair in (self._reasoning, self._tool_calls) if pair for text in (pair.begin, pair.end)}
        #: Special tokens without those of reasoning and tool calls: they have no text.
        self.hidden_ids = frozenset(token for text, token in self._special.items() if text not in visible)
        self._starts_with_reasoning = self._reasoning is not None and self._opens_reasoning()

    def info(self, context_length: int) -> TextInfo:
        """Return the properties that clients see. `context_length`: in tokens."""
        return TextInfo(
            context_length=context_length,
            chat=self._template.is_known,
            tool_calls=self._tool_calls,
            reasoning=self._reasoning,
            starts_with_reasoning=self._starts_with_reasoning,
            vocabulary=self.vocabulary,
        )

    def encode(self, prompt: TextPrompt) -> list[int]:
        """Return the tokens of a prompt. Raises `TaskError` for one that the model does not take."""
        if isinstance(prompt, ChatPrompt):
            tokens = self._template.encode(prompt)[0]
        elif isinstance(prompt, PlainPrompt):
            tokens = self._encode_text(prompt.text)
        else:
            tokens = list(prompt.tokens)
            unknown = next((token for token in tokens if token >= self.vocabulary), None)
            if unknown is not None:
                raise _invalid(f"prompt token {unknown} is not in the vocabulary of {self.vocabulary} tokens")
        if not tokens:
            raise _invalid("the prompt has no tokens")
        return tokens

    def detokenizer(self, prompt: list[int]) -> Detokenizer:
        """Return what makes the text after this prompt."""
        return Detokenizer(self.tokenizer.backend_tokenizer, prompt, self.hidden_ids)

    def special_id(self, text: str) -> int | None:
        """Return the special token that is written so."""
        return self._special.get(text)

    def _encode_text(self, text: str) -> list[int]:
        """Special tokens in the text are tokens. The model's begin token comes first, if it has one."""
        if len(text) > self._settings.limits.max_prompt_chars:
            limit = self._settings.limits.max_prompt_chars
            raise _invalid(f"the prompt has {len(text)} characters; at most {limit} are allowed")
        try:
            tokens = list(self.tokenizer.encode(text))
        except UnicodeError as error:
            raise _invalid("the prompt is no valid Unicode text") from error
        return tokens or _ids(self.tokenizer.bos_token_id)

    def _opens_reasoning(self) -> bool:
        """Return whether the prompt of a chat ends with the begin of the reasoning."""
        assert self._reasoning is not None
        try:
            _, text = self._template.encode(ChatPrompt([{"role": "user", "content": "Hello"}]))
        except TaskError:
            return False
        return text.rstrip().endswith(self._reasoning.begin)


def _generation_config(files: ModelFiles) -> dict[str, Any]:
    """Return generation_config.json, or else config.json for its end tokens; empty for a model with neither."""
    for name in ("generation_config.json", "config.json"):
        options = {key: value for key, value in files.options.items() if key in ("local_files_only", "revision")}
        file = cached_file(files.source, name, _raise_exceptions_for_missing_entries=False, **options)
        if file is not None:
            config: dict[str, Any] = json.loads(Path(file).read_text("utf-8"))
            return config if name.startswith("generation") else {"eos_token_id": config.get("eos_token_id")}
    return {}


def _read_template(file: Path) -> str:
    try:
        return file.expanduser().read_text("utf-8")
    except (OSError, UnicodeError) as error:
        raise UnsupportedModel(f"text.chat_template: {file} cannot be read: {error}") from error


def _markers(setting: tuple[str, str] | None) -> Markers | None:
    return None if setting is None else Markers(*setting)


def _ids(value: Any) -> list[int]:
    """Return token ids that a configuration gives as a number, as a list or not at all."""
    values = value if isinstance(value, list) else [value]
    return [each for each in values if isinstance(each, int)]


def _invalid(message: str) -> TaskError:
    return TaskError("invalid", message, 400)
