"""HEAD requests: the headers of GET (RFC 9110, section 9.3.2)."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send


async def answer_head(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Call the application as for GET, and send the headers of its response.

    The application sees a disconnect afterwards, which ends streams.
    """
    del receive
    answered = asyncio.Event()

    async def disconnect() -> Message:
        await answered.wait()
        return {"type": "http.disconnect"}

    async def send_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            await send(message)
            await send({"type": "http.response.body"})
            answered.set()

    await app({**scope, "method": "GET"}, disconnect, send_headers)
