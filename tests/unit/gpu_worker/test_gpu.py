"""GPU metrics over the real NVML ABI: a library of that name, compiled here, no GPU behind it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

LIBRARY = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Types and result codes as NVIDIA's nvml.h has them. */
typedef int nvmlReturn_t;
typedef struct { int index; } *nvmlDevice_t;
typedef struct { unsigned long long total, free, used; } nvmlMemory_t;
typedef struct { unsigned int gpu, memory; } nvmlUtilization_t;
typedef struct { unsigned int version; int sensor; int temperature; } nvmlTemperature_t;
enum { SUCCESS = 0, NOT_SUPPORTED = 3, DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15 };

static struct { int index; } devices[2] = {{0}, {1}};
static int counted = 0;

static int mode(const char *name) {
    const char *set = getenv("FAKE_NVML");
    return set && strcmp(set, name) == 0;
}
nvmlReturn_t nvmlInitWithFlags(unsigned int flags) {
    return mode("no-driver") ? DRIVER_NOT_LOADED : SUCCESS;
}
nvmlReturn_t nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(nvmlReturn_t result) { return "says the library"; }
nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count) {
    *count = 2;
    return mode("lost-once") && counted++ == 0 ? GPU_IS_LOST : SUCCESS;
}
nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device) {
    *device = (nvmlDevice_t)&devices[index];
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned int length) {
    snprintf(name, length, "NVIDIA Test %d", device->index);
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory) {
    memory->total = 80ULL << 30;
    memory->used = (unsigned long long)(device->index + 5) << 30;
    memory->free = memory->total - memory->used;
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *rates) {
    if (mode("poor")) return NOT_SUPPORTED;
    rates->gpu = 97 - device->index;
    rates->memory = 40;
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned int *milliwatts) {
    if (mode("poor")) return NOT_SUPPORTED;
    *milliwatts = 312500;
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(
    nvmlDevice_t device, unsigned long long *millijoules) {
    if (mode("poor")) return NOT_SUPPORTED;
    *millijoules = 7200500 + device->index;
    return SUCCESS;
}
#ifdef NEW_DRIVER
typedef struct { unsigned int pid; unsigned long long used; unsigned int gi, ci; } nvmlProcess_t;
nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(
    nvmlDevice_t device, unsigned int *count, nvmlProcess_t *processes) {
    if (mode("poor")) return NOT_SUPPORTED;
    if (*count < 2) { *count = 2; return 7; /* insufficient size */ }
    *count = 2;
    for (unsigned int n = 0; n < 2; n++) {
        processes[n].pid = 4711 + n * (device->index + 1);
        processes[n].used = (unsigned long long)(n + 1) << 30;
    }
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetTemperatureV(nvmlDevice_t device, nvmlTemperature_t *t) {
    t->temperature = 61 + device->index;
    return mode("poor") ? NOT_SUPPORTED : SUCCESS;
}
#else
nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, int sensor, unsigned int *celsius) {
    *celsius = 61 + device->index;
    return mode("poor") ? NOT_SUPPORTED : SUCCESS;
}
#endif
"""

READER = """
import json, sys, msgspec
from batch_gpu_worker.gpu import GpuMeter
meter = GpuMeter()
if "holders" in sys.argv:
    print(json.dumps([meter.holders(), meter.memory_used_bytes()]))
    sys.exit()
print(json.dumps([msgspec.to_builtins(meter.read()) for _ in range(2)]))
"""

FULL = [
    {
        "index": index,
        "name": f"NVIDIA Test {index}",
        "memory_used_bytes": (5 + index) << 30,
        "memory_total_bytes": 80 << 30,
        "utilization_percent": 97 - index,
        "temperature_celsius": 61 + index,
        "power_watts": 312.5,
        "energy_joules": 7200.5 + index / 1000,
    }
    for index in range(2)
]
POOR = [
    {name: gpu[name] for name in ("index", "name", "memory_used_bytes", "memory_total_bytes")}
    for gpu in FULL
]


@pytest.fixture(scope="module", params=["old driver", "new driver"])
def driver(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler on this machine")
    folder = tmp_path_factory.mktemp("driver")
    source = folder / "nvml.c"
    source.write_text(LIBRARY)
    options = ["-DNEW_DRIVER"] if request.param == "new driver" else []
    target = str(folder / "libnvidia-ml.so.1")
    subprocess.run([compiler, *options, "-shared", "-fPIC", "-o", target, source], check=True)
    return folder


def read_twice(folder: Path | None, mode: str = "", *arguments: str) -> Any:
    """Read in a process of its own: the loader looks at its path only at the start."""
    environment = {**os.environ, "FAKE_NVML": mode, "LD_LIBRARY_PATH": str(folder or "")}
    done = subprocess.run(
        [sys.executable, "-c", READER, *arguments],
        env=environment, check=True, capture_output=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def test_every_gpu_is_read(driver: Path) -> None:
    assert read_twice(driver) == [FULL, FULL]


def test_what_a_gpu_does_not_tell_is_left_out(driver: Path) -> None:
    assert read_twice(driver, "poor") == [POOR, POOR]


def test_a_driver_that_is_not_loaded_means_no_gpus(driver: Path) -> None:
    assert read_twice(driver, "no-driver") == [[], []]


def test_a_gpu_that_falls_off_the_bus_is_found_again(driver: Path) -> None:
    assert read_twice(driver, "lost-once") == [[], FULL]


def test_a_machine_without_a_gpu_is_normal(tmp_path: Path) -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has a GPU")
    assert read_twice(tmp_path) == [[], []]


def test_who_holds_gpu_memory_is_known_by_pid(driver: Path, request: pytest.FixtureRequest) -> None:
    """The most that a process holds on one GPU; drivers before 510 do not tell in this way."""
    is_new = "new driver" in request.node.name
    known = {"4711": 1 << 30, "4712": 2 << 30, "4713": 2 << 30} if is_new else {}
    assert read_twice(driver, "", "holders") == [known, 11 << 30]
    assert read_twice(driver, "poor", "holders") == [{}, 11 << 30]
    assert read_twice(driver, "no-driver", "holders") == [{}, None]
