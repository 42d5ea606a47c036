"""Online requests: OpenAI's endpoints, answered by the workers' engines, and a plain one.

What an engine answers is passed on byte for byte, whether it streams or not.
"""

from __future__ import annotations

from typing import Any

import msgspec
import structlog
from fastapi import APIRouter, Request
from starlette.responses import Response

from batch_gateway.api.answers import DOCUMENTED_ERRORS, answer, documented
from batch_gateway.api.dependencies import Api, CalledBy, Dependencies
from batch_gateway.api.errors import HttpRefusal, missing
from batch_gateway.api.inference_errors import Broken
from batch_gateway.api.inference_run import OnlineRun, read_body, resolved, serve
from batch_gateway.api.request_body import invalid
from vllm_batch.errors import InvalidInput

log = structlog.get_logger(__name__)

router = APIRouter(prefix="/v1", tags=["Inference"])

_DOCUMENTED: dict[int | str, dict[str, Any]] = {
    200: {"description": "As OpenAI's API: a JSON object, or server-sent events."},
    **DOCUMENTED_ERRORS,
}
_OWN_FIELDS = frozenset({"model", "prompt", "messages", "stream", "stream_options"})


class Inference(msgspec.Struct, frozen=True, kw_only=True):
    """What `/v1/inference` answers. ``usage`` is the engine's."""

    text: str
    model: str
    usage: dict[str, Any]
    latency_ms: float


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    message: _Message | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]
    model: str | None = None
    usage: dict[str, Any] | None = None

    @property
    def text(self) -> str:
        """What the first choice says; empty where it calls a tool instead."""
        for choice in self.choices:
            said = choice.text if choice.message is None else choice.message.content
            return said or ""
        return ""


@router.post("/chat/completions", responses=_DOCUMENTED)
async def chat_completions(request: Request, api: Api, caller: CalledBy) -> Response:
    """Answer a chat."""
    return await serve(api, caller, request, "/v1/chat/completions")


@router.post("/completions", responses=_DOCUMENTED)
async def completions(request: Request, api: Api, caller: CalledBy) -> Response:
    """Continue a text."""
    return await serve(api, caller, request, "/v1/completions")


@router.post("/embeddings", responses=_DOCUMENTED)
async def embeddings(request: Request, api: Api, caller: CalledBy) -> Response:
    """Return the embeddings of texts."""
    return await serve(api, caller, request, "/v1/embeddings")


@router.post("/responses", responses=_DOCUMENTED)
async def responses(request: Request, api: Api, caller: CalledBy) -> Response:
    """Answer as OpenAI's Responses API does."""
    return await serve(api, caller, request, "/v1/responses")


@router.post("/inference", responses=documented(Inference), tags=["Beyond OpenAI"])
async def infer(request: Request, api: Api, caller: CalledBy) -> Response:
    """Answer ``{"prompt" | "messages", "model"?, …}`` with its text alone; whatever else the body
    has goes to the engine as it is. The model may be left out where only one is served."""
    endpoint, model, body = _plain(await read_body(request, api), api)
    run = OnlineRun(api, caller, endpoint, model, body)
    try:
        begun = await run.begin(request)
        content = await run.whole(request, begun)
    except Broken as error:
        return error.response()
    if begun.status != 200:
        return Response(content, begun.status, begun.headers)
    try:
        completion = msgspec.json.decode(content, type=_Completion)
    except (msgspec.DecodeError, RecursionError) as error:
        log.warning("the engine's answer is none", model=model, error=str(error))
        return Broken("engine_error", "The engine's answer cannot be understood.").response()
    return answer(
        Inference(
            text=completion.text,
            model=completion.model or model,
            usage=completion.usage or {},
            latency_ms=round(run.seconds * 1000, 1),
        )
    )


def _plain(raw: bytes, api: Dependencies) -> tuple[str, str, bytes]:
    """Return the endpoint, the model and the body that a plain request stands for."""
    try:
        fields = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        name = msgspec.json.decode(fields["model"], type=str) if "model" in fields else ""
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"We could not parse the JSON body of your request: {error}.") from error
    if bytes(fields.get("stream", b"false")) not in {b"false", b"null"}:
        raise invalid("stream", "this endpoint does not stream; use /v1/chat/completions")
    given = [field for field in ("prompt", "messages") if field in fields]
    if not given:
        raise missing("prompt")
    if len(given) > 1:
        raise invalid("prompt", "give a prompt or messages, not both")
    endpoint = "/v1/completions" if given == ["prompt"] else "/v1/chat/completions"
    model = resolved(name or _default_model(api), api)
    body = {name: value for name, value in fields.items() if name not in _OWN_FIELDS}
    body = {"model": msgspec.Raw(msgspec.json.encode(model)), given[0]: fields[given[0]], **body}
    return endpoint, model, msgspec.json.encode(body)


def _default_model(api: Dependencies) -> str:
    if api.settings.inference_default_model:
        return api.settings.inference_default_model
    served = api.online.names.served() if api.online is not None else []
    if len(served) == 1:
        return served[0]
    if served:
        raise InvalidInput(
            f"Say which model: {', '.join(served)}.",
            param="model",
            code="missing_required_parameter",
        )
    raise HttpRefusal(
        503, "No model is served now.", code="model_not_served", headers={"retry-after": "2"}
    )
