"""What a server prints becomes log lines of the worker; the last ones are kept for its obituary."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from typing import NamedTuple

import structlog

from vllm_batch.log_stream import ENGINE_EVENT, engine_level

log = structlog.get_logger(__name__)

LAST_WORDS_LINES = 30
LINE_BYTES_MAX = 64 * 1024


class Pipe(NamedTuple):
    """The reading end of a pipe."""

    reader: asyncio.StreamReader
    transport: asyncio.ReadTransport


async def open_pipe() -> tuple[Pipe, int]:
    """Return a pipe's reading end, and the descriptor of the end that a child writes to.

    asyncio's own pipes of a child can only be closed by the child.
    """
    descriptor, writer = os.pipe()
    reader = asyncio.StreamReader(LINE_BYTES_MAX)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", 0)
    )
    return Pipe(reader, transport), writer


async def forward(output: Pipe, last_words: deque[str]) -> None:
    """Log each line until the last writer has closed the pipe, and keep it in ``last_words``."""
    with contextlib.closing(output.transport):
        while True:
            try:
                line = await output.reader.readline()
            except ValueError:  # longer than the limit: the stream has dropped it
                continue
            if not line:
                return
            text = line.decode(errors="replace").rstrip()
            last_words.append(text)
            getattr(log, engine_level(text))(ENGINE_EVENT, line=text)
