"""How long a server asks to be left alone: the header Retry-After, in both of its forms. Pure."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_SECONDS = re.compile(r"\d{1,9}(?:\.\d{1,9})?")


def pause_of(header: str | None, now: datetime) -> float | None:
    """Return the seconds that the header asks for; None where it says nothing that has a meaning.

    It has seconds (a fraction is not in the standard, and sent all the same) or a date.
    """
    if header is None:
        return None
    text = header.strip()
    if text.isascii() and _SECONDS.fullmatch(text):
        return float(text)
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - now).total_seconds())
