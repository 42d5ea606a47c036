"""The pause that a server asks for, however it writes it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from batch_gpu_worker.engines.retry_after import pause_of

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("0", 0.0),
        ("7", 7.0),
        (" 1.5 ", 1.5),
        ("Fri, 02 Jan 2026 03:04:35 GMT", 30.0),
        ("Fri, 02 Jan 2026 04:04:35 +0100", 30.0),
        ("Fri, 02 Jan 2026 03:00:00 GMT", 0.0),
    ],
)
def test_seconds_and_dates(header: str, seconds: float) -> None:
    assert pause_of(header, NOW) == seconds


@pytest.mark.parametrize("header", [None, "", "soon", "-1", "inf", "1e9", "9" * 400, "٣", "7;8"])
def test_what_has_no_meaning(header: str | None) -> None:
    assert pause_of(header, NOW) is None
