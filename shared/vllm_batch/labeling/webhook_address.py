"""Which addresses Label Studio takes for a webhook. Pure.

Its ``Webhook.url`` is a Django ``URLField`` (1.23.2): the host is ``localhost``, an IP address or a
name with a dot that ends in letters. A name of a network of containers is none of these.
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

_LABEL = r"[a-z0-9\u00a1-\uffff](?:[a-z0-9\u00a1-\uffff-]{0,61}[a-z0-9\u00a1-\uffff])?"
_LAST = r"(?:[a-z\u00a1-\uffff][a-z\u00a1-\uffff-]{0,61}[a-z\u00a1-\uffff]|xn--[a-z0-9]{1,59})"
_HOST = re.compile(rf"localhost|(?:{_LABEL}\.)+{_LAST}\.?", re.IGNORECASE)


def refusal(url: str) -> str | None:
    """Return why Label Studio will not deliver to ``url``, and what to do; None: nothing is wrong
    with the address."""
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        host = ""
    if _HOST.fullmatch(host) or _is_ip(host):
        return None
    return (
        f"Label Studio delivers to no host like {host!r}: a webhook needs a host with a dot, an IP "
        f"address, or localhost. Set VLLM_BATCH_BRIDGE_URL to such an address of the bridge"
    )


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
