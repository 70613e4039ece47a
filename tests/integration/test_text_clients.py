"""Clients of other projects, unmodified, on the simulated and on the built-in language model.

MUSTER_TEST_CLIENTS_PYTHON=ENV/bin/python MUSTER_TEST_CLIENTS_NODE=FOLDER pytest tests/integration/test_text_clients.py
ENV has the packages of `tests/integration/text_clients.txt`, and FOLDER those of `npm install openai@6.49.0`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.harness.balancer import Server, running

pytestmark = pytest.mark.timeout(600)  # importing the clients takes long
_VARIABLE, _NODE_VARIABLE = "MUSTER_TEST_CLIENTS_PYTHON", "MUSTER_TEST_CLIENTS_NODE"
_TOKENIZER = Path(__file__).resolve().parents[2] / "worker" / "builtin" / "tiny-text"
_LITELLM = """
import json, sys
import litellm
url, model = sys.argv[1:]
options = {"model": f"openai/{model}", "api_base": f"{url}/v1", "api_key": "none"}
messages = [{"role": "user", "content": "2+2="}]
chat = dict(messages=messages, seed=3, temperature=0, max_tokens=12, **options)
answer = litellm.completion(**chat)
chunks = list(litellm.completion(stream=True, stream_options={"include_usage": True}, **chat))
streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
plain = litellm.text_completion(prompt="2+2=", **(options | {"model": f"text-completion-openai/{model}"}))
response = litellm.responses(input="2+2=", max_output_tokens=16, **options)
try:
    litellm.completion(**(chat | {"model": "openai/absent"}))
    refusal = ""
except litellm.NotFoundError as error:
    refusal = str(error)
