"""The ML backend that Label Studio connects to: predictions by the project's model.

Label Studio drops a whole call for one wrong item, and blocks an annotator until it has an answer.
So every task has its item, in order, in time, whatever the model says: an empty result where it
said nothing usable, no prediction at all where it could not be asked (Label Studio asks again).
Secrets in a call (``access_token``, ``params.password``) are not read.
"""

from __future__ import annotations

import base64
import hmac
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, HTTPException, Request
from starlette.responses import Response

from batch_labelstudio.bridge import Bridge
from batch_labelstudio.predicting import Prediction, Question
from vllm_batch.errors import BlobError, EventStoreError, InvalidInput
from vllm_batch.labeling import answers, deliveries
from vllm_batch.labeling.label_config import LabelConfig, parse

TRAIN_ACTION = "START_TRAINING"

router = APIRouter(tags=["ML backend"])


class _Context(msgspec.Struct):
    result: list[dict[str, Any]] = msgspec.field(default_factory=list)


class _Params(msgspec.Struct):
    context: _Context | None = None


class _Task(msgspec.Struct):
    data: dict[str, Any] = msgspec.field(default_factory=dict)


class _Asked(msgspec.Struct):
    """What calls have in common; ``project`` is "<id>.<epoch>", an id, or an object with one."""

    project: Any = None
    label_config: str = ""
    tasks: list[_Task] = msgspec.field(default_factory=list)
    params: _Params | None = None
    action: str = ""


async def _let_in(request: Request) -> Bridge:
    """Return the bridge to who has user and password, compared in constant time."""
    bridge: Bridge = request.app.state.bridge
    password = bridge.settings.ml_backend_password.get_secret_value()
    if not password:
        return bridge
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    try:
        said = base64.b64decode(given, validate=True) if scheme.lower() == "basic" else b""
    except ValueError:  # no base64, or not even ASCII
        said = b""
    wanted = f"{bridge.settings.ml_backend_username}:{password}".encode()
    if not hmac.compare_digest(said, wanted):
        realm = {"www-authenticate": 'Basic realm="ml-backend"'}
        raise HTTPException(401, "Wrong user or password.", realm)
    return bridge


Served = Annotated[Bridge, Depends(_let_in)]


async def _read(request: Request, bridge: Served) -> _Asked:
    """Return what a call says; nothing is read of who may not call."""
    limit = bridge.settings.ml_backend_bytes_max
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit:
            raise HTTPException(413, f"The call is larger than {limit} bytes.")
    try:
        return msgspec.json.decode(bytes(body), type=_Asked)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HTTPException(400, f"This is no call of Label Studio: {error}.") from error


Call = Annotated[_Asked, Depends(_read)]


@router.get("/health")
async def health(_: Served) -> Response:
    """Say that we are there."""
    return _json({"status": "UP", "model_class": "vllm-batch"})


@router.post("/setup")
async def setup(asked: Call, bridge: Served) -> Response:
    """Say which version predicts for a project."""
    project = _project_of(asked)
    version = bridge.models.version_for(bridge.feed.projects.find(project))
    if version is None:
        raise HTTPException(
            409,
            f"Project {project} has no model yet: "
            f"vllm-batch label configure --project {project} --model NAME",
        )
    return _json({"model_version": version})


@router.post("/predict")
async def predict(asked: Call, bridge: Served) -> Response:
    """Predict every task of a call, in its order."""
    view = bridge.feed.projects.find(_project_of(asked))
    version = bridge.models.version_for(view)
    configured = view.project.configured if view else None
    given = asked.params.context if asked.params else None
    if version is None or configured is None:
        return _json({"results": [[] for _ in asked.tasks]})
    try:
        config = parse(asked.label_config)
    except InvalidInput:
        return _json({"results": [[] for _ in asked.tasks], "model_version": version})
    question = Question(
        config,
        version,
        configured.prompt,
        so_far=answers.from_result(config, given.result) if given else {},
    )
    settings = bridge.settings
    alone = len(asked.tasks) == 1
    predictions = await bridge.predictor.predict(
        [task.data for task in asked.tasks],
        question,
        seconds=settings.label_annotator_seconds if alone else settings.label_predict_seconds,
    )
    items = [_item(one, config, version, interactive=given is not None) for one in predictions]
    return _json({"results": items, "model_version": version})


@router.post("/train")
@router.post("/webhook")
async def train(request: Request, asked: Call, bridge: Served) -> Response:
    """Ask for a training; other events come by the project's own webhook and are only heard."""
    if request.url.path == "/webhook" and asked.action != TRAIN_ACTION:
        return _json({"status": "ignored"})
    project = _project_of(asked)
    if not project:
        raise HTTPException(400, "'project' is no id of a project.")
    body = {"action": TRAIN_ACTION, "project": {"id": int(project)}}
    try:
        await deliveries.record(bridge.store, bridge.blobs, TRAIN_ACTION, body)
    except (EventStoreError, BlobError) as error:
        raise HTTPException(503, f"Not recorded, try again: {error}.") from error
    return _json({"status": "ok"}, 201)


@router.get("/versions")
async def versions(bridge: Served) -> Response:
    """List the versions that predict now for a project, or did when they were measured."""
    found: dict[str, None] = {}
    for view in bridge.feed.projects.all():
        now = bridge.models.version_for(view)
        found |= dict.fromkeys([now] if now else [])
        found |= dict.fromkeys(one.model_version for one in view.project.measured)
    return _json({"versions": list(found)})


def _item(prediction: Prediction, config: LabelConfig, version: str, *, interactive: bool) -> Any:
    """Return one task's item. A list of no predictions: nothing is stored, and it is asked again;
    interactively nothing is stored anyway, and the editor wants a result."""
    if prediction.failed and not interactive:
        return []
    item: dict[str, Any] = {
        "result": answers.to_result(config, prediction.answer),
        "model_version": version,
    }
    if prediction.score is not None:
        item["score"] = prediction.score
    return item


def _project_of(asked: _Asked) -> str:
    """Return the project's id, empty where there is none."""
    project = asked.project
    if isinstance(project, dict):
        project = project.get("id")
    number, _, _ = str(project).partition(".")
    return number if number.isascii() and number.isdigit() else ""


def _json(content: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status_code=status, media_type="application/json")
