"""The settings of a language model. The docstring of a field is its documentation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from configs.section_base import Bytes, ByteUnits, LocalPath, Section

#: Engines for language models.
TEXT_ENGINES = ("text", "vllm", "openvino")


class TextDefaults(Section):
    """Default values of request parameters. Unset ones are those of the checkpoint's `generation_config.json`."""

    max_tokens: Annotated[int, Field(ge=1, le=2**24)] | None = None
    """Maximum number of generated tokens. Default: what the context has room for, up to `limits.max_tokens`."""
    temperature: Annotated[float, Field(ge=0, le=10)] | None = None
    """0 chooses the most probable token."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Only the most probable tokens with this sum of probabilities are chosen from."""
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    """Only so many most probable tokens are chosen from. 0: all."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """Only tokens with this part of the highest probability are chosen from."""
    repetition_penalty: Annotated[float, Field(ge=1e-6, le=100)] | None = None
    """Above 1, tokens of the prompt and the text become less probable."""


class TextLimits(Section):
    """Limits of request parameters of a language model."""

    max_tokens: int = Field(default=4096, ge=1, le=2**24)
    """Maximum number of generated tokens."""
    max_prompt_chars: int = Field(default=1_000_000, ge=1)
    """Maximum number of characters of a prompt. Longer ones are refused before they are tokenized."""
    max_messages: int = Field(default=2048, ge=1)
    """Maximum number of messages of a chat."""
    max_tools: int = Field(default=128, ge=1)
    """Maximum number of tools of a chat."""
    max_schema_bytes: Annotated[int, Field(ge=2, le=1 << 20), ByteUnits()] = 65_536
    """Maximum size of a JSON Schema: of a response, or of the parameters of a tool."""
    max_choices: int = Field(default=16, ge=1, le=128)
    """Maximum value of `n`."""
    max_top_logprobs: int = Field(default=20, ge=0, le=64)
    """Maximum number of alternatives per token with log-probabilities."""


ToolFormatName = Literal["granite", "hermes", "jamba", "llama3_json", "mistral", "mistral_args", "phi4_mini_json"]


class TextGeneration(Section):
    """A language model."""

    context_length: Annotated[int, Field(ge=16, le=2**24)] | Literal["auto"] = "auto"
    """Maximum number of tokens of a prompt and its result. `auto`: that of the model, up to 8192."""
    kv_cache: Bytes | Literal["auto"] = "auto"
    """Memory for keys and values, such as 4GiB. `auto`: on a GPU 85 % of what is free, on a CPU 512 MiB."""
    block_tokens: Literal[8, 16, 32, 64, 128] = 16
    """Tokens of a block of the cache. Prompts share full blocks."""
    step_tokens: int = Field(default=512, ge=16, le=65_536)
    """Maximum number of prompt tokens that a step computes beside the running texts. Longer prompts take more steps."""
    prefix_cache: bool = True
    """Prompts that begin alike are computed once."""
    chat_template: LocalPath | None = None
    """File with a Jinja template in place of the model's own."""
    reasoning: tuple[str, str] | None = None
    """Texts around the reasoning, such as `["<think>", "</think>"]`. Default: what the chat template marks."""
    tool_calls: ToolFormatName | tuple[str, str] | None = None
    """How the model writes tool calls: a format by vLLM's name, or the texts around the JSON object of a call.

    Such texts are `["<tool_call>", "</tool_call>"]`; with an empty second one, a list of calls follows the first.
    Default: what the chat template shows."""
    defaults: TextDefaults = TextDefaults.model_construct()
    limits: TextLimits = TextLimits.model_construct()
