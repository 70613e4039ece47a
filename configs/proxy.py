"""The section `cold_start_proxy`: another server that answers while a model has no ready worker."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from configs.section_base import WEB_ADDRESS, PositiveSeconds, Section, TextPattern


def _not_a_setting(value: str) -> str:
    if value.startswith("MUSTER_"):
        raise ValueError("variables with the prefix MUSTER_ are settings; choose another name")
    return value


_BASE_URL = TextPattern(
    WEB_ADDRESS, "an http or https URL without user and query, such as https://images.example.org/v1"
)
_VARIABLE = TextPattern(r"[A-Za-z_]\w*", "the name of an environment variable, such as IMAGES_KEY")


class ColdStartProxy(Section):
    """A server with OpenAI's Images API. Jobs are never sent to it."""

    url: Annotated[str, _BASE_URL]
    """Base URL as for OpenAI's clients, such as https://images.example.org/v1."""
    model: Annotated[str, Field(min_length=1)] | None = None
    """Name of the model on that server. Default: its name here."""
    api_key_env: Annotated[str, _VARIABLE, AfterValidator(_not_a_setting)] | None = None
    """Environment variable with the API key for that server. A client's own key is never forwarded."""
    max_wait_s: PositiveSeconds | None = None
    """Requests whose estimated wait is longer are sent there too. Default: only while no worker is ready."""
    timeout_s: PositiveSeconds = 120.0
    """Time limit of an answer; a shorter `timeout_s` of the request takes precedence."""
