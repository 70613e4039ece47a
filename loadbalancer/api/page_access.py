"""Who may use the page of a server without API keys."""

from __future__ import annotations

from fastapi import Request

from loadbalancer.schema.errors import Forbidden
from loadbalancer.services import Services

#: Reverse proxies add one of these.
_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip", "via")


def check_page_access(services: Services, request: Request) -> None:
    """Raises `Forbidden` for a request that a reverse proxy has passed on, unless the server asks for keys.

    Without keys the page is for people at this machine. They see all tasks and may scale.
    """
    if services.keys.ring is None and any(name in request.headers for name in _FORWARDED):
        text = "Behind a reverse proxy this page needs API keys: scripts/keys add NAME --scope admin."
        raise Forbidden(text, code="page_needs_keys")
