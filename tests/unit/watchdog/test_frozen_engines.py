"""Which heartbeats speak of a frozen engine that its own agent has not ended."""

from __future__ import annotations

from nats.aio.client import Client
from tests.unit.watchdog.bench import WatchdogBench, heartbeat

from batch_watchdog.frozen_engines import FrozenEngines
from batch_watchdog.pulse import Pulse


def watching(bench: WatchdogBench) -> tuple[Pulse, FrozenEngines]:
    pulse = Pulse(bench.clock.monotonic)
    return pulse, FrozenEngines(pulse, Client(), bench.settings, bench.clock.monotonic)


def test_the_agent_gets_twice_its_own_limit(bench: WatchdogBench) -> None:
    pulse, frozen = watching(bench)
    limit = bench.settings.engine_frozen_seconds
    pulse.hear(heartbeat("young", engine_progress_age_seconds=2 * limit - 1))
    pulse.hear(heartbeat("old", engine_progress_age_seconds=2 * limit + 1))
    assert [beat.worker_id for beat in frozen.found()] == ["old"]


def test_who_is_silent_is_somebody_elses_case(bench: WatchdogBench) -> None:
    pulse, frozen = watching(bench)
    pulse.hear(heartbeat(engine_progress_age_seconds=1e6))
    bench.clock.advance(bench.settings.lease_seconds + 1)
    assert frozen.found() == []


async def test_it_asks_once_and_again_after_a_while(bench: WatchdogBench) -> None:
    pulse, frozen = watching(bench)
    pulse.hear(heartbeat(engine_progress_age_seconds=1e6))
    (beat,) = frozen.found()
    frozen.note_asked(beat)
    assert frozen.found() == []
    bench.clock.advance(2 * bench.settings.engine_frozen_seconds + 1)
    pulse.hear(heartbeat(engine_progress_age_seconds=1e6))
    assert len(frozen.found()) == 1
