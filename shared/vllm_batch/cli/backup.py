"""``vllm-batch backup``: the event log and the blobs, into a folder and back."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vllm_batch.cli import output
from vllm_batch.cli.options import HomeOption, JsonOption, home_of

if TYPE_CHECKING:
    from vllm_batch.backup import Manifest
    from vllm_batch.settings import Settings

app = typer.Typer(
    help="Backups: create, verify, restore. Everything but secrets is in the event log and blobs.",
    no_args_is_help=True,
)

Folder = Annotated[Path, typer.Argument(help="Folder of the backup.", show_default=False)]


@app.command()
def create(folder: Folder, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Write a backup into a new folder, while everything runs."""
    from vllm_batch.cli.service_settings import settings_of

    settings = settings_of(home)

    async def main() -> Manifest:
        from vllm_batch import backup, backup_records
        from vllm_batch.blobs import open_blobs
        from vllm_batch.event_store import jetstream

        async with jetstream.connect(settings, source="cli") as store:
            blobs = open_blobs(settings.blob_url)
            made = await backup.create(store, blobs, folder, progress=output.warn)
            await backup_records.note(store, str(folder), made_by=output.who())
            return made

    _say("wrote", asyncio.run(main()), folder, as_json)
    if not as_json:
        output.warn("secrets are not in it: keep the file secret-key of the home, or the setting")


@app.command()
def verify(folder: Folder, as_json: JsonOption = False) -> None:
    """Read a backup to its end and compare it with what was written."""
    from vllm_batch import backup

    _say("whole:", backup.verify(folder), folder, as_json)


@app.command()
def restore(folder: Folder, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Put a backup into a home that is new, or into the NATS server and blob store of the settings.

    The embedded stack must be down: only NATS is started meanwhile.
    """
    from vllm_batch.cli.service_settings import is_elsewhere, settings_of

    if is_elsewhere(home):
        manifest = _restore(settings_of(home), folder)
    else:
        from vllm_batch.local.stack import LocalStack

        with LocalStack(home_of(home).root, only={"nats"}) as stack:
            manifest = _restore(stack.settings, folder)
    _say("restored", manifest, folder, as_json)


def _restore(settings: Settings, folder: Path) -> Manifest:
    async def main() -> Manifest:
        from vllm_batch import backup
        from vllm_batch.blobs import open_blobs
        from vllm_batch.event_store import jetstream

        async with jetstream.connect(settings, source="cli") as store:
            blobs = open_blobs(settings.blob_url)
            return await backup.restore(store, blobs, folder, progress=output.warn)

    return asyncio.run(main())


def _say(deed: str, manifest: Manifest, folder: Path, as_json: bool) -> None:
    numbers = {
        "folder": str(folder),
        "events": manifest.last_seq,
        "blobs": len(manifest.blobs),
        "bytes": manifest.bytes,
        "created_at": manifest.created_at.isoformat(),
        "version": manifest.version,
    }
    if as_json:
        output.print_json(numbers)
        return
    print(
        f"{deed} {folder}: {manifest.last_seq:,} events, {len(manifest.blobs):,} blobs, "
        f"{manifest.bytes / 1024**2:,.1f} MiB"
    )
