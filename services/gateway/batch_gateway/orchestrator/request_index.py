"""What the planner remembers of each request of a file: where it is, and what it shares. Pure.

About 50 bytes a request, so a file of any size is planned in little memory: whatever its requests
hold, nothing of it is kept but checksums of the prompts' beginnings.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from zlib import crc32

PREFIX_BYTES = (256, 512, 1024, 2048, 4096, 8192)
"""How far into a prompt requests are compared. Doubling, because that tells short system prompts
apart and still sees long documents, with six numbers a request."""
_NOTHING = array("I", [0] * len(PREFIX_BYTES))


class RequestIndex:
    """The requests of one file, in its order; the columns go together, one entry a request."""

    def __init__(self) -> None:
        self.starts = array("Q")
        self.ends = array("Q")
        """Behind the newline, also where the file's last line lacks it."""
        self.lines = array("I")
        """Physical lines, counted from 1."""
        self.models = array("H")
        """Which of the file's models is asked for, in the order of their first appearance."""
        self.prompt_bytes = 0
        self._prefixes = array("I")

    def __len__(self) -> int:
        return len(self.starts)

    def add(self, start: int, end: int, line: int, model: int, prompt: memoryview) -> None:
        """Take the request on ``line`` in bytes [start, end) of the file."""
        self.starts.append(start)
        self.ends.append(end)
        self.lines.append(line)
        self.models.append(model)
        size = len(prompt)
        self.prompt_bytes += size
        self._prefixes.extend(_NOTHING if size < PREFIX_BYTES[0] else _checksums(prompt, model))

    def prefixes(self, level: int) -> Sequence[int]:
        """Return a checksum of each prompt's first ``PREFIX_BYTES[level]`` bytes, 0 for prompts
        that are shorter. Equal sums of different prompts cost a little speed and nothing else."""
        return self._prefixes[level :: len(PREFIX_BYTES)]


def _checksums(prompt: memoryview, model: int) -> array[int]:
    """Return the checksums of a prompt's beginnings; the same text for another model differs."""
    sums = array("I", _NOTHING)
    total, start = model, 0
    for level, end in enumerate(PREFIX_BYTES):
        if end > len(prompt):
            break
        total = crc32(prompt[start:end], total)
        sums[level] = total or 1
        start = end
    return sums
