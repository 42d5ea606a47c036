"""``vllm-batch events grant|grants|revoke``: users of NATS for tools that read events."""

from __future__ import annotations

import asyncio
import getpass
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vllm_batch.cli import output
from vllm_batch.cli.listing import print_rows
from vllm_batch.cli.options import HomeOption, JsonOption, home_of

if TYPE_CHECKING:
    from vllm_batch.event_store.jetstream import JetStreamEventStore
    from vllm_batch.event_tools import Grant

Name = Annotated[str, typer.Argument(help="The tool's name, such as grafana.")]


def grant(
    name: Name,
    subjects: Annotated[
        list[str],
        typer.Option(
            "--subjects", "-s", help="Subjects of events, such as job.completed.*; repeatable."
        ),
    ],
    start: Annotated[
        str,
        typer.Option(
            "--from", help="Where it begins: beginning, now, a sequence number, or a time."
        ),
    ] = "now",
    out: Annotated[
        Path | None, typer.Option(help="Write what the tool needs into this file, for you alone.")
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a tool read events over NATS, and nothing else. Its password is shown once."""
    from vllm_batch import event_tools
    from vllm_batch.event_store.starts import start_of
    from vllm_batch.local.secret_file import write_secret

    wanted = [one for given in subjects for one in given.replace(",", " ").split()]

    async def deed(store: JetStreamEventStore) -> tuple[Grant, str]:
        event_tools.check_name(name)
        after = None if start == "now" else await start_of(store, start, param="--from")
        made, password = await event_tools.grant(
            store, name, wanted, requested_by=getpass.getuser()
        )
        await event_tools.delete_consumer(store.js, name)  # of an earlier grant
        await event_tools.make_consumer(store.js, made, after=after)
        return made, password

    made, password = _with_store(home, deed)
    applied = _apply(home)
    said = _credentials(home, made, password)
    if out is not None:
        write_secret(out, "\n".join(f"{key.upper()}={value}" for key, value in said.items()))
    if as_json:
        output.print_json(said)
    elif out is not None:
        print(f"{out} has what {name} needs; only you can read it")
    else:
        _print_grant(said)
    if not applied:
        _print_server_line(made)


def grants(
    config: Annotated[
        bool, typer.Option("--config", help="Print them as users for nats-server's configuration.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the tools that may read events."""
    from vllm_batch import event_tools
    from vllm_batch.messaging.nats_users import tool_line

    found = _with_store(home, event_tools.load)
    if config:
        for one in found:
            print(tool_line(one.tool))
        return
    rows = [
        {"name": one.name, "subjects": one.subjects, "granted_at": one.granted_at,
         "granted_by": one.granted_by}
        for one in found
    ]  # fmt: skip
    if as_json:
        output.print_json(rows)
        return
    print_rows(
        ("tool", "subjects", "granted", "by"),
        ((o.name, " ".join(o.subjects), o.granted_at[:19], o.granted_by) for o in found),
    )


def revoke(name: Name, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Take a tool's access away; it is cut off at once."""
    from vllm_batch import event_tools

    async def deed(store: JetStreamEventStore) -> None:
        await event_tools.revoke(store, name, requested_by=getpass.getuser())
        await event_tools.delete_consumer(store.js, name)

    _with_store(home, deed)
    if _apply(home):
        said = f"{name} is cut off"
    else:
        said = f"take {name} out of nats-server's users (`vllm-batch events grants --config`)"
    output.print_json({"name": name, "revoked": True}) if as_json else print(said)


def _apply(home: Path | None) -> bool:
    """Have the embedded NATS know who may connect; False where NATS is somebody else's."""
    from vllm_batch.cli.service_settings import settings_of
    from vllm_batch.local import state
    from vllm_batch.local.tools import apply_tools

    place = home_of(home)
    running = state.read(place.state_file)
    nats = running.service("nats")
    if os.environ.get("VLLM_BATCH_NATS_URL") or nats is None or nats.pid is None:
        return False
    port = running.ports["nats_monitor"]
    asyncio.run(apply_tools(place, settings_of(home), nats.pid, port))
    return True


def _credentials(home: Path | None, made: Grant, password: str) -> dict[str, str]:
    from vllm_batch.cli.service_settings import settings_of
    from vllm_batch.messaging import permissions, topology
    from vllm_batch.messaging.connection import without_passwords

    servers = without_passwords(settings_of(home).nats_url).split(",")
    urls = (server.replace("://", f"://{made.name}:{password}@") for server in servers)
    return {
        "nats_url": ",".join(urls),
        "nats_user": made.name,
        "nats_password": password,
        "nats_inbox_prefix": permissions.inbox_prefix(made.name),
        "nats_stream": topology.EVENTS,
        "nats_consumer": permissions.tool_consumer(made.name),
    }


def _print_grant(said: dict[str, Any]) -> None:
    print(
        f"{said['nats_url']}\n\n"
        "The password is shown only now. Events as they happen, and those that wait for the tool:\n"
        f"  nats sub --server URL 'SUBJECT'\n"
        f"  nats consumer next --server URL --inbox-prefix {said['nats_inbox_prefix']} --count 10 "
        f"{said['nats_stream']} {said['nats_consumer']}"
    )


def _print_server_line(made: Grant) -> None:
    from vllm_batch.messaging.nats_users import tool_line

    output.warn(
        "this NATS is not ours to configure: add this user to its configuration and have it read "
        f"it again (SIGHUP)\n{tool_line(made.tool)}"
    )


def _with_store(home: Path | None, deed: Any) -> Any:
    from vllm_batch.cli.keys import with_store

    return with_store(home, deed)
