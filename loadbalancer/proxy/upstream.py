"""HTTP client of the upstream servers: a model's `cold_start_proxy` answers while no worker is ready.

Only the content of a request is sent: no API key, cookie or address of the client. Redirects are not followed, so that
content and key go only to the configured server.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from configs.settings import Settings
from loadbalancer.schema.errors import ApiError, BadGateway, InvalidRequest, TimedOut, shutting_down
from wire.errors import ErrorBody

if TYPE_CHECKING:  # imported where it is used: most servers forward nothing, and it takes 6 MB and a tenth of a second
    import aiohttp

log = logging.getLogger(__name__)

#: Request header: the upstream server must not forward the request again.
FORWARDED = "x-muster-forwarded"
_CONNECT_TIMEOUT_S = 5.0
_MAX_ERROR_BYTES = 1 << 16
_MAX_RESPONSE_BYTES = 1 << 28
#: The client's mistake; the upstream's message explains it.
_CLIENT_ERRORS = (400, 413, 422)
#: The upstream is overloaded and has not processed the request.
_BUSY = (429, 503)
_TIMEOUTS = (408, 504)


class MissingApiKey(Exception):
    """An environment variable that the configuration names is not set. The text names both."""


class UpstreamDeclined(Exception):
    """The upstream has not processed the request, so that this server can. The text gives the reason."""


@dataclass(frozen=True, slots=True)
class Content:
    """A JSON body or a form to send."""

    body: bytes | aiohttp.FormData
    #: None for a form, which sets its own.
    media_type: str | None = None


class UpstreamClient:
    """The upstream servers by model. All methods are called in the event loop."""

    def __init__(self, settings: Settings, environment: Mapping[str, str]) -> None:
        """Raises `MissingApiKey`."""
        self._proxies = {
            name: model.cold_start_proxy
            for name, model in settings.models.items()
            if model.cold_start_proxy is not None
        }
        self._keys: dict[str, str] = {}
        for name, proxy in self._proxies.items():
            if proxy.api_key_env is not None:
                if not environment.get(proxy.api_key_env):
                    setting = f"models.{name}.cold_start_proxy.api_key_env"
                    raise MissingApiKey(f"{setting} names {proxy.api_key_env}, which is not set in the environment")
                self._keys[name] = environment[proxy.api_key_env]
        if self._proxies:  # now rather than in the first request
            import aiohttp  # noqa: F401
        self._session: aiohttp.ClientSession | None = None
        #: The last failure by model, so that a repeated one is logged only at first.
        self._last_failure: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"<UpstreamClient for {', '.join(self._proxies) or 'no model'}>"

    async def post(
        self, model: str, path: str, content: Content, timeout_s: float, traceparent: str = ""
    ) -> aiohttp.ClientResponse:
        """Send the request to `path` below the upstream's URL. The caller reads and closes the 200 response.

        Raises `UpstreamDeclined`, or an `ApiError` for the client.
        """
        import aiohttp

        proxy = self._proxies[model]
        headers = {FORWARDED: "1", "accept-encoding": "identity"}
        if model in self._keys:
            headers["authorization"] = f"Bearer {self._keys[model]}"
        if traceparent:
            headers["traceparent"] = traceparent
        if content.media_type is not None:
            headers["content-type"] = content.media_type
        if self._session is None:
            self._session = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())
        try:
            response = await self._session.post(
                f"{proxy.url.rstrip('/')}{path}",
                data=content.body,
                headers=headers,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=min(_CONNECT_TIMEOUT_S, timeout_s)),
            )
            if response.status == 200:
                self._last_failure.pop(model, None)
                return response
            try:
                body = await response.content.read(_MAX_ERROR_BYTES)
            finally:
                response.close()
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL) as error:
            self._log_failure(model, f"cannot be reached: {error}")
            raise UpstreamDeclined(str(error)) from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._log_failure(model, f"closed the connection: {error!r}")
            raise self.connection_error(error) from None
        self._log_failure(model, f"answers {response.status}")
        if response.status in _BUSY:
            raise UpstreamDeclined(f"it answers {response.status}")
        raise _to_error(response.status, body)

    async def read(self, response: aiohttp.ClientResponse) -> bytes:
        """The complete body. Raises an `ApiError` when it is cut off or too large."""
        import aiohttp

        parts: list[bytes] = []
        size = 0
        try:
            async for chunk in response.content.iter_any():
                parts.append(chunk)
                size += len(chunk)
                if size > _MAX_RESPONSE_BYTES:
                    raise BadGateway(
                        f"The upstream server for the model answered with more than {_MAX_RESPONSE_BYTES} bytes."
                    )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self.connection_error(error) from None
        finally:
            response.close()
        return b"".join(parts)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def connection_error(self, error: Exception) -> ApiError:
        """The client's error for a response that is cut off."""
        if self._session is not None and self._session.closed:
            return shutting_down()
        if isinstance(error, TimeoutError):
            return _timed_out()
        return BadGateway("The upstream server for the model closed the connection before the end of its response.")

    def _log_failure(self, model: str, failure: str) -> None:
        if self._last_failure.get(model) != failure:
            self._last_failure[model] = failure
            log.warning("the upstream server for %s (%s) %s", model, self._proxies[model].url, failure)


def _timed_out() -> ApiError:
    return TimedOut("The upstream server for the model did not answer in time.")


def _to_error(status: int, body: bytes) -> ApiError:
    """The client's error for an upstream status. Only client mistakes keep the upstream's message."""
    if status in _CLIENT_ERRORS:
        try:
            upstream = msgspec.json.decode(body, type=ErrorBody).error
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return InvalidRequest("The upstream server for the model rejects the request.")
        return InvalidRequest(upstream.message, param=upstream.param, code=upstream.code)
    if status in _TIMEOUTS:
        return _timed_out()
    return BadGateway(f"The upstream server for the model answered with status {status}.")
