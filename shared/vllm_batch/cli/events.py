"""``vllm-batch events``: look at the event log. Reads only."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from vllm_batch.cli import output
from vllm_batch.cli.options import HomeOption, JsonOption
from vllm_batch.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from rich.text import Text

    from vllm_batch.event_store import EventStore
    from vllm_batch.events import Recorded

app = typer.Typer(help="The event log: everything that ever happened.", no_args_is_help=True)

_COLOURS = {
    "job": "bold cyan", "chunk": "blue", "file": "magenta", "worker": "yellow",
    "apikey": "red", "upload": "magenta",
}  # fmt: skip
_VALUE_WIDTH_MAX = 60


@app.command()
def tail(
    subject: Annotated[
        str, typer.Argument(help="Subject with NATS wildcards, for instance job.completed.*")
    ] = ">",
    start: Annotated[
        str,
        typer.Option("--from", help="beginning, a sequence number, or a time (ISO 8601)."),
    ] = "",
    last: Annotated[
        int, typer.Option("--last", "-n", min=0, help="Without --from: how far to look back.")
    ] = 10,
    follow: Annotated[bool, typer.Option(help="Go on with what comes.")] = True,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print events as they happen, one a line."""
    from vllm_batch.cli.service_settings import settings_of
    from vllm_batch.event_store import jetstream

    settings = settings_of(home)

    async def main() -> None:
        async with jetstream.connect(settings, source="cli") as store:
            after = await start_of(store, start) if start else await store.last_sequence() - last
            async with aclosing(select(store, subject, max(0, after), follow=follow)) as events:
                async for recorded in events:
                    _print(recorded, as_json)

    asyncio.run(main())


@app.command()
def show(
    seq: Annotated[int, typer.Argument(help="Sequence number in the log.", min=1)],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print one event with everything it says."""
    from vllm_batch.cli.service_settings import settings_of
    from vllm_batch.event_store import jetstream

    settings = settings_of(home)

    async def main() -> Recorded | None:
        async with jetstream.connect(settings, source="cli") as store:
            return await first_after(store, seq - 1)

    found = asyncio.run(main())
    if found is None or found.seq != seq:
        raise NotFound(f"the log has no event {seq}")
    if as_json or not sys.stdout.isatty():
        output.print_json(as_data(found))
    else:
        output.console().print_json(data=as_data(found))


async def select(
    store: EventStore, subject: str, after: int, *, follow: bool
) -> AsyncGenerator[Recorded, None]:
    """Yield the events of ``subject`` after a sequence: those there are, or for ever."""
    batches = store.follow([subject], after=after) if follow else store.read(subject, after=after)
    async with aclosing(batches) as source:  # type: ignore[type-var]
        async for batch in source:
            for recorded in batch:
                yield recorded


async def start_of(store: EventStore, start: str) -> int:
    """Return the sequence after which to begin: what ``--from`` means.

    Raises:
        InvalidInput: it is neither a word, nor a number, nor a time.
    """
    if start == "beginning":
        return 0
    if start.isdecimal():
        return max(0, int(start) - 1)
    try:
        time = datetime.fromisoformat(start)
    except ValueError:
        raise InvalidInput(
            f"--from {start!r}: give `beginning`, a sequence number, or a time such as "
            "2026-01-31T12:00:00Z",
            param="from",
        ) from None
    return await sequence_before(store, time.astimezone(UTC))


async def sequence_before(store: EventStore, time: datetime) -> int:
    """Return the last sequence recorded before ``time``, found by halving."""
    low, high = 0, await store.last_sequence()
    while low < high:
        middle = (low + high + 1) // 2
        found = await first_after(store, middle - 1)
        if found is not None and found.time < time:
            low = middle
        else:
            high = middle - 1
    return low


async def first_after(store: EventStore, seq: int) -> Recorded | None:
    """Return the first event after ``seq``, if there is one."""
    async with aclosing(store.read(">", after=seq)) as batches:  # type: ignore[type-var]
        async for batch in batches:
            return batch[0]
    return None


def as_data(recorded: Recorded) -> dict[str, Any]:
    """Return an event as JSON has it."""
    from vllm_batch.messaging import subjects

    return {
        "seq": recorded.seq,
        "time": recorded.time.isoformat(),
        "subject": subjects.of_event(recorded.event),
        "type": recorded.event.TYPE,
        "id": recorded.id,
        "source": recorded.source,
        "dataversion": recorded.event.VERSION,
        "data": msgspec.to_builtins(recorded.event),
    }


def line_of(recorded: Recorded) -> Text:
    """Return an event as one readable line."""
    from rich.text import Text

    event = recorded.event
    noun = event.TYPE.partition(".")[0]
    time = recorded.time.astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    line = Text.assemble(
        (f"{recorded.seq:>8} ", "dim"),
        (f"{time} ", "dim"),
        (f"{event.TYPE:<20} ", _COLOURS.get(noun, "bold")),
        ("/".join(event.aggregate_id()), "bold"),
    )
    for name, value in msgspec.to_builtins(event).items():
        if name not in event.AGGREGATE:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            if len(text) > _VALUE_WIDTH_MAX:
                text = text[: _VALUE_WIDTH_MAX - 1] + "…"
            line.append(f" {name}=", style="dim")
            line.append(text.translate(CONTROL))
    return line


# A user's file name must not steer the terminal.
CONTROL = dict.fromkeys((*range(32), *range(127, 160)), "\ufffd")


def _print(recorded: Recorded, as_json: bool) -> None:
    if as_json:
        print(json.dumps(as_data(recorded), ensure_ascii=False), flush=True)
    else:
        output.console().print(line_of(recorded), soft_wrap=True)
