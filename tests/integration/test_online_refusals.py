"""What a gateway makes of workers that refuse a request; they are played over a real NATS."""

from __future__ import annotations

from typing import cast

import pytest
from nats.aio.msg import Msg

from batch_gateway.api.errors import HttpRefusal
from batch_gateway.api.inference_calls import Switchboard
from batch_gateway.api.model_names import ModelNames
from vllm_batch import ids
from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.ids import WorkerId
from vllm_batch.messaging import subjects
from vllm_batch.online import Ask, RefusalReason, Refused, decode_to_worker, encode
from vllm_batch.settings import Settings

ME = WorkerId("worker_1")


class OneWorker:
    """Every model is served by the one worker."""

    def serving(self, _model: str) -> list[WorkerId]:
        return [ME]

    def served(self) -> list[str]:
        return ["m"]


@pytest.mark.parametrize(
    ("reason", "status", "code"),
    [
        ("busy", 429, "overloaded"),
        ("not_ready", 503, "model_not_ready"),
        ("draining", 503, "model_not_ready"),
        ("not_here", 503, "model_not_served"),
    ],
)
async def test_a_refusal_says_what_is_the_matter(
    event_store: JetStreamEventStore,
    settings: Settings,
    reason: RefusalReason,
    status: int,
    code: str,
) -> None:
    client = event_store.connection.client

    async def refuse(message: Msg) -> None:
        asked = decode_to_worker(message.data)
        assert isinstance(asked, Ask)
        said = Refused(asked.request_id, ME, reason)
        await client.publish(subjects.online_gateway(asked.gateway), encode(said))

    await client.subscribe(subjects.inference(ids.model_key("m")), cb=refuse)
    switchboard = Switchboard(client, cast("ModelNames", OneWorker()), settings)
    async with switchboard.listening():
        with pytest.raises(HttpRefusal) as raised:
            await switchboard.ask("m", "/v1/completions", b"{}", 30.0)
    assert (raised.value.status, raised.value.code) == (status, code)
    assert int(raised.value.headers["retry-after"]) >= 1
