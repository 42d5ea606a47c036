"""The client of Label Studio's API: what is away for now, and what is refused for good."""

from __future__ import annotations

import httpx
import pytest
from tests.unit.labelstudio.bench import label_studio_of

from vllm_batch.errors import LabelStudioError, LabelStudioUnavailable

PERSONAL_TOKEN = "a.b.c"


async def error_of(status: int) -> LabelStudioError:
    """Return what a call raises when the exchange of the token is answered with ``status``."""
    transport = httpx.MockTransport(lambda _: httpx.Response(status, text="<html>"))
    async with httpx.AsyncClient(transport=transport, base_url="http://there") as client:
        with pytest.raises(LabelStudioError) as raised:
            await label_studio_of(client, PERSONAL_TOKEN).task("1")
    return raised.value


@pytest.mark.parametrize("status", [429, 500, 502, 503])
async def test_a_proxy_that_answers_for_a_label_studio_that_starts_refuses_no_token(
    status: int,
) -> None:
    error = await error_of(status)
    assert isinstance(error, LabelStudioUnavailable)
    assert error.retryable


async def test_a_token_that_is_refused_is_refused_for_good_and_what_to_do_is_said() -> None:
    error = await error_of(401)
    assert not isinstance(error, LabelStudioUnavailable)
    assert "make a new one" in str(error)
