"""Renders chats with the model's own template, in the sandbox of transformers."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from typing import Any

import jinja2

from wire.text import ChatPrompt
from worker.engine import TaskError
from worker.engines.text.chat_messages import template_messages
from worker.engines.text.markers import knows_role, takes_tools
from worker.engines.text.prompt_text import check_text, encode_text
from worker.engines.text.recent_results import TransientError
from worker.engines.text.time_limit import TimeLimitExceeded, call_within

#: Argument of `apply_chat_template` in newer versions: control tokens in the messages become plain text.
_SANITIZE = "sanitize_control_tokens"


class ChatTemplate:
    """The chat template of one tokenizer."""

    def __init__(self, tokenizer: Any, *, max_chars: int, time_limit_s: float) -> None:
        """`max_chars`: maximum length of a rendered prompt."""
        self._tokenizer, self._max_chars, self._time_limit_s = tokenizer, max_chars, time_limit_s
        # Names of arguments are no variables of a template. `documents` is both.
        parameters = inspect.signature(tokenizer.apply_chat_template).parameters
        self._reserved = {*parameters, "messages", "self"} - {"documents"}
        self._can_sanitize = _SANITIZE in parameters
        self.text = _template(tokenizer, tools=None)
        self.tools_text = _template(tokenizer, tools=[{}]) or ""

    @property
    def is_known(self) -> bool:
        return self.text is not None

    def encode(self, prompt: ChatPrompt, max_tokens: int | None = None) -> tuple[list[int], str]:
        """Return the tokens of a chat, and its rendered text. Raises `TaskError` if it cannot be rendered.

        Control tokens in the client's own texts become plain text. `max_tokens`: see `encode_text`.
        """
        arguments = self._arguments(prompt)
        text: str = self._render(arguments, tokenize=False)
        if len(text) > self._max_chars:
            limit = f"{len(text)} characters; at most {self._max_chars} are allowed"
            raise _invalid(f"the chat template makes a prompt of {limit}")
        injected = self._injected_token(prompt)
        if injected is None:
            return encode_text(self._tokenizer, text, max_tokens, add_special_tokens=False), text
        if not self._can_sanitize:
            raise _invalid(f"a message contains {injected!r}, a control token of this model")
        check_text(self._tokenizer, text, max_tokens, add_special_tokens=False)
        return list(self._render(arguments, tokenize=True, return_dict=False, **{_SANITIZE: True})), text

    def _arguments(self, prompt: ChatPrompt) -> dict[str, Any]:
        """Return the arguments of `apply_chat_template`."""
        if self.text is None:
            raise _invalid("this model has no chat template: it takes no chats, but continues texts")
        reserved = next((name for name in prompt.template_arguments if name in self._reserved), None)
        if reserved is not None:
            raise _invalid(f"{reserved!r} is not allowed as an argument of the chat template")
        tools = prompt.tools if prompt.tool_choice != "none" else []
        template = self.tools_text if tools else self.text
        if tools and not takes_tools(template):
            raise _invalid("the chat template of this model takes no tools")
        messages = template_messages(prompt.messages, knows_developer=knows_role(template, "developer"))
        if not prompt.add_generation_prompt and messages[-1]["role"] != "assistant":
            raise _invalid("only a message of the assistant can be continued")
        return {
            **prompt.template_arguments,
            "conversation": messages,
            "tools": [_without_strict(tool) for tool in tools] or None,
            "add_generation_prompt": prompt.add_generation_prompt,
            "continue_final_message": not prompt.add_generation_prompt,
        }

    def _render(self, arguments: dict[str, Any], **options: Any) -> Any:
        try:
            return call_within(self._time_limit_s, lambda: self._tokenizer.apply_chat_template(**arguments, **options))
        except TimeLimitExceeded:
            raise TransientError("invalid", f"the chat template took more than {self._time_limit_s:g} s", 400) from None
        except jinja2.TemplateError as error:
            raise _invalid(f"the chat template rejects these messages: {error}") from error
        except (MemoryError, RecursionError) as error:
            problem = "the messages are too large or too deep for the chat template"
            raise TransientError("invalid", problem, 400) from error
        except Exception as error:  # a template computes with what clients send
            raise _invalid(f"the chat template fails for these messages: {_first_line(error)}") from error

    def _injected_token(self, prompt: ChatPrompt) -> str | None:
        """Return a control token that a text of the client contains.

        Messages of the assistant may have those that are not special, such as `<think>`: templates look for them.
        """
        special, others = self._control_tokens
        own = [message for message in prompt.messages if message.get("role") == "assistant"]
        foreign = [message for message in prompt.messages if message.get("role") != "assistant"]
        texts = "\0".join(_texts([foreign, prompt.tools, prompt.template_arguments]))
        found = (token for token in (*special, *others) if token in texts)
        texts_of_model = "\0".join(_texts(own))
        return next(found, None) or next((token for token in special if token in texts_of_model), None)

    @functools.cached_property
    def _control_tokens(self) -> tuple[list[str], list[str]]:
        """Special tokens, and other added ones that the template writes."""
        literals = (self.text or "") + self.tools_text if self._can_sanitize else ""
        added = self._tokenizer.added_tokens_decoder.values()
        others = [token.content for token in added if not token.special and token.content in literals]
        return [token.content for token in added if token.special], [text for text in others if not text.isspace()]


def _without_strict(tool: dict[str, Any]) -> dict[str, Any]:
    """Return the tool as the model sees it: how strictly its schema is kept is not for the model."""
    function = tool.get("function")
    if not isinstance(function, dict):
        return tool
    return {**tool, "function": {key: value for key, value in function.items() if key != "strict"}}


def _template(tokenizer: Any, *, tools: list[dict[str, Any]] | None) -> str | None:
    try:
        template: str = tokenizer.get_chat_template(None, tools)
    except ValueError:
        return None
    return template


def _texts(value: Any) -> Iterator[str]:
    """Yield all texts in a JSON value."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list):
            waiting += value


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _invalid(message: str) -> TaskError:
    return TaskError("invalid", message, 400)
