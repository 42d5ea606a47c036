"""How much online work the engine has: counted by the desk, read by monitor and heartbeats."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class OnlineLoad:
    """``in_flight``: requests the engine holds; ``answered``: how many it has answered so far."""

    in_flight: int = 0
    answered: int = 0
