"""Lost workers are started again, with pauses; a crash loop is announced and left alone."""

from __future__ import annotations

from pathlib import Path

from tests.facts import append
from tests.unit.watchdog.bench import RecordingRestarter, WatchdogBench, heartbeat

from batch_watchdog.pulse import Pulse
from vllm_batch.events import (
    WorkerCleared,
    WorkerCrashLooping,
    WorkerReady,
    WorkerRestartRequested,
)
from vllm_batch.ids import WorkerId


async def test_a_lost_worker_is_restarted_after_the_grace(bench: WatchdogBench) -> None:
    await bench.started("w1")
    await bench.lost("w1")
    recovery = await bench.recovery()
    due = await recovery.check()
    assert bench.restarter.restarted == []
    assert due is not None
    assert (due - bench.clock.now()).total_seconds() == 10
    bench.clock.advance(10)
    await recovery.check()
    assert bench.restarter.restarted == ["w1"]
    asked = [e for e in await bench.events() if isinstance(e, WorkerRestartRequested)]
    assert [e.requested_by for e in asked] == ["watchdog"]


async def test_attempts_that_lead_to_nothing_come_further_and_further_apart(
    bench: WatchdogBench,
) -> None:
    await bench.started("w1")
    await bench.lost("w1")
    recovery = await bench.recovery()
    bench.clock.advance(10)
    await recovery.check()
    for pause in (4, 8, 16):
        due = await recovery.check()
        assert due is not None
        assert (due - bench.clock.now()).total_seconds() == pause
        made = len(bench.restarter.restarted)
        bench.clock.advance(pause - 0.5)
        await recovery.check()
        assert len(bench.restarter.restarted) == made
        bench.clock.advance(0.5)
        await recovery.check()
        assert len(bench.restarter.restarted) == made + 1


async def test_who_left_on_purpose_is_not_missed(bench: WatchdogBench) -> None:
    await bench.started("w1")
    await bench.stopped("w1", "drained")
    bench.clock.advance(1000)
    assert await (await bench.recovery()).check() is None
    assert bench.restarter.restarted == []


async def test_whose_engine_failed_for_good_is_restarted(bench: WatchdogBench) -> None:
    await bench.started("w1")
    await bench.stopped("w1", "engine_failed")
    bench.clock.advance(10)
    await (await bench.recovery()).check()
    assert bench.restarter.restarted == ["w1"]


async def test_who_came_back_or_has_a_successor_is_left_alone(bench: WatchdogBench) -> None:
    await bench.started("w1", name="a")
    await bench.lost("w1")
    await append(bench.store, WorkerReady(worker_id=WorkerId("w1"), models=["m"], in_flight_max=1))
    await bench.started("w2", name="b")
    await bench.lost("w2")
    await bench.started("w3", name="b")
    bench.clock.advance(1000)
    await (await bench.recovery()).check()
    assert bench.restarter.restarted == []


async def test_who_is_heard_of_is_left_alone(bench: WatchdogBench) -> None:
    await bench.started("w1")
    await bench.lost("w1")
    bench.clock.advance(10)
    pulse = Pulse(bench.clock.monotonic)
    pulse.hear(heartbeat("w1"))
    await (await bench.recovery(pulse)).check()
    assert bench.restarter.restarted == []


async def test_restarts_that_lead_to_nothing_end_in_a_crash_loop(bench: WatchdogBench) -> None:
    await bench.started("w1")
    await bench.lost("w1")
    recovery = await bench.recovery()
    for _ in range(100):
        bench.clock.advance(5)
        await recovery.check()
    assert len(bench.restarter.restarted) == bench.settings.crash_loop_restarts
    loops = [e for e in await bench.events() if isinstance(e, WorkerCrashLooping)]
    assert len(loops) == 1
    assert loops[0].restarts == 4


async def dies_again_and_again(bench: WatchdogBench, times: int) -> None:
    for number in range(1, times + 1):
        await bench.started(f"w{number}")
        bench.clock.advance(20)
        await bench.lost(f"w{number}")


async def test_dying_again_and_again_is_a_crash_loop_until_it_is_cleared(
    bench: WatchdogBench,
) -> None:
    await dies_again_and_again(bench, 4)
    bench.clock.advance(60)
    for _ in range(3):  # also for watchdogs that come later
        await (await bench.recovery()).check()
    loops = [e for e in await bench.events() if isinstance(e, WorkerCrashLooping)]
    assert len(loops) == 1
    assert bench.restarter.restarted == []
    await append(bench.store, WorkerCleared(worker_id=WorkerId("w4"), requested_by="ann"))
    await (await bench.recovery()).check()
    assert bench.restarter.restarted == ["w4"]


async def test_a_new_version_clears_a_crash_loop(bench: WatchdogBench) -> None:
    await dies_again_and_again(bench, 4)
    await (await bench.recovery()).check()
    assert (await bench.fleet()).names["gpu"].crash_looping
    await bench.started("w5", version="2")
    assert not (await bench.fleet()).names["gpu"].crash_looping
    await bench.lost("w5")
    bench.clock.advance(60)
    await (await bench.recovery()).check()
    assert bench.restarter.restarted == ["w5"]


async def test_deaths_long_ago_do_not_count(bench: WatchdogBench) -> None:
    await dies_again_and_again(bench, 3)
    bench.clock.advance(601)
    await bench.started("w9")
    await bench.lost("w9")
    bench.clock.advance(10)
    await (await bench.recovery()).check()
    assert bench.restarter.restarted == ["w9"]


async def test_a_watchdog_that_was_down_catches_up(bench: WatchdogBench) -> None:
    await bench.started("w1")
    await bench.lost("w1")
    bench.clock.advance(3600)
    await (await bench.recovery()).check()
    assert bench.restarter.restarted == ["w1"]


async def test_a_worker_gone_for_days_is_forgotten(bench: WatchdogBench) -> None:
    await bench.started("w1")
    await bench.lost("w1")
    bench.clock.advance(2 * 24 * 3600)
    await (await bench.recovery()).check()
    assert bench.restarter.restarted == []


async def test_of_two_watchdogs_one_restarts(bench: WatchdogBench) -> None:
    await bench.started("w1")
    await bench.lost("w1")
    bench.clock.advance(10)
    one, other = await bench.recovery(), await bench.recovery()  # both have seen the loss
    await one.check()
    await other.check()
    assert bench.restarter.restarted == ["w1"]


async def test_what_cannot_be_reached_is_not_claimed(tmp_path: Path) -> None:
    bench = WatchdogBench(tmp_path)
    bench.restarter = RecordingRestarter(reaches=False)
    await bench.started("w1")
    await bench.lost("w1")
    bench.clock.advance(1000)
    await (await bench.recovery()).check()
    assert not [e for e in await bench.events() if isinstance(e, WorkerRestartRequested)]
