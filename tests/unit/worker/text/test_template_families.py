"""Templates in the manner of well-known families, each with what is special in it."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from tests.support import text_models
from wire.text import ChatPrompt, Markers, ToolCallFormat
from worker.engine import TaskError
from worker.engines.text.tokenization import Tokenization

SYSTEM = {"role": "system", "content": "Be short."}
USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nHello"}
TOOL = {"type": "function", "function": {"name": "get", "parameters": {"type": "object"}}}
TOOL_JSON = '{"type": "function", "function": {"name": "get", "parameters": {"type": "object"}}}'


class Family(NamedTuple):
    template: str
    #: Special tokens.
    tokens: tuple[str, ...]
    #: A chat of system, user, assistant and user; None: it is rejected.
    chat: str | None
    #: A first message of the user, with the generation prompt.
    first: str
    reasoning: Markers | None = None
    tool_calls: ToolCallFormat | None = None
    opens_reasoning: bool = False


HEADERS = Family(
    """\
{{- bos_token }}
{%- for m in messages %}
{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if tools is not none and tools %}{{- tools[0] | tojson }}{%- endif %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
""",
    ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe short.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n<think>\nHm.\n</think>\n\nHello<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
)
INSTRUCTIONS = Family(
    """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}{%- set first = messages[0]['content'] + '\\n\\n' %}
{%- set rest = messages[1:] %}{%- else %}{%- set first = '' %}{%- set rest = messages %}{%- endif %}
{%- if tools is defined and tools %}{{- '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{%- endif %}
{%- for m in rest %}
{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) and m.role != 'tool' and not m.tool_calls %}
{{- raise_exception('roles must alternate') }}
{%- endif %}
{%- if m['role'] == 'user' %}{{- '[INST]' + (first if loop.first else '') + m['content'] + '[/INST]' }}
{%- elif m.tool_calls %}
{{- '[TOOL_CALLS][{"name": "' + m.tool_calls[0].function.name + '", "arguments": ' }}
{{- (m.tool_calls[0].function.arguments | tojson) + '}]' + eos_token }}
{%- else %}{{- m['content'] + eos_token }}{%- endif %}
{%- endfor %}
""",
    ("<s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
    "<s>[INST]Be short.\n\nHi[/INST]<think>\nHm.\n</think>\n\nHello<|im_end|>[INST]Hi[/INST]",
    "<s>[INST]Hi[/INST]",
    tool_calls=ToolCallFormat("[TOOL_CALLS]", "", "list"),
)
TURNS = Family(
    """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}{{- raise_exception('System role not supported') }}{%- endif %}
{%- for m in messages %}
{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + m.content | trim }}
{{- '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}
""",
    ("<bos>", "<start_of_turn>", "<end_of_turn>"),
    None,
    "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n",
)
OPEN_REASONING = Family(
    """\
{%- set ns = namespace(system='') %}
{%- for m in messages %}{%- if m.role == 'system' %}{%- set ns.system = m.content %}{%- endif %}{%- endfor %}
{{- bos_token + ns.system }}
{%- for m in messages %}
{%- if m.role == 'user' %}{{- '<|User|>' + m.content }}
{%- elif m.role == 'assistant' %}
{%- set content = m.content.split('</think>')[-1] if '</think>' in m.content else m.content %}
{{- '<|Assistant|>' + content | trim + eos_token }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|Assistant|><think>\\n' }}{%- endif %}
""",
    ("<bos>", "<|User|>", "<|Assistant|>"),
    "<bos>Be short.<|User|>Hi<|Assistant|>Hello<|im_end|><|User|>Hi<|Assistant|><think>\n",
    "<bos><|User|>Hi<|Assistant|><think>\n",
    reasoning=Markers("<think>", "</think>"),
    opens_reasoning=True,
)
CHATML = Family(
    text_models.CHATML,
    (),
    "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    "<|im_start|>assistant\n<think>\nHm.\n</think>\n\nHello<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    "<|im_start|>assistant\n",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    reasoning=Markers("<think>", "</think>"),
    tool_calls=ToolCallFormat("<tool_call>", "</tool_call>"),
)
FAMILIES = {
    "chatml": CHATML,
    "headers": HEADERS,
    "instructions": INSTRUCTIONS,
    "turns": TURNS,
    "open reasoning": OPEN_REASONING,
}


def of_family(family: Family) -> Tokenization:
    fast = text_models.tokenizer(chat_template=family.template)
    if family.tokens:
        fast.add_special_tokens({"bos_token": family.tokens[0], "additional_special_tokens": list(family.tokens[1:])})
    return Tokenization(fast)


def rendered(own: Tokenization, *messages: dict[str, Any], **values: Any) -> str:
    return str(own.tokenizer.decode(own.encode(ChatPrompt(list(messages), **values))))


@pytest.mark.parametrize("name", FAMILIES)
def test_chats_of_a_family(name: str) -> None:
    family = FAMILIES[name]
    own = of_family(family)
    assert rendered(own, USER) == family.first
    info, encoded = own.info(100), own.encode_prompt(ChatPrompt([USER]))
    if name not in ("headers", "turns", "instructions"):
        assert info.reasoning == family.reasoning
    assert info.tool_calls == family.tool_calls
    assert encoded.opens_reasoning is family.opens_reasoning
    if family.chat is None:
        with pytest.raises(TaskError, match="rejects these messages: System role not supported"):
            rendered(own, SYSTEM, USER)
        return
    # Markers that the assistant wrote before are left to the template.
    assert rendered(own, SYSTEM, USER, ASSISTANT, USER) == family.chat


@pytest.mark.parametrize("name", FAMILIES)
def test_no_family_lets_messages_take_a_turn(name: str) -> None:
    family = FAMILIES[name]
    own = of_family(family)
    plain = [token for token in own.encode(ChatPrompt([USER])) if token in own.hidden_ids]
    for marker in [*family.tokens, "<|im_end|>", "<|im_start|>", "<|endoftext|>"]:
        text = f"a{marker}b {marker}\n"
        tokens = own.encode(ChatPrompt([{"role": "user", "content": text}]))
        assert [token for token in tokens if token in own.hidden_ids] == plain
        assert f"a{marker}b {marker}" in own.tokenizer.decode(tokens)


def test_families_reject_what_they_do_not_know() -> None:
    with pytest.raises(TaskError, match="rejects these messages: roles must alternate"):
        rendered(of_family(INSTRUCTIONS), USER, USER)
    with pytest.raises(TaskError, match="takes no tools"):
        rendered(of_family(TURNS), USER, tools=[TOOL])


@pytest.mark.parametrize("name", ["chatml", "headers", "instructions"])
def test_tools_of_a_family(name: str) -> None:
    assert TOOL_JSON in rendered(of_family(FAMILIES[name]), USER, tools=[TOOL])
