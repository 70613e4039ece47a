"""Clients of other projects, unmodified: LiteLLM and GuideLLM, on the simulated and on the built-in language model.

MUSTER_TEST_CLIENTS_PYTHON=ENV/bin/python pytest tests/integration/test_text_clients.py, with an environment of
`tests/integration/text_clients.txt`.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.harness.balancer import Server, running

pytestmark = pytest.mark.timeout(600)  # importing the clients takes long
_VARIABLE = "MUSTER_TEST_CLIENTS_PYTHON"
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


@pytest.fixture(scope="module")
def python() -> Path:
    path = os.environ.get(_VARIABLE)
    if path is None or not Path(path).is_file():
        pytest.skip(f"{_VARIABLE} names no interpreter with the packages of tests/integration/text_clients.txt")
    return Path(path)


@pytest.fixture(scope="module")
def server(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    del python  # no server without a client
    usual = {"warm_up": {"measure_s": 0}}
    models: dict[str, Any] = {
        "words": {"engine": "sim", "sim": {"task": "text", "load_s": 0.0}} | usual,
        "tiny": {"engine": "text", "path": "builtin:tiny-text"} | usual,
    }
    with running(tmp_path_factory.mktemp("clients"), models, {"words": 1, "tiny": 1}) as started:
        yield started


def _run(command: list[str | Path], **env: str) -> str:
    """Run a client without the internet, and return what it prints."""
    offline = {"HF_HUB_OFFLINE": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    result = subprocess.run(command, env=os.environ | offline | env, capture_output=True, text=True)
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
