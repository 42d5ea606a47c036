"""Talking HTTP to an engine: bodies go through as bytes, only the list of models is parsed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime

import aiohttp
import msgspec

from batch_gpu_worker.engines.base import EngineResponse, EngineStream, unsupported, whole
from batch_gpu_worker.engines.retry_after import pause_of
from vllm_batch import tracing
from vllm_batch.errors import EngineDown, EngineUnavailable

# Servers close an idle connection after 5 s (uvicorn's default); a request on a connection that is
# just being closed would be lost.
KEEPALIVE_SECONDS = 3.0
CONNECT_SECONDS = 10.0
PROBE_SECONDS = 5.0
_NO_SUCH_ROUTE = frozenset({404, 405, 501})


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


class _Error(msgspec.Struct):
    message: str


class _Refusal(msgspec.Struct):
    """OpenAI's envelope, or its content alone."""

    error: _Error | None = None
    message: str = ""


class HttpCaller:
    """One pool of connections to one server. ``base_url`` ends with ``/v1``."""

    def __init__(self, base_url: str, *, uds: str | None = None, api_key: str = "") -> None:
        self.base_url = base_url.rstrip("/")
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._uds = uds
        self._session: aiohttp.ClientSession | None = None

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector: aiohttp.BaseConnector
            if self._uds is not None:
                connector = aiohttp.UnixConnector(
                    self._uds, limit=0, keepalive_timeout=KEEPALIVE_SECONDS
                )
            else:
                connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_SECONDS)
            self._session = aiohttp.ClientSession(
                connector=connector,
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session

    async def post(self, endpoint: str, body: bytes) -> EngineResponse:
        """Send ``body`` to ``endpoint`` (``/v1/…``).

        Raises:
            EngineDown: there is nobody to connect to.
            EngineUnavailable: the connection broke before the answer was whole.
        """
        with _translated():
            async with self._post(endpoint, body) as answer:
                payload = await answer.read()
                return EngineResponse(
                    answer.status, payload, answer.headers.get("x-request-id"), _pause(answer)
                )

    @asynccontextmanager
    async def stream(self, endpoint: str, body: bytes, *, by: str) -> AsyncIterator[EngineStream]:
        """Send ``body`` to ``endpoint``; leaving the context drops the connection, unless all of
        the answer has come in. ``by`` is who has no such route, if it has not.

        Raises:
            EngineDown: there is nobody to connect to.
            EngineUnavailable: the connection broke before the answer was whole.
        """
        with _translated():
            async with self._post(endpoint, body) as answer:
                if answer.status in _NO_SUCH_ROUTE:
                    refused = EngineResponse(answer.status, await answer.read())
                    yield whole(explained(refused, endpoint, by))
                    return
                content_type = answer.headers.get("content-type", "application/json")
                pieces = _pieces(answer)
                try:
                    yield EngineStream(answer.status, content_type, pieces, _pause(answer))
                finally:
                    await pieces.aclose()

    def _post(self, endpoint: str, body: bytes) -> aiohttp.client._RequestContextManager:
        url = self.base_url + endpoint.removeprefix("/v1")
        headers = tracing.headers()
        return self._opened().post(url, data=body, headers=headers, allow_redirects=False)

    async def get(self, url: str) -> EngineResponse:
        """Ask for ``url`` within PROBE_SECONDS.

        Raises:
            EngineDown: no answer.
        """
        timeout = aiohttp.ClientTimeout(total=PROBE_SECONDS)
        try:
            async with self._opened().get(url, timeout=timeout) as answer:
                return EngineResponse(answer.status, await answer.read())
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise EngineDown(f"the engine does not answer: {error!r}") from error

    async def models(self) -> list[str]:
        """Return the ids of ``GET /models``.

        Raises:
            EngineUnavailable: no answer, or none that can be understood.
        """
        answer = await self.get(self.base_url + "/models")
        if answer.status != 200:
            raise EngineUnavailable(f"GET /models answered {answer.status}")
        try:
            return [model.id for model in msgspec.json.decode(answer.body, type=_Models).data]
        except msgspec.DecodeError as error:
            raise EngineUnavailable(f"GET /models: {error}") from error

    async def close(self) -> None:
        """Drop every connection; requests on them are lost."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


def _pause(answer: aiohttp.ClientResponse) -> float | None:
    return pause_of(answer.headers.get("retry-after"), datetime.now(UTC))


async def _pieces(answer: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
    async for piece in answer.content.iter_any():
        yield piece


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except aiohttp.ClientConnectorError as error:
        raise EngineDown(f"the engine cannot be reached: {error}") from error
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise EngineUnavailable(f"the engine did not answer: {error!r}") from error


def explained(answer: EngineResponse, endpoint: str, by: str) -> EngineResponse:
    """Return ``answer``, or a clear one where the server has no such route for its model."""
    if answer.status in _NO_SUCH_ROUTE and not is_error_envelope(answer.body):
        return unsupported(endpoint, by)
    return answer


def error_message(answer: EngineResponse) -> str:
    """Return what a server says went wrong, in whichever of the usual shapes."""
    try:
        said = msgspec.json.decode(answer.body, type=_Refusal)
    except msgspec.DecodeError:
        return answer.body.decode(errors="replace") or f"status {answer.status}"
    return said.error.message if said.error else said.message


def is_error_envelope(body: bytes) -> bool:
    """Tell whether ``body`` is an error object that a client of OpenAI's API understands."""
    try:
        return "error" in msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, RecursionError):
        return False
