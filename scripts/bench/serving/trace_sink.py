#!/usr/bin/env python
"""A collector that takes traces and forgets them: `python -m scripts.bench.serving.trace_sink PORT`.

GET answers the number of exports and their bytes as JSON.
"""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class TraceSink(BaseHTTPRequestHandler):
    """Answers exports at once."""

    protocol_version = "HTTP/1.1"
    exports = 0
    received_bytes = 0

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        TraceSink.exports += 1
        TraceSink.received_bytes += len(body)
        self._answer(b"")

    def do_GET(self) -> None:
        self._answer(json.dumps({"exports": self.exports, "bytes": self.received_bytes}).encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - of http.server
        """Write nothing."""

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), TraceSink).serve_forever()
