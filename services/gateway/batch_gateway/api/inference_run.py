"""One online request in the gateway: its body checked, its answer passed on, its end recorded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, NamedTuple, TypeVar

import msgspec
import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from batch_gateway.api.authentication import Caller
from batch_gateway.api.dependencies import Dependencies
from batch_gateway.api.errors import HttpRefusal, missing, too_large
from batch_gateway.api.inference_calls import OnlineAnswer, OnlineWork
from batch_gateway.api.inference_errors import Broken, unknown_model
from batch_gateway.api.request_body import check_depth, invalid
from batch_gateway.api.stream_usage import StreamUsage, Tokens, tokens_in, with_usage
from batch_gateway.api.streaming import EVENT_STREAM, UNBUFFERED, StreamedResponse
from vllm_batch import tasks
from vllm_batch.errors import InvalidInput
from vllm_batch.events import Usage
from vllm_batch.online import ENVELOPE_BYTES_MAX

log = structlog.get_logger(__name__)

TIMEOUT_HEADER = "x-request-timeout-seconds"
_T = TypeVar("_T")


class _Wish(msgspec.Struct):
    model: str | None = None


class Finished(NamedTuple):
    """An online request that is over: the one place where all is known of it.

    ``outcome``: ok, left (the client went), or the code of an error. Tokens are what the engine
    said, or at least used: see `stream_usage`.
    """

    endpoint: str
    model: str
    status: int
    outcome: str
    seconds: float
    first_byte_seconds: float
    input_tokens: int = 0
    output_tokens: int = 0


class OnlineRun:
    """One request on its way through. ``body`` asks for ``model`` by its real name."""

    def __init__(
        self, api: Dependencies, caller: Caller, endpoint: str, model: str, body: bytes
    ) -> None:
        self.model = model
        self._api = api
        self._caller = caller
        self._endpoint = endpoint
        self._body, self._usage_hidden = with_usage(endpoint, body)
        self._began = api.clock.monotonic()
        self._first_byte = 0.0
        self._used = Tokens()
        self._streamed = False

    @property
    def seconds(self) -> float:
        """How long it has taken so far."""
        return self._api.clock.monotonic() - self._began

    async def begin(self, request: Request) -> OnlineAnswer:
        """Return the beginning of the answer; a client that leaves meanwhile ends it all.

        Raises:
            HttpRefusal: nobody takes it now.
            Broken: there is no answer.
            ClientDisconnect: the client has left.
        """
        timeout = timeout_of(request, self._api.settings.inference_timeout_seconds)
        asking = _online(self._api).switchboard.ask(self.model, self._endpoint, self._body, timeout)
        try:
            answer = await unless_left(request, asking)
        except (Broken, HttpRefusal, ClientDisconnect) as error:
            self._finish(getattr(error, "status", 499), getattr(error, "code", None) or "left")
            raise
        self._first_byte = self.seconds
        return answer

    async def whole(self, request: Request, answer: OnlineAnswer) -> bytes:
        """Return all of the answer; raises as `begin` does, and Broken where it is too large."""
        limit = self._api.settings.inference_answer_bytes_max

        async def gather() -> bytes:
            gathered = bytearray()
            async for piece in answer.pieces:
                gathered += piece
                if len(gathered) > limit:
                    message = f"The answer is larger than the limit of {limit} bytes; ask for less."
                    raise Broken("answer_too_large", message)
            return bytes(gathered)

        status, outcome = answer.status, "left"
        try:
            body = await unless_left(request, gather())
            self._used, outcome = tokens_in(body) or Tokens(), "ok"
            return body
        except Broken as error:
            status, outcome = error.status, error.code
            raise
        finally:
            await answer.pieces.aclose()
            self._finish(status, outcome)

    async def events(self, answer: OnlineAnswer) -> AsyncGenerator[bytes, None]:
        """Yield a streamed answer as it comes; what breaks it becomes its last event."""
        self._streamed = True
        outcome, usage = "left", StreamUsage(hidden=self._usage_hidden)
        try:
            async for piece in answer.pieces:
                if passing := usage.feed(piece):
                    yield passing
            if passing := usage.end(broken=False):
                yield passing
            outcome = "ok"
        except Broken as error:
            outcome = error.code
            yield usage.end(broken=True) + error.event()
        finally:
            await answer.pieces.aclose()
            self._used = usage.tokens
            self._finish(answer.status, outcome)

    def _finish(self, status: int, outcome: str) -> None:
        used = self._used
        finished = Finished(
            self._endpoint, self.model, status, outcome, round(self.seconds, 4),
            round(self._first_byte, 4), *used,
        )  # fmt: skip
        log.info(
            "online request", project=self._caller.project, key=self._caller.key_id,
            **finished._asdict(),
        )  # fmt: skip
        self._measure(finished)
        project = self._caller.project
        self._api.rates.spend(project, self._api.limits.of(project), sum(used))
        failed = outcome != "ok" or status >= 400
        usage = Usage(input_tokens=used.input, output_tokens=used.output)
        self._api.meter.count(
            self._caller, self.model, failed=failed, usage=usage, seconds=self.seconds
        )

    def _measure(self, finished: Finished) -> None:
        """Count it. Only what an engine answered has a duration that says something of it."""
        metrics, model, endpoint = self._api.metrics, self.model, self._endpoint
        failed = finished.outcome == "ok" and finished.status >= 400
        outcome = f"http_{finished.status}" if failed else finished.outcome
        metrics.online.labels(model, endpoint, outcome).inc()
        if outcome != "ok":
            return
        metrics.online_duration.labels(model, endpoint).observe(finished.seconds)
        if self._streamed:
            metrics.first_token.labels(model).observe(finished.first_byte_seconds)
        metrics.tokens.labels(model, "input").inc(finished.input_tokens)
        metrics.tokens.labels(model, "output").inc(finished.output_tokens)


async def serve(api: Dependencies, caller: Caller, request: Request, endpoint: str) -> Response:
    """Have the request's body answered by ``endpoint`` of an engine, and pass the answer on."""
    body = await read_body(request, api)
    run = OnlineRun(api, caller, endpoint, *addressed(body, api))
    try:
        answer = await run.begin(request)
        if answer.content_type.startswith(EVENT_STREAM):
            return StreamedResponse(
                run.events(answer),
                status_code=answer.status,
                headers={**UNBUFFERED, **answer.headers},
                media_type=EVENT_STREAM,
            )
        content = await run.whole(request, answer)
    except Broken as error:
        return error.response()
    return Response(content, answer.status, answer.headers)


