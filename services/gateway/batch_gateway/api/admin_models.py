"""Managing models over HTTP (beyond OpenAI): what ``vllm-batch model`` does, for programs.

Needs the scope ``admin``, as all under ``/admin``. Reads the event log and telemetry, never
Postgres; writes ``model.*`` events that name the key. Names may contain slashes.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TypeVar

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from batch_gateway.api.answers import answer, documented, takes
from batch_gateway.api.dependencies import Api, CalledBy, Dependencies
from batch_gateway.api.request_body import Body, read_object
from vllm_batch import model_fit, model_listing, model_orders
from vllm_batch.errors import AlreadyDone, InvalidInput
from vllm_batch.model_fit import Examination
from vllm_batch.model_listing import ModelStatus
from vllm_batch.model_orders import Registration

router = APIRouter(prefix="/admin/models", tags=["Admin"])

Asked = TypeVar("Asked", bound=msgspec.Struct)


class ModelRegistration(Registration, frozen=True, kw_only=True):
    """A model to register; registering it again replaces what it is made of, and what is left out
    of aliases and prices stays. ``check`` looks at the source and the workers' memory first;
    ``force`` takes aliases from other models."""

    check: bool = True
    force: bool = False


class ModelEstimateRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model that might be registered."""

    source: str
    base: str | None = None
    engine_args: list[str] = []


class ModelAliasRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Aliases to give and to take away; ``force`` takes them from other models."""

    add: list[str] = []
    remove: list[str] = []
    force: bool = False


class ModelPriceRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a million tokens cost from now on; what is left out stays."""

    input_price_per_million: float | None = None
    output_price_per_million: float | None = None


class ModelWorkerRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """By which worker; left out: by any."""

    worker: str | None = None


class Models(msgspec.Struct, frozen=True, kw_only=True):
    """Every model that is registered or served."""

    models: list[ModelStatus]


class RegisteredModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model that was registered, and what was found out about it (null: unchecked)."""

    model: ModelStatus
    examination: Examination | None


@router.get("", responses=documented(Models))
async def list_models(api: Api, _: CalledBy) -> Response:
    """List the models and where each is served."""
    return answer(Models(models=await model_listing.models(api.store)))


@router.post(
    "", responses=documented(RegisteredModel, status=201), openapi_extra=takes(ModelRegistration)
)
async def register_model(request: Request, api: Api, caller: CalledBy) -> Response:
    """Register a model or an adapter, or replace what it is made of."""
    asked = await _body(request, api, ModelRegistration)
    found = None
    if asked.check:
        found = await _examine(api, asked)
        found.require_fit()
    model = await model_orders.register(
        api.store, asked, requested_by=caller.key_id, force=asked.force
    )
    await api.reads.catch_up(model.seq)
    status = await model_listing.model(api.store, model.name)
    return answer(RegisteredModel(model=status, examination=found), 201)


@router.post(
    "/estimate", responses=documented(Examination), openapi_extra=takes(ModelEstimateRequest)
)
async def estimate_model(request: Request, api: Api, _: CalledBy) -> Response:
    """Say what a model needs and where it fits, without registering it."""
    return answer(await _examine(api, await _body(request, api, ModelEstimateRequest)))


@router.get("/{model:path}", responses=documented(ModelStatus))
async def retrieve_model(model: str, api: Api, _: CalledBy) -> Response:
    """Retrieve a model by its name or an alias."""
    return await _status(api, model)


@router.delete("/{model:path}", responses=documented(ModelStatus))
async def retire_model(model: str, api: Api, caller: CalledBy) -> Response:
    """Let a model be asked for no more; its history stays."""
    retired = await model_orders.retire(api.store, model, requested_by=caller.key_id)
    await api.reads.catch_up(retired.seq)
    return await _status(api, retired.name)


@router.post(
    "/{model:path}/load", responses=documented(ModelStatus), openapi_extra=takes(ModelWorkerRequest)
)
async def load_model(model: str, request: Request, api: Api, caller: CalledBy) -> Response:
    """Have a model served whatever its backlog; answers at once, ``status`` says how far it is."""
    asked = await _body(request, api, ModelWorkerRequest)
    with suppress(AlreadyDone):  # then what it has come to is the answer
        await model_orders.load(api.store, model, worker=asked.worker, requested_by=caller.key_id)
    return await _status(api, model)


@router.post(
    "/{model:path}/unload",
    responses=documented(ModelStatus),
    openapi_extra=takes(ModelWorkerRequest),
)
async def unload_model(model: str, request: Request, api: Api, caller: CalledBy) -> Response:
    """Take a request to load back; refused (409) where nobody made one."""
    asked = await _body(request, api, ModelWorkerRequest)
    await model_orders.unload(api.store, model, worker=asked.worker, requested_by=caller.key_id)
    return await _status(api, model)


@router.post(
    "/{model:path}/aliases",
    responses=documented(ModelStatus),
    openapi_extra=takes(ModelAliasRequest),
)
async def alias_model(model: str, request: Request, api: Api, caller: CalledBy) -> Response:
    """Give a model other names, or take some away."""
    asked = await _body(request, api, ModelAliasRequest)
    changed = await model_orders.alias(
        api.store, model, add=asked.add, remove=asked.remove, force=asked.force,
        requested_by=caller.key_id,
    )  # fmt: skip
    await api.reads.catch_up(changed.seq)
    return await _status(api, changed.name)


@router.post(
    "/{model:path}/price", responses=documented(ModelStatus), openapi_extra=takes(ModelPriceRequest)
)
async def price_model(model: str, request: Request, api: Api, caller: CalledBy) -> Response:
    """Say what a million tokens cost from now on; what ran before keeps its price."""
    asked = await _body(request, api, ModelPriceRequest)
    await model_orders.price(
        api.store, model, requested_by=caller.key_id,
        input_per_million=asked.input_price_per_million,
        output_per_million=asked.output_price_per_million,
    )  # fmt: skip
    return await _status(api, model)


async def _status(api: Dependencies, model: str) -> Response:
    return answer(await model_listing.model(api.store, model))


async def _examine(
    api: Dependencies, asked: ModelRegistration | ModelEstimateRequest
) -> Examination:
    return await model_fit.examine(
        api.store, api.client, asked.source, base=asked.base, engine_args=asked.engine_args,
        settings=api.settings,
    )  # fmt: skip


async def _body(request: Request, api: Dependencies, cls: type[Asked]) -> Asked:
    """Return what a call asks for; no body asks for nothing in particular.

    Raises:
        InvalidInput: it is no JSON object, or a field is missing, unknown or of the wrong type.
    """
    headers = request.headers
    body: Body = {}
    if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
        body = await read_object(request, api.settings)
    try:
        return msgspec.convert(body, cls)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"Invalid request: {error}.", code="invalid_value") from error
