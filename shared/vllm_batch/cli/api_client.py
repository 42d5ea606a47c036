"""How the commands talk to the API: where it is, with which key, and its errors in our words."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vllm_batch.cli.options import home_of
from vllm_batch.cli.output import NotRunning
from vllm_batch.errors import BatchError, NotFound
from vllm_batch.local import state

if TYPE_CHECKING:
    from openai import OpenAI

RETRIES_MAX = 3
CONNECT_SECONDS = 5.0
REQUEST_SECONDS = 600.0


class Refused(BatchError):
    """The API said no; the message is its own."""

    code = "api_refused"


class Address(NamedTuple):
    """Where an API is, and the key to it."""

    base_url: str
    api_key: str


def address_of(home: Path | None) -> Address:
    """Return the API that ``--home`` means, else the one in the environment, else the default home.

    Where no stack has run on the home it is the deployment's, which services reach with
    ``gateway_url`` and ``gateway_api_key``. ``OPENAI_API_KEY`` counts only together with
    ``OPENAI_BASE_URL``: a key alone is for another server, and data must not go there by accident.

    Raises:
        NotRunning: neither has a stack run on the home nor is there such a key.
    """
    url, key = os.environ.get("OPENAI_BASE_URL", ""), os.environ.get("OPENAI_API_KEY", "")
    if home is None and url and key:
        return Address(url, key)
    place = home_of(home)
    found = state.read(place.state_file)
    if found.api_url and place.api_key_file.exists():
        return Address(found.api_url, place.api_key_file.read_text(encoding="utf-8").strip())
    from vllm_batch.settings import Settings

    settings = Settings(home=place.root)
    if services_key := settings.gateway_api_key.get_secret_value():
        return Address(f"{settings.gateway_url.rstrip('/')}/v1", services_key)
    raise NotRunning(
        f"no stack has run on {place.root}; start one with `vllm-batch up --detach`, or set "
        "OPENAI_BASE_URL and OPENAI_API_KEY"
    )


@contextmanager
def connected(home: Path | None) -> Iterator[OpenAI]:
    """Yield the official client; what goes wrong inside is raised as one of our errors.

    Raises:
        NotRunning: nobody answers there.
        NotFound: the API does not know the id.
        Refused: the API said no for another reason, or the client is not installed.
    """
    try:
        import openai
    except ImportError as error:
        raise Refused("the client is not installed: pip install 'vllm-batch[cli]'") from error
    address = address_of(home)
    timeout = openai.Timeout(REQUEST_SECONDS, connect=CONNECT_SECONDS)
    try:
        with openai.OpenAI(
            base_url=address.base_url,
            api_key=address.api_key,
            max_retries=RETRIES_MAX,
            timeout=timeout,
        ) as client:
            yield client
    except openai.NotFoundError as error:
        raise NotFound(message_of(error)) from error
    except openai.APIStatusError as error:
        raise Refused(message_of(error)) from error
    except openai.APIConnectionError as error:
        raise NotRunning(
            f"no answer from {address.base_url}; is the stack up? (`vllm-batch status`)"
        ) from error


def message_of(error: Exception) -> str:
    """Return the API's own words."""
    body = getattr(error, "body", None)
    return str(body.get("message") or error) if isinstance(body, dict) else str(error)


def when(timestamp: int | None) -> str | None:
    """Return Unix seconds as local time for people."""
    if timestamp is None:
        return None
    return datetime.fromtimestamp(timestamp, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
