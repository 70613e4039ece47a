"""HTTP client of webhooks.

The address check applies to the address that the socket connects to, which prevents DNS rebinding. Redirects are not
followed, proxies are not used, and response bodies are not read.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping
from typing import Any

import aiohttp

from configs.sections import Jobs as JobSettings
from loadbalancer.jobs.host_resolver import HostResolver
from loadbalancer.jobs.webhooks import is_public


class NotPublic(OSError):
    """The address belongs to this machine or a private network."""


class WebhookClient:
    """Posts to the URLs of webhooks. All methods are called in the event loop."""

    def __init__(self, settings: JobSettings) -> None:
        self._settings = settings
        connector = aiohttp.TCPConnector(
            force_close=True,
            use_dns_cache=False,
            limit=0,  # the sender's queue bounds them
            resolver=HostResolver(),
            socket_factory=self._open_socket,
        )
        timeout = aiohttp.ClientTimeout(total=settings.webhook_timeout_s)
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar())

    async def close(self) -> None:
        await self._session.close()

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> str | None:
        """Return why the delivery failed; None after a success. The text omits the URL, which may hold a secret."""
        try:
            async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as response:
                return None if 200 <= response.status < 300 else f"the status was {response.status}"
        except TimeoutError:
            return f"no response in {self._settings.webhook_timeout_s:g} s"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return type(error).__name__

    def _open_socket(self, address: tuple[Any, Any, int, str, tuple[Any, ...]]) -> socket.socket:
        """Open a socket for the resolved address. Raises `NotPublic`."""
        family, kind, protocol, _, target = address
        if not self._settings.webhook_private and not is_public(ipaddress.ip_address(target[0].partition("%")[0])):
            raise NotPublic("the address is private")
        return socket.socket(family, kind, protocol)
