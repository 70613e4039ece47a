"""A bare ASGI app: what an HTTP server in Python can do here at most."""

from __future__ import annotations

from typing import Any

from scripts.bench.serving.peers_lib.apps.user_model import BINARY, PORT, UserModel

_MODEL = UserModel()
_TYPE = b"application/octet-stream" if BINARY else b"application/json"


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Read the body, and return it or the bytes of the user model."""
    assert scope["type"] == "http"
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    result = _MODEL.predict([body])[0]
    headers = [(b"content-type", _TYPE), (b"content-length", str(len(result)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": result})


def main() -> None:
    import uvicorn

    uvicorn.run(
        app,
        host="127.0.0.1",
        port=PORT,
        loop="uvloop",
        http="httptools",
        lifespan="off",
        access_log=False,
        log_level="warning",
        backlog=4096,
    )


if __name__ == "__main__":
    main()
