"""Where webhooks may go: public addresses only, however one tries to hide another one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from batch_gateway.webhooks.public_http import (
    AllowedAddresses,
    PublicHttp,
    Unreachable,
    check_url,
)
from vllm_batch.errors import InvalidInput

PUBLIC = AllowedAddresses(())
LOOPBACK = AllowedAddresses(["127.0.0.0/8"])
PRIVATE = [
    "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0",
    "100.64.0.1", "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1%eth0", "fc00::1", "ff02::1",
    "::127.0.0.1", "::ffff:0:127.0.0.1", "64:ff9b:1::a00:1", "fec0::1", "5f00::1", "3fff::1",
    "2001:db8::1", "192.0.0.8", "192.88.99.1", "168.63.129.16", "100.100.100.200", "240.0.0.1",
    "198.18.0.1", "fd00:ec2::254", "::ffff:169.254.169.254", "2002:a9fe:a9fe::",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b::a00:1",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    assert not PUBLIC.has(address)


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1::1", "64:ff9b::5db8:d822"])
def test_a_public_address_may_be_called(address: str) -> None:
    assert PUBLIC.has(address)


def test_a_network_of_the_settings_may_be_called() -> None:
    allowed = AllowedAddresses(["10.1.0.0/16", "fd00::/8"])
    assert allowed.has("10.1.2.3")
    assert allowed.has("::ffff:10.1.2.3")
    assert allowed.has("fd00::7")
    assert not allowed.has("10.2.0.1")
    with pytest.raises(InvalidInput, match="webhook_networks_allowed"):
        AllowedAddresses(["10.1.0.0/99"])


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/x", "ftp://example.com", "example.com", "https://", "https:///x",
        "https://user:pass@example.com/", "https://127.0.0.1/", "https://[::1]/",
        "https://[::ffff:10.0.0.1]/", "https://example.com/" + "x" * 2048, "https://exa mple/",
        "https://[::127.0.0.1]/", "https://[fe80::1%25eth0]/", "https://\uff11\uff12\uff17.0.0.1/",
        "https://a..b/", "https://.com/", "https://" + "a" * 64 + ".com/", "https://\u200b.com/",
        "https://example.com/\r\nx: y", "https://example.com:99999/", "https://\ud800.com/",
    ],
)  # fmt: skip
def test_a_url_that_can_never_be_called_is_refused_at_once(url: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_url(url, PUBLIC)
    assert refused.value.param == "url"


def test_plain_http_needs_a_network_of_the_settings() -> None:
    check_url("https://example.com/hook?a=1", PUBLIC)
    check_url("http://127.0.0.1:8080/hook", LOOPBACK)


@asynccontextmanager
async def server(handler: object) -> AsyncIterator[int]:
    """Run a real HTTP server; yields its port."""
    app = web.Application()
    app.router.add_post("/{path:.*}", handler)  # type: ignore[arg-type]
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@asynccontextmanager
async def http(allowed: AllowedAddresses, seconds: float = 5.0) -> AsyncIterator[PublicHttp]:
    client = PublicHttp(allowed, seconds)
    try:
        yield client
    finally:
        await client.close()


NAMES = [
    "a..b", ".com", "a" * 64 + ".com", "xn--zzzzzz--", "ex%00ample.com", "-", "a_b.invalid",
    "%2e%2e",
    "a." * 130 + "com", "[v1.x]", "\ud800.com", "x" * 300,
]  # fmt: skip


@pytest.mark.parametrize("host", NAMES, ids=range(len(NAMES)))
async def test_a_host_that_is_none_is_unreachable_and_nothing_worse(host: str) -> None:
    """An endpoint of before a check was made: it must not end the duty that delivers for all."""
    async with http(AllowedAddresses(["10.99.0.0/16"])) as client:
        with pytest.raises(Unreachable):
            await client.post(f"https://{host}/hook", "{}", {})


@pytest.mark.parametrize("host", ["localhost", "2130706433", "0x7f.1", "127.1"])
async def test_a_name_that_resolves_to_loopback_is_not_called(host: str) -> None:
    called: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        called.append(request.path)
        return web.Response()

    # A network is allowed, so that plain http may be tried: loopback is still not.
    allowed = AllowedAddresses(["10.99.0.0/16"])
    async with server(handler) as port, http(allowed) as client:
        with pytest.raises(Unreachable, match=r"not a (public|canonical)"):
            await client.post(f"http://{host}:{port}/hook", "{}", {})
    assert not called


async def test_a_redirect_is_an_answer_not_a_way() -> None:
    called: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        called.append(request.path)
        return web.Response(status=307, headers={"location": "/elsewhere"})

    async with server(handler) as port, http(LOOPBACK) as client:
        assert await client.post(f"http://127.0.0.1:{port}/hook", "{}", {}) == 307
    assert called == ["/hook"]


async def test_no_answer_in_time_is_said() -> None:
    async def handler(_: web.Request) -> web.Response:
        await asyncio.sleep(5)
        return web.Response()

    async with server(handler) as port, http(LOOPBACK, seconds=0.1) as client:
        with pytest.raises(Unreachable, match="in time"):
            await client.post(f"http://127.0.0.1:{port}/hook", "{}", {})


async def test_nobody_there_is_said() -> None:
    async with http(LOOPBACK) as client:
        with pytest.raises(Unreachable):
            await client.post("http://127.0.0.1:1/hook", "{}", {})
