"""Free ports on loopback."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator

import pytest

from vllm_batch.errors import StackError
from vllm_batch.local import ports


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_a_taken_port_is_not_free_and_requiring_it_says_so(taken: int) -> None:
    assert not ports.is_free(taken)
    with pytest.raises(StackError, match=f"port {taken} is taken .* --port"):
        ports.require(taken)


def test_a_port_taken_on_all_addresses_is_not_free() -> None:
    with socket.socket() as server:
        server.bind(("0.0.0.0", 0))
        server.listen()
        assert not ports.is_free(server.getsockname()[1])


def test_the_preferred_port_is_kept_and_a_taken_one_replaced(taken: int) -> None:
    free = ports.pick(None)
    assert ports.pick(free) == free
    assert ports.pick(taken) != taken
    assert ports.pick(free, avoid=frozenset({free})) != free


@pytest.mark.parametrize("seed", range(20))
def test_picked_ports_lie_outside_the_range_of_outgoing_connections(seed: int) -> None:
    assert 15_000 <= ports.pick(None, rng=random.Random(seed)) < 61_000
    if ports._ephemeral_start() < 61_000:
        assert ports.pick(None, rng=random.Random(seed)) < ports._ephemeral_start()
