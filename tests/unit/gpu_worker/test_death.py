"""Why an engine ended, from what is left of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from batch_gpu_worker.engines.death import judge, memory_kills


@pytest.mark.parametrize(
    "words",
    [
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
        "RuntimeError: CUDA error: out of memory",
        "(EngineCore pid=7) ValueError: No available memory for the cache blocks.",
        "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory",
    ],
)
def test_want_of_memory_is_known_by_its_words(words: str) -> None:
    death = judge(1, ["INFO fine", words, "INFO shutting down"])
    assert death.reason == "out_of_memory"
    assert death.detail == words


def test_the_kernels_kills_are_want_of_memory() -> None:
    assert judge(137, [], memory_kills=1).reason == "out_of_memory"
    assert judge(1, ["EngineDeadError"], memory_kills=1).reason == "out_of_memory"


@pytest.mark.parametrize("status", [0, 1, 137, -9, None])
def test_everything_else_is_a_crash(status: int | None) -> None:
    death = judge(status, ["out of office", "memory of an elephant"])
    assert death.reason == "crashed"
    assert death.detail


def test_the_control_group_counts_before_the_machine(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    assert memory_kills(tmp_path) == 0
    (tmp_path / "proc/vmstat").write_text("pgfault 7\noom_kill 4\n")
    assert memory_kills(tmp_path) == 4
    (tmp_path / "proc/self/cgroup").write_text("0::/unit.service\n")
    group = tmp_path / "sys/fs/cgroup/unit.service"
    group.mkdir(parents=True)
    (group / "memory.events").write_text("low 0\noom 2\noom_kill 1\noom_group_kill 0\n")
    assert memory_kills(tmp_path) == 1


def test_this_machine_can_be_asked() -> None:
    assert memory_kills() >= 0