async def read_body(request: Request, api: Dependencies) -> bytes:
    """Return the body, as large as the settings and NATS allow.

    Raises:
        HttpRefusal: 413, it is larger.
        InvalidInput: it is nested too deep.
    """
    carried = _online(api).switchboard.body_bytes_max - ENVELOPE_BYTES_MAX
    limit = min(api.settings.inference_body_bytes_max, carried)
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise too_large("The request body", limit)
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit:
            raise too_large("The request body", limit)
    check_depth(body, api.settings.body_depth_max)
    return bytes(body)


def addressed(body: bytes, api: Dependencies) -> tuple[str, bytes]:
    """Return the model that a body asks for and the body with that name, where it used an alias.

    Raises:
        InvalidInput: it is no JSON object, or names no model.
        HttpRefusal: 404, there is no such model.
    """
    try:
        wish = msgspec.json.decode(body, type=_Wish)
        if wish.model is None:
            raise missing("model")
        model = resolved(wish.model, api)
        if model == wish.model:
            return model, body
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"We could not parse the JSON body of your request: {error}.") from error
    except RecursionError as error:
        raise InvalidInput("The JSON body of your request is nested too deep.") from error
    return model, msgspec.json.encode({**fields, "model": model})


def resolved(name: str, api: Dependencies) -> str:
    """Return the real name of the model that ``name`` means. Raises HttpRefusal, 404."""
    names = _online(api).names
    model = names.resolve(name)
    if model is None:
        raise unknown_model(name, names.served())
    return model


def timeout_of(request: Request, seconds_max: float) -> float:
    """Return how long the request may take: what its header says, at most ``seconds_max``."""
    given = request.headers.get(TIMEOUT_HEADER)
    if given is None:
        return seconds_max
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise invalid(TIMEOUT_HEADER, "it has to be a number of seconds above 0")
    return min(seconds, seconds_max)


async def unless_left(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """Return what ``work`` returns; the body of ``request`` has been read.

    Raises:
        ClientDisconnect: the client left first; ``work`` is ended then.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
    finally:
        await tasks.end(working, leaving)
    return working.result()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _online(api: Dependencies) -> OnlineWork:
    if api.online is None:
        raise HttpRefusal(503, "This gateway is not connected.", code="not_connected")
    return api.online
