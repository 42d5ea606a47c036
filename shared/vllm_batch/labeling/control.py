"""What the bridge can be asked to do: NATS requests to whichever bridge is free, with an answer.

Only the bridge talks to Label Studio and asks models, so API and command line ask the bridge. No
stream keeps these; what came of them is in the event log.
"""

from __future__ import annotations

from typing import Any

import msgspec
import nats.errors
from nats.aio.client import Client

from vllm_batch.errors import BridgeUnreachable, NotFound, Rejected
from vllm_batch.events.training import DatasetFormat
from vllm_batch.messaging import subjects

QUEUE = "labelstudio-bridge"
ANSWER_SECONDS = 30.0


class _Command(msgspec.Struct, frozen=True, kw_only=True):
    project: str


class MarkGroundTruth(_Command, frozen=True, kw_only=True, tag="mark_ground_truth"):
    """Mark an annotation as ground truth in Label Studio, or unmark it."""

    annotation: str
    ground_truth: bool


class MeasureAccuracy(_Command, frozen=True, kw_only=True, tag="measure_accuracy"):
    """Ask a model, by default the project's, about every task with ground truth, and record how
    well it answers. Takes as long as the model."""

    model: str | None = None
    requested_by: str


class ReportAgreement(_Command, frozen=True, kw_only=True, tag="report_agreement"):
    """Answer with an `AgreementReport` of this moment."""


class FindTemplate(_Command, frozen=True, kw_only=True, tag="find_template"):
    """Answer with the ``template`` of a project, as its label config has it in Label Studio now;
    refused if ``wanted`` is another. The project need not be configured."""

    wanted: str | None = None


class ExportDataset(_Command, frozen=True, kw_only=True, tag="export_dataset"):
    """Store what is validated now as a dataset; answers with its `TrainingDatasetCreated`."""

    format: DatasetFormat


Command = MarkGroundTruth | MeasureAccuracy | ReportAgreement | FindTemplate | ExportDataset


class Reply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of a command. ``code`` of the error, empty where all went well."""

    code: str = ""
    message: str = ""
    retryable: bool = False
    data: dict[str, Any] = {}


async def send(client: Client, command: Command, timeout_seconds: float) -> dict[str, Any]:
    """Have a bridge carry out ``command``; return what it answers.

    Raises:
        BridgeUnreachable: nobody answers in time, or cannot now; try again.
        NotFound: there is no such project, annotation or task.
        Rejected: it cannot be done; the message says why.
    """
    payload = msgspec.json.encode(command)
    try:
        answer = await client.request(subjects.LABELING_CONTROL, payload, timeout_seconds)
    except nats.errors.NoRespondersError:
        raise BridgeUnreachable("no Label Studio bridge runs") from None
    except (nats.errors.Error, TimeoutError) as error:
        raise BridgeUnreachable(f"no answer from the Label Studio bridge: {error!r}") from error
    reply = msgspec.json.decode(answer.data, type=Reply)
    if not reply.code:
        return reply.data
    if reply.code == NotFound.code:
        raise NotFound(reply.message)
    if reply.retryable:
        raise BridgeUnreachable(reply.message)
    raise Rejected(reply.message)
