"""Shares of the engine's time: they add up, whoever overlaps with whom, and nobody pays for
others."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_gpu_worker.effort import EffortMeter, EngineGpus, engine_gpus
from batch_gpu_worker.online_load import OnlineLoad
from vllm_batch.clock import ManualClock
from vllm_batch.events import Effort
from vllm_batch.heartbeats import GpuMetrics


class Bench:
    def __init__(self) -> None:
        self.clock = ManualClock(datetime(2026, 1, 2, tzinfo=UTC))
        self.online = OnlineLoad()
        self.meter = EffortMeter(self.online, self.clock.monotonic)


def gpu(index: int, energy: float | None = None, watts: float | None = None) -> GpuMetrics:
    return GpuMetrics(index=index, name="x", energy_joules=energy, power_watts=watts)


def test_who_is_alone_pays_for_all_of_the_time_and_who_is_not_for_a_share() -> None:
    bench = Bench()
    first = bench.meter.enter()
    bench.clock.advance(4)
    second = bench.meter.enter()
    bench.clock.advance(2)
    assert bench.meter.leave(first).engine_seconds == pytest.approx(5)
    bench.clock.advance(3)
    assert bench.meter.leave(second).engine_seconds == pytest.approx(4)
    bench.clock.advance(100)  # an idle engine is nobody's
    assert bench.meter.leave(bench.meter.enter()) == Effort()


@given(
    st.lists(st.tuples(st.sampled_from(["enter", "leave", "pass"]), st.floats(0, 100)), max_size=60)
)
def test_the_shares_of_all_add_up_to_the_time_with_work(
    steps: list[tuple[str, float]],
) -> None:
    bench = Bench()
    bench.meter.observe(EngineGpus(2, [gpu(0, watts=100.0), gpu(1, watts=50.0)]))
    marks: list[Effort] = []
    busy, paid = 0.0, Effort()
    for what, seconds in steps:
        if what == "enter":
            marks.append(bench.meter.enter())
        elif what == "leave" and marks:
            paid += bench.meter.leave(marks.pop(0))
        busy += seconds if marks else 0.0
        bench.clock.advance(seconds)
    while marks:
        paid += bench.meter.leave(marks.pop())
    assert paid.engine_seconds == pytest.approx(busy, abs=1e-3)
    assert paid.gpu_seconds == pytest.approx(2 * busy, abs=1e-3)
    assert paid.energy_joules == pytest.approx(150 * busy, abs=0.1)


def test_online_requests_take_their_share() -> None:
    bench = Bench()
    mark = bench.meter.enter()
    bench.online.in_flight = 3
    bench.clock.advance(8)
    assert bench.meter.leave(mark).engine_seconds == pytest.approx(2)


def test_energy_is_what_the_counters_say_not_what_the_moment_draws() -> None:
    bench = Bench()
    bench.meter.observe(EngineGpus(1, [gpu(0, energy=1000.0, watts=700.0)]))
    bench.clock.advance(10)
    bench.meter.observe(EngineGpus(1, [gpu(0, energy=3000.0, watts=700.0)]))
    mark = bench.meter.enter()
    bench.clock.advance(5)
    assert bench.meter.leave(mark).energy_joules == pytest.approx(1000)
    # A driver that was loaded anew counts from 0: the power of the moment is all there is.
    bench.meter.observe(EngineGpus(1, [gpu(0, energy=5.0, watts=300.0)]))
    mark = bench.meter.enter()
    bench.clock.advance(1)
    assert bench.meter.leave(mark).energy_joules == pytest.approx(300)


GPUS = [gpu(index) for index in range(4)]


@pytest.mark.parametrize(
    ("arguments", "visible", "count", "known"),
    [
        ([], None, 1, [0]),
        (["--tensor-parallel-size", "2"], None, 2, [0, 1]),
        (["-tp", "2", "--pipeline-parallel-size=2"], None, 4, [0, 1, 2, 3]),
        (["--tensor_parallel_size=2"], "2,3", 2, [2, 3]),
        (["-tp", "4", "-tp", "1"], "1,2", 1, [1]),
        ([], "3, 2", 1, [3]),
        ([], "", 0, []),
        ([], "GPU-8f1a", 1, []),  # which one that is, we cannot tell: its time counts all the same
        (["-tp"], None, 1, [0]),
        (["-tp", "many", "--max-model-len", "4"], None, 1, [0]),
    ],
)
def test_an_engine_pays_for_the_gpus_it_uses(
    arguments: list[str], visible: str | None, count: int, known: list[int]
) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    found = engine_gpus(arguments, environment, GPUS)
    assert (found.used, [one.index for one in found.known]) == (count, known)


def test_a_machine_without_gpus_has_none_to_pay_for() -> None:
    assert engine_gpus(["-tp", "2"], {"CUDA_VISIBLE_DEVICES": "0,1"}, []).used == 0
