"""``vllm-batch keys``: API keys, made and revoked in the event log itself; the API need not run."""

from __future__ import annotations

import asyncio
import getpass
import re
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import msgspec
import typer

from vllm_batch.cli import output
from vllm_batch.cli.api_client import when
from vllm_batch.cli.listing import print_rows
from vllm_batch.cli.options import HomeOption, JsonOption
from vllm_batch.errors import AlreadyDone

if TYPE_CHECKING:
    from vllm_batch.event_store import EventStore
    from vllm_batch.ids import KeyId
    from vllm_batch.projections.rows import ApiKeyRow

Result = TypeVar("Result")

_NAME = re.compile(r"[\w.-]{1,64}")
_DAY_SECONDS = 24 * 3600

app = typer.Typer(help="API keys: create, list, rotate, revoke.", no_args_is_help=True)


@app.command()
def create(
    name: Annotated[str, typer.Option(help="What you call it.")] = "default",
    project: Annotated[
        str, typer.Option(help="Whose files and batches it opens; projects do not see each other.")
    ] = "default",
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="What it opens: read, batch, inference, or admin, which opens everything. "
            "Several times for several. Default: all but admin."
        ),
    ] = None,
    expires_days: Annotated[
        float | None, typer.Option(help="It opens nothing any more after so many days.", min=0)
    ] = None,
    secret_file: Annotated[
        Path | None,
        typer.Option(
            help="The key is in this file and is not printed. Once it is made, saying so again "
            "changes nothing.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key and print it: this once, it is kept nowhere. It counts at once."""
    from vllm_batch import api_keys

    for value, option in ((name, "--name"), (project, "--project")):
        if not _NAME.fullmatch(value):
            raise typer.BadParameter(
                "1 to 64 letters, digits, dots, dashes, underscores", param_hint=option
            )
    scopes = sorted(set(scope or ()))
    if unknown := [one for one in scopes if one not in api_keys.SCOPES]:
        raise typer.BadParameter(
            f"{unknown[0]!r} is none of {', '.join(sorted(api_keys.SCOPES))}", param_hint="--scope"
        )
    expires_at = None if expires_days is None else int(time.time() + expires_days * _DAY_SECONDS)
    given = secret_file.read_text(encoding="utf-8").strip() if secret_file else None
    event, secret = with_store(
        home,
        lambda store: api_keys.create(
            store, project=project, name=name, scopes=scopes, expires_at=expires_at,
            requested_by=getpass.getuser(), given=given,
        ),
    )  # fmt: skip
    if as_json:
        output.print_json(
            {
                "id": event.key_id, "project": project, "name": name, "scopes": event.scopes,
                "expires_at": expires_at, "key": secret if given is None else None,
            }
        )  # fmt: skip
    elif given is not None:
        print(event.key_id)
    else:
        print(secret)
        output.warn(f"{event.key_id} of project {project}: keep the key, it is not shown again")


@app.command(name="list")
def list_(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List all keys, revoked ones too; never their secrets."""
    found = with_store(home, all_keys)
    if as_json:
        output.print_json([_as_data(row) for row in found])
        return
    print_rows(
        ("id", "key", "project", "name", "scopes", "created", "expires", "revoked"),
        (
            (
                row.key_id, f"{row.prefix}…", row.project, row.name, ", ".join(row.scopes),
                when(row.created_at) or "-", when(row.expires_at) or "-",
                when(row.revoked_at) or "-",
            )
            for row in found
        ),
    )  # fmt: skip


@app.command()
def rotate(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, key_…")],
    keep_old_hours: Annotated[
        float, typer.Option(help="The old secret opens the same for so long.", min=0)
    ] = 24,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a key a new secret and print it: this once. Exit code 4 if there is no such key."""
    from vllm_batch import api_keys, ids
    from vllm_batch.errors import NotFound

    if not ids.is_token(key_id):
        raise NotFound(f"there is no key {key_id}")
    old_until = datetime.now(UTC) + timedelta(hours=keep_old_hours)
    event, secret = with_store(
        home,
        lambda store: api_keys.rotate(
            store, ids.KeyId(key_id), old_until=old_until, requested_by=getpass.getuser()
        ),
    )
    if as_json:
        output.print_json({"id": key_id, "old_until": event.old_until, "key": secret})
        return
    print(secret)
    output.warn(f"the old secret of {key_id} counts until {when(event.old_until)}")


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, key_…")],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a key open nothing any more. Exit code 4 if there is no such key."""
    with_store(home, lambda store: _revoke(store, key_id))
    if as_json:
        output.print_json({"id": key_id, "revoked": True})
    else:
        print(f"revoked {key_id}")


async def _revoke(store: EventStore, key_id: str) -> None:
    from vllm_batch import api_keys, ids
    from vllm_batch.errors import NotFound

    if not ids.is_token(key_id):
        raise NotFound(f"there is no key {key_id}")
    try:
        await api_keys.revoke(store, ids.KeyId(key_id), requested_by=getpass.getuser())
    except AlreadyDone:
        return


async def all_keys(store: EventStore) -> list[ApiKeyRow]:
    """Return every key."""
    from vllm_batch.events import ApiKeyCreated, ApiKeyRevoked, ApiKeyRotated
    from vllm_batch.messaging import subjects
    from vllm_batch.projections import api_keys

    rows: dict[KeyId, ApiKeyRow] = {}
    async for batch in store.read(subjects.ALL_API_KEYS):
        for recorded in batch:
            if isinstance(event := recorded.event, ApiKeyCreated | ApiKeyRotated | ApiKeyRevoked):
                rows[event.key_id] = api_keys.evolve(rows.get(event.key_id), recorded)
    return list(rows.values())


def _as_data(row: ApiKeyRow) -> dict[str, object]:
    fields: dict[str, object] = msgspec.to_builtins(row)
    return {"id": fields.pop("key_id"), **{k: v for k, v in fields.items() if k != "sha256"}}


def with_store(home: Path | None, deed: Callable[[EventStore], Awaitable[Result]]) -> Result:
    """Have something done with the event log of ``home``, or of the environment."""
    from vllm_batch.cli.service_settings import settings_of

    settings = settings_of(home)

    async def main() -> Result:
        from vllm_batch.event_store import jetstream

        async with jetstream.connect(settings, source="cli") as store:
            return await deed(store)

    return asyncio.run(main())
