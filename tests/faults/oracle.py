"""Says whether a stack kept its promises on the batches it ran, whatever was done to it meanwhile.

Looks from outside (files and counts through the API), at the truth (the log, replayed through the
rules; the result segments it points to), at the read models (replayed and compared), and at what
the engine really executed. Every finding is a sentence; none means that all promises were kept.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openai.types import Batch

from tests.faults.log_rules import History
from tests.faults.workload import Client, Line, Workload, executions
from vllm_batch.aggregates.chunk import Chunk, ChunkStatus
from vllm_batch.blobs import open_blobs
from vllm_batch.event_store import jetstream
from vllm_batch.event_store.jetstream import JetStreamEventStore
from vllm_batch.events import Recorded
from vllm_batch.ids import JobId
from vllm_batch.local.stack import LocalStack
from vllm_batch.projections import rebuild
from vllm_batch.segments import decode_segment
from vllm_batch.settings import Settings

NEVER_RAN = {"cancelled": "batch_cancelled", "expired": "batch_expired"}
PROJECTED_SECONDS = 60


@dataclass(frozen=True)
class Oracle:
    """Judges ``stack`` on ``works``. ``journal``: what the engines executed; None: not asked."""

    stack: LocalStack
    client: Client
    works: Sequence[Workload]
    journal: Path | None = None

    async def findings(self, *, kills: int = 0) -> list[str]:
        """Return every broken promise, after ``kills`` deaths of workers or engines.

        A worker that lives may be taken for lost (the log was away, or the machine had no time for
        it), which the log shows and which costs as much as a death.
        """
        found: list[str] = []
        settings = self.stack.settings
        for service in self.stack.services():  # the last kill may have been a moment ago
            await asyncio.to_thread(self.stack.service(service.name).wait_ready)
        for work in self.works:
            found += await asyncio.to_thread(self._files, work)
        async with jetstream.connect(settings, source="oracle") as store:
            history = await replayed(store)
            found += history.violations
            found += await segments(settings, history)
            found += await self._read_models(store, settings)
        found += self._ended(history)
        found += self._recomputed(settings, kills, len(history.lost_alive))
        return found

    def _files(self, work: Workload) -> list[str]:
        batch = self.client.batch(work)
        output = self.client.content(batch.output_file_id)
        errors = self.client.content(batch.error_file_id)
        return [f"{work.batch_id}: {text}" for text in judge_files(work, batch, output, errors)]

    def _ended(self, history: History) -> list[str]:
        jobs = [history.jobs.get(JobId(work.batch_id)) for work in self.works]
        return [
            f"{work.batch_id}: the log says {job.status if job else 'nothing'}"
            for work, job in zip(self.works, jobs, strict=True)
            if job is None or not job.terminal
        ]

    async def _read_models(self, store: JetStreamEventStore, settings: Settings) -> list[str]:
        last = await store.last_sequence()
        try:
            async with asyncio.timeout(PROJECTED_SECONDS):
                while ((await rebuild.standing(store, settings)).seq or 0) < last:
                    await asyncio.sleep(0.1)
        except TimeoutError:
            return [f"the read models did not reach event {last}"]
        found = await rebuild.verify(store, settings, progress=lambda _seq, _target: None)
        return [
            f"the table {t.table} is not what the log says" for t in found.tables if not t.identical
        ]

    def _recomputed(self, settings: Settings, kills: int, silent: int) -> list[str]:
        if self.journal is None:
            return []
        counts = executions(self.journal)
        sent = Counter(line.digest for work in self.works for line in work.lines)
        found = [f"the engine ran {digest}, which nobody sent" for digest in counts.keys() - sent]
        again = sum(max(0, ran - sent[digest]) for digest, ran in counts.items())
        in_flight = int(settings.engine_max_num_seqs * settings.in_flight_factor)
        allowed = (kills + silent) * (in_flight + settings.flush_results)
        if again > allowed:
            found.append(
                f"{again} requests ran again; {kills} kills and {silent} silences allow {allowed}"
            )
        return found


def judge_files(
    work: Workload, batch: Batch, output: list[dict[str, Any]], errors: list[dict[str, Any]]
) -> list[str]:
    """Return what is wrong with a batch's files and counts."""
    found = []
    order = {line.custom_id: number for number, line in enumerate(work.lines)}
    answered = Counter(row["custom_id"] for row in (*output, *errors))
    for custom_id in order.keys() | answered.keys():
        wanted = 1 if custom_id in order else 0
        if answered[custom_id] != wanted:
            found.append(f"{custom_id!r} has {answered[custom_id]} results")
    for name, rows in (("output", output), ("error", errors)):
        places = [order[row["custom_id"]] for row in rows if row["custom_id"] in order]
        if places != sorted(places):
            found.append(f"the {name} file is not in the order of the input")
    code = NEVER_RAN.get(batch.status)
    never_ran = [row for row in errors if code and (row["error"] or {}).get("code") == code]
    counts = batch.request_counts
    counted = (counts.total, counts.completed, counts.failed) if counts else None
    wanted_counts = (len(work.lines), len(output), len(errors) - len(never_ran))
    if counted != wanted_counts:
        found.append(f"it counts {counted}, the files have {wanted_counts}")
    found += judge_usage(batch, output)
    lines = {line.custom_id: line for line in work.lines}
    found += [text for row in output if (text := judge_answer(lines.get(row["custom_id"]), row))]
    return found


