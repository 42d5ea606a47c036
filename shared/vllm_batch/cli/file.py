"""``vllm-batch file``: files at the API."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from vllm_batch.cli import output
from vllm_batch.cli.api_client import connected, when
from vllm_batch.cli.listing import print_fields, print_rows
from vllm_batch.cli.options import HomeOption, JsonOption

app = typer.Typer(help="Files: upload, list, download, delete.", no_args_is_help=True)

FileId = Annotated[str, typer.Argument(metavar="ID", help="The file's id, file-…")]


@app.command()
def upload(
    path: Annotated[Path, typer.Argument(help="File to upload.")],
    purpose: Annotated[str, typer.Option(help="What it is for.")] = "batch",
    expires_after: Annotated[
        int | None, typer.Option(metavar="SECONDS", help="Time to live; batch files: 30 days.")
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Upload a file and print its id."""
    from vllm_batch.cli import transfer

    with connected(home) as client:
        made = transfer.upload(client, path, purpose=purpose, expires_after=expires_after)
    if as_json:
        output.print_json(made.to_dict())
    else:
        print(made.id)


@app.command(name="list")
def list_(
    purpose: Annotated[str, typer.Option(help="Only files of this purpose.")] = "",
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many.")] = 50,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """List files, the newest first."""
    with connected(home) as client:
        options = {"purpose": purpose} if purpose else {}
        pages = client.files.list(limit=min(limit, 10_000), **options)  # type: ignore[arg-type]
        files = list(islice(pages, limit))
    if as_json:
        output.print_json([file.to_dict() for file in files])
        return
    print_rows(
        ("id", "name", "purpose", "bytes", "created", "expires"),
        (
            (
                file.id, file.filename, file.purpose, f"{file.bytes:,}",
                when(file.created_at) or "-", when(file.expires_at) or "-",
            )
            for file in files
        ),
    )  # fmt: skip


@app.command()
def show(file_id: FileId, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show what is known of a file."""
    with connected(home) as client:
        found = client.files.retrieve(file_id)
    if as_json:
        output.print_json(found.to_dict())
        return
    print_fields(
        {
            "id": found.id,
            "name": found.filename,
            "purpose": found.purpose,
            "bytes": f"{found.bytes:,}",
            "created": when(found.created_at),
            "expires": when(found.expires_at),
        }
    )


@app.command()
def download(
    file_id: FileId,
    to: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to; default: standard output.")
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Download a file's content. With --json, to a file only, it says what was written."""
    from vllm_batch.cli import transfer

    if as_json and to is None:
        raise typer.BadParameter("--json needs --output: the content is what is printed otherwise")
    with connected(home) as client:
        transfer.download(client, file_id, to)
    if as_json and to is not None:
        output.print_json({"id": file_id, "path": str(to), "bytes": to.stat().st_size})


@app.command()
def delete(file_id: FileId, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Delete a file."""
    with connected(home) as client:
        deleted = client.files.delete(file_id)
    if as_json:
        output.print_json(deleted.to_dict())
    else:
        print(f"deleted {deleted.id}")
