"""Tiny tokenizers and language models with random weights."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AddedToken,
    Gemma2Config,
    GenerationConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from configs.text_settings import TextGeneration
from worker.engines.text.tokenization import Tokenization

VOCABULARY = 512
_SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "What is two plus three? Two plus three is five.",
    '{"name": "Ada", "age": 36, "tags": ["a", "b"], "city": null, "active": true}',
    "Grüße aus Köln, où l'été est très beau. Как дела? 你好 世界 🙂🚀",
    "Messages, tools and templates make a prompt of tokens.",
)
END, START, END_OF_TEXT = "<|im_end|>", "<|im_start|>", "<|endoftext|>"
MARKERS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
#: ChatML with tools and reasoning, as Qwen's family writes it.
CHATML = """\
{%- if tools %}
{{- '<|im_start|>system\\n# Tools\\n' }}
{%- for tool in tools %}{{- tool | tojson }}{{- '\\n' }}{%- endfor %}
{{- 'For each call, return a JSON object: <tool_call>\\n{"name": <name>, "arguments": <object>}\\n</tool_call>' }}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role not in ['system', 'user', 'assistant', 'tool'] %}
{{- raise_exception('unknown role ' + message.role) }}
{%- endif %}
{{- '<|im_start|>' + message.role + '\\n' + message.content }}
{%- for call in message.tool_calls or [] %}
{{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson }}
{{- '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}
{{- '<think>\\n\\n</think>\\n\\n' }}
{%- endif %}
{%- endif %}
"""
_FAMILIES: dict[str, Any] = {
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "mistral": MistralConfig,
    "gemma2": Gemma2Config,
}


@functools.cache
def _byte_level() -> str:
    """Return a byte-level BPE tokenizer as JSON, trained in a fraction of a second."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(MARKERS),
        special_tokens=[END_OF_TEXT, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_SENTENCES * 4, trainer)
    return tokenizer.to_str()


@functools.cache
def _byte_fallback() -> str:
    """Return a BPE tokenizer in the manner of sentencepiece as JSON: bytes in place of unknown characters."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", END_OF_TEXT, START, END]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(MARKERS),
        special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))],
        limit_alphabet=64,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_SENTENCES[:3] * 4, trainer)
    content = json.loads(tokenizer.to_str())
    del content["added_tokens"][len(special) :]  # the bytes are ordinary tokens
    return json.dumps(content)


def tokenizer(*, chat_template: str | None = CHATML, byte_fallback: bool = False) -> PreTrainedTokenizerFast:
    """Return a tokenizer of about 512 tokens. The markers are tokens, but not special ones."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_byte_fallback() if byte_fallback else _byte_level()),
        eos_token=END,
        pad_token=END_OF_TEXT,
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
    )
    fast.add_tokens([AddedToken(marker, special=False, normalized=False) for marker in MARKERS])
    return fast


def unigram_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of a kind that has no structured output."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<unk>", END], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(_SENTENCES * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, chat_template=CHATML)


def tokenization(
    *,
    chat_template: str | None = CHATML,
    byte_fallback: bool = False,
    settings: TextGeneration | None = None,
    generation_config: dict[str, Any] | None = None,
    template_time_limit_s: float = 10.0,
) -> Tokenization:
    fast = tokenizer(chat_template=chat_template, byte_fallback=byte_fallback)
    return Tokenization(fast, settings, generation_config, template_time_limit_s=template_time_limit_s)


def tiny_model(family: str = "llama", *, seed: int = 0, vocabulary: int = VOCABULARY, **config: Any) -> Any:
    """Return a model of `_FAMILIES` with random weights in float32, for the tokenizer above.

    `config`: what differs from its tiny configuration, such as `sliding_window`.
    """
    values = {
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(_FAMILIES[family](**values | config), dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.dim() > 1:  # the usual small weights make all tokens alike
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def save_model(folder: Path, family: str = "llama", **config: Any) -> Path:
    """Write a tiny model with its tokenizer, as a checkpoint of transformers. Returns the folder."""
    model = tiny_model(family, **config)
    model.generation_config = GenerationConfig(eos_token_id=2, pad_token_id=0)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
