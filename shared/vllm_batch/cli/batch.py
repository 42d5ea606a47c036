"""``vllm-batch batch``: batches at the API.

Exit codes say how it went: 0 done, 1 failed, 2 wrong usage, 3 the API does not answer, 4 no such
batch, 5 the batch failed, expired or was cancelled.
"""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vllm_batch import ids
from vllm_batch.cli import output
from vllm_batch.cli.api_client import address_of, connected, when
from vllm_batch.cli.listing import print_fields, print_rows
from vllm_batch.cli.options import HomeOption, JsonOption
from vllm_batch.errors import InvalidInput

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types import Batch

_EXIT_CODES = (
    "Exit codes: 0 done · 1 failed · 2 wrong usage · 3 no API answers · 4 no such batch · "
    "5 the batch failed, expired or was cancelled."
)
DEFAULT_ENDPOINT = "/v1/chat/completions"
LINE_BYTES_MAX = 16 * 1024 * 1024

app = typer.Typer(
    help="Batches: submit, watch, fetch results.", no_args_is_help=True, epilog=_EXIT_CODES
)

BatchId = Annotated[str, typer.Argument(metavar="ID", help="The batch's id, batch_…")]


@app.command(epilog=_EXIT_CODES)
def submit(
    file: Annotated[str, typer.Argument(help="JSONL file, or the id of an uploaded one.")],
    endpoint: Annotated[str, typer.Option(help="Default: the url of the file's first line.")] = "",
    window: Annotated[str, typer.Option(help="24h, or another number of m, h or d.")] = "24h",
    metadata: Annotated[
        list[str] | None, typer.Option("--metadata", "-m", metavar="KEY=VALUE", help="Repeatable.")
    ] = None,
    priority: Annotated[int, typer.Option(min=-100, max=100, help="Higher goes first.")] = 0,
    wait: Annotated[bool, typer.Option("--wait", help="Watch it until it has ended.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Upload a batch file, start the batch and print its id."""
    from vllm_batch.cli import transfer

    pairs = _pairs(metadata or [])
    path = Path(file)
    with connected(home) as client:
        if file.startswith("file-") and not path.exists():
            file_id = file
        else:
            endpoint = endpoint or endpoint_of(path)
            file_id = transfer.upload(client, path, purpose="batch", expires_after=None).id
        batch = client.batches.create(
            input_file_id=file_id,
            endpoint=endpoint or DEFAULT_ENDPOINT,  # type: ignore[arg-type]
            completion_window=window,  # type: ignore[arg-type]
            metadata=pairs or None,
            extra_body={"priority": priority},
            # The client tries again by itself: that must not make a second batch.
            extra_headers={"Idempotency-Key": ids.new("cli_")},
        )
        if wait:
            if not as_json:
                print(batch.id)
            batch = _watched(client, batch)
    if as_json:
        output.print_json(batch.to_dict())
    elif wait:
        _print_end(batch)
    else:
        print(batch.id)
    if wait:
        _exit_as(batch)


@app.command(name="list", epilog=_EXIT_CODES)
def list_(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many.")] = 20,
    after: Annotated[str, typer.Option(metavar="ID", help="Older than this batch.")] = "",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """List batches, the newest first."""
    with connected(home) as client:
        options: dict[str, Any] = {"after": after} if after else {}
        batches = list(islice(client.batches.list(limit=min(limit, 100), **options), limit))
    if as_json:
        output.print_json([batch.to_dict() for batch in batches])
        return
    print_rows(
        ("id", "status", "done", "model", "endpoint", "created"),
        (
            (
                batch.id, batch.status, _done(batch), batch.model or "-", batch.endpoint,
                when(batch.created_at) or "-",
            )
            for batch in batches
        ),
    )  # fmt: skip


@app.command(epilog=_EXIT_CODES)
def show(batch_id: BatchId, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show a batch."""
    with connected(home) as client:
        batch = client.batches.retrieve(batch_id)
    if as_json:
        output.print_json(batch.to_dict())
        return
    _print_batch(batch)


@app.command(epilog=_EXIT_CODES)
def watch(batch_id: BatchId, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show a batch's progress until it has ended. Exit code 5 unless it completed."""
    with connected(home) as client:
        batch = _watched(client, client.batches.retrieve(batch_id))
    if as_json:
        output.print_json(batch.to_dict())
    else:
        _print_end(batch)
    _exit_as(batch)


@app.command(epilog=_EXIT_CODES)
def cancel(
    batch_id: BatchId,
    wait: Annotated[bool, typer.Option("--wait", help="Watch it until it has ended.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Cancel a batch; what is done until then can be downloaded."""
    with connected(home) as client:
        batch = client.batches.cancel(batch_id)
        if wait:
            batch = _watched(client, batch)
    if as_json:
        output.print_json(batch.to_dict())
    else:
        print(f"{batch.id} is {batch.status}")


@app.command(epilog=_EXIT_CODES)
def results(
    batch_id: BatchId,
    to: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to; default: standard output.")
    ] = None,
    errors: Annotated[
        Path | None, typer.Option("--errors", "-e", help="Where to write the error lines.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Of a running batch: stream to its end.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch results: the output file in input order, or of a running batch the lines done so far.

    Of a running batch successes and errors come mixed, in the order in which they were finished.
    """
    from vllm_batch.cli import transfer
    from vllm_batch.cli.batch_progress import ENDED

    if as_json and to is None:
        raise typer.BadParameter("--json needs --output: the results are what is printed otherwise")
    with connected(home) as client:
        batch = client.batches.retrieve(batch_id)
        if batch.status not in ENDED:
            lines = transfer.stream_results(address_of(home), batch.id, to, follow=follow)
            if not follow:
                output.warn(f"{batch.id} is {batch.status}: these are the {lines} lines so far")
        else:
            _download(client, batch, to, errors)
        batch = client.batches.retrieve(batch_id)
    if as_json:
        output.print_json({"batch": batch.to_dict(), "output": str(to)})
    if batch.status in ENDED:
        _exit_as(batch)


def _download(client: OpenAI, batch: Batch, to: Path | None, errors: Path | None) -> None:
    from vllm_batch.cli import transfer

    if batch.output_file_id:
        transfer.download(client, batch.output_file_id, to)
    else:
        with transfer.destination(to):
            output.warn(f"{batch.id} is {batch.status} and no request of it succeeded")
    if errors is not None:
        if batch.error_file_id:
            transfer.download(client, batch.error_file_id, errors)
        else:
            with transfer.destination(errors):
                pass
    elif batch.error_file_id:
        output.warn(f"some requests have an error: get them with --errors ({batch.error_file_id})")


def endpoint_of(path: Path) -> str:
    """Return the url of the file's first request; the default one where it has none."""
    if not path.is_file():
        return DEFAULT_ENDPOINT
    with path.open("rb") as file:
        while line := file.readline(LINE_BYTES_MAX):
            if not line.strip():
                continue
            try:
                first = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError):
                return DEFAULT_ENDPOINT  # the batch will fail and say in which line and why
            url = first.get("url") if isinstance(first, dict) else None
            return url if isinstance(url, str) else DEFAULT_ENDPOINT
    return DEFAULT_ENDPOINT


def _pairs(given: list[str]) -> dict[str, str]:
    pairs = {}
    for one in given:
        key, equals, value = one.partition("=")
        if not equals:
            raise InvalidInput(f"--metadata {one}: it has to be KEY=VALUE", param="metadata")
        pairs[key] = value
    return pairs


def _watched(client: OpenAI, batch: Batch) -> Batch:
    from vllm_batch.cli.batch_progress import watched

    return watched(client, batch)


def _exit_as(batch: Batch) -> None:
    if batch.status != "completed":
        raise typer.Exit(output.ExitCode.UNSUCCESSFUL)


def _done(batch: Batch) -> str:
    counts = batch.request_counts
    if counts is None or not counts.total:
        return "-"
    failed = f" ({counts.failed} failed)" if counts.failed else ""
    return f"{counts.completed + counts.failed}/{counts.total}{failed}"


def _print_end(batch: Batch) -> None:
    print(f"{batch.id} is {batch.status}: {_done(batch)}")
    _print_errors(batch)


def _print_errors(batch: Batch) -> None:
    for error in (batch.errors.data if batch.errors else None) or []:
        where = f"line {error.line}: " if error.line is not None else ""
        output.warn(f"{where}{error.message} ({error.code})")


def _print_batch(batch: Batch) -> None:
    from vllm_batch.cli.batch_progress import waiting_for

    usage = batch.usage
    print_fields(
        {
            "id": batch.id,
            "status": batch.status,
            "done": _done(batch),
            "waits": " ".join(one["message"] for one in waiting_for(batch)) or None,
            "model": batch.model,
            "endpoint": batch.endpoint,
            "input": batch.input_file_id,
            "output": batch.output_file_id,
            "errors": batch.error_file_id,
            "window": batch.completion_window,
            "created": when(batch.created_at),
            "started": when(batch.in_progress_at),
            "completed": when(batch.completed_at),
            "failed": when(batch.failed_at),
            "expired": when(batch.expired_at),
            "cancelled": when(batch.cancelled_at),
            "expires": when(batch.expires_at),
            "tokens": f"{usage.input_tokens:,} in, {usage.output_tokens:,} out" if usage else None,
            "metadata": json.dumps(batch.metadata, ensure_ascii=False) if batch.metadata else None,
        }
    )
    _print_errors(batch)