print(json.dumps({
    "whole": answer.choices[0].message.content,
    "tokens": answer.usage.completion_tokens,
    "streamed": streamed,
    "plain": plain.choices[0].text,
    "response": response.output[0].content[0].text,
    "refusal": refusal,
}))
"""
_NODE = """
import OpenAI from "openai";
const [url, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const chat = { model, messages: [{ role: "user", content: "2+2=" }], seed: 3, temperature: 0, max_tokens: 12 };
const whole = await client.chat.completions.create(chat);
let streamed = "";
const stream = await client.chat.completions.create({ ...chat, stream: true, stream_options: { include_usage: true } });
for await (const chunk of stream) streamed += chunk.choices[0]?.delta?.content ?? "";
const plain = await client.completions.create({ model, prompt: "2+2=", max_tokens: 4 });
const response = await client.responses.create({ model, input: "2+2=", max_output_tokens: 16 });
const kinds = [];
for await (const event of await client.responses.create({ model, input: "2+2=", stream: true, max_output_tokens: 16 }))
  kinds.push(event.type);
let refusal = "";
await client.chat.completions.create({ ...chat, model: "absent" }).catch((error) => {
  refusal = error instanceof OpenAI.NotFoundError ? error.message : "";
});
console.log(JSON.stringify({
  whole: whole.choices[0].message.content,
  tokens: whole.usage.completion_tokens,
  streamed,
  plain: plain.choices[0].text,
  response: response.output_text,
  kinds,
  refusal,
}));
"""


@pytest.fixture(scope="module")
def node() -> Path:
    path = os.environ.get(_NODE_VARIABLE)
    if path is None or not Path(path, "node_modules", "openai").is_dir() or shutil.which("node") is None:
        pytest.skip(f"{_NODE_VARIABLE} names no folder with the package openai, or there is no node")
    return Path(path)


@pytest.fixture(scope="module")
def python() -> Path:
    path = os.environ.get(_VARIABLE)
    if path is None or not Path(path).is_file():
        pytest.skip(f"{_VARIABLE} names no interpreter with the packages of tests/integration/text_clients.txt")
    return Path(path)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    usual = {"warm_up": {"measure_s": 0}}
    models: dict[str, Any] = {
        "words": {"engine": "sim", "sim": {"task": "text", "load_s": 0.0}} | usual,
        "tiny": {"engine": "text", "path": "builtin:tiny-text"} | usual,
    }
    with running(tmp_path_factory.mktemp("clients"), models, {"words": 1, "tiny": 1}) as started:
        yield started


def _run(command: list[str | Path], **options: Any) -> str:
    """Run a client without the internet, and return what it prints."""
    offline = {"HF_HUB_OFFLINE": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    result = subprocess.run(command, **{"env": os.environ | offline} | options, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.parametrize("model", ["words", "tiny"])
def test_litellm_reads_all_endpoints(python: Path, server: Server, model: str) -> None:
    got = json.loads(_run([python, "-c", _LITELLM, server.base_url, model]).splitlines()[-1])
    assert got["whole"]
    assert got["streamed"] == got["whole"]
    assert 0 < got["tokens"] <= 12
    assert got["plain"]
    assert got["response"]
    assert "absent" in got["refusal"]


@pytest.mark.parametrize("model", ["words", "tiny"])
def test_openai_for_node_reads_all_endpoints(node: Path, server: Server, model: str) -> None:
    command: list[str | Path] = ["node", "--input-type=module", "-", server.base_url, model]
    got = json.loads(_run(command, input=_NODE, cwd=node))
    assert got["whole"]
    assert got["streamed"] == got["whole"]
    assert 0 < got["tokens"] <= 12
    assert got["plain"]
    assert got["response"]
    assert (got["kinds"][0], got["kinds"][-1]) in [
        ("response.created", "response.completed"),
        ("response.created", "response.incomplete"),
    ]
    assert "absent" in got["refusal"]


@pytest.mark.parametrize("model", ["words", "tiny"])
def test_aiperf_completes_its_requests(python: Path, server: Server, model: str, tmp_path: Path) -> None:
    options = {
        "model": model,
        "url": server.base_url,
        "endpoint-type": "chat",
        "tokenizer": _TOKENIZER,
        "request-count": 6,
        "concurrency": 2,
        "synthetic-input-tokens-mean": 30,
        "output-tokens-mean": 12,
        "extra-inputs": "ignore_eos:true",
        "ui-type": "none",
        "output-artifact-dir": tmp_path,
    }
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    # It takes a folder for the tokenizer only while it believes to be online.
    online = {
        name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    }
    _run([python.parent / "aiperf", "profile", "--streaming", *arguments], env=online)
    report = json.loads((tmp_path / "profile_export_aiperf.json").read_text())
    assert report["is_complete"]
    assert report["error_summary"] == []
    assert report["request_count"]["avg"] == 6
    assert (report["usage_completion_tokens"]["min"], report["usage_completion_tokens"]["max"]) == (12, 12)
    assert report["time_to_first_token"]["count"] == 6


@pytest.mark.parametrize("model", ["words", "tiny"])
def test_guidellm_completes_its_requests(python: Path, server: Server, model: str, tmp_path: Path) -> None:
    prompts, report = tmp_path / "prompts.jsonl", tmp_path / "report.json"
    rows = [{"prompt": f"Count to {number}.", "output_tokens_count": 12} for number in range(2, 12)]
    prompts.write_text("\n".join(map(json.dumps, rows)))
    options = {
        "backend": f"kind=openai_http,target={server.base_url},model={model}",
        "profile": "kind=concurrent,streams=2",
        "constraint": "kind=max_requests,count=6",
        "data": f"kind=json_file,path={prompts}",
        "tokenizer": f"kind=huggingface_auto,model={_TOKENIZER}",
        "output": f"kind=json,path={report}",
    }
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    _run([python.parent / "guidellm", "run", *arguments, "--disable-progress"])
    [benchmark] = json.loads(report.read_text())["benchmarks"]
    requests = benchmark["requests"]
    assert requests["successful"]
    assert not requests["errored"]
    assert not requests["incomplete"]
    assert {each["output_metrics"]["text_tokens"] for each in requests["successful"]} == {12}
