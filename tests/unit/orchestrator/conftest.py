"""The bench as a fixture."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.orchestrator.bench import OrchestratorBench


@pytest.fixture
def bench(tmp_path: Path) -> OrchestratorBench:
    return OrchestratorBench(tmp_path)
