"""Sends the requests of a load test from a greenlet, and reports what became of them. Runs in Locust's environment."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import gevent
from geventhttpclient.client import HTTPClient
from urllib3.filepost import encode_multipart_formdata

from scripts.loadtest_lib.answers import MAX_ERROR_CHARS, error_code, is_first_part, is_stream_error, reported_s
from scripts.loadtest_lib.mix import EDITS, JOBS, LoadRequest
from scripts.loadtest_lib.records import EDIT_SHARE, LATENESS, OWN_SHARE, Outcome, RecordWriter

#: Reports to Locust: type, name, milliseconds, bytes, exception.
Fire = Callable[[str, str, float, int, Exception | None], None]
_POLL_S = 0.5
#: Shorter than servers keep idle connections (`server.keep_alive_s`).
_MAX_IDLE_S = 15.0


class RequestError(Exception):
    """A request has failed; the text is the reason, without what differs between requests."""


class Refused(Exception):
    """The server answered 429."""


class Reply(NamedTuple):
    """An answer. `first_s` is the time to the first preview or token of a stream, from the moment of sending."""

    content: bytes
    first_s: float | None = None


class RequestSender:
    """Sends over one pool of connections. `due` is on the clock of `time.perf_counter`."""

    def __init__(
        self,
        connect: Callable[[], HTTPClient],
        writer: RecordWriter,
        fire: Fire,
        *,
        key: str | None,
        picture: bytes,
        timeout_s: float,
    ) -> None:
        self._connect = connect
        self._client = connect()
        self._used_at = time.perf_counter()
        self._open = 0
        self._writer = writer
        self._fire = fire
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._picture = picture
        self._timeout_s = timeout_s

    def send(self, request: LoadRequest, due: float | None = None) -> None:
        """Send it. Its latency counts from when it was due; None: from now."""
        sent_at = time.perf_counter()
        if due is None:
            due = sent_at
        else:
            self._writer.add_duration(LATENESS, sent_at - due)
        self._writer.in_flight += 1
        self._refresh(sent_at)
        self._open += 1
        outcome: Outcome = "ok"
        error, size = "", 0
        try:
            reply = self._run_job(request) if request.path == JOBS else self._post(request, sent_at)
            size = len(reply.content)
            self._note_parts(request, reply, sent_at)
        except Refused:
            outcome = "refused"
        except RequestError as failure:
            outcome, error = "error", str(failure)
        except gevent.GreenletExit:
            self.report(request, "error", time.perf_counter() - due, "not answered when the test ended")
            raise
        except Exception as failure:  # broken connections, time limits, answers that are not what was asked for
            outcome, error = "error", f"{type(failure).__name__}: {failure}"[:MAX_ERROR_CHARS]
        finally:
            self._writer.in_flight -= 1
            self._open -= 1
            self._used_at = time.perf_counter()
        self.report(request, outcome, time.perf_counter() - due, error, size)

    def _refresh(self, now: float) -> None:
        """Connect anew after a long pause: the server may be closing the idle connection at this moment."""
        if not self._open and now - self._used_at > _MAX_IDLE_S:
            self._client.close()
            self._client = self._connect()

    def report(self, request: LoadRequest, outcome: Outcome, seconds: float, error: str, size: int = 0) -> None:
        """Count a request that has ended, or that could not be sent."""
        text = f"{request.name}: {error}" if error else ""
        self._writer.add(request.name, outcome, seconds, text)
        name = f"{request.name}, 429" if outcome == "refused" else request.name
        self._fire("POST", name, 1000 * seconds, size, RequestError(error) if error else None)

    def _post(self, request: LoadRequest, sent_at: float) -> Reply:
        content_type, body = "application/json", json.dumps(request.body).encode()
        if request.path == EDITS:
            fields: dict[str, Any] = {name: str(value) for name, value in request.body.items()}
            fields["image"] = ("source.png", self._picture, "image/png")
            body, content_type = encode_multipart_formdata(fields)
        answer = self._client.request("POST", request.path, body, self._headers | {"Content-Type": content_type})
        if not request.stream or answer.get_code() != 200:
            return Reply(_checked(answer))
        return _read_stream(answer, sent_at, request.kind)

    def _run_job(self, request: LoadRequest) -> Reply:
        """Submit the job and ask for it until it has ended, as a client without webhooks does."""
        give_up_at = time.perf_counter() + self._timeout_s
        job: dict[str, Any] = json.loads(self._post(request, 0.0).content)
        path = f"{JOBS}/{job['id']}"
        while job["state"] in ("queued", "running"):
            if time.perf_counter() > give_up_at:
                raise RequestError("the job has not ended within the time limit")
            gevent.sleep(_POLL_S)
            job = json.loads(_checked(self._client.request("GET", path, headers=self._headers)))
        if job["state"] != "done":
            raise RequestError(f"the job is {job['state']}")
        return Reply(_checked(self._client.request("GET", f"{path}/result", headers=self._headers)))

    def _note_parts(self, request: LoadRequest, reply: Reply, sent_at: float) -> None:
        """Record the first preview or token of a stream, and what the server did beside waiting and computing."""
        if reply.first_s is not None:
            name = f"{request.kind}: first {'token' if request.kind == 'chat' else 'preview'}"
            self._writer.add_duration(name, reply.first_s)
            self._fire("STREAM", name, 1000 * reply.first_s, 0, None)
        elif request.kind in ("image", "edit") and not request.stream:
            took = time.perf_counter() - sent_at
            name = OWN_SHARE if request.kind == "image" else EDIT_SHARE
            self._writer.add_duration(name, took - reported_s(reply.content))


def _checked(answer: Any) -> bytes:
    """Return the body of a success. Raises `Refused` and `RequestError`."""
    content, status = bytes(answer.read()), answer.get_code()
    if status == 429:
        raise Refused
    if not 200 <= status < 300:
        raise RequestError(f"{status} {error_code(content)}")
    return content


def _read_stream(answer: Any, sent_at: float, kind: str) -> Reply:
    """Read events to the last one. Raises `RequestError` if it is missing, or is an error."""
    last = b"[DONE]" if kind == "chat" else b".completed"
    received, first_s, is_complete = bytearray(), None, False
    while line := bytes(answer.readline(b"\n")):
        received += line
        if is_stream_error(line):
            raise RequestError(f"in the stream: {error_code(line.removeprefix(b'data: '))}")
        if first_s is None and is_first_part(line, kind):
            first_s = time.perf_counter() - sent_at
        is_complete = is_complete or last in line
    if not is_complete:
        raise RequestError("the stream ended without its last event")
    return Reply(bytes(received), first_s)
