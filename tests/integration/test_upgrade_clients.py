"""Clients that offer HTTP/2 by default, over HTTP/1.1: Java's HttpClient and `curl --http2`."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.harness.balancer import Server, running, sim
from scripts.harness.processes import PATIENCE_S
from tests.support.images import png

JAVA = """
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;

public class Client {
    static final HttpClient CLIENT = HttpClient.newHttpClient();

    static void post(String url, String type, HttpRequest.BodyPublisher body) throws Exception {
        var request = HttpRequest.newBuilder(URI.create(url)).header("Content-Type", type).POST(body).build();
        System.out.println(CLIENT.send(request, BodyHandlers.ofString()).statusCode());
    }

    public static void main(String[] args) throws Exception {
        var base = args[0];
        var file = Path.of(args[1]);
        for (int turn = 0; turn < 2; turn++) {
            var prompt = "{\\"prompt\\":\\"a seven\\"}";
            post(base + "/v1/images/generations", "application/json", BodyPublishers.ofString(prompt));
            var head = "--B\\r\\nContent-Disposition: form-data; name=\\"prompt\\"\\r\\n\\r\\na seven\\r\\n"
                + "--B\\r\\nContent-Disposition: form-data; name=\\"image\\"; filename=\\"a.png\\"\\r\\n"
                + "Content-Type: image/png\\r\\n\\r\\n";
            var parts = List.of(head.getBytes(), Files.readAllBytes(file), "\\r\\n--B--\\r\\n".getBytes());
            post(base + "/v1/images/edits", "multipart/form-data; boundary=B", BodyPublishers.ofByteArrays(parts));
            var job = "{\\"path\\":\\"/predict\\",\\"body\\":" + prompt + "}";
            post(base + "/v1/jobs", "application/json", BodyPublishers.ofString(job));
        }
        var get = HttpRequest.newBuilder(URI.create(base + "/v1/models")).build();
        System.out.println(CLIENT.send(get, BodyHandlers.ofString()).statusCode());
    }
}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("upgrade"), {"m": sim()}) as started:
        yield started


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("picture") / "a.png"
    file.write_bytes(png(64, 64))
    return file


@pytest.mark.skipif(shutil.which("java") is None, reason="there is no java")
def test_java_http_client(server: Server, picture: Path, tmp_path: Path) -> None:
    """With its defaults: each request on a new connection offers h2c. Bodies without a length are chunked."""
    source = tmp_path / "Client.java"
    source.write_text(JAVA)
    command = ["java", "-Xmx256m", str(source), server.base_url, str(picture)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["200", "200", "202"] * 2 + ["200"]), done.stderr


CURL = {
    "JSON": (["-d", '{"prompt":"a seven"}', "-H", "content-type: application/json"], "/v1/images/generations", "200"),
    "form": (["-F", "prompt=a seven", "-F", "image=@{picture}"], "/v1/images/edits", "200"),
    "job": (["-d", json.dumps({"path": "/predict", "body": {"prompt": "a seven"}})], "/v1/jobs", "202"),
    "chunked": (
        ["-d", '{"prompt":"a seven"}', "-H", "transfer-encoding: chunked", "-H", "expect: 100-continue"],
        "/predict",
        "200",
    ),
}


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
@pytest.mark.parametrize("name", CURL)
def test_curl_with_http2(server: Server, picture: Path, name: str) -> None:
    options, path, expected = CURL[name]
    url, options = (
        server.base_url + path,
        [option.format(picture=picture) if "@" in option else option for option in options],
    )
    # The second request is sent on the same connection.
    command = ["curl", "-s", "--http2", "-w", "%{stderr}%{http_code} %{http_version}\\n", *options, url, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    assert done.stderr.splitlines() == [f"{expected} 1.1"] * 2, done.stdout
