"""Serving metrics: what an event loop that stands still, a taken port and a broken source do."""

from __future__ import annotations

import asyncio
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from vllm_batch.metrics import exposition
from vllm_batch.metrics.exposition import Exposition, exposed
from vllm_batch.settings import Settings


@pytest.fixture
def measured(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, metrics_port=0)


def fetch(port: int | None, path: str = "/metrics", accept: str = "") -> tuple[int, str, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"accept": accept})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.headers["content-type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, "", error.read().decode()


def values(text: str) -> dict[str, float]:
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_what_is_measured_is_measured_when_it_is_asked_for(measured: Settings) -> None:
    async with exposed(measured, service="test") as running:
        asked = 0

        async def refresh() -> None:
            nonlocal asked
            asked += 1

        with running.on_scrape(refresh):
            assert asked == 0
            status, content_type, text = await asyncio.to_thread(fetch, running.port)
            assert (status, asked) == (200, 1)
            assert content_type.startswith("text/plain")
        assert 'vllm_batch_build_info{service="test",version="' in text
        assert values(text)["process_resident_memory_bytes"] > 1_000_000
        assert values(text)["vllm_batch_event_loop_lag_seconds"] < 5
        await asyncio.to_thread(fetch, running.port)
        assert asked == 1
        wanted = "application/openmetrics-text; version=1.0.0"
        _, content_type, text = await asyncio.to_thread(fetch, running.port, "/metrics", wanted)
        assert content_type.startswith("application/openmetrics-text")
        assert list(openmetrics.text_string_to_metric_families(text))
        assert (await asyncio.to_thread(fetch, running.port, "/else"))[0] == 404


async def test_a_source_that_is_broken_hides_no_other(measured: Settings) -> None:
    async with exposed(measured, service="test") as running:
        seen = 0

        async def breaks() -> None:
            raise RuntimeError("no")

        async def works() -> None:
            nonlocal seen
            seen += 1

        with running.on_scrape(breaks), running.on_scrape(works):
            status, _, text = await asyncio.to_thread(fetch, running.port)
        assert (status, seen) == (200, 1)
        assert values(text)["vllm_batch_metrics_refresh_failures_total"] == 1


async def test_an_event_loop_that_stands_still_fails_the_scrape(
    measured: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exposition, "SCRAPE_SECONDS", 0.1)
    async with exposed(measured, service="test") as running:
        asking = asyncio.create_task(asyncio.to_thread(fetch, running.port))
        await asyncio.sleep(0)
        time.sleep(0.5)  # noqa: ASYNC251 - the point of the test
        status, _, text = await asking
        assert status == 503
        assert "does not turn" in text
        assert (await asyncio.to_thread(fetch, running.port))[0] == 200


async def test_a_taken_port_costs_the_metrics_and_nothing_else(
    measured: Settings, tmp_path: Path
) -> None:
    async with exposed(measured, service="first") as first:
        taken = Settings(home=tmp_path, metrics_port=first.port)
        async with exposed(taken, service="second") as second:
            assert second.port is None
        assert (await asyncio.to_thread(fetch, first.port))[0] == 200


async def test_without_a_port_nothing_listens(tmp_path: Path) -> None:
    async with exposed(Settings(home=tmp_path), service="test") as running:
        assert isinstance(running, Exposition)
        assert running.port is None
