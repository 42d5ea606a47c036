"""What Label Studio 1.23.2 really sent and answered: recorded requests, tokens masked."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def captures() -> Path:
    return Path(__file__).with_name("captures")
