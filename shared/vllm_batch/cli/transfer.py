"""Bytes to and from the API with a progress bar: uploads, downloads, result streams."""

from __future__ import annotations

import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import msgspec

from vllm_batch.cli import output
from vllm_batch.cli.api_client import Address, Refused
from vllm_batch.errors import NotFound

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types import FileObject
    from rich.progress import Progress

PIECE_BYTES = 256 * 1024


def upload(client: OpenAI, path: Path, *, purpose: str, expires_after: int | None) -> FileObject:
    """Upload a file, streamed from the disk.

    Raises:
        NotFound: there is no such file.
    """
    if not path.is_file():
        raise NotFound(f"there is no file {path}")
    options: dict[str, Any] = {}
    if expires_after is not None:
        options["expires_after"] = {"anchor": "created_at", "seconds": expires_after}
    with byte_progress() as progress, progress.open(path, "rb", description="uploading") as file:
        return client.files.create(file=(path.name, file), purpose=purpose, **options)  # type: ignore[arg-type]


def download(client: OpenAI, file_id: str, to: Path | None) -> None:
    """Write a file's content to ``to``, or to standard output."""
    size = client.files.retrieve(file_id).bytes
    with (
        client.files.with_streaming_response.content(file_id) as answer,
        byte_progress() as progress,
        destination(to) as file,
    ):
        task = progress.add_task("downloading", total=size)
        for piece in answer.iter_bytes(PIECE_BYTES):
            file.write(piece)
            progress.advance(task, len(piece))


def stream_results(address: Address, batch_id: str, to: Path | None, *, follow: bool) -> int:
    """Write result lines as they are finished; return how many there were.

    Raises:
        NotFound: there is no such batch.
        Refused: the API said no, with its own words.
    """
    lines = 0
    query = f"?follow={'true' if follow else 'false'}"
    request = urllib.request.Request(  # noqa: S310 - the API's address is the user's own
        f"{address.base_url.rstrip('/')}/batches/{batch_id}/results{query}",
        headers={"authorization": f"Bearer {address.api_key}"},
    )
    try:
        with urllib.request.urlopen(request) as answer, destination(to) as file:  # noqa: S310
            for line in answer:
                file.write(line)
                file.flush()
                lines += 1
    except urllib.error.HTTPError as error:
        message = _message(error.read())
        raise (NotFound if error.code == 404 else Refused)(message) from error
    return lines


def _message(body: bytes) -> str:
    try:
        return str(msgspec.json.decode(body)["error"]["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return body.decode(errors="replace") or "no explanation"


@contextmanager
def destination(to: Path | None) -> Iterator[IO[bytes]]:
    """Yield where to write: standard output, or a file that is there whole or not at all."""
    if to is None or str(to) == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    partial = to.with_name(to.name + ".part")
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(to)
    finally:
        partial.unlink(missing_ok=True)


def byte_progress() -> Progress:
    """Return a progress bar in bytes on standard error; invisible where that is no terminal."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = output.console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
