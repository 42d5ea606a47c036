"""How much a project may ask for in a minute.

Sliding windows in memory, into which goes what other gateways let in (`rate_sharing`). Headers and
errors are those of OpenAI's rate limits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import msgspec
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from vllm_batch.ids import ProjectId
from vllm_batch.project_limits import Limits

_REQUESTS, _TOKENS = "requests", "tokens"


class Verdict(NamedTuple):
    """Whether a call may go on; ``headers`` go with the answer either way.

    ``short_of``: what the project has used up, None where the call may go on.
    """

    headers: dict[str, str]
    short_of: str | None = None
    limit: int = 0
    retry_seconds: int = 0


class Used(msgspec.Struct):
    """What was let in of a project."""

    requests: int = 0
    tokens: int = 0


class Rates:
    """Counts. ``now``: Unix seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._windows = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._unshared: dict[ProjectId, Used] = {}

    def take(self, project: ProjectId, limits: Limits, *, online: bool) -> Verdict:
        """Count one call of ``project``; ``online``: one that uses tokens at once."""
        kinds = [(_REQUESTS, limits.requests_per_minute, 1)]
        if online:  # what it will cost is known when it is over: see `spend`
            kinds.append((_TOKENS, limits.tokens_per_minute, 0))
        headers: dict[str, str] = {}
        refused: Verdict | None = None
        for kind, limit, cost in kinds:
            if not limit:
                continue
            item = RateLimitItemPerMinute(limit)
            if cost:
                allowed = self._windows.hit(item, kind, project, cost=cost)
            else:
                allowed = self._windows.test(item, kind, project)
            reset, remaining = self._windows.get_window_stats(item, kind, project)
            seconds = max(1, math.ceil(reset - self._now()))
            headers[f"x-ratelimit-limit-{kind}"] = str(limit)
            headers[f"x-ratelimit-remaining-{kind}"] = str(remaining)
            headers[f"x-ratelimit-reset-{kind}"] = f"{seconds}s"
            if not allowed and refused is None:
                refused = Verdict(headers, kind, limit, seconds)
        if refused is None and limits.requests_per_minute:
            self._unshared.setdefault(project, Used()).requests += 1
        return refused or Verdict(headers)

    def spend(self, project: ProjectId, limits: Limits, tokens: int) -> None:
        """Count ``tokens`` that an online request has used, even beyond the limit."""
        if not limits.tokens_per_minute or tokens <= 0:
            return
        self._unshared.setdefault(project, Used()).tokens += tokens
        self._fill(_TOKENS, project, limits.tokens_per_minute, tokens)

    def take_unshared(self) -> dict[ProjectId, Used]:
        """Return what was let in since the last time, by project."""
        unshared, self._unshared = self._unshared, {}
        return unshared

    def add_of_others(self, project: ProjectId, limits: Limits, used: Used) -> None:
        """Count what other gateways let in."""
        self._fill(_REQUESTS, project, limits.requests_per_minute, used.requests)
        self._fill(_TOKENS, project, limits.tokens_per_minute, used.tokens)

    def _fill(self, kind: str, project: ProjectId, limit: int, amount: int) -> None:
        """Count ``amount``, as far as the window has room: beyond it there is nothing to refuse."""
        if not limit or amount <= 0:
            return
        item = RateLimitItemPerMinute(limit)
        left = self._windows.get_window_stats(item, kind, project).remaining
        if left > 0:
            self._windows.hit(item, kind, project, cost=min(amount, left))
