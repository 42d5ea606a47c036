"""What tokens would have cost at prices that somebody enters. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_batch.usage_report import UsageLine


@dataclass(kw_only=True)
class Price:
    """Per million tokens, in any currency. ``cached``: of input that came from the cache; None:
    as the other input."""

    input: float | None = None
    cached: float | None = None
    output: float | None = None

    def cost(self, used: UsageLine) -> float:
        """Return what ``used`` would have cost; what has no price is free."""
        fresh = self.input or 0.0
        cached = fresh if self.cached is None else self.cached
        tokens = (
            (used.input_tokens - used.cached_tokens) * fresh
            + used.cached_tokens * cached
            + used.output_tokens * (self.output or 0.0)
        )
        return tokens / 1_000_000
