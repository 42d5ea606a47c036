"""Whether a model that somebody wants registered is there and fits on the workers that live.

Reads its source, the registry and the workers' heartbeats; writes nothing.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterable

import msgspec
from nats.aio.client import Client

from vllm_batch import fleet, model_estimate, model_registry, model_source
from vllm_batch.errors import InvalidInput
from vllm_batch.event_store import EventStore
from vllm_batch.heartbeats import Heartbeat
from vllm_batch.messaging import telemetry
from vllm_batch.model_check import check_engine_args, options_of
from vllm_batch.model_estimate import Estimate, Memory
from vllm_batch.model_source import Source
from vllm_batch.settings import Settings


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a model could run. ``sequences_at_once``: of full length; 0: it does not fit."""

    worker: str
    memory_bytes: int
    sequences_at_once: int
    verdict: str


class Examination(msgspec.Struct, frozen=True, kw_only=True):
    """What was found out about a model before it is loaded. The numbers are null where its
    configuration could not be read or says too little."""

    warnings: list[str]
    needs: str | None = None
    weight_bytes: int | None = None
    kv_cache_bytes: int | None = None
    kv_cache_bytes_per_token: int | None = None
    overhead_bytes: int | None = None
    total_bytes: int | None = None
    places: list[Place] = []

    @property
    def too_large(self) -> bool:
        """Whether it fits on no worker whose memory is known."""
        return bool(self.places) and not any(place.sequences_at_once for place in self.places)

    def require_fit(self) -> None:
        """Raises InvalidInput, with the numbers, where it fits nowhere."""
        if self.too_large:
            verdicts = "; ".join(place.verdict for place in self.places)
            raise InvalidInput(
                f"the model {self.needs}. {verdicts}. It can be registered without this check",
                param="source",
            )


async def examine(
    store: EventStore,
    client: Client | None,
    source: str,
    *,
    base: str | None,
    engine_args: list[str],
    settings: Settings,
) -> Examination:
    """Return what is known of a model before it is registered.

    ``base``: of an adapter, a registered name or alias. ``client``: without one no heartbeat is
    read, and nobody's memory is known. ``settings``: the workers' ones, as far as they are known
    here: how many requests run at once, and the arguments that every engine gets.

    Raises:
        InvalidInput: the source is not there or unfit, or an engine argument is wrong.
        EventStoreUnavailable: the log or telemetry does not answer.
    """
    check_engine_args(engine_args)
    found = await asyncio.to_thread(model_source.look, source, adapter=base is not None)
    warnings = list(found.warnings)
    whole: Source | None = found
    if base is not None:
        whole, engine_args = await _with_base(store, base, found, warnings)
    arguments = [*settings.engine_args, *engine_args]
    if found.adapter is not None:
        said = options_of(arguments).get("max-lora-rank", "")
        rank_max = int(said) if said.isdecimal() else settings.lora_rank_max
        warning = model_source.rank_warning(found.adapter, rank_max)
        warnings += [warning] if warning else []
    needed: Estimate | None = None
    if whole is not None and whole.config is not None:
        needed = model_estimate.estimate(
            whole.config, arguments, weight_bytes=whole.weight_bytes,
            sequences=settings.engine_max_num_seqs,
        )  # fmt: skip
        if needed is None:
            warnings.append("its config.json says too little for an estimate of its memory")
    if needed is None:
        return Examination(warnings=warnings)
    return _examination(needed, warnings, await _memories(store, client) if client else [])


async def _with_base(
    store: EventStore, base: str, adapter: Source, warnings: list[str]
) -> tuple[Source | None, list[str]]:
    """Return what the base needs together with its adapter, and how the base is started."""
    registry = await model_registry.load(store)
    known = registry.find(registry.resolve(base) or "")
    if known is None:  # a worker's own configuration has it, and does not say where it is from
        return None, []
    if adapter.adapter is not None:
        warning = model_source.base_warning(adapter.adapter, known.source)
        warnings += [warning] if warning else []
    found = await asyncio.to_thread(model_source.look, known.source, adapter=False)
    warnings += found.warnings
    weights = found.weight_bytes
    if weights is not None:
        weights += adapter.weight_bytes or 0
    return msgspec.structs.replace(found, weight_bytes=weights), known.engine_args


def _examination(
    needed: Estimate, warnings: list[str], memories: Iterable[tuple[str, Memory]]
) -> Examination:
    places = [
        Place(
            worker=worker,
            memory_bytes=memory.each_bytes,
            sequences_at_once=needed.sequences_within(memory),
            verdict=needed.verdict(memory, worker),
        )
        for worker, memory in memories
    ]
    return Examination(
        warnings=warnings,
        needs=needed.needs(),
        weight_bytes=needed.weight_bytes,
        kv_cache_bytes=needed.kv_bytes,
        kv_cache_bytes_per_token=needed.kv_bytes_per_token,
        overhead_bytes=needed.overhead_bytes,
        total_bytes=needed.total_bytes,
        places=places,
    )


async def _memories(store: EventStore, client: Client) -> list[tuple[str, Memory]]:
    """Return each living worker's name, and its memory."""
    beats = await telemetry.last_heartbeats(client)
    workers = await fleet.load(store)
    found = []
    for name in sorted(workers.names):
        newest = workers.names[name].newest
        beat = beats.get(newest.worker_id)
        if newest.ended_at is None and beat is not None:
            found += _memory_of(beat[0])
    return found


def _memory_of(beat: Heartbeat) -> list[tuple[str, Memory]]:
    smallest = min((gpu.memory_total_bytes or 0 for gpu in beat.gpus), default=0)
    if smallest:
        return [(beat.name, Memory(smallest, len(beat.gpus)))]
    if beat.gpus or beat.host != socket.gethostname():
        return []  # nobody says how much memory another host has
    return [(beat.name, Memory(_host_memory_bytes(), 0))]


def _host_memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
