"""`response_format: url`: images are fetched by their URLs."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
from collections.abc import Iterator

import httpx
import openai
import pytest

from configs.paths import jobs_file, keys_file
from scripts.harness.balancer import Server, running, sim
from scripts.harness.processes import PATIENCE_S, launch, stop, wait_until
from tests.conftest import StartServer
from tests.contract.http.test_access import make_key
from tests.support.images import data_url, png
from tests.support.in_process_service import inputs
from worker.engines.sim import expected_image

BODY = {"prompt": "a seven", "seed": 7, "response_format": "url"}
GENERATE, EDIT = "/v1/images/generations", "/v1/images/edits"


@pytest.fixture(scope="module")
def server_with_keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    data_dir = tmp_path_factory.mktemp("urls")
    key = make_key(data_dir, "alice")
    assert keys_file(data_dir).exists()
    with running(data_dir, {"m": sim()}, 1) as server:
        yield server, key
        assert "Traceback" not in server.log("loadbalancer"), server.log("loadbalancer")


@pytest.fixture
def base_url(server_with_keys: tuple[Server, str]) -> str:
    return server_with_keys[0].base_url


@pytest.fixture
def http(server_with_keys: tuple[Server, str]) -> Iterator[httpx.Client]:
    server, key = server_with_keys
    headers = {"authorization": f"Bearer {key}"}
    with httpx.Client(base_url=server.base_url, timeout=PATIENCE_S, headers=headers) as client:
        yield client


def expected(seed: int = 7) -> bytes:
    return expected_image(inputs(seed=seed, steps=8))


def test_openai_client_gets_urls_readable_without_key(server_with_keys: tuple[Server, str]) -> None:
    server, key = server_with_keys
    client = openai.OpenAI(base_url=f"{server.base_url}/v1", api_key=key, max_retries=0)
    answer = client.images.generate(
        prompt="a seven", model="m", n=2, response_format="url", quality="hd", style="vivid", extra_body={"seed": 7}
    )
    assert answer.data is not None
    for seed, image in enumerate(answer.data, 7):
        assert image.b64_json is None
        assert image.url is not None
        assert re.fullmatch(rf"{server.base_url}/v1/results/[\w-]{{32}}\.png", image.url)
        got = httpx.get(image.url, timeout=PATIENCE_S)
        assert (got.status_code, got.content) == (200, expected(seed=seed))
        assert got.headers["content-type"] == "image/png"
        assert got.headers["x-content-type-options"] == "nosniff"
        head = httpx.head(image.url, timeout=PATIENCE_S)
        assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(got.content)))


def test_image_that_the_client_has_is_not_sent_again(http: httpx.Client) -> None:
    url = http.post(GENERATE, json=BODY).json()["data"][0]["url"]
    first = http.get(url)
    etag = first.headers["etag"]
    for header in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        again = http.get(url, headers={"if-none-match": header})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    changed = http.get(url, headers={"if-none-match": '"other"'})
    assert (changed.status_code, changed.content) == (200, first.content)


def answers(client: httpx.Client, path: str) -> bool:
    try:
        return client.get(path).status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_media_type_matches_the_file(http: httpx.Client, kind: str) -> None:
    url = http.post(GENERATE, json=BODY | {"output_format": kind}).json()["data"][0]["url"]
    assert url.endswith(f".{kind}")
    assert httpx.get(url, timeout=PATIENCE_S).headers["content-type"] == f"image/{kind}"


def test_edits_and_streams_return_urls(http: httpx.Client) -> None:
    edited = http.post(EDIT, files={"image": png()}, data={name: str(value) for name, value in BODY.items()})
    assert edited.status_code == 200, edited.text
    assert httpx.get(edited.json()["data"][0]["url"], timeout=PATIENCE_S).status_code == 200
    streamed = http.post(GENERATE, json=BODY | {"stream": True})
    events = [json.loads(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: ")]
    completed = next(event for event in events if event["type"] == "image_generation.completed")
    assert "b64_json" not in completed
    assert httpx.get(completed["url"], timeout=PATIENCE_S).content == expected()


def test_job_result_urls_end_with_the_job(http: httpx.Client) -> None:
    view = http.post("/v1/jobs", json={"path": GENERATE, "body": BODY | {"n": 2}}).json()
    path = f"/v1/jobs/{view['id']}"
    wait_until(lambda: http.get(path).json()["state"] == "done", "the end of the job")
    urls = [image["url"] for image in http.get(f"{path}/result").json()["data"]]
    assert [httpx.get(url, timeout=PATIENCE_S).content for url in urls] == [expected(), expected(seed=8)]
    again = [image["url"] for image in http.get(f"{path}/result").json()["data"]]
    assert again == urls, "no copy is made for each request"
    events = http.get(f"{path}/events").text
    assert all(url in events for url in urls)
    http.delete(path)
    assert [httpx.get(url, timeout=PATIENCE_S).status_code for url in urls] == [404, 404]


@pytest.mark.parametrize(
    "name", ["", "x", "x.png", "..", "%2e%2e/keys.yaml", "' OR 1=1 --.png", "%00.png", "a" * 5000 + ".png"]
)
def test_unknown_name_returns_404(base_url: str, name: str) -> None:
    answer = httpx.get(f"{base_url}/v1/results/{name}", timeout=PATIENCE_S)
    assert answer.status_code in (401, 404)  # a path outside of the results needs a key
    assert answer.headers["content-type"] == "application/json"


def test_url_requires_its_extension(http: httpx.Client) -> None:
    url = http.post(GENERATE, json=BODY).json()["data"][0]["url"]
    assert httpx.get(url.replace(".png", ".webp"), timeout=PATIENCE_S).status_code == 404
    assert httpx.get(url.removesuffix(".png"), timeout=PATIENCE_S).status_code == 404


def test_urls_survive_a_restart_and_expire(server: StartServer) -> None:
    started = server({"m": sim()}, results={"ttl_s": 600}, server={"public_url": "https://images.example/muster/"})
    with httpx.Client(base_url=started.base_url, timeout=PATIENCE_S) as client:
        body = BODY | {"image": data_url(png())}
        url = client.post(GENERATE, json=body).json()["data"][0]["url"]
        assert url.startswith("https://images.example/muster/v1/results/")
        path = url.removeprefix("https://images.example/muster")
        assert client.get(path).status_code == 200
        stop(started.balancer)
        options = ("--config", str(started.config), "--port", str(started.port))
        started.balancer = launch("loadbalancer", started.data_dir, *options, log="loadbalancer")
        wait_until(lambda: answers(client, path), "the new balancer")
        with contextlib.closing(sqlite3.connect(jobs_file(started.data_dir), timeout=PATIENCE_S)) as database, database:
            database.execute("UPDATE results SET made = made - 600")
        gone = client.get(path)
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "result_not_found")
