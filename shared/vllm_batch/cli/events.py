"""``vllm-batch events``: look at the event log, and let tools outside do so."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vllm_batch.cli import event_grants, output
from vllm_batch.cli.options import HomeOption, JsonOption
from vllm_batch.errors import NotFound

if TYPE_CHECKING:
    from rich.text import Text

    from vllm_batch.event_store import EventStore
    from vllm_batch.events import Recorded

app = typer.Typer(help="The event log: everything that ever happened.", no_args_is_help=True)
app.command()(event_grants.grant)
app.command()(event_grants.grants)
app.command()(event_grants.revoke)

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
        typer.Option("--from", help="beginning, now, a sequence number, or a time (ISO 8601)."),
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
    from vllm_batch.event_store.starts import start_of

    settings = settings_of(home)

    async def main() -> None:
        async with jetstream.connect(settings, source="cli") as store:
            after = (
                await start_of(store, start, param="--from")
                if start
                else await store.last_sequence() - last
            )
            async with aclosing(select(store, subject, max(0, after), follow=follow)) as events:
                async for recorded in events:
                    _print(recorded, as_json)

    asyncio.run(main())


@app.command()
def catalogue(home: HomeOption = None) -> None:
    """Print the catalogue of all events for other tools: an AsyncAPI 3 document in JSON."""
    from importlib.metadata import version

    from vllm_batch.cli.options import home_of
    from vllm_batch.events.catalogue import asyncapi
    from vllm_batch.settings import Settings

    settings = Settings(home=home_of(home).root)
    output.print_json(asyncapi(version("vllm-batch"), server=settings.nats_url))


@app.command()
def show(
    seq: Annotated[int, typer.Argument(help="Sequence number in the log.", min=1)],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print one event with everything it says."""
    from vllm_batch.cli.service_settings import settings_of
    from vllm_batch.event_store import jetstream
    from vllm_batch.event_store.starts import first_after

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
        "data": recorded.event.shown(),
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
    for name, value in event.shown().items():
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
