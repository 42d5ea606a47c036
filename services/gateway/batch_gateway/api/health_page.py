"""What is wrong, in words (beyond OpenAI): ``GET /admin/health``, for programs and for people.

A browser gets a plain page and asks for the key as a password, which counts for this page alone.
"""

from __future__ import annotations

from html import escape

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response

from batch_gateway.api.answers import answer, documented
from batch_gateway.api.dependencies import Api, CalledBy, Dependencies
from batch_gateway.api.errors import HttpRefusal
from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.health.examine import examine
from vllm_batch.health.report import Check, HealthReport
from vllm_batch.health.sources import Sources

router = APIRouter(prefix="/admin", tags=["Admin"])

_MARKS = {"ok": "✓", "warning": "!", "critical": "✗", "unknown": "?"}
_WORDS = {
    "ok": "All is well.",
    "degraded": "Something is to be done.",
    "failing": "Something stands still.",
}
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>vllm-batch: {words}</title>
<meta name="viewport" content="width=device-width"><meta http-equiv="refresh" content="30">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 50rem; margin: 2rem auto; padding: 0 1rem;
  color: #1b1b1b; background: #fff }}
dt {{ font-weight: 600; margin-top: .8rem }}
.warning {{ color: #7a4b00 }} .critical {{ color: #a40000 }} .unknown {{ color: #5b2a86 }}
p {{ margin: .2rem 0 }} code {{ background: #f0f0f0; padding: 0 .2em }} small {{ color: #555 }}
</style></head><body><main>
<h1 class="{status}">{words}</h1>
<dl>
{checks}
</dl>
<small>Looked at {time}; looks again every 30 s.</small>
</main></body></html>
"""


@router.get("/health", responses=documented(HealthReport))
async def health(request: Request, api: Api, _: CalledBy) -> Response:
    """Say what is wrong and what to do next: an HTML page where that is what is asked for."""
    report = await examine(_sources(api))
    if "text/html" not in request.headers.get("accept", ""):
        return answer(report)
    headers = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}
    return HTMLResponse(page(report), headers={**headers, "cache-control": "no-store"})


def page(report: HealthReport) -> str:
    """Return the report as a page."""
    return _PAGE.format(
        words=_WORDS[report.status],
        status={"ok": "ok", "degraded": "warning", "failing": "critical"}[report.status],
        checks="\n".join(map(_entry, report.checks)),
        time=report.time.strftime("%Y-%m-%d %H:%M:%S UTC"),
    )


def _entry(check: Check) -> str:
    problems = "".join(
        f"<p class='{problem.severity}'>{escape(problem.what)}</p>"
        f"<p>→ {_with_code(problem.action)}</p>"
        for problem in check.problems
    )
    mark = f"<span class='{check.status}'>{_MARKS[check.status]} {escape(check.name)}</span>"
    return f"<dt>{mark}</dt><dd><p>{_with_code(check.summary)}</p>{problems}</dd>"


def _with_code(text: str) -> str:
    """Return text as HTML, what is between backticks as code."""
    parts = [escape(part) for part in text.split("`")]
    return "".join(f"<code>{part}</code>" if n % 2 else part for n, part in enumerate(parts))


def _sources(api: Dependencies) -> Sources:
    if not isinstance(api.store, JetStreamEventStore):
        raise HttpRefusal(503, "This server has no event log of its own to look at.")

    async def checkpoint() -> int | None:
        lists = api.reads.lists
        return max(lists.seq, 0) if lists.available else None

    return Sources(
        store=api.store, blobs=api.blobs, settings=api.settings, now=api.clock.now(),
        checkpoint=checkpoint,
    )  # fmt: skip
