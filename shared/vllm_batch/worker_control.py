"""Commands to one worker, as core NATS requests on ``control.worker.<worker_id or name's key>``.

They reach a worker wherever it runs and are never kept: a worker that is away says nothing, and
whoever asked learns that. What a command did is an event in the log, with who asked for it.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
import nats.errors
from nats.aio.client import Client

from vllm_batch import ids
from vllm_batch.errors import WorkerUnreachable
from vllm_batch.ids import WorkerId
from vllm_batch.messaging import subjects

_WORKER_ID = re.compile(r"worker_[0-9a-f]{24}")


class _Command(msgspec.Struct, frozen=True, kw_only=True, tag_field="command"):
    requested_by: str


class Restart(_Command, frozen=True, kw_only=True, tag="restart"):
    """Start the whole worker anew: after what runs is finished, or ``now``."""

    now: bool = False


class ClearGpu(_Command, frozen=True, kw_only=True, tag="clear_gpu"):
    """Stop the engine, kill what it left on the GPUs, start it again."""


class Kill(_Command, frozen=True, kw_only=True, tag="kill"):
    """Kill the engine's processes at once; the worker starts them anew."""


class Status(_Command, frozen=True, kw_only=True, tag="status"):
    """Answer with a heartbeat of this moment in ``data``."""


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a model is made of. ``base``: the name of the model that this one is an adapter of.

    ``source``: Hugging Face id, local folder, or ``blob:<prefix>`` for a folder in the blob store;
    None: as the worker has it configured.
    """

    name: str
    source: str | None = None
    base: str | None = None
    engine_args: tuple[str, ...] = ()


class Serve(_Command, frozen=True, kw_only=True, tag="serve"):
    """Serve exactly this base model and these adapters of it from now on.

    Answered at once; what becomes of it is told by ``model.*`` and ``worker.ready``. ``lora``: more
    adapters may follow, so the engine is started ready for them.
    """

    base: ModelSpec
    adapters: tuple[ModelSpec, ...] = ()
    lora: bool = False


Command = Restart | ClearGpu | Kill | Status | Serve


class Reply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of a command. ``ok`` False: refused, ``message`` says why."""

    ok: bool
    message: str
    data: dict[str, Any] = {}


def subjects_of(worker_id: WorkerId, name: str) -> list[str]:
    """Return the subjects on which a worker listens: by its id, and by its name."""
    return [subjects.control(worker_id), subjects.control(ids.worker_key(name))]


async def send(client: Client, worker: str, command: Command, timeout_seconds: float) -> Reply:
    """Have a worker, given by id or by name, carry out ``command``; return its answer.

    Raises:
        WorkerUnreachable: no answer in time. Whether the command was carried out is unknown,
            unless nobody listened at all.
    """
    token = worker if _WORKER_ID.fullmatch(worker) else ids.worker_key(worker)
    payload = msgspec.json.encode(command)
    try:
        answer = await client.request(subjects.control(token), payload, timeout_seconds)
    except nats.errors.NoRespondersError:
        raise WorkerUnreachable(f"{worker} does not run, or is cut off") from None
    except (nats.errors.Error, TimeoutError) as error:
        raise WorkerUnreachable(f"no answer from {worker}: {error!r}") from error
    return msgspec.json.decode(answer.data, type=Reply)
