"""The bench as a fixture."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.watchdog.bench import WatchdogBench


@pytest.fixture
def bench(tmp_path: Path) -> WatchdogBench:
    return WatchdogBench(tmp_path)
