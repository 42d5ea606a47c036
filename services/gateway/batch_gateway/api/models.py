"""Models: what is registered, its aliases, and what workers have announced."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter
from starlette.responses import Response

from batch_gateway.api.answers import answer, documented
from batch_gateway.api.dependencies import Api, CalledBy
from batch_gateway.api.errors import HttpRefusal, shown
from vllm_batch.projections.rows import ModelRow

router = APIRouter(prefix="/v1/models", tags=["Models"])


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model. As in vLLM, ``root`` is the model that an alias means (else the model itself) and
    ``parent`` the base of an adapter."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "vllm-batch"
    root: str
    parent: str | None = None


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """All models."""

    object: str = "list"
    data: list[Model]


def _model(row: ModelRow) -> Model:
    return Model(id=row.name, created=row.created_at, root=row.root or row.name, parent=row.parent)


@router.get("", responses=documented(ModelList))
async def list_models(api: Api, _: CalledBy) -> Response:
    """List the models."""
    return answer(ModelList(data=[_model(row) for row in await api.reads.models()]))


@router.get("/{model:path}", responses=documented(Model))
async def retrieve_model(model: str, api: Api, _: CalledBy) -> Response:
    """Retrieve a model; its name may contain slashes."""
    for row in await api.reads.models():
        if row.name == model:
            return answer(_model(row))
    raise HttpRefusal(
        404, f"The model '{shown(model)}' does not exist.", param="model", code="model_not_found"
    )
