"""Run the example that the controller prints against a server with a certificate and keys."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
from pathlib import Path

from configs.environment import CLIENT_KEY
from controller.runtime.console import curl_example
from scripts.harness.processes import PATIENCE_S, free_port, launch, wait_until
from tests.contract.http.test_access import healthy, make_key
from tests.support.certificates import needs_openssl, self_signed


@needs_openssl
def test_readme_example_works_with_tls_and_keys(tmp_path: Path) -> None:
    mine, key, port = self_signed(tmp_path, "mine"), make_key(tmp_path, "alice"), free_port()
    config = tmp_path / "config.yaml"
    config.write_text(f"models: {{m: {{engine: sim}}}}\nserver: {{tls_cert: {mine.cert}, tls_key: {mine.key}}}\n")
    child = launch("loadbalancer", tmp_path, "--config", str(config), "--port", str(port), log="loadbalancer")
    try:
        wait_until(
            lambda: healthy(port, verify=ssl.create_default_context(cafile=mine.cert)), "the first answer over TLS"
        )

        def code(model: str, key: str) -> str:
            line = curl_example(f"https://127.0.0.1:{port}", model, certificate=mine.cert, keyed=True)
            own = os.environ | {CLIENT_KEY: key}
            done = subprocess.run(line, shell=True, capture_output=True, timeout=PATIENCE_S, check=True, env=own)
            return str(json.loads(done.stdout)["error"]["code"])

        assert code("none", key) == "model_not_found", "it came through to the routes"
        assert code("none", "sk-muster-wrong") == "invalid_api_key"
    finally:
        child.kill()
        child.wait(PATIENCE_S)
