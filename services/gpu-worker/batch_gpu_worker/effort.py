"""What requests cost: shares of the engine's time, of its GPUs' time and of the energy they draw.

While an engine holds N requests, each of them gets 1/N of every second, so the shares of all add up
to the time in which it had work, however they overlap. Online requests take their shares too; they
are not recorded. Power is what the GPUs drew between the last two observations.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from batch_gpu_worker.online_load import OnlineLoad
from vllm_batch.events import Effort
from vllm_batch.heartbeats import GpuMetrics

_SIZES = {
    "--tensor-parallel-size": "tensor", "-tp": "tensor",
    "--pipeline-parallel-size": "pipeline", "-pp": "pipeline",
    "--data-parallel-size": "data", "-dp": "data",
}  # fmt: skip
_OPTION = re.compile(r"(--?[\w-]+)(?:=(.*))?")


class EngineGpus(NamedTuple):
    """How many GPUs an engine uses, and those of them that we know."""

    used: int = 0
    known: Sequence[GpuMetrics] = ()


def engine_gpus(
    arguments: Sequence[str], environment: Mapping[str, str], gpus: Sequence[GpuMetrics]
) -> EngineGpus:
    """Return the GPUs of a vLLM server with these arguments: the first ones visible to it, as many
    as its model is spread over."""
    wanted = _spread_over(arguments)
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if not gpus or visible is None:
        found = gpus[:wanted]
        return EngineGpus(len(found), found)
    names = [name.strip() for name in visible.split(",") if name.strip()][:wanted]
    by_index = {str(gpu.index): gpu for gpu in gpus}
    return EngineGpus(len(names), [by_index[name] for name in names if name in by_index])


def _spread_over(arguments: Sequence[str]) -> int:
    """Return the product of the parallel sizes; where one is given twice, the last one counts."""
    sizes: dict[str, int] = {}
    for place, argument in enumerate(arguments):
        match = _OPTION.fullmatch(argument)
        kind = _SIZES.get(match[1].replace("_", "-")) if match else None
        if match is None or kind is None:
            continue
        value = match[2] if match[2] is not None else "".join(arguments[place + 1 : place + 2])
        if value.isdecimal():
            sizes[kind] = int(value)
    return math.prod(sizes.values())


class EffortMeter:
    """Divides the engine's time. `enter` and `leave` are called around each engine call."""

    def __init__(self, online: OnlineLoad, monotonic: Callable[[], float]) -> None:
        self._online = online
        self._monotonic = monotonic
        self._held = 0
        self._at = monotonic()
        self._gpus = 0
        self._watts = 0.0
        self._share = Effort()
        """What a request would have been given that is held since the beginning."""
        self._energy: dict[int, float] = {}
        self._observed_at = self._at

    def enter(self) -> Effort:
        """The engine gets one more request; return a mark for `leave`."""
        self._advance()
        self._held += 1
        return self._share

    def leave(self, mark: Effort) -> Effort:
        """The engine holds it no more; return what it took."""
        self._advance()
        self._held -= 1
        share = self._share
        return Effort(
            share.engine_seconds - mark.engine_seconds,
            share.gpu_seconds - mark.gpu_seconds,
            share.energy_joules - mark.energy_joules,
        )

    def observe(self, gpus: EngineGpus) -> None:
        """Take note of the engine's GPUs as they are now."""
        self._advance()
        seconds = self._at - self._observed_at
        self._observed_at = self._at
        self._gpus = gpus.used
        self._watts = sum(self._power(gpu, seconds) for gpu in gpus.known)
        self._energy = {
            gpu.index: gpu.energy_joules for gpu in gpus.known if gpu.energy_joules is not None
        }

    def _power(self, gpu: GpuMetrics, seconds: float) -> float:
        """Return a GPU's mean power since the last time, or that of this moment."""
        before, now = self._energy.get(gpu.index), gpu.energy_joules
        if before is not None and now is not None and now >= before and seconds > 0:
            return (now - before) / seconds
        return gpu.power_watts or 0.0

    def _advance(self) -> None:
        now = self._monotonic()
        if self._held:
            each = (now - self._at) / (self._held + self._online.in_flight)
            share = self._share
            self._share = Effort(
                share.engine_seconds + each,
                share.gpu_seconds + each * self._gpus,
                share.energy_joules + each * self._watts,
            )
        self._at = now
