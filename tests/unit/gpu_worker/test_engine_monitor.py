"""When an engine is replaced, by a clock that is moved by hand."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.unit.gpu_worker.bench import ME, ScriptedEngine, effort_meter

from batch_gpu_worker.admission import Admission
from batch_gpu_worker.engine_monitor import EngineMonitor
from batch_gpu_worker.engines.base import EngineResponse
from batch_gpu_worker.engines.death import Death
from batch_gpu_worker.gpu import GpuMeter
from batch_gpu_worker.holdings import Holdings
from batch_gpu_worker.online_load import OnlineLoad
from batch_gpu_worker.request_run import RequestRunner, TimeLimit
from batch_gpu_worker.ward import Ward
from vllm_batch.clock import ManualClock
from vllm_batch.errors import EngineDown, EngineUnavailable
from vllm_batch.events import Event
from vllm_batch.settings import Settings


class WatchedEngine(ScriptedEngine):
    """Says what progress it makes, and whether a canary is answered."""

    def __init__(self) -> None:
        super().__init__(EngineResponse(200, b"{}"))
        self.tokens: int | Exception | None = 0
        self.canary_answers = True
        self.canaries = 0
        self.halts: list[Death] = []
        self.resumed = 0
        self.owned: set[int] = set()

    async def progress(self) -> int | None:
        if isinstance(self.tokens, Exception):
            raise self.tokens
        return self.tokens

    async def canary(self) -> None:
        self.canaries += 1
        if not self.canary_answers:
            raise EngineUnavailable("no answer")

    async def halt(self, death: Death) -> None:
        self.halts.append(death)
        self.on_death(death)

    def resume(self) -> None:
        self.resumed += 1

    def owns(self, pid: int) -> bool:
        return pid in self.owned


class ScriptedGpus(GpuMeter):
    """Names the holders that the test says, look after look; the last answer is repeated."""

    def __init__(self, *looks: dict[int, int]) -> None:
        super().__init__()
        self.looks = list(looks)

    def holders(self) -> dict[int, int]:
        return self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]


class Bench:
    def __init__(self, tmp_path: Path, *looks: dict[int, int], **settings: Any) -> None:
        limits = Settings(home=tmp_path, engine_frozen_seconds=60, **settings)
        self.clock = ManualClock(datetime(2026, 1, 2, tzinfo=UTC))
        self.engine = WatchedEngine()
        self.gpus = ScriptedGpus(*(looks or ({},)))
        self.limit = TimeLimit(600, self.clock.monotonic)
        ward = Ward(self.engine)
        runner = RequestRunner(
            self.engine, limits, self.limit, random.Random(1), ward, effort=effort_meter()
        )
        admission = Admission(Holdings(), runner, None, limits)  # type: ignore[arg-type]
        self.monitor = EngineMonitor(
            self.engine, admission, ward, limits,
            worker_id=ME, clock=self.clock, gpus=self.gpus, online=OnlineLoad(),
            record=self._record,
        )  # fmt: skip
        self.engine.on_death = self.monitor.note_death

    async def _record(self, event: Event) -> None: ...

    def hold_a_request(self) -> None:
        self.limit._running[object()] = 0.0  # type: ignore[index]

    async def look_after(self, seconds: float) -> None:
        self.clock.advance(seconds)
        await self.monitor.look()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def test_an_idle_engine_may_be_silent(bench: Bench) -> None:
    for _ in range(3):
        await bench.look_after(1000)
    assert bench.monitor.progress_age_seconds == 0
    assert (bench.engine.canaries, bench.engine.halts) == (0, [])


async def test_tokens_are_progress(bench: Bench) -> None:
    bench.hold_a_request()
    for tokens in range(1, 10):
        bench.engine.tokens = tokens
        await bench.look_after(59)
    assert bench.monitor.progress_age_seconds == 0
    assert bench.engine.canaries == 0


async def test_an_answered_canary_begins_the_time_anew(bench: Bench) -> None:
    bench.hold_a_request()
    for seconds, canaries in ((1, 0), (59, 0), (2, 1), (59, 1), (2, 2)):
        await bench.look_after(seconds)
        assert bench.engine.canaries == canaries
    assert bench.engine.halts == []


@pytest.mark.parametrize("says", [None, 7, EngineDown("no answer")])
async def test_silence_and_no_canary_mean_frozen(
    bench: Bench, says: int | Exception | None
) -> None:
    bench.hold_a_request()
    bench.engine.tokens = says
    bench.engine.canary_answers = False
    await bench.look_after(1)
    await bench.look_after(58)
    assert bench.engine.halts == []
    await bench.look_after(3)
    assert [death.reason for death in bench.engine.halts] == ["frozen"]
    assert bench.engine.resumed == 1
    assert bench.monitor.restarts == 1
    await bench.look_after(1)  # the next one has all its time
    assert len(bench.engine.halts) == 1


async def test_a_token_while_the_canary_waits_saves_the_engine(bench: Bench) -> None:
    bench.hold_a_request()
    await bench.look_after(1)
    bench.engine.canary_answers = False
    whole = bench.engine.canary

    async def late() -> None:
        bench.engine.tokens = 1
        await whole()

    bench.engine.canary = late  # type: ignore[method-assign]
    await bench.look_after(61)
    assert bench.engine.halts == []


async def test_gpu_memory_is_waited_for(tmp_path: Path) -> None:
    mine = {7: 1 << 30, 8: 1 << 20}
    bench = Bench(tmp_path, mine, mine, {7: 1 << 30}, {8: 1 << 20})
    bench.engine.owned = {7}
    await bench.monitor.replace(Death("killed", "a test"))
    assert bench.gpus.looks == [{8: 1 << 20}]  # another's memory is not waited for
    assert bench.engine.resumed == 1


async def test_it_is_started_again_whatever_happens_in_between(bench: Bench) -> None:
    async def fails() -> None:
        raise EngineDown("oh")

    with pytest.raises(EngineDown):
        await bench.monitor.replace(Death("requested", "a test"), fails)
    assert bench.engine.resumed == 1


def test_out_of_memory_halves_down_to_one(bench: Bench) -> None:
    for expected in (64, 32, 16, 8, 4, 2, 1, 1):
        bench.monitor.note_death(Death("out_of_memory", "full"))
        assert bench.engine.max_num_seqs == expected
