"""What can be set about another server that helps out while a model's own workers cannot."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from configs.sections import PositiveSeconds, Section


def _outside_ours(value: str) -> str:
    if value.startswith("MUSTER_"):
        raise ValueError("variables that begin with MUSTER_ are settings; name another one")
    return value


class ColdStartProxy(Section):
    """Another server with OpenAI's Images API. Jobs never go there."""

    url: str = Field(pattern=r"^https?://[^/\s?#@]+(/[^\s?#]*)?$")
    """Its base URL, as OpenAI's clients take it, such as https://images.example.org/v1."""
    model: Annotated[str, Field(min_length=1)] | None = None
    """The model to ask for there. Default: the name that it has here."""
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$"), AfterValidator(_outside_ours)] | None = None
    """Environment variable that holds the API key to show there. A client's own key is never passed on."""
    max_wait_s: PositiveSeconds | None = None
    """Requests that would wait for longer than this here go there, too. Default: only while no worker is ready."""
    timeout_s: PositiveSeconds = 120.0
    """How long an answer from there may take; the request's own `timeout_s` counts if it is shorter."""
