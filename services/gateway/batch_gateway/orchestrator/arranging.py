"""In which order a file's requests are worked off, where its own is not the best. Pure.

Two things can speak against the file's order: a chunk is for one model, and an engine computes a
prompt's beginning only once while requests that share it come together. So requests are grouped by
model, then, where it pays, by ever longer beginnings of their prompts; groups come in the order of
their first request, and requests of a group stay in the file's order.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from batch_gateway.orchestrator.request_index import PREFIX_BYTES, RequestIndex


def arrange(index: RequestIndex, *, prefix_gain_min: float | None) -> list[int] | None:
    """Return the requests' positions in the file in the order in which to work them off, None for
    the file's own order.

    ``prefix_gain_min``: which part of all prompt bytes has to become shared with the request before
    for grouping by prefix to pay; None groups by model only.
    """
    by_model = any(after < before for before, after in pairwise(index.models))
    by_prefix = prefix_gain_min is not None and prefix_gain(index) >= prefix_gain_min
    if not by_model and not by_prefix:
        return None
    keys: list[Sequence[int]] = [index.models]
    if by_prefix:
        keys += [_ranks(index.prefixes(level)) for level in range(len(PREFIX_BYTES))]
    return sorted(range(len(index)), key=list(zip(*keys, strict=True)).__getitem__)


def prefix_gain(index: RequestIndex) -> float:
    """Return which part of all prompt bytes grouping would make shared with the request before,
    beyond what the file's order shares already."""
    gained, shorter = 0, 0
    for level, size in enumerate(PREFIX_BYTES):
        sums = index.prefixes(level)
        present = len(sums) - sums.count(0)
        if not present:
            break
        possible = present - len(set(sums) - {0})
        now = sum(before == after != 0 for before, after in pairwise(sums))
        gained += (possible - now) * (size - shorter)
        shorter = size
    return gained / index.prompt_bytes if gained else 0.0


def _ranks(sums: Sequence[int]) -> list[int]:
    """Return for each request where the first one with the same beginning is."""
    first: dict[int, int] = {}
    return [first.setdefault(total, at) if total else at for at, total in enumerate(sums)]
