"""Other servers that help out: a model's `cold_start_proxy`, asked in place of workers that are not there yet.

Nothing of a client goes there but what it asked for: no key, no cookie, no address. What comes back is either an answer
of the kind that was asked for, or an error of ours. Rule: redirects are not followed, so that the request and the key
go to the configured server and to no other.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp
import msgspec

from configs.proxy import ColdStartProxy
from configs.settings import Settings
from loadbalancer.schema.errors import ApiError, BadGateway, InvalidRequest, TimedOut, shutting_down
from wire.errors import ErrorBody

log = logging.getLogger(__name__)

#: Says to the other server that it must not pass the request on in its turn.
FORWARDED = "x-muster-forwarded"
_CONNECT_S = 5.0
_MOST_ERROR_BYTES = 1 << 16
_MOST_ANSWER_BYTES = 1 << 28
#: It is the client's mistake, and the other server says which.
_MISTAKES = (400, 413, 422)
#: It has no room or no worker itself: nothing was done there.
_BUSY = (429, 503)
_LATE = (408, 504)


class MissingApiKey(Exception):
    """The environment lacks an API key that the configuration names; the text says which."""


class UpstreamDeclined(Exception):
    """The other server has done nothing, and will not: whoever asked can be served here. The text says why."""


@dataclass(frozen=True, slots=True)
class Content:
    """What is sent: a body of JSON, or a form."""

    body: bytes | aiohttp.FormData
    #: None where the form itself knows.
    media_type: str | None = None


class UpstreamClient:
    """The other servers by model. All methods are called in the event loop."""

    def __init__(self, settings: Settings, environment: Mapping[str, str]) -> None:
        """Raises `Unset`."""
        self._proxies = {
            name: model.cold_start_proxy
            for name, model in settings.models.items()
            if model.cold_start_proxy is not None
        }
        self._keys: dict[str, str] = {}
        for name, proxy in self._proxies.items():
            if proxy.api_key_env is not None:
                if not environment.get(proxy.api_key_env):
                    where = f"models.{name}.cold_start_proxy.api_key_env"
                    raise MissingApiKey(f"{where} names {proxy.api_key_env}, which is not set in the environment")
                self._keys[name] = environment[proxy.api_key_env]
        self._session: aiohttp.ClientSession | None = None
        #: What went wrong last, by model, so that it is not said for each request.
        self._last_failure: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"<UpstreamClient for {', '.join(self._proxies) or 'no model'}>"

    def proxy_for(self, model: str) -> ColdStartProxy | None:
        """The server that helps out for the model, if there is one."""
        return self._proxies.get(model)

    async def post(self, model: str, path: str, content: Content, timeout_s: float) -> aiohttp.ClientResponse:
        """Send the request to `path` below the other server's URL; gives its answer, a success, to be read and closed.

        Raises `UpstreamDeclined`, and the `ApiError` that the client is to see instead.
        """
        proxy = self._proxies[model]
        headers = {FORWARDED: "1", "accept-encoding": "identity"}
        if model in self._keys:
            headers["authorization"] = f"Bearer {self._keys[model]}"
        if content.media_type is not None:
            headers["content-type"] = content.media_type
        if self._session is None:
            self._session = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())
        try:
            answer = await self._session.post(
                f"{proxy.url.rstrip('/')}{path}",
                data=content.body,
                headers=headers,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=min(_CONNECT_S, timeout_s)),
            )
            if answer.status == 200:
                self._last_failure.pop(model, None)
                return answer
            try:
                with_why = await answer.content.read(_MOST_ERROR_BYTES)
            finally:
                answer.close()
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL) as error:
            self._log_failure(model, f"cannot be reached: {error}")
            raise UpstreamDeclined(str(error)) from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._log_failure(model, f"broke off: {error!r}")
            raise self.connection_error(error) from None
        self._log_failure(model, f"answers {answer.status}")
        if answer.status in _BUSY:
            raise UpstreamDeclined(f"it answers {answer.status}")
        raise _to_error(answer.status, with_why)

    async def read(self, answer: aiohttp.ClientResponse) -> bytes:
        """The whole answer. Raises an `ApiError` where it does not come to its end."""
        parts: list[bytes] = []
        size = 0
        try:
            async for chunk in answer.content.iter_any():
                parts.append(chunk)
                size += len(chunk)
                if size > _MOST_ANSWER_BYTES:
                    raise BadGateway("The server that stands in for the model answers without end.")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self.connection_error(error) from None
        finally:
            answer.close()
        return b"".join(parts)

    async def close(self) -> None:
        """Hang up on all of them."""
        if self._session is not None:
            await self._session.close()

    def connection_error(self, error: Exception) -> ApiError:
        """What a client is told when the other server does not come to the end of its answer."""
        if self._session is not None and self._session.closed:
            return shutting_down()
        if isinstance(error, TimeoutError):
            return TimedOut("The server that stands in for the model did not answer in time.")
        return BadGateway("The server that stands in for the model broke off its answer.")

    def _log_failure(self, model: str, trouble: str) -> None:
        if self._last_failure.get(model) != trouble:
            self._last_failure[model] = trouble
            log.warning("the server that stands in for %s (%s) %s", model, self._proxies[model].url, trouble)


def _to_error(status: int, body: bytes) -> ApiError:
    """Our error for one of theirs. Only what is the client's own mistake is told in their words."""
    if status in _MISTAKES:
        try:
            theirs = msgspec.json.decode(body, type=ErrorBody).error
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return InvalidRequest("The server that stands in for the model does not take the request.")
        return InvalidRequest(theirs.message, param=theirs.param, code=theirs.code)
    if status in _LATE:
        return TimedOut("The server that stands in for the model did not answer in time.")
    return BadGateway(f"The server that stands in for the model answered with status {status}.")
