"""Posting to addresses that strangers chose, without letting them reach what only we can reach.

A name is resolved once, by us, and the connection goes to the address that was looked at. Private,
loopback, link-local and other addresses that are not public are refused unless the settings allow
their network; redirects are not followed; an answer's body is not read.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Any

import aiohttp
import yarl
from aiohttp.abc import AbstractResolver, ResolveResult

from vllm_batch.errors import BatchError, InvalidInput

URL_CHARACTERS_MAX = 2048
USER_AGENT = "vllm-batch-webhooks"
_NAT64 = IPv6Network("64:ff9b::/96")
_GLOBAL_UNICAST = IPv6Network("2000::/3")
"""All of IPv6 that is assigned to the internet; `is_global` says yes to much outside of it, such as
::127.0.0.1 and local NAT64 prefixes."""
_NEVER_PUBLIC = tuple(
    ip_network(network)
    for network in (
        "192.0.0.0/24",  # of protocols
        "192.88.99.0/24",  # relays to IPv6
        "168.63.129.16/32",  # a cloud's service for its own machines, at a public address
        "3fff::/20",  # for documents
    )
)


class Unreachable(BatchError):
    """No answer: refused, timed out, not resolved, or not allowed to be called."""

    code = "webhook_unreachable"


class AllowedAddresses:
    """Public ones, and those of ``networks``. Raises InvalidInput for what is no network."""

    def __init__(self, networks: Iterable[str]) -> None:
        try:
            self._networks = [ip_network(network) for network in networks]
        except ValueError as error:
            raise InvalidInput(f"webhook_networks_allowed: {error}") from error

    def has(self, address: str) -> bool:
        """Tell whether ``address`` may be called."""
        found = _innermost(ip_address(address.partition("%")[0]))
        return _is_public(found) or _is_in(found, self._networks)

    @property
    def any_private(self) -> bool:
        """Whether the settings name a network at all."""
        return bool(self._networks)


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv6Address) and address not in _GLOBAL_UNICAST:
        return False
    usable = address.is_global and not address.is_multicast
    return usable and not _is_in(address, _NEVER_PUBLIC)


def _is_in(
    address: IPv4Address | IPv6Address, networks: Iterable[IPv4Network | IPv6Network]
) -> bool:
    return any(address.version == n.version and address in n for n in networks)


def _innermost(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Return the IPv4 address that an IPv6 address stands for, if it does."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address.sixtofour is not None:
            return address.sixtofour
        if address in _NAT64:
            return IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def check_url(url: str, allowed: AllowedAddresses) -> None:
    """Raise InvalidInput where ``url`` can never be called; names are looked up later."""
    try:
        parsed = yarl.URL(url)
    except ValueError as error:
        raise InvalidInput(f"Invalid value for 'url': {error}.", param="url") from error
    schemes = {"https", "http"} if allowed.any_private else {"https"}
    host_ok = parsed.host and url.isprintable() and " " not in parsed.host
    host_ok = host_ok and _can_be_looked_up(parsed.host or "")
    if parsed.scheme not in schemes or not host_ok or len(url) > URL_CHARACTERS_MAX:
        raise InvalidInput(
            "Invalid value for 'url': it has to be an https:// URL of at most "
            f"{URL_CHARACTERS_MAX} characters.",
            param="url",
            code="invalid_value",
        )
    if parsed.user or parsed.password:
        raise InvalidInput(
            "Invalid value for 'url': leave out user and password; deliveries are signed.",
            param="url",
            code="invalid_value",
        )
    if parsed.host and _is_address(parsed.host) and not allowed.has(parsed.host):
        raise InvalidInput(
            f"Invalid value for 'url': {parsed.host} is not a public address.",
            param="url",
            code="invalid_value",
        )


def _can_be_looked_up(host: str) -> bool:
    try:
        return bool(host.encode("idna"))
    except UnicodeError:  # an empty label, or one that is too long
        return False


def _is_address(host: str) -> bool:
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


class _Resolver(AbstractResolver):
    """Resolves once per connection and lets nothing through that may not be called."""

    def __init__(self, allowed: AllowedAddresses) -> None:
        self._allowed = allowed

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of ``host`` that may be called. Raises OSError without one."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, family=family)
        addresses: list[Any] = [
            {
                "hostname": host, "host": address[0], "port": port, "family": kind,
                "proto": proto, "flags": socket.AI_NUMERICHOST,
            }
            for kind, _, proto, _, address in found
            if self._allowed.has(str(address[0]))
        ]  # fmt: skip
        if not addresses:
            raise OSError(None, f"{host} is not a public address")
        return addresses

    async def close(self) -> None:
        """Nothing is held."""


class PublicHttp:
    """Posts; see the module. Close it at the end."""

    def __init__(self, allowed: AllowedAddresses, timeout_seconds: float) -> None:
        self._allowed = allowed
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=_Resolver(allowed), use_dns_cache=False, force_close=True, limit=0
            ),
            timeout=aiohttp.ClientTimeout(total=timeout_seconds),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            headers={"user-agent": USER_AGENT},
        )

    async def post(self, url: str, body: str, headers: dict[str, str]) -> int:
        """Send ``body`` and return the status of the answer.

        Raises:
            Unreachable: there was none.
        """
        try:
            check_url(url, self._allowed)
            async with self._session.post(
                url, data=body.encode(), headers=headers, allow_redirects=False
            ) as answer:
                return answer.status
        except InvalidInput as error:
            raise Unreachable(str(error)) from error
        except TimeoutError as error:
            raise Unreachable("no answer in time") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:  # ValueError: a host's name
            raise Unreachable(str(error) or repr(error)) from error

    async def close(self) -> None:
        """Drop the connections."""
        await self._session.close()
