"""Label Studio's API, as far as the bridge uses it: projects, tasks, annotations, webhooks.

Written against 1.23.2. Takes a personal access token (a JWT, exchanged for access tokens of five
minutes) or a legacy token. Never logs either.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
from prometheus_client import CollectorRegistry, Counter

from vllm_batch import tasks
from vllm_batch.errors import LabelStudioError, LabelStudioUnavailable
from vllm_batch.metrics.labeling import LabelingMetrics
from vllm_batch.settings import Settings

REFUSAL_CHARACTERS_MAX = 500
_READS_AT_ONCE = 8
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})

Json = dict[str, Any]


class LabelStudio:
    """A client. Every method raises `LabelStudioUnavailable` where nobody answers and
    `LabelStudioError` where Label Studio refuses."""

    def __init__(
        self, client: httpx.AsyncClient, api_key: str, *, page_tasks: int, calls: Counter
    ) -> None:
        self._client = client
        self._api_key = api_key
        self._page_tasks = page_tasks
        self._calls = calls
        self._access = ""
        self._refreshing = asyncio.Lock()

    async def project(self, project: str) -> Json | None:
        """Return a project; None if there is no such."""
        found: Json | None = await self._find(f"/api/projects/{project}/")
        return found

    async def task(self, task: str) -> Json | None:
        """Return a task with its annotations and predictions; None if there is no such."""
        found: Json | None = await self._find(f"/api/tasks/{task}/")
        return found

    async def data_of(self, wanted: Iterable[str]) -> dict[str, Json]:
        """Return the data, by their id, of those tasks that are there."""
        slots = asyncio.Semaphore(_READS_AT_ONCE)

        async def read(task: str) -> tuple[str, Json | None]:
            async with slots:
                return task, await self.task(task)

        reading = [asyncio.ensure_future(read(task)) for task in wanted]
        try:
            found = await asyncio.gather(*reading)
        finally:
            await tasks.end(*reading)
        return {task: one["data"] for task, one in found if one is not None}

    async def annotation(self, annotation: str) -> Json | None:
        """Return an annotation; None if there is no such."""
        found: Json | None = await self._find(f"/api/annotations/{annotation}/")
        return found

    async def tasks(
        self, project: str, *, external_id_contains: str | None = None
    ) -> AsyncIterator[list[Json]]:
        """Yield pages of a project's tasks with their annotations, in the order of their ids.

        A task that is deleted meanwhile moves others to an earlier page: what was not seen is
        missing only if asking for it says so too.
        """
        query: Json = {"ordering": ["tasks:id"]}
        if external_id_contains is not None:
            wanted = {
                "filter": "filter:tasks:data.external_id",
                "operator": "contains",
                "type": "String",
                "value": external_id_contains,
            }
            query["filters"] = {"conjunction": "and", "items": [wanted]}
        page, seen, total = 1, 0, 1
        while seen < total:
            answer = await self.request(
                "GET",
                "/api/tasks/",
                params={
                    "project": project,
                    "fields": "all",
                    "page": page,
                    "page_size": self._page_tasks,
                    "query": msgspec.json.encode(query).decode(),
                },
            )
            tasks = answer["tasks"]
            if not tasks:
                return
            yield tasks
            page, seen, total = page + 1, seen + len(tasks), answer["total"]

    async def import_tasks(self, project: str, tasks: Sequence[Json]) -> Json:
        """Make tasks, with predictions; all or none of them. Returns Label Studio's counts."""
        answer: Json = await self.request(
            "POST", f"/api/projects/{project}/import", json=list(tasks)
        )
        return answer

    async def write_meta(self, task: str, meta: Json) -> None:
        """Replace a task's meta, which sends no webhook."""
        await self.request("PATCH", f"/api/tasks/{task}/", json={"meta": meta})

    async def webhooks(self, project: str) -> list[Json]:
        """Return the project's webhooks."""
        found: list[Json] = await self.request("GET", "/api/webhooks/", params={"project": project})
        return found

    async def make_webhook(self, fields: Json) -> Json:
        """Make a webhook."""
        made: Json = await self.request("POST", "/api/webhooks/", json=fields)
        return made

    async def change_webhook(self, webhook: str, fields: Json) -> None:
        """Change a webhook. ``fields`` has to name its actions: without them it gets none."""
        await self.request("PATCH", f"/api/webhooks/{webhook}/", json=fields)

    async def delete_webhook(self, webhook: str) -> None:
        """Delete a webhook."""
        await self.request("DELETE", f"/api/webhooks/{webhook}/")

    async def request(
        self, method: str, path: str, *, params: Mapping[str, Any] | None = None, json: Any = None
    ) -> Any:
        """Call any endpoint; returns its JSON, None where there is no body."""
        answer = await self._send(method, path, params, json)
        if not answer.is_success:
            raise _refused(method, path, answer)
        return answer.json() if answer.content else None

    async def _find(self, path: str) -> Any:
        answer = await self._send("GET", path, None, None)
        if answer.status_code == 404:
            return None
        if not answer.is_success:
            raise _refused("GET", path, answer)
        return answer.json()

    async def _send(
        self, method: str, path: str, params: Mapping[str, Any] | None, json: Any
    ) -> httpx.Response:
        authorization = await self._authorization()
        answer = await self._try(method, path, params, json, authorization)
        if answer.status_code == 401 and authorization.startswith("Bearer "):
            authorization = await self._authorization(stale=authorization)
            answer = await self._try(method, path, params, json, authorization)
        return answer

    async def _authorization(self, stale: str = "") -> str:
        """Return the header's value; a personal access token is exchanged for an access token."""
        if self._api_key.count(".") != 2:
            return f"Token {self._api_key}"
        async with self._refreshing:
            if not self._access or f"Bearer {self._access}" == stale:
                path, body = "/api/token/refresh/", {"refresh": self._api_key}
                answer = await self._try("POST", path, None, body, None)
                if answer.status_code in _BUSY:
                    raise _refused("POST", path, answer)
                if not answer.is_success:
                    raise LabelStudioError(
                        "Label Studio does not take the personal access token; make a new one "
                        "there and set VLLM_BATCH_LABEL_STUDIO_API_KEY"
                    )
                self._access = answer.json()["access"]
            return f"Bearer {self._access}"

    async def _try(
        self,
        method: str,
        path: str,
        params: Mapping[str, Any] | None,
        json: Any,
        authorization: str | None,
    ) -> httpx.Response:
        headers = {"authorization": authorization} if authorization else {}
        try:
            answer = await self._client.request(
                method, path, params=params, json=json, headers=headers
            )
        except httpx.HTTPError as error:
            self._calls.labels("unreachable").inc()
            raise LabelStudioUnavailable(
                f"Label Studio does not answer {method} {path}: {error!r}"
            ) from error
        self._calls.labels("ok" if answer.is_success else "refused").inc()
        return answer


def _refused(method: str, path: str, answer: httpx.Response) -> LabelStudioError:
    words = answer.text[:REFUSAL_CHARACTERS_MAX]
    kind = LabelStudioUnavailable if answer.status_code in _BUSY else LabelStudioError
    return kind(f"Label Studio answers {answer.status_code} to {method} {path}: {words}")


@asynccontextmanager
async def connect(
    settings: Settings, metrics: LabelingMetrics | None = None
) -> AsyncIterator[LabelStudio | None]:
    """Yield a client; None where no Label Studio is configured. Connects at the first call."""
    if not settings.label_studio_url:
        yield None
        return
    async with httpx.AsyncClient(
        base_url=settings.label_studio_url.rstrip("/"),
        timeout=settings.label_studio_timeout_seconds,
    ) as client:
        api_key = settings.label_studio_api_key.get_secret_value()
        calls = (metrics or LabelingMetrics(CollectorRegistry())).label_studio_requests
        yield LabelStudio(client, api_key, page_tasks=settings.label_studio_page_tasks, calls=calls)
