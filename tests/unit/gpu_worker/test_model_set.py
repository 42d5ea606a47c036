"""What a worker makes of its orders, and what it says of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import cast

import pytest
from tests.unit.gpu_worker.bench import ME
from tests.worker_bench import until

from batch_gpu_worker.engine_monitor import EngineMonitor
from batch_gpu_worker.engines.choice import Chosen
from batch_gpu_worker.engines.death import Death
from batch_gpu_worker.engines.simulated import SimulatedEngine
from batch_gpu_worker.model_folders import ModelFolders
from batch_gpu_worker.model_set import ModelSet
from batch_gpu_worker.serving import Serving
from vllm_batch import model_orders, model_registry
from vllm_batch.event_store.memory import MemoryEventStore
from vllm_batch.events.model import ModelLoading
from vllm_batch.model_orders import Registration
from vllm_batch.model_registry import ModelView
from vllm_batch.settings import Settings
from vllm_batch.worker_control import ModelSpec, Serve

BROKEN = "[[sim:broken]]"


class Doors:
    """What is offered, in place of `Serving`."""

    def __init__(self) -> None:
        self.models: list[str] = []

    async def open(self, models: Sequence[str]) -> None:
        self.models = list(models)

    async def close(self) -> None:
        self.models = []

    async def narrow(self, models: Sequence[str]) -> None:
        self.models = list(models)

    def withdraw(self, model: str) -> None:
        self.models.remove(model)


class Swapper:
    """Swaps as `EngineMonitor` does."""

    def __init__(self, engine: SimulatedEngine) -> None:
        self._engine = engine

    async def swap(self, chosen: Chosen) -> None:
        await self._engine.halt(Death("swapped", chosen.base.name))
        self._engine.choose(chosen)
        self._engine.resume()
        await self._engine.settled()


class Folders:
    """Every source is on this machine."""

    async def locate(self, source: str) -> str:
        return source


class Bench:
    """A model set over a simulated engine, and the registry that it reports to."""

    def __init__(self, home: Path) -> None:
        settings = Settings(
            home=home, engine="simulated", model_name="home", simulated_load_seconds=0.01
        )
        self.engine = SimulatedEngine(settings)
        self.store = MemoryEventStore()
        self.doors = Doors()
        self.set = ModelSet(
            self.engine,
            cast("EngineMonitor", Swapper(self.engine)),
            cast("Serving", self.doors),
            cast("ModelFolders", Folders()),
            self.store,
            worker_id=ME, worker_name="gpu-1", monotonic=time.monotonic,
        )  # fmt: skip

    async def register(self, name: str, source: str, base: str | None = None) -> ModelSpec:
        asked = Registration(name=name, source=source, base=base)
        await model_orders.register(self.store, asked, requested_by="test")
        return ModelSpec(name=name, source=source, base=base)

    async def tell(self, base: ModelSpec, *adapters: ModelSpec) -> None:
        """Have an order carried out."""
        await self.set._follow(Serve(requested_by="test", base=base, adapters=adapters))

    async def model(self, name: str) -> ModelView:
        found = (await model_registry.load(self.store)).find(name)
        assert found is not None
        return found

    async def loads(self) -> int:
        found = [one async for batch in self.store.read("model.>") for one in batch]
        return sum(isinstance(one.event, ModelLoading) for one in found)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    found = Bench(tmp_path)
    await found.engine.start()
    await found.set.begin()
    yield found
    await found.engine.stop()


async def test_what_replaces_a_model_and_cannot_be_loaded_stays_failed(bench: Bench) -> None:
    """The engine goes back to what it served under that name; that is not what was asked for."""
    await bench.tell(await bench.register("m", "good"))
    assert (await bench.model("m")).ready_on == {ME}
    await bench.tell(await bench.register("m", BROKEN))
    model = await bench.model("m")
    assert (model.ready_on, model.failed) == (frozenset(), {ME: "simulated: it is broken"})
    assert bench.doors.models == ["m"]
    assert bench.engine.chosen.base.source == "good"


async def test_it_stays_failed_where_the_next_model_fails_too(bench: Bench) -> None:
    await bench.tell(await bench.register("m", "good"))
    await bench.tell(await bench.register("m", BROKEN))
    await bench.tell(await bench.register("other", BROKEN))
    model = await bench.model("m")
    assert (model.ready_on, set(model.failed)) == (frozenset(), {ME})


async def test_the_old_source_or_a_better_one_is_ready_again(bench: Bench) -> None:
    old = await bench.register("m", "good")
    await bench.tell(old)
    await bench.tell(await bench.register("m", BROKEN))
    loads = await bench.loads()
    await bench.tell(await bench.register("m", "good"))
    assert (await bench.model("m")).ready_on == {ME}
    assert await bench.loads() == loads, "it has been there all the time"
    await bench.tell(await bench.register("m", BROKEN))
    await bench.tell(await bench.register("m", "better"))
    model = await bench.model("m")
    assert (model.ready_on, model.failed) == ({ME}, {})
    assert bench.engine.chosen.base.source == "better"


async def test_another_model_that_fails_leaves_the_one_before_ready(bench: Bench) -> None:
    await bench.tell(await bench.register("m", "good"), await bench.register("tuned", "lora", "m"))
    await bench.tell(await bench.register("other", BROKEN))
    assert (await bench.model("m")).ready_on == (await bench.model("tuned")).ready_on == {ME}
    assert bench.doors.models == ["m", "tuned"]
    assert set((await bench.model("other")).failed) == {ME}


async def test_an_adapter_that_the_engine_lost_is_withdrawn_at_once_and_reported(
    bench: Bench,
) -> None:
    await bench.register("home", "home")
    tuned = await bench.register("tuned", "lora", "home")
    await bench.tell(ModelSpec(name="home"), tuned)
    assert bench.doors.models == ["home", "tuned"]
    running = asyncio.create_task(bench.set.run())
    bench.engine.on_adapter_lost("tuned", "its file is gone")
    assert bench.doors.models == ["home"]

    async def is_reported() -> bool:
        return bool((await bench.model("tuned")).failed)

    await until(is_reported, 60)
    assert (await bench.model("tuned")).failed == {ME: "its file is gone"}
    loads = await bench.loads()
    await bench.tell(ModelSpec(name="home"), tuned)
    assert bench.doors.models == ["home", "tuned"], "told again, it is tried again"
    assert await bench.loads() == loads + 1
    running.cancel()


@pytest.mark.parametrize("source", ["good", BROKEN])
async def test_what_was_registered_anew_while_it_was_loaded_is_neither_ready_nor_failed(
    bench: Bench, source: str
) -> None:
    """What a worker says is of what it was told to load, not of what the name means by then."""
    before = await bench.register("m", source)
    now = await bench.register("m", "better")
    await bench.tell(before)
    model = await bench.model("m")
    assert (model.ready_on, model.failed) == (frozenset(), {})
    await bench.tell(now)
    assert (await bench.model("m")).ready_on == {ME}
