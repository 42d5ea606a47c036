"""Takes secrets out of texts before anybody keeps or prints them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr

from vllm_batch.settings import Settings

REDACTED = "[redacted]"
_SECRET_CHARACTERS_MIN = 4
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])")
_SECRET = re.compile(
    r"\bsk-[A-Za-z0-9_\-]{8,}"
    r"|(?<=Bearer )[^\s\"',;]+"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
    r"|(?:(?<=password=)|(?<=passwd=)|(?<=api_key=)|(?<=api-key=)|(?<=token=))[^\s&\"',;)]+",
    re.IGNORECASE,
)


def without_ansi(text: str) -> str:
    """Return ``text`` without colours and other instructions to a terminal."""
    return _ANSI.sub("", text) if "\x1b" in text else text


class Redactor:
    """Takes secrets out of texts: the settings' own, and what looks like one."""

    def __init__(self, settings: Settings) -> None:
        known = sorted(_secrets_of(settings), key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, known))) if known else None

    def clean(self, text: str) -> str:
        """Return ``text`` without terminal colours and secrets."""
        text = without_ansi(text)
        if self._known is not None:
            text = self._known.sub(REDACTED, text)
        return _SECRET.sub(REDACTED, text)

    def clean_value(self, value: Any) -> Any:
        """Return a field's value cleaned, with what is in it."""
        if isinstance(value, str):
            return self.clean(value)
        if isinstance(value, SecretStr):
            return REDACTED
        if isinstance(value, dict):
            return {str(name): self.clean_value(inner) for name, inner in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self.clean_value(inner) for inner in value]
        if value is None or isinstance(value, bool | int | float):
            return value
        return self.clean(str(value))


def _secrets_of(settings: Settings) -> Iterable[str]:
    for url in settings.nats_url.split(","):
        if password := unquote(urlsplit(url).password or ""):
            yield password
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if not isinstance(value, SecretStr):
            continue
        secret = value.get_secret_value()
        # A connection string is no secret as such: the password in it is.
        if "://" in secret:
            secret = urlsplit(secret).password or ""
        if len(secret) >= _SECRET_CHARACTERS_MIN:
            yield secret
