"""One gateway for all compatibility tests; each test has a project of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import httpx2
import openai
import pytest
from tests.gateway_bench import Gateway, gateway


@pytest.fixture(scope="session")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway(tmp_path_factory.mktemp("gateway home")) as running:
        yield running


@pytest.fixture
async def key(api: Gateway) -> str:
    return await api.new_key()


@pytest.fixture
async def client(api: Gateway, key: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with api.async_client(key) as opened:
        yield opened


@pytest.fixture
async def http(api: Gateway, key: str) -> AsyncIterator[httpx2.AsyncClient]:
    async with api.http(key) as opened:
        yield opened
