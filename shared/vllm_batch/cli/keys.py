"""``vllm-batch keys``: API keys, made and revoked in the event log itself; the API need not run."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
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

app = typer.Typer(help="API keys: create, list, revoke.", no_args_is_help=True)


@app.command()
def create(
    name: Annotated[str, typer.Option(help="What you call it.")] = "default",
    project: Annotated[
        str, typer.Option(help="Whose files and batches it opens; projects do not see each other.")
    ] = "default",
    scope: Annotated[
        list[str] | None,
        typer.Option(help="What it opens besides: `admin`, the management of workers."),
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
    event, secret = _with_store(
        home, lambda store: api_keys.create(store, project=project, name=name, scopes=scopes)
    )
    if as_json:
        output.print_json(
            {"id": event.key_id, "project": project, "name": name, "scopes": scopes, "key": secret}
        )
        return
    print(secret)
    output.warn(f"{event.key_id} of project {project}: keep the key, it is not shown again")


@app.command(name="list")
def list_(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List all keys, revoked ones too; never their secrets."""
    found = _with_store(home, _all_keys)
    if as_json:
        output.print_json([{**_as_data(row), "scopes": scopes} for row, scopes in found])
        return
    print_rows(
        ("id", "key", "project", "name", "scopes", "created", "revoked"),
        (
            (
                row.key_id, f"{row.prefix}…", row.project, row.name, ", ".join(scopes) or "-",
                when(row.created_at) or "-", when(row.revoked_at) or "-",
            )
            for row, scopes in found
        ),
    )  # fmt: skip


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, key_…")],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a key open nothing any more. Exit code 4 if there is no such key."""
    _with_store(home, lambda store: _revoke(store, key_id))
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
        await api_keys.revoke(store, ids.KeyId(key_id))
    except AlreadyDone:
        return


async def _all_keys(store: EventStore) -> list[tuple[ApiKeyRow, list[str]]]:
    """Return every key with its scopes."""
    from vllm_batch.events import ApiKeyCreated, ApiKeyRevoked
    from vllm_batch.messaging import subjects
    from vllm_batch.projections import api_keys

    rows: dict[KeyId, ApiKeyRow] = {}
    scopes: dict[KeyId, list[str]] = {}
    async for batch in store.read(subjects.ALL_API_KEYS):
        for recorded in batch:
            if isinstance(event := recorded.event, ApiKeyCreated | ApiKeyRevoked):
                rows[event.key_id] = api_keys.evolve(rows.get(event.key_id), recorded)
                if isinstance(event, ApiKeyCreated):
                    scopes[event.key_id] = event.scopes
    return [(row, scopes[key_id]) for key_id, row in rows.items()]


def _as_data(row: ApiKeyRow) -> dict[str, object]:
    fields: dict[str, object] = msgspec.to_builtins(row)
    return {"id": fields.pop("key_id"), **{k: v for k, v in fields.items() if k != "sha256"}}


def _with_store(home: Path | None, deed: Callable[[EventStore], Awaitable[Result]]) -> Result:
    from vllm_batch.cli.service_settings import settings_of

    settings = settings_of(home)

    async def main() -> Result:
        from vllm_batch.event_store import jetstream

        async with jetstream.connect(settings, source="cli") as store:
            return await deed(store)

    return asyncio.run(main())
