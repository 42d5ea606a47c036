"""Batches: create, list, retrieve, cancel.

Appends ``job.submitted`` and ``job.cancel_requested``.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from batch_gateway.api import batch_request, quotas
from batch_gateway.api.answers import Page, answer, documented, page_of, takes
from batch_gateway.api.authentication import Caller
from batch_gateway.api.batch_object import Batch, batch_object
from batch_gateway.api.batch_request import BatchRequest, CreateBatchRequest
from batch_gateway.api.dependencies import Api, CalledBy, Dependencies
from batch_gateway.api.errors import shown
from batch_gateway.api.reads import JobAndRow, evolve_job, unix
from batch_gateway.api.request_body import invalid, read_object
from vllm_batch import ids
from vllm_batch.aggregates import job as rules
from vllm_batch.aggregates.job import Cancel, JobStatus, Submit
from vllm_batch.errors import AlreadyDone, Conflict, InvalidInput, NotFound, Rejected
from vllm_batch.event_store import append_decided
from vllm_batch.events import JobSubmitted
from vllm_batch.ids import FileId, JobId
from vllm_batch.messaging import subjects
from vllm_batch.projections.rows import BatchRow

router = APIRouter(prefix="/v1/batches", tags=["Batches"])


@router.post("", openapi_extra=takes(CreateBatchRequest), responses=documented(Batch))
async def create_batch(request: Request, api: Api, caller: CalledBy) -> Response:
    """Create a batch. With an ``Idempotency-Key`` header, asking twice makes one batch."""
    body = await read_object(request, api.settings)
    wanted = batch_request.parse(
        body, window_seconds_max=api.settings.completion_window_seconds_max
    )
    key = batch_request.checked_idempotency_key(request.headers.get("idempotency-key"))
    if key is None:
        job_id, fingerprint = JobId(api.new_id("batch_")), None
    else:
        job_id = JobId(ids.derived("batch_", caller.project, key))
        fingerprint = wanted.fingerprint()
        if (before := await _created_before(api, caller, job_id)) is not None:
            return await _same_again(api, before, fingerprint)
    lines = await _check_input_file(api, caller, wanted)
    now = api.clock.now()
    submitted = JobSubmitted(
        job_id=job_id,
        project=caller.project,
        key_id=caller.key_id,
        input_file_id=FileId(wanted.input_file_id),
        endpoint=wanted.endpoint,
        completion_window=wanted.completion_window,
        expires_at=unix(now) + wanted.window_seconds,
        metadata=wanted.metadata,
        output_expires_after_seconds=wanted.output_expires_after_seconds,
        priority=wanted.priority,
        fingerprint=fingerprint,
    )
    async with quotas.turn(api, caller):
        await quotas.check_queue(api, caller, lines)
        try:
            event = rules.decide(None, Submit(submitted))
            recorded = await api.store.append(event, expected=0, at=now)
        except Conflict:
            before = await _created_before(api, caller, job_id)
            return await _same_again(api, before, fingerprint)
        await api.reads.catch_up(recorded.seq)
    return await _answer(api, evolve_job(None, recorded))


async def _created_before(api: Dependencies, caller: Caller, job_id: JobId) -> JobAndRow | None:
    try:
        return await api.reads.job(caller.project, job_id)
    except NotFound:
        return None


async def _same_again(
    api: Dependencies, before: JobAndRow | None, fingerprint: str | None
) -> Response:
    if before is None:
        raise Rejected("This Idempotency-Key was used for a batch that is deleted by now.")
    if fingerprint is None or before.job.submitted.fingerprint != fingerprint:
        raise Rejected("This Idempotency-Key was used for another batch.")
    return await _answer(api, before)


async def _check_input_file(api: Dependencies, caller: Caller, wanted: BatchRequest) -> int:
    """Return how many lines the input file has. Raises InvalidInput where it is none."""
    try:
        row = await api.reads.file(caller.project, wanted.input_file_id)
    except NotFound as error:
        raise InvalidInput(str(error), param="input_file_id") from error
    if row.purpose != "batch":
        raise invalid("input_file_id", f"the file's purpose is {row.purpose!r}, not 'batch'")
    return row.lines


@router.get("", responses=documented(Page))
async def list_batches(
    api: Api,
    caller: CalledBy,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: str | None = None,
) -> Response:
    """List the project's batches, the newest first."""
    if after is not None and not ids.is_token(after):
        raise NotFound(f"No such Batch object: {shown(after)}")
    lists = await api.reads.fresh_lists()
    rows, has_more = await lists.batches(
        caller.project, limit=limit, after=JobId(after) if after else None
    )
    waiting = await api.reads.waiting(rows)
    batches = [batch_object(row, waiting.get(row.job_id, ())) for row in rows]
    return page_of(batches, has_more=has_more)


@router.get("/{batch_id}", responses=documented(Batch))
async def retrieve_batch(batch_id: str, api: Api, caller: CalledBy) -> Response:
    """Retrieve a batch."""
    return await _shown(api, await api.reads.batch(caller.project, batch_id))


@router.post("/{batch_id}/cancel", responses=documented(Batch))
async def cancel_batch(batch_id: str, api: Api, caller: CalledBy) -> Response:
    """Cancel a batch. Of a cancelling one: 200, unchanged; of one that has ended: 409."""
    found = await api.reads.job(caller.project, batch_id)
    try:
        recorded, found = await append_decided(
            api.store,
            subjects.job(found.job.job_id),
            evolve_job,
            lambda state: rules.decide(state.job if state else None, Cancel()),
        )
    except AlreadyDone as error:
        found = await api.reads.job(caller.project, batch_id)
        if found.job.status is JobStatus.CANCELLED:
            raise Rejected("The batch is cancelled already.") from error
        return await _answer(api, found)
    except Rejected as error:
        found = await api.reads.job(caller.project, batch_id)
        if found.job.status is JobStatus.EXPIRING:
            why = "whose completion window has passed"
        else:
            why = f"that is {found.job.status}"
        raise Rejected(f"A batch {why} cannot be cancelled any more.") from error
    await api.reads.catch_up(recorded.seq)
    return await _answer(api, found)


async def _answer(api: Dependencies, found: JobAndRow) -> Response:
    return await _shown(api, await api.reads.with_counts(found.row))


async def _shown(api: Dependencies, row: BatchRow) -> Response:
    waiting = await api.reads.waiting([row])
    return answer(batch_object(row, waiting.get(row.job_id, ())))
