"""``vllm-batch webhook``: who is told when a batch ends. A client of the API, like any other."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vllm_batch.cli import output
from vllm_batch.cli.api_client import connected, when
from vllm_batch.cli.listing import print_fields, print_rows
from vllm_batch.cli.options import HomeOption, JsonOption

if TYPE_CHECKING:
    from openai import OpenAI

app = typer.Typer(help="Webhooks: tell other programs when a batch ends.", no_args_is_help=True)


class EventType(StrEnum):
    """What can be told."""

    COMPLETED = "batch.completed"
    FAILED = "batch.failed"
    EXPIRED = "batch.expired"
    CANCELLED = "batch.cancelled"


Endpoint = Annotated[str, typer.Argument(help="Id of an endpoint (we_…).", show_default=False)]
Types = Annotated[
    list[EventType] | None,
    typer.Option("--on", help="Which ends; may be given several times. Default: all."),
]


@app.command()
def create(
    url: Annotated[str, typer.Argument(help="Where to post to: https://…")],
    name: Annotated[str, typer.Option(help="What you call it.")] = "default",
    on: Types = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Register an endpoint and print its signing secret: this once."""
    with connected(home) as client:
        wanted: list[Any] = [kind.value for kind in on or EventType]
        made = client.webhooks.create(name=name, url=url, event_types=wanted)
    if as_json:
        output.print_json(made.to_dict())
        return
    print(made.signing_secret)
    output.warn(f"{made.id}: keep the secret, deliveries are signed with it; it is not shown again")


@app.command(name="list")
def list_(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the endpoints, newest first."""
    with connected(home) as client:
        found = [endpoint.to_dict() for endpoint in client.webhooks.list(limit=100)]
    if as_json:
        output.print_json(found)
        return
    print_rows(
        ("id", "name", "status", "url", "told of"),
        ((str(e["id"]), str(e["name"]), str(e["status"]), str(e["url"]), _types(e)) for e in found),
    )


def _types(endpoint: dict[str, Any]) -> str:
    return ", ".join(str(kind).removeprefix("batch.") for kind in endpoint["event_types"])


@app.command()
def show(endpoint: Endpoint, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show an endpoint and its newest deliveries."""
    with connected(home) as client:
        found = client.webhooks.retrieve(endpoint).to_dict()
        deliveries = _deliveries(client, endpoint, 10)
    if as_json:
        output.print_json({**found, "deliveries": deliveries})
        return
    fields = {name: str(found[name]) for name in ("id", "name", "url", "status")}
    print_fields({**fields, "told of": _types(found), "created": when(_int(found["created_at"]))})
    _print_deliveries(deliveries)


@app.command()
def deliveries(
    endpoint: Endpoint,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100)] = 20,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """List what was delivered, what failed and what is tried again, newest first."""
    with connected(home) as client:
        found = _deliveries(client, endpoint, limit)
    if as_json:
        output.print_json(found)
    else:
        _print_deliveries(found)


def _deliveries(client: OpenAI, endpoint: str, limit: int) -> list[dict[str, Any]]:
    path = f"/webhook_endpoints/{endpoint}/deliveries"
    answer = client.get(path, cast_to=dict[str, Any], options={"params": {"limit": limit}})
    found: list[dict[str, Any]] = answer["data"]
    return found


def _print_deliveries(found: list[dict[str, Any]]) -> None:
    print_rows(
        ("id", "event", "batch", "status", "tries", "last answer", "last try", "next try"),
        (
            (
                d["id"], d["event_type"], d["batch_id"], d["status"], str(d["attempts"]),
                str(d["last_error"] or d["last_status"] or ""),
                when(d["last_attempt_at"]) or "", when(d["next_attempt_at"]) or "",
            )
            for d in found
        ),
    )  # fmt: skip


def _int(value: object) -> int:
    return int(str(value))


@app.command(name="test")
def send_test(
    endpoint: Endpoint,
    event_type: Annotated[EventType, typer.Option("--on", help="Which end.")] = EventType.COMPLETED,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send a signed sample at once and print what the endpoint answered."""
    with connected(home) as client:
        result = client.webhooks.test(endpoint, event_type=event_type.value)
    if as_json:
        output.print_json(result.to_dict())
    else:
        print(f"{endpoint} answered {result.status_code}")
    if not 200 <= result.status_code < 300:
        raise typer.Exit(output.ExitCode.FAILED)


@app.command()
def replay(
    endpoint: Endpoint,
    delivery: Annotated[str, typer.Argument(help="Id of a delivery (evt_…).")],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Deliver something once more."""
    path = f"/webhook_endpoints/{endpoint}/deliveries/{delivery}/replay"
    with connected(home) as client:
        result = client.post(path, cast_to=dict[str, Any])
    _say(result, as_json, f"{delivery} will be delivered again")


@app.command()
def enable(endpoint: Endpoint, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Deliver again to an endpoint that was disabled because it kept failing."""
    with connected(home) as client:
        result = client.post(f"/webhook_endpoints/{endpoint}/enable", cast_to=dict[str, Any])
    _say(result, as_json, f"{endpoint} is active")


@app.command()
def rotate(
    endpoint: Endpoint,
    keep_old: Annotated[
        bool, typer.Option("--keep-old", help="Sign with the old secret, too, for 24 hours.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a new signing secret and print it: this once."""
    with connected(home) as client:
        made = client.webhooks.rotate_secret(endpoint, keep_old_secret_active_for_24_hours=keep_old)
    if as_json:
        output.print_json(made.to_dict())
    else:
        print(made.signing_secret)


@app.command()
def delete(endpoint: Endpoint, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Delete an endpoint, and what was still to be delivered to it."""
    with connected(home) as client:
        result = client.webhooks.delete(endpoint).to_dict()
    _say(result, as_json, f"{endpoint} is deleted")


def _say(result: dict[str, Any], as_json: bool, text: str) -> None:
    if as_json:
        output.print_json(result)
    else:
        print(text)
