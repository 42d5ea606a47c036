"""GPU metrics through NVML. A machine without an NVIDIA driver is normal and has no GPUs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import pynvml
import structlog

from vllm_batch.heartbeats import GpuMetrics

log = structlog.get_logger(__name__)

Value = TypeVar("Value")
_MILLIWATTS_PER_WATT = _MILLIJOULES_PER_JOULE = 1000


class GpuMeter:
    """Reads every GPU of the machine. NVML calls block for a moment: call it in a thread."""

    def __init__(self) -> None:
        self._opened: bool | None = None

    def read(self) -> list[GpuMetrics]:
        """Return the GPUs in NVML's order; empty where there is no driver."""
        if self._opened is None:
            self._opened = self._open()
        if not self._opened:
            return []
        try:
            count = pynvml.nvmlDeviceGetCount()
            return [self._read_device(index) for index in range(count)]
        except pynvml.NVMLError as error:
            log.warning("GPU metrics are not to be had", error=str(error))
            self._close()
            self._opened = None  # a driver that was updated or reset: open it anew next time
            return []

    def holders(self) -> dict[int, int]:
        """Return the processes that hold GPU memory, as NVML names them: bytes by pid.

        In a container NVML may name them with pids of the host, or not at all.
        """
        if self._opened is None:
            self._opened = self._open()
        found: dict[int, int] = {}
        if not self._opened:
            return found
        try:
            for index in range(pynvml.nvmlDeviceGetCount()):
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                for read in (
                    pynvml.nvmlDeviceGetComputeRunningProcesses_v3,
                    pynvml.nvmlDeviceGetGraphicsRunningProcesses_v3,
                ):
                    for process in _if_supported(partial(read, handle)) or []:
                        used = int(process.usedGpuMemory or 0)
                        found[int(process.pid)] = max(found.get(int(process.pid), 0), used)
        except pynvml.NVMLError as error:
            log.warning("who holds the GPUs is not to be had", error=str(error))
        return found

    def memory_used_bytes(self) -> int | None:
        """Return what is used of all GPUs together, None where there is none that says so."""
        used = [gpu.memory_used_bytes for gpu in self.read() if gpu.memory_used_bytes is not None]
        return sum(used) if used else None

    def _open(self) -> bool:
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            log.info("no GPU metrics", reason=str(error))
            return False
        return True

    def _close(self) -> None:
        try:
            pynvml.nvmlShutdown()
        except pynvml.NVMLError:
            return

    def _read_device(self, index: int) -> GpuMetrics:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        name = pynvml.nvmlDeviceGetName(handle)
        memory = _if_supported(lambda: pynvml.nvmlDeviceGetMemoryInfo(handle))
        rates = _if_supported(lambda: pynvml.nvmlDeviceGetUtilizationRates(handle))
        power = _if_supported(lambda: pynvml.nvmlDeviceGetPowerUsage(handle))
        energy = _if_supported(lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
        return GpuMetrics(
            index=index,
            name=name if isinstance(name, str) else name.decode(),
            memory_used_bytes=int(memory.used) if memory is not None else None,
            memory_total_bytes=int(memory.total) if memory is not None else None,
            utilization_percent=int(rates.gpu) if rates is not None else None,
            temperature_celsius=_temperature(handle),
            power_watts=power / _MILLIWATTS_PER_WATT if power is not None else None,
            energy_joules=energy / _MILLIJOULES_PER_JOULE if energy is not None else None,
        )


def _temperature(handle: pynvml.c_nvmlDevice_t) -> int | None:
    sensor = pynvml.NVML_TEMPERATURE_GPU
    value = _if_supported(lambda: int(pynvml.nvmlDeviceGetTemperatureV(handle, sensor)))
    if value is None:  # drivers before 570 know only the older call, which CUDA 14 drops
        value = _if_supported(lambda: int(pynvml.nvmlDeviceGetTemperature(handle, sensor)))
    return value


def _if_supported(read: Callable[[], Value]) -> Value | None:
    try:
        return read()
    except (
        pynvml.NVMLError_NotSupported,
        pynvml.NVMLError_NoPermission,
        pynvml.NVMLError_FunctionNotFound,
    ):
        return None