def judge_usage(batch: Batch, output: list[dict[str, Any]]) -> list[str]:
    """Return what is wrong with the tokens that a batch names."""
    usage = [row["response"]["body"]["usage"] for row in output]
    spent = (
        sum(one["prompt_tokens"] for one in usage),
        sum(one["completion_tokens"] for one in usage),
    )
    said = (batch.usage.input_tokens, batch.usage.output_tokens) if batch.usage else (0, 0)
    return [] if said == spent else [f"it says {said} tokens, its answers add up to {spent}"]


def judge_answer(line: Line | None, row: dict[str, Any]) -> str | None:
    """Return what is wrong with an answer, if anything: it must be that of its own request."""
    if line is None:
        return None  # reported already
    if line.fails:
        return f"{line.custom_id!r} succeeded, which the engine refuses"
    if row["response"]["status_code"] != 200 or row["error"] is not None:
        return f"{line.custom_id!r} failed in the output file"
    text = row["response"]["body"]["choices"][0]["message"]["content"]
    return None if line.digest in text else f"{line.custom_id!r} got the answer of another request"


async def replayed(store: JetStreamEventStore) -> History:
    """Return the whole log, judged."""
    log: list[Recorded] = []
    async for batch in store.read(">"):
        log += batch
    history = History()
    history.replay(log)
    return history


async def segments(settings: Settings, history: History) -> list[str]:
    """Return what is wrong with the segments that the log points to."""
    blobs = open_blobs(settings.blob_url)
    found = []
    for (job, number), chunk in history.chunks.items():
        results = []
        for segment in chunk.segments:
            rows = list(decode_segment(await blobs.get(segment.blob)))
            results += rows
            failed = sum(row.failed for row in rows)
            if (len(rows) - failed, failed) != (segment.completed, segment.failed):
                found.append(f"{segment.blob} does not hold what the log says of it")
        found += [f"chunk {number} of {job}: {text}" for text in judge_indexes(chunk, results)]
    return found


def judge_indexes(chunk: Chunk, results: Sequence[Any]) -> list[str]:
    """Return what is wrong with which of a chunk's requests have results."""
    found = []
    indexes = Counter(result.index for result in results)
    if twice := sorted(index for index, times in indexes.items() if times > 1):
        found.append(f"requests {twice} are recorded more than once")
    if strange := [index for index in indexes if not 0 <= index < chunk.planned.count]:
        found.append(f"it has no requests {strange}")
    if chunk.status is ChunkStatus.COMPLETED and len(indexes) != chunk.planned.count:
        found.append(f"it is completed with {len(indexes)} of {chunk.planned.count} results")
    return found
